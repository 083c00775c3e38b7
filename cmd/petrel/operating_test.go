package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/bus/bustest"
)

// TestOperating does what docs/OPERATING.md says about a cell, in its order, with a process per node: every block
//
//	```bash on n1          runs on that node and must succeed
//	```bash on n1: serve   starts its process, or starts it anew with these flags, and waits until it is ready
//
// and what HTML comments say that stands in the text around them:
//
//	<!-- on n1: COMMAND -->, <!-- on n1: serve: COMMAND -->
//	<!-- n1 stops | starts | restarts | dies | ends | loses its disk -->
//
// Each node has an address of its own on this machine, in the place of 10.0.0.1 and so on, and a folder in the place of /.
// Whenever the document has waited for the cell, a message goes through every node and is read through every other; at the
// end all of them are there.
func TestOperating(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs many processes")
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("bash is not installed")
	}
	text, err := os.ReadFile("../../docs/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	o := &operating{t: t, dir: t.TempDir(), machines: map[string]*machine{}, posted: map[string]bool{}}
	t.Cleanup(o.end)
	steps := operatingSteps(string(text))
	if len(steps) < 20 {
		t.Fatalf("the document has only %d steps about a cell", len(steps))
	}
	watched := regexp.MustCompile("(?m)^\\| (`petrel_[^|]*) \\|").FindAllStringSubmatch(string(text), -1)
	for _, s := range steps {
		o.do(s)
		if strings.Contains(s.text, "petrel node wait --voters") {
			o.chat()
		}
		if len(watched) > 0 && strings.Contains(s.text, "--voters 3") {
			o.metrics(watched)
			watched = nil
		}
	}
	o.chat()
	if living := o.living(); len(living) < 2 {
		t.Errorf("at the end only %d nodes run", len(living))
	}
}

// operatingStep is one thing that the document lets one node do.
type operatingStep struct {
	node  string
	verb  string // run, serve, or what becomes of its process
	text  string
	where string
}

var (
	fenceOn   = regexp.MustCompile("^```bash on (n[0-9])(: serve)?$")
	commentOn = regexp.MustCompile(`^<!-- on (n[0-9]): (serve: )?(.*) -->$`)
	commentIs = regexp.MustCompile(`^<!-- (n[0-9]) (stops|starts|restarts|dies|ends|loses its disk) -->$`)
)

func operatingSteps(text string) (steps []operatingStep) {
	var open *operatingStep
	for i, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("OPERATING.md:%d", i+1)
		if open != nil {
			if line == "```" {
				steps, open = append(steps, *open), nil
			} else {
				open.text += line + "\n"
			}
			continue
		}
		if m := fenceOn.FindStringSubmatch(line); m != nil {
			open = &operatingStep{where: at, node: m[1], verb: "run"}
			if m[2] != "" {
				open.verb = "serve"
			}
		}
		if m := commentOn.FindStringSubmatch(line); m != nil {
			s := operatingStep{where: at, node: m[1], verb: "run", text: m[3]}
			if m[2] != "" {
				s.verb = "serve"
			}
			steps = append(steps, s)
		}
		if m := commentIs.FindStringSubmatch(line); m != nil {
			steps = append(steps, operatingStep{where: at, node: m[1], verb: m[2]})
		}
	}
	return steps
}

// operating is the machines that the document is about.
type operating struct {
	t        *testing.T
	dir      string
	machines map[string]*machine
	posted   map[string]bool // ids of messages that were answered
	position string          // of the last of them
	n        int
}

type machine struct {
	name, host, root string
	serve            string // how its process was started last
	cmd              *exec.Cmd
	log              *syncBuffer
	exited           chan struct{} // closed when cmd has ended
}

func (m *machine) running() bool {
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

func (m *machine) data() string { return filepath.Join(m.root, "var/lib/petrel") }

func (o *operating) machine(name string) *machine {
	m := o.machines[name]
	if m == nil {
		m = &machine{name: name, host: bustest.Loopback(o.t), root: filepath.Join(o.dir, name), log: &syncBuffer{}}
		for _, dir := range []string{"var/lib", "etc/petrel"} {
			if err := os.MkdirAll(filepath.Join(m.root, dir), 0o700); err != nil {
				o.t.Fatal(err)
			}
		}
		o.machines[name] = m
	}
	return m
}

// Ports that no kernel gives away, in the place of the document's.
var operatingPorts = []string{":8080", ":21080", ":8081", ":21081", ":7600", ":21600", ":7601", ":21601"}

// onMachine is a command of the document as that machine runs it.
func (o *operating) onMachine(m *machine, text string) string {
	pairs := slices.Clone(operatingPorts)
	for i := 1; i <= 9; i++ {
		name, ip := fmt.Sprint("n", i), fmt.Sprint("10.0.0.", i)
		if strings.Contains(text, ip) {
			other := o.machine(name)
			pairs = append(pairs, ip+":/", other.root+"/", ip, other.host)
		}
	}
	pairs = append(pairs, " /var/", " "+m.root+"/var/", " /etc/", " "+m.root+"/etc/")
	return strings.NewReplacer(pairs...).Replace(text)
}

func (o *operating) command(m *machine, text string) *exec.Cmd {
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", "scp() { cp \"$@\"; }\n"+text)
	cmd.Dir = m.root
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PETREL_") && !strings.HasPrefix(kv, "PUSHER_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PETREL_DATA="+m.data(), "PETREL_ADMIN="+m.host+":21081",
		"PETREL_APP_ID=1", "PETREL_APP_KEY=operating", "PETREL_APP_SECRET=nobody-would-guess-this-secret-01")
	return cmd
}

func (o *operating) do(s operatingStep) {
	o.t.Helper()
	o.t.Logf("%s: %s: %s %s", s.where, s.node, s.verb, strings.TrimSpace(s.text))
	m := o.machine(s.node)
	switch s.verb {
	case "run":
		out, err := o.command(m, o.onMachine(m, s.text)).CombinedOutput()
		o.t.Logf("%s", out)
		if err != nil {
			o.fatal("%s: %v", s.where, err)
		}
	case "serve":
		if m.running() {
			o.stop(m)
		}
		m.serve = o.onMachine(m, s.text)
		o.start(m)
	case "starts":
		o.start(m)
	case "restarts":
		o.stop(m)
		o.start(m)
	case "stops":
		o.stop(m)
	case "dies":
		_ = m.cmd.Process.Kill()
		<-m.exited
	case "ends":
		o.until(m.name+" ends by itself", func() bool { return !m.running() })
	case "loses its disk":
		if err := os.RemoveAll(m.data()); err != nil {
			o.fatal("%v", err)
		}
	}
}

func (o *operating) start(m *machine) {
	o.t.Helper()
	cmd := o.command(m, "exec "+m.serve)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	if err := cmd.Start(); err != nil {
		o.fatal("%v", err)
	}
	m.cmd, m.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(m.exited)
	o.until(m.name+" is ready", func() bool {
		if !m.running() {
			o.fatal("%s ended", m.name)
		}
		_, status := o.get("http://"+m.host+":21081/readyz", nil)
		return status == http.StatusOK
	})
}

func (o *operating) stop(m *machine) {
	o.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		o.fatal("%s: %v", m.name, err)
	}
	<-m.exited
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		o.fatal("%s ended with code %d after SIGTERM", m.name, code)
	}
}

// end kills what still runs.
func (o *operating) end() {
	for _, m := range o.machines {
		if m.cmd != nil {
			_ = m.cmd.Process.Kill()
			<-m.exited
		}
	}
}

func (o *operating) fatal(format string, args ...any) {
	o.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(o.machines)) {
		log := o.machines[name].log.String()
		o.t.Logf("the end of what %s wrote:\n%s", name, log[max(0, len(log)-6000):])
	}
	o.t.Fatalf(format, args...)
}

// until polls for as long as a test may take on a busy machine.
func (o *operating) until(what string, ok func() bool) {
	o.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			o.fatal("waited in vain until %s", what)
		}
	}
}

func (o *operating) living() (all []*machine) {
	for _, name := range slices.Sorted(maps.Keys(o.machines)) {
		if m := o.machines[name]; m.running() {
			all = append(all, m)
		}
	}
	return all
}

// chat sends a message through every node, and reads all of them through every node at the position of the last.
func (o *operating) chat() {
	o.t.Helper()
	for _, m := range o.living() {
		o.n++
		id := fmt.Sprintf("m%d", o.n)
		body := fmt.Sprintf(`{"id":%q,"text":"through %s"}`, id, m.name)
		o.until("a message is taken by "+m.name, func() bool {
			if _, status := o.call(http.MethodPost, m, "/v1/rooms", `{"id":"ops","kind":"open"}`); status != http.StatusOK && status != http.StatusCreated {
				return false
			}
			_, status := o.call(http.MethodPost, m, "/v1/rooms/ops/messages", body)
			return status == http.StatusOK || status == http.StatusCreated
		})
		o.posted[id] = true
	}
	for _, m := range o.living() {
		var page struct {
			Messages []struct{ ID string }
		}
		o.until(m.name+" shows them", func() bool {
			b, status := o.call(http.MethodGet, m, "/v1/rooms/ops/messages?limit=100", "")
			return status == http.StatusOK && json.Unmarshal(b, &page) == nil
		})
		missing := maps.Clone(o.posted)
		for _, message := range page.Messages {
			delete(missing, message.ID)
		}
		if len(missing) > 0 {
			o.fatal("%s does not show the messages %v", m.name, slices.Sorted(maps.Keys(missing)))
		}
	}
}

func (o *operating) call(method string, m *machine, path, body string) ([]byte, int) {
	ctx, cancel := context.WithTimeout(o.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.host+":21080"+path, strings.NewReader(body))
	if err != nil {
		o.t.Fatal(err)
	}
	req.SetBasicAuth("operating", "nobody-would-guess-this-secret-01")
	req.Header.Set("Petrel-User", "ada")
	req.Header.Set("Content-Type", "application/json")
	if o.position != "" && method == http.MethodGet {
		req.Header.Set("Petrel-Position", o.position)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0
	}
	if p := resp.Header.Get("Petrel-Position"); method == http.MethodPost && p != "" {
		o.position = p
	}
	return b, resp.StatusCode
}

func (o *operating) get(url string, err error) ([]byte, int) {
	ctx, cancel := context.WithTimeout(o.t.Context(), 10*time.Second)
	defer cancel()
	req, rerr := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err := errors.Join(err, rerr); err != nil {
		o.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0
	}
	return b, resp.StatusCode
}

// metrics waits until some node shows each metric that the document says to watch.
func (o *operating) metrics(rows [][]string) {
	o.t.Helper()
	missing := map[string]bool{}
	for _, row := range rows {
		for _, name := range regexp.MustCompile(`petrel_\w+`).FindAllString(row[1], -1) {
			missing[name] = true
		}
	}
	if len(missing) < 10 {
		o.fatal("the document says to watch only %v", missing)
	}
	o.until("the metrics are there that the document names", func() bool {
		o.chat()
		for _, m := range o.living() {
			b, _ := o.get("http://"+m.host+":21081/metrics", nil)
			for name := range missing {
				if bytes.Contains(b, []byte("\n# TYPE "+name+" ")) {
					delete(missing, name)
				}
			}
		}
		if len(missing) > 0 {
			o.t.Logf("not yet: %v", slices.Sorted(maps.Keys(missing)))
		}
		return len(missing) == 0
	})
}

// syncBuffer is a buffer that a process writes to while the test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
