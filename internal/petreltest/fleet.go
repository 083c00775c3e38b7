package petreltest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// FleetOptions of StartFleet.
type FleetOptions struct {
	Nodes int    // default 3
	Seed  uint64 // of what the network throws
	Disk  int64  // bytes of each node's file system; default 768 MiB
	Logs  string // folder that each process' output is written to as well; "" for none

	Guests int      // hosts of the network, behind those of the nodes, for what is no node
	Args   []string // more flags of each node
}

// Fleet is a cell of real processes, each on a Host of its own with a small disk of its own. Its methods may be
// called concurrently, those of one node by one goroutine at a time.
type Fleet struct {
	Net *Net

	tb     testing.TB
	opt    FleetOptions
	secret string // file with the cell's secret
	path   string // of petrel
	nodes  []*fleetNode
}

type fleetNode struct {
	name string
	host *Host
	dir  string // as the host sees it

	mu     sync.Mutex // guards what follows
	server *Server    // nil while it is down
	starts int
}

// StartFleet founds a cell and lets the others join it. It returns when all of them vote.
func StartFleet(tb testing.TB, o FleetOptions) *Fleet {
	tb.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Disk == 0 {
		o.Disk = 768 << 20
	}
	path, err := faulty()
	if err != nil {
		tb.Fatal(err)
	}
	root := tb.TempDir()
	f := &Fleet{Net: NewNet(tb, o.Nodes+o.Guests, o.Seed), tb: tb, opt: o, path: path, secret: filepath.Join(root, "secret")}
	for i := range o.Nodes {
		n := &fleetNode{name: fmt.Sprintf("n%d", i+1), host: f.Net.Host(i)}
		n.dir = filepath.Join(root, n.name)
		if err := os.Mkdir(n.dir, 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := n.host.Mount(n.dir, o.Disk); err != nil {
			tb.Fatal(err)
		}
		f.nodes = append(f.nodes, n)
	}
	for i, n := range f.nodes {
		f.Start(i)
		if i > 0 {
			continue
		}
		if err := f.server(0).WaitReady(tb.Context()); err != nil {
			tb.Fatal(err)
		}
		secret, err := os.ReadFile(n.host.Path(filepath.Join(n.dir, "cell-secret")))
		if err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(f.secret, secret, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.WaitHealthy(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return f
}

// Size is how many nodes there are.
func (f *Fleet) Size() int { return len(f.nodes) }

// Name of a node.
func (f *Fleet) Name(i int) string { return f.nodes[i].name }

func (f *Fleet) server(i int) *Server {
	n := f.nodes[i]
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// Start starts a node's process and returns at once.
func (f *Fleet) Start(i int) {
	n := f.nodes[i]
	args := append([]string{"--name", n.name, "--peer", n.host.Addr + ":7600"}, f.opt.Args...)
	n.mu.Lock()
	founds := i == 0 && n.starts == 0
	n.starts++
	n.mu.Unlock()
	if !founds {
		var others []string
		for j, other := range f.nodes {
			if j != i {
				others = append(others, other.host.Addr+":7600")
			}
		}
		args = append(args, "--join", strings.Join(others, ","), "--cell-secret-file", f.secret)
	}
	s := Launch(f.tb, Options{Dir: n.dir, Host: n.host, Path: f.path, Args: args, Env: []string{"PETREL_FAULT_CLOCK=" + f.clockFile(i)}})
	if f.opt.Logs != "" {
		s.logs.also(filepath.Join(f.opt.Logs, n.name+".log"))
	}
	s.URL, s.Admin = "http://"+n.host.Addr+":8080", "http://"+n.host.Addr+":8081"
	n.mu.Lock()
	n.server = s
	n.mu.Unlock()
}

func (f *Fleet) clockFile(i int) string { return f.nodes[i].dir + ".clock" }

// SetClock makes a node's clock wrong by so much.
func (f *Fleet) SetClock(i int, wrong time.Duration) {
	tmp := f.clockFile(i) + ".new"
	if err := errors.Join(os.WriteFile(tmp, fmt.Appendln(nil, int(wrong.Seconds())), 0o600), os.Rename(tmp, f.clockFile(i))); err != nil {
		f.tb.Error(err)
	}
}

// Kill ends a node with SIGKILL.
func (f *Fleet) Kill(i int) {
	if s := f.down(i); s != nil {
		s.Kill()
	}
}

// Stop ends a node with SIGTERM, as an operator would, and says what it ended with.
func (f *Fleet) Stop(ctx context.Context, i int) error {
	s := f.server(i)
	if s == nil {
		return nil
	}
	if err := syscall.Kill(s.cmd.Process.Pid, syscall.SIGTERM); err != nil {
		return err
	}
	f.Resume(i) // one that stands still does not hear it
	if !poll(ctx, Patience, s.Exited) {
		return fmt.Errorf("%s did not end after SIGTERM", f.nodes[i].name)
	}
	f.down(i)
	return s.err
}

// Verify compares all rows of all replicas, and says whether they are equal, and if not, why.
func (f *Fleet) Verify(ctx context.Context) (why string, err error) {
	var v struct {
		Running, Equal     bool
		Error              string
		Nodes, Differences json.RawMessage
	}
	last := ""
	done := poll(ctx, Patience, func() bool {
		i := max(0, f.Leader(ctx))
		if err = f.Admin(ctx, i, http.MethodPost, "/admin/verify", nil, &v); err != nil {
			return false
		}
		for v.Running {
			wait(ctx, nil, 20*time.Millisecond)
			if err = f.Admin(ctx, i, http.MethodGet, "/admin/verify", nil, &v); err != nil {
				return false
			}
		}
		last = fmt.Sprintf("%s nodes: %s differences: %s", v.Error, v.Nodes, v.Differences)
		return v.Equal || (v.Error == "" && string(v.Differences) != "null" && len(v.Differences) > 0)
	})
	switch {
	case err != nil:
		return "", err
	case v.Equal:
		return "", nil
	case done:
		return last, nil
	}
	return "", fmt.Errorf("the rows could not be compared: %s", last)
}

// Autopsy ends every process with SIGQUIT, so that its last words are what each goroutine was at.
func (f *Fleet) Autopsy() {
	for i := range f.nodes {
		s := f.server(i)
		if s == nil {
			continue
		}
		f.signal(i, syscall.SIGCONT)
		f.signal(i, syscall.SIGQUIT)
		poll(context.Background(), 5*time.Second, s.Exited)
	}
}

// down marks a node as one that runs no more.
func (f *Fleet) down(i int) *Server {
	n := f.nodes[i]
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.server
	n.server = nil
	return s
}

// Pause stops a process in its tracks; Resume lets it go on and believe that no time has passed.
func (f *Fleet) Pause(i int) { f.signal(i, syscall.SIGSTOP) }

// Resume ends Pause.
func (f *Fleet) Resume(i int) { f.signal(i, syscall.SIGCONT) }

func (f *Fleet) signal(i int, sig syscall.Signal) {
	if s := f.server(i); s != nil {
		_ = syscall.Kill(s.cmd.Process.Pid, sig) // one that has ended needs none
	}
}

// Wipe empties the disk of a node that is down.
func (f *Fleet) Wipe(i int) error {
	dir := f.Folder(i)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// Folder is where the test process finds a node's data.
func (f *Fleet) Folder(i int) string { return f.nodes[i].host.Path(f.nodes[i].dir) }

// Life names a site's replica: another one begins where its disk was wiped, or it was rebuilt.
func (f *Fleet) Life(site string) string {
	for i, n := range f.nodes {
		if n.name == site {
			b, _ := os.ReadFile(filepath.Join(f.Folder(i), "member")) // none yet is a life too
			return string(b)
		}
	}
	return ""
}

// Sites are the nodes as clients see them. Each is reached from beside it, whatever is cut between nodes.
func (f *Fleet) Sites() []Site {
	var out []Site
	for i, n := range f.nodes {
		out = append(out, Site{Name: n.name, At: func() (string, *http.Client) {
			if s := f.server(i); s != nil && !s.Exited() {
				return s.URL, s.HTTP
			}
			return "", nil
		}})
	}
	return out
}

// CellNode is what the admin API says of one node.
type CellNode struct {
	Name    string `json:"name"`
	Member  string `json:"member"`
	Role    string `json:"role"`
	Alive   bool   `json:"alive"`
	Applied uint64 `json:"applied"`
	Lag     uint64 `json:"lag"`
}

// CellView is the cell as one node's admin API shows it.
type CellView struct {
	Nodes  []CellNode `json:"nodes"`
	Leader string     `json:"leader"`
	Term   uint64     `json:"term"`
	Voters int        `json:"voters"`
}

// Admin asks a node's admin API.
func (f *Fleet) Admin(ctx context.Context, i int, method, path string, in, out any) error {
	s := f.server(i)
	if s == nil {
		return errors.New("it is down")
	}
	token, err := os.ReadFile(filepath.Join(f.Folder(i), "admin-token"))
	if err != nil {
		return err
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Admin+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, answer)
	}
	return json.Unmarshal(answer, out)
}

// View is the cell as a node sees it.
func (f *Fleet) View(ctx context.Context, i int) (v CellView, err error) {
	err = f.Admin(ctx, i, http.MethodGet, "/admin/cell", nil, &v)
	return v, err
}

// Leader is the node that most nodes take for the leader; -1 when none is known.
func (f *Fleet) Leader(ctx context.Context) int {
	votes := make([]int, len(f.nodes))
	for i := range f.nodes {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		v, err := f.View(ctx, i)
		cancel()
		if err != nil {
			continue
		}
		for j, n := range f.nodes {
			if strings.HasPrefix(v.Leader, n.name+".") {
				votes[j]++
			}
		}
	}
	if best := slices.Max(votes); best > 0 {
		return slices.Index(votes, best)
	}
	return -1
}

// WaitHealthy waits until every node is ready, and all see the same leader and all the nodes as living voters.
func (f *Fleet) WaitHealthy(ctx context.Context) error {
	why := ""
	if poll(ctx, 5*Patience, func() bool { why = f.ill(ctx); return why == "" }) { // four processes on a machine that may have no time for them
		return nil
	}
	return fmt.Errorf("the cell did not become healthy: %s", why)
}

// ill says what a healthy cell would not show.
func (f *Fleet) ill(ctx context.Context) string {
	leader := ""
	for i, n := range f.nodes {
		s := f.server(i)
		switch {
		case s == nil:
			return n.name + " is down"
		case s.Exited():
			return fmt.Sprintf("%s ended: %v; it said last: %s", n.name, s.err, lastLine(s.Log()))
		case s.status(ctx, "/readyz") != http.StatusOK:
			return n.name + " is not ready"
		}
		v, err := f.View(ctx, i)
		if err != nil {
			return fmt.Sprintf("%s does not show the cell: %v", n.name, err)
		}
		voters := 0
		for _, m := range v.Nodes {
			if m.Alive && (m.Role == "voter" || m.Role == "leader") {
				voters++
			}
		}
		if v.Leader == "" || voters != len(f.nodes) || v.Voters != len(f.nodes) || len(v.Nodes) != len(f.nodes) {
			return fmt.Sprintf("%s sees %+v", n.name, v)
		}
		if leader != "" && v.Leader != leader {
			return fmt.Sprintf("%s takes %s for the leader, not %s", n.name, v.Leader, leader)
		}
		leader = v.Leader
	}
	return ""
}

// lastLine is the last line that a process wrote.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
