// Package petreltest runs the real petrel as its users do, and hurts it: kill -9, a loss of power, a full disk, damaged
// files, clocks that are wrong, a network that cuts, loses and delays. What its clients then saw is judged.
//
// There are three ways to run nodes: a Server is one process; a Cell is nodes in this process, with real sockets; a Fleet is
// processes on machines of their own, with a Net between them that a Nemesis makes fail. A Workload is clients on all nodes, whichever
// way they run, and writes what they were told into a Journal; Evidence.Check judges that by itself and names what it finds.
//
// Clients and checker share no code with what they test beyond the typed ids: they speak the documented protocol through
// other libraries than the server's. Only tests import this package.
//
// # Invariants
//
//   - Nothing waits by the clock: every wait polls a condition until a deadline far beyond what is expected. How long a fault lasts,
//     and how long a workload talks, is no condition of anything.
//   - Every process, namespace and connection that it starts ends with the test that started it, however that ends.
//   - Whatever is random follows from a seed that is printed.
package petreltest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a condition may take before a test gives up. It says nothing about speed:
// it is for machines that are busy with something else.
const Patience = 2 * time.Minute

// The app that every server of a test starts with.
const (
	AppID     = "424242"
	AppKey    = "testkey"
	AppSecret = "testsecret-testsecret-testsecret-32"
)

// binary builds petrel once per test process and returns its path; faulty is one whose clock can be set wrong.
var (
	binary = sync.OnceValues(func() (string, error) { return build("") })
	faulty = sync.OnceValues(func() (string, error) { return build("faults") })
)

// binaries is the folder of both.
var binaries = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "petrel-test-") })

func build(tags string) (string, error) {
	dir, err := binaries()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "petrel"+tags)
	cmd := exec.Command("go", "build", buildFlags, "-tags", tags, "-o", path, "github.com/petrel-chat/petrel/cmd/petrel")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build petrel: %w\n%s", err, out)
	}
	return path, nil
}

// Binary returns the path of a petrel built from this tree.
func Binary(tb testing.TB) string {
	tb.Helper()
	path, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// RemoveBinary deletes what Binary built; TestMain calls it last.
func RemoveBinary() {
	if dir, err := binaries(); err == nil {
		_ = os.RemoveAll(dir)
	}
}

// Until polls cond until it is true. what completes the sentence "waited in vain until …".
func Until(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	if !poll(tb.Context(), Patience, cond) {
		tb.Fatalf("waited in vain until %s", what)
	}
}

func poll(ctx context.Context, patience time.Duration, cond func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for !cond() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Options of a server process.
type Options struct {
	Dir  string   // data folder; kept across starts
	Args []string // more flags of `petrel serve`
	Wrap []string // a command in front of petrel: strace, unshare. Its process group is signalled as a whole
	Env  []string // more variables of its environment
	Host *Host    // the machine that it runs on, with public port 8080 and admin port 8081; nil: this one
	Path string   // of petrel; default: the one that Binary builds
}

// Server is one petrel process and what it wrote.
type Server struct {
	Dir   string
	URL   string       // of the public listener
	Admin string       // URL of the admin listener
	PID   int          // of petrel itself, whatever wraps it
	HTTP  *http.Client // reaches it

	cmd    *exec.Cmd
	logs   *logBuffer
	exited chan struct{}
	err    error // of Wait; read it after exited
}

// Launch starts a process and returns at once.
func Launch(tb testing.TB, o Options) *Server {
	tb.Helper()
	// What an earlier process wrote about itself must not be taken for this one's.
	dir := o.Dir
	if o.Host != nil {
		dir = o.Host.Path(dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if o.Path == "" {
		o.Path = Binary(tb)
	}
	args := append([]string{}, o.Wrap...)
	listen, admin, start := "127.0.0.1:0", "127.0.0.1:0", (*exec.Cmd).Start
	s := &Server{Dir: o.Dir, HTTP: http.DefaultClient, logs: &logBuffer{}, exited: make(chan struct{})}
	if h := o.Host; h != nil {
		listen, admin, start = h.Addr+":8080", h.Addr+":8081", h.Start
		s.HTTP = h.Client()
	}
	args = append(args, o.Path, "serve", "--data", o.Dir, "--listen", listen, "--admin", admin, "--log-format", "json")
	args = append(args, o.Args...)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = s.logs, s.logs
	s.cmd.Env = append(cleanEnv(), "PETREL_APP_ID="+AppID, "PETREL_APP_KEY="+AppKey, "PETREL_APP_SECRET="+AppSecret)
	s.cmd.Env = append(s.cmd.Env, o.Env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := start(s.cmd); err != nil {
		tb.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		s.logs.close()
		close(s.exited)
	}()
	tb.Cleanup(func() {
		s.Kill()
		if strings.Contains(s.Log(), "WARNING: DATA RACE") {
			tb.Error("the race detector found something in the server")
		}
		if tb.Failed() {
			tb.Logf("the end of what petrel wrote:\n%s", tail(s.Log(), 6000))
		}
	})
	return s
}

// Start launches a process and waits until it is ready.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	s := Launch(tb, o)
	if err := s.WaitReady(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return s
}

// WaitReady returns when /readyz says yes.
func (s *Server) WaitReady(ctx context.Context) error {
	ready := poll(ctx, Patience, func() bool {
		return s.Exited() || (s.readOwner() && s.status(ctx, "/readyz") == http.StatusOK)
	})
	switch {
	case s.Exited():
		return fmt.Errorf("petrel ended before it was ready: %w\n%s", s.err, tail(s.Log(), 4000))
	case !ready:
		return fmt.Errorf("petrel did not become ready\n%s", tail(s.Log(), 4000))
	}
	return nil
}

func (s *Server) readOwner() bool {
	b, err := os.ReadFile(s.lockPath())
	if err != nil {
		return false
	}
	var o struct {
		PID           int
		Listen, Admin string
	}
	if json.Unmarshal(b, &o) != nil || o.Listen == "" || o.Admin == "" {
		return false
	}
	s.PID, s.URL, s.Admin = o.PID, "http://"+o.Listen, "http://"+o.Admin
	return true
}

// lockPath looks through the eyes of the process, which may have a mount namespace of its own.
func (s *Server) lockPath() string {
	return filepath.Join("/proc", fmt.Sprint(s.cmd.Process.Pid), "root", s.Dir, "lock")
}

func (s *Server) status(ctx context.Context, path string) int {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Admin+path, nil)
	if err != nil {
		return 0
	}
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// Kill ends the process group with SIGKILL and waits.
func (s *Server) Kill() {
	if !s.Exited() { // else the number may be somebody else's by now
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-s.exited
}

// Terminate sends SIGTERM to petrel itself and waits for a clean end.
func (s *Server) Terminate(tb testing.TB) {
	tb.Helper()
	pid := s.PID
	if pid == 0 {
		pid = s.cmd.Process.Pid
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		tb.Fatal(err)
	}
	Until(tb, "petrel ended after SIGTERM", s.Exited)
	if s.err != nil {
		tb.Fatalf("petrel ended with %v after SIGTERM", s.err)
	}
}

// Exited says whether the process has ended.
func (s *Server) Exited() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// ExitCode waits for the end and returns its code.
func (s *Server) ExitCode(tb testing.TB) int {
	tb.Helper()
	Until(tb, "petrel ended", s.Exited)
	return s.cmd.ProcessState.ExitCode()
}

// Log returns everything the process wrote so far.
func (s *Server) Log() string { return s.logs.String() }

// LogLines returns the JSON log lines for which keep is true, decoded.
func (s *Server) LogLines(keep func(line map[string]any) bool) []map[string]any {
	var out []map[string]any
	for text := range strings.Lines(s.Log()) {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) == nil && keep(line) {
			out = append(out, line)
		}
	}
	return out
}

// petrelCommand is a run of the binary to its end.
func petrelCommand(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), Binary(tb), args...)
	cmd.Env = cleanEnv()
	return cmd
}

// cleanEnv is the environment without anything that configures petrel.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PETREL_") && !strings.HasPrefix(kv, "PUSHER_") {
			env = append(env, kv)
		}
	}
	return env
}

type logBuffer struct {
	mu   sync.Mutex // guards what follows
	buf  bytes.Buffer
	file *os.File // that gets a copy; may be nil
}

// also appends all of it to a file, from now on.
func (b *logBuffer) also(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return // the copy is for people
	}
	b.file = f
	_, _ = f.Write(b.buf.Bytes())
}

func (b *logBuffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		_ = b.file.Close()
		b.file = nil
	}
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		_, _ = b.file.Write(p)
	}
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// Place is where the current server can be reached; it changes when a test starts another one.
type Place struct{ p atomic.Pointer[Server] }

// Set names the current server; nil while there is none.
func (p *Place) Set(s *Server) { p.p.Store(s) }

// URL returns the public URL, or "" while there is no server.
func (p *Place) URL() string {
	if s := p.p.Load(); s != nil {
		return s.URL
	}
	return ""
}
