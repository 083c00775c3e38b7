//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"fmt"
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
	if err := rewrite([]string{filepath.Join(s.out, "results.json"), "-plots", t.TempDir()}, &again, t.Output()); err != nil || again.String() != out.String() {
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

// testReport is of a run that took so long for each thing, for each server and round.
func testReport(machine string, at time.Time, servers []string, us ...float64) *report {
	r := &report{At: at, Machine: machine, Commit: "c1", Settings: fmt.Sprint(len(us), " rounds"), Cases: []caseRecord{{Name: "rate-100"}, {Name: "idle"}}}
	for i, name := range servers {
		r.Servers = append(r.Servers, entrant{Name: name, Kind: name, Version: "1"})
		for round, us := range us {
			res := &load.Result{
				Connect: load.Connect{Count: 10}, Loaded: load.Memory{RSS: int64(1000 * (i + 1))}, ServerCPU: us * float64(i+1), Delivered: 1, Seconds: 1,
				Delivery: load.Times{P50: 1500, P99: 2500, P999: 3500},
			}
			for j, c := range []string{"rate-100", "idle"} {
				at = at.Add(time.Second)
				job := load.Job{Kind: []string{load.FanOut, load.Idle}[j], Subscribers: 12_000, Target: load.Target{PID: round}}
				r.Runs = append(r.Runs, record{Case: c, Server: name, Round: round + 1, At: at, Job: job, Result: res})
			}
		}
	}
	return r
}

func TestJoin(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := testReport("m", at, []string{"limit", "petrel"}, 10, 10)
	// In the second, everything takes three times as long: ratios stay what they are, because each is to the limit of its own report.
	if err := r.join(testReport("m", at.Add(time.Hour), []string{"limit", "petrel", "nats"}, 30, 30, 30)); err != nil {
		t.Fatal(err)
	}
	// The third has no limit: it adds to the values alone.
	if err := r.join(testReport("m", at.Add(2*time.Hour), []string{"soketi", "petrel"}, 40)); err != nil {
		t.Fatal(err)
	}
	c := r.chosen()[0]
	value, ratio, runs := r.figures(c, metrics(c)[0], "petrel")
	if value != (spread{60, 20, 80}) || ratio != (spread{2, 2, 2}) || runs != 6 {
		t.Errorf("%v %v %d", value, ratio, runs)
	}
	var names []string
	for _, s := range r.Servers {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "limit petrel soketi nats" || r.Settings != "2 rounds\n3 rounds\n1 rounds" {
		t.Errorf("%s; %s", got, r.Settings)
	}
	var out bytes.Buffer
	r.writeMarkdown(&out)
	for _, want := range []string{
		"| median (ratio to the limit) | limit | petrel | soketi | nats | rounds | aim |\n|---|--:|--:|--:|--:|--:|--:|\n",
		"| 100 subscribers of one channel, 30,000 deliveries a second; µs of CPU a delivery | 30.0 | 60.0 (2.00) | 40.0 | 90.0 (3.00) | 1–6 | 1.35 × |\n",
		"| 12,000 connections that say nothing, a channel each; bytes of RSS a connection | 100 | 200 (2.00) |",
		"| 100 subscribers of one channel, 30,000 deliveries a second; to a subscriber | 1.50 / 2.50 / 3.50 |",
		"In all other of the 30 runs nothing was lost",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	if err := r.choose([]string{"petrel", "limit"}); err != nil || len(r.Servers) != 2 || r.Servers[0].Name != "petrel" {
		t.Errorf("%v %v", err, r.Servers)
	}

	other := testReport("m", at.Add(3*time.Hour), []string{"petrel"}, 10)
	other.Runs[0].Job.Payload = 7
	kind := testReport("m", at.Add(3*time.Hour), []string{"petrel"}, 10)
	kind.Servers[0].Kind = "plain"
	for want, o := range map[string]*report{
		"another machine":   testReport("n", at.Add(3*time.Hour), []string{"petrel"}, 10),
		"there already":     testReport("m", at.Add(time.Hour), []string{"petrel"}, 10),
		"another load":      other,
		"of the kind plain": kind,
	} {
		if err := r.join(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestComplaints: what went wrong is said, of whom.
func TestComplaints(t *testing.T) {
	t.Parallel()
	r := testReport("m", time.Now(), []string{"limit", "x"}, 10, 10)
	r.Runs[4].Result = &load.Result{Lost: 3, Storm: &load.Return{NotBack: 2}}
	r.Runs[6] = record{Case: "rate-100", Server: "x", Round: 2, Error: "it fell\nover"}
	var out bytes.Buffer
	r.markdownComplaints(&out)
	want := "- x, rate-100, in 2 runs: 3 lost, 2 not back, 1 runs failed: it fell.\n\nIn all other of the 8 runs"
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("%s\nwant %s", out.String(), want)
	}
}

func TestReportOfFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for i, at := range []time.Time{time.Unix(1_000_000, 0), time.Unix(2_000_000, 0)} {
		files = append(files, filepath.Join(dir, strconv.Itoa(i)))
		if err := os.Mkdir(files[i], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := testReport("m", at, []string{"limit", "petrel", "nats"}, 10).save(files[i]); err != nil {
			t.Fatal(err)
		}
		files[i] = filepath.Join(files[i], "results.json")
	}
	var out bytes.Buffer
	if err := rewrite([]string{files[0], "-markdown", files[1], "-plots", dir, "-servers", "limit,petrel"}, &out, t.Output()); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "| 2 | 1.35 × |") || strings.Contains(s, "nats") {
		t.Error(s)
	}
	for want, args := range map[string][]string{
		"report FILE": {}, "there already": {files[0], files[0]}, "was not measured": {files[0], "-servers", "x"}, "no such file": {"nowhere"},
	} {
		if err := rewrite(args, t.Output(), t.Output()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	r := testReport("m", time.Now(), []string{"limit", "petrel", "a&b"}, 10, 20)
	dir := t.TempDir()
	if err := r.plot(dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil || len(files) != 4 { // delivery, latency, idle, clients
		t.Fatalf("%v %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(text, new(struct{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s := string(text); !strings.Contains(s, "a&amp;b") || strings.Contains(s, "NaN") || strings.Contains(s, "%!") {
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
	for v, want := range map[float64]string{0: "0", 0.126: "0.13", 1.5: "1.50", 12.34: "12.3", 123.4: "123", 12345: "12,345", 1_234_567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
