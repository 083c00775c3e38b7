//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/bench/peers/load"
	"github.com/petrel-chat/petrel/bench/rig"
	"github.com/petrel-chat/petrel/internal/petreltest"
)

// TestMain lets the test binary be the program too: a benchmark starts itself as load generator and as bare server.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "load" || os.Args[1] == "bare") {
		main()
		return
	}
	defer petreltest.RemoveBinary()
	m.Run()
}

// TestBench goes through every case with the servers that are always there, for a moment each. Nothing is said about how fast anything is.
func TestBench(t *testing.T) {
	t.Parallel()
	args := []string{
		"-servers", "bare", "-cases", "rate-100,idle,storm", "-rounds", "1", "-settle", "10ms", "-warmup", "20ms", "-measure", "100ms", "-idle", "100ms",
		"-idle-connections", "50", "-storm-connections", "50", "-out", t.TempDir(),
	}
	if !testing.Short() {
		args = append(args, "-petrel", petreltest.Binary(t))
		args = append(args, "-server", "petrel-gogc50=petrel:env GOGC=50 {petrel}")
		args[1] = "bare,petrel,petrel-native"
		args[3] = "rate-100,max-100,publish,idle,storm"
		if _, err := exec.LookPath("cc"); err == nil {
			args[1] += ",limit"
		}
	}
	s, err := parseSettings(args, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	b := newBench(s, &out, t.Output())
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := len(s.cases) * len(b.servers); len(b.report.Runs) != want {
		t.Errorf("%d runs, want %d", len(b.report.Runs), want)
	}
	for _, r := range b.report.Runs {
		if r.Error != "" {
			t.Errorf("%s, %s: %s", r.Case, r.Server, r.Error)
			continue
		}
		if res := r.Result; res.Lost+res.Gaps+res.Disorder+res.Disconnected+res.PublishErrors > 0 || res.Connect.Count != r.Job.Subscribers {
			t.Errorf("%s, %s: %d came%s", r.Case, r.Server, res.Connect.Count, res.Complaints())
		}
		if r.Job.Kind == load.Storm && r.Result.Storm.NotBack > 0 {
			t.Errorf("%s, %s: %+v", r.Case, r.Server, r.Result.Storm)
		}
	}
	for _, want := range []string{"rate-100", "idle: CPU", "storm: all back", "bare"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the tables do not have %q:\n%s", want, out.String())
		}
	}
	var again bytes.Buffer
	if err := rewrite([]string{filepath.Join(s.out, "results.json"), t.TempDir()}, &again); err != nil || again.String() != out.String() {
		t.Errorf("%v: the report of the file differs:\n%s", err, again.String())
	}
}

// TestCasesCanBeDone asks the load generator, which TestBench does for some only.
func TestCasesCanBeDone(t *testing.T) {
	t.Parallel()
	s, err := parseSettings([]string{"-out", t.TempDir()}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.cases {
		job := c.job(&s)
		if err := job.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestFailuresAreTold: a server that cannot be started, one that ends, and one that is not known.
func TestFailuresAreTold(t *testing.T) {
	t.Parallel()
	quick := []string{"-rounds", "1", "-settle", "10ms", "-warmup", "10ms", "-measure", "10ms", "-cases", "rate-100"}
	run := func(args ...string) (*bench, error) {
		s, err := parseSettings(append(append(quick, "-out", t.TempDir()), args...), t.Output())
		if err != nil {
			return nil, err
		}
		b := newBench(s, t.Output(), t.Output())
		return b, b.run(t.Context())
	}
	for want, args := range map[string][]string{
		"no such server: nobody":    {"-servers", "nobody"},
		"no such case: x":           {"-cases", "x"},
		"no such kind: telepathy":   {"-servers", "bare", "-server", "a=telepathy:b"},
		"say NAME=KIND:COMMAND":     {"-server", "a"},
		"at least one round":        {"-rounds", "0"},
		`what is "more"?`:           {"more"},
		"no such file or directory": {"-servers", "petrel-tls", "-petrel", "/nowhere"},
	} {
		if _, err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
	for want, args := range map[string][]string{
		"the server ended: exit status 1": {"-server", "x=plain:false {port}"},
		"limit":                           {"-server", "x=pusher:" + os.Args[0] + " bare {port}", "-limit", "1s"}, // it hangs up on whoever speaks Pusher's protocol
	} {
		b, err := run(append(args, "-servers", "bare")...)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(b.report.Runs, func(r record) bool { return r.Server == "x" })
		if i < 0 || b.report.Runs[i].Error == "" || want != "limit" && !strings.Contains(b.report.Runs[i].Error, want) {
			t.Errorf("%s: %+v", args, b.report.Runs)
		}
	}
}

// TestTLS puts the bare server behind TLS, as a proxy in front of it would.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, err := rig.SelfSigned(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	port, err := rig.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), os.Args[0], "bare", strconv.Itoa(port))
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	if err := until(t.Context(), &launch{target: load.Target{Addr: local(port)}}); err != nil {
		t.Fatal(err)
	}
	front, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}) //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { forward(t.Context(), front, local(port), &running) })
	t.Cleanup(func() {
		front.Close()
		running.Wait()
	})
	for _, kind := range []string{load.FanOut, load.Storm} {
		job := load.Job{
			Kind: kind, Subscribers: 30, Channels: 1, Lanes: 3, Payload: 128, Window: 10, Settle: 10 * time.Millisecond, Warmup: 10 * time.Millisecond,
			Measure: 50 * time.Millisecond, Limit: 2 * time.Minute,
			Target: load.Target{Dialect: "plain", Addr: front.Addr().String(), PID: server.Process.Pid, TLS: true},
		}
		ended := make(chan struct{})
		go func() { // whose thread ends with it
			defer close(ended)
			res, err := load.Run(t.Context(), job, func() {})
			switch {
			case err != nil:
				t.Errorf("%s: %v", kind, err)
			case res.Lost+res.Gaps+res.Disorder+res.Disconnected+res.PublishErrors > 0 || res.Connect.Count != job.Subscribers || kind == load.Storm && res.Storm.NotBack > 0:
				t.Errorf("%s: %+v", kind, res)
			}
		}()
		<-ended
	}
}

// forward hands every connection on, until the listener is closed.
func forward(ctx context.Context, l net.Listener, addr string, running *sync.WaitGroup) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer in.Close()
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return
			}
			running.Go(func() {
				defer in.Close()
				_, _ = io.Copy(in, out)
			})
			_, _ = io.Copy(out, in)
			out.Close()
		})
	}
}

func TestRatiosArePaired(t *testing.T) {
	t.Parallel()
	// A minute in which everything took twice as long changes no ratio.
	r := report{Servers: []entrant{{Name: "limit"}, {Name: "x"}}, Cases: []caseRecord{{Name: "rate-100"}}}
	for round, slow := range []float64{1, 2, 1} {
		for name, us := range map[string]float64{"limit": 10, "x": 15} {
			r.Runs = append(r.Runs, record{Case: "rate-100", Server: name, Round: round + 1, Result: &load.Result{ServerCPU: us * slow, Delivered: 1, Seconds: 1}})
		}
	}
	r.Runs = append(r.Runs, record{Case: "rate-100", Server: "x", Round: 4, Error: "it fell\nover"})
	c := r.chosen()[0]
	value, ratio, runs := r.figures(c, metrics(c)[0], "x")
	if value != (spread{15, 15, 30}) || ratio != (spread{1.5, 1.5, 1.5}) || runs != 3 {
		t.Errorf("%v %v %d", value, ratio, runs)
	}
	var out bytes.Buffer
	if r.write(&out); !strings.Contains(out.String(), "15.0 (1.50)") || !strings.Contains(out.String(), "x: 1 runs failed, first: it fell; over") {
		t.Error(out.String())
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	r := report{Servers: []entrant{{Name: "limit"}, {Name: "petrel"}, {Name: "a&b"}}, Cases: []caseRecord{{Name: "rate-100"}, {Name: "idle"}}}
	for i, s := range r.Servers {
		res := &load.Result{Connect: load.Connect{Count: 10}, Loaded: load.Memory{RSS: int64(1000 * (i + 1))}, ServerCPU: float64(i + 1), Delivered: 1, Seconds: 1}
		r.Runs = append(r.Runs, record{Case: "rate-100", Server: s.Name, Round: 1, Result: res}, record{Case: "idle", Server: s.Name, Round: 1, Result: res})
	}
	dir := t.TempDir()
	if err := r.plot(dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil || len(files) != 3 { // rate, memory, connections
		t.Fatalf("%v %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if s := string(text); !strings.HasSuffix(s, "</svg>\n") || !strings.Contains(s, "a&amp;b") || strings.Contains(s, "NaN") || strings.Contains(s, "%!") {
			t.Errorf("%s:\n%s", name, s)
		}
	}
}

func TestPetrelTakes(t *testing.T) {
	t.Parallel()
	for files, want := range map[int]int{20_000: 18_600, 1024: 600} {
		if got := petrelTakes(files); got != want {
			t.Errorf("%d connections with %d files, want %d", got, files, want)
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 0.126: "0.13", 1.5: "1.50", 12.34: "12.3", 123.4: "123", 12345: "12345"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
