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
	"sync/atomic"
	"testing"
)

// TestRollingRestart: three nodes are restarted one by one under load. Nothing that was acknowledged is lost, every
// subscriber sees every event once and in order, and nobody is sent from one node to another more than twice. The nodes
// come back on other ports, so that they have to be found again too.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	const rooms, listeners, writers = 2, 24, 6
	r := &rollout{t: t, nodes: make([]*Server, 3)}
	for i := range r.nodes {
		r.dirs = append(r.dirs, t.TempDir())
		r.start(i)
	}
	r.healthy()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for room := range rooms {
		id := fmt.Sprintf("room%d", room)
		if _, err := Call(ctx, http.DefaultClient, r.url(0), "", http.MethodPost, "/v1/rooms", map[string]any{"id": id, "kind": "open"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var listening, writing sync.WaitGroup
	heard := make([]*listener, listeners)
	for i := range heard {
		heard[i] = &listener{r: r, user: fmt.Sprint("listener", i), room: fmt.Sprintf("room%d", i%rooms), at: i % 3}
		listening.Go(func() { heard[i].run(ctx) })
	}
	stop := make(chan struct{})
	var acked sync.Map // id → room
	var posts atomic.Int64
	for i := range writers {
		writing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id, room := fmt.Sprintf("m-%d-%d", i, n), fmt.Sprintf("room%d", n%rooms)
				for try := i; ; try++ { // the same id until it is acknowledged
					_, _, err := Post(ctx, http.DefaultClient, r.url(try%3), fmt.Sprint("writer", i), room, id, "text of "+id)
					if err == nil {
						break
					}
					if ctx.Err() != nil {
						return
					}
				}
				acked.Store(id, room)
				posts.Add(1)
			}
		})
	}
	for i := range r.nodes {
		before := posts.Load()
		Until(t, "there is load", func() bool { return posts.Load() > before+50 })
		r.nodes[i].Terminate(t)
		r.start(i)
		r.healthy()
	}
	close(stop)
	writing.Wait()

	want, there := map[string][]Event{}, map[string]int{}
	read := func() {
		clear(there)
		for room := range rooms {
			id := fmt.Sprintf("room%d", room)
			events, err := History(ctx, http.DefaultClient, r.url(0), id)
			if err != nil {
				t.Fatal(err)
			}
			want[id] = events
			for _, ev := range events {
				var m Message
				if ev.Type == "message.new" && json.Unmarshal(ev.Data, &m) == nil {
					there[m.ID]++
				}
			}
		}
	}
	poll(ctx, Patience, func() bool { // who reads without a position may read what a follower had a moment ago
		read()
		all := true
		acked.Range(func(id, _ any) bool {
			all = there[id.(string)] > 0
			return all
		})
		return all
	})
	all := poll(ctx, Patience, func() bool {
		return !slices.ContainsFunc(heard, func(l *listener) bool { return l.count() < len(want[l.room]) })
	})
	cancel()
	listening.Wait()
	if !all {
		for _, l := range heard {
			t.Errorf("%s heard %d of %d of %s; way %v, last error %v", l.user, l.count(), len(want[l.room]), l.room, l.way, l.last)
		}
	}
	acked.Range(func(id, room any) bool {
		if there[id.(string)] != 1 {
			t.Errorf("%s was acknowledged in %s and is there %d times", id, room, there[id.(string)])
		}
		return true
	})
	worst := 0
	for _, l := range heard {
		for i, seq := range l.seqs {
			if seq != uint64(i)+1 {
				t.Errorf("%s heard seq %d of %s where %d was due", l.user, seq, l.room, i+1)
				break
			}
		}
		if l.failed != nil {
			t.Errorf("%s: %v", l.user, l.failed)
		}
		if l.moves > 2 {
			t.Errorf("%s was sent away %d times: %v", l.user, l.moves, l.way)
		}
		worst = max(worst, l.moves)
	}
	t.Logf("%d posts acknowledged, %d listeners, sent away %d times at most", posts.Load(), listeners, worst)
}

// rollout is a cell of real processes on this machine.
type rollout struct {
	t    *testing.T
	dirs []string

	mu    sync.Mutex // guards what follows
	nodes []*Server
}

func (r *rollout) url(i int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes[i].URL
}

// start starts a node: the first founds, the others join, and whoever was a member finds its cell by itself.
func (r *rollout) start(i int) {
	r.t.Helper()
	args := []string{"--name", fmt.Sprintf("n%d", i+1), "--peer", "127.0.0.1:0", "--bus", "127.0.0.1:0", "--drain-timeout", "4s"}
	r.mu.Lock()
	first := r.nodes[i] == nil
	r.mu.Unlock()
	if first && i > 0 {
		peer := ""
		for _, n := range r.cell(0).Nodes {
			peer = n.Peer
		}
		args = append(args, "--join", peer, "--cell-secret-file", filepath.Join(r.dirs[0], "cell-secret"))
	}
	s := Start(r.t, Options{Dir: r.dirs[i], Args: args})
	r.mu.Lock()
	r.nodes[i] = s
	r.mu.Unlock()
}

type rolloutView struct {
	Nodes []struct {
		Name, Peer, Role, Health string
		Alive                    bool
		Lag                      uint64
	}
	Leader string
}

func (r *rollout) cell(i int) (v rolloutView) {
	r.t.Helper()
	if err := r.admin(i, "/admin/cell", &v); err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *rollout) admin(i int, path string, out any) error {
	r.mu.Lock()
	base := r.nodes[i].Admin
	r.mu.Unlock()
	token, err := os.ReadFile(filepath.Join(r.dirs[i], "admin-token"))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, base+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return errors.Join(err, fmt.Errorf("%s: %s", resp.Status, b))
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(out)
}

// healthy waits until every node sees three living voters that have caught up.
func (r *rollout) healthy() {
	r.t.Helper()
	Until(r.t, "the cell is whole", func() bool {
		for i := range r.nodes {
			v := rolloutView{}
			if r.nodes[i] == nil {
				continue
			}
			if err := r.admin(i, "/admin/cell", &v); err != nil || v.Leader == "" {
				return false
			}
			whole := 0
			for _, n := range v.Nodes {
				if n.Alive && n.Role != "nonvoter" && n.Health == "ok" && n.Lag < 1000 {
					whole++
				}
			}
			if whole != len(r.nodes) {
				return false
			}
		}
		return true
	})
}

// listener follows a room over one connection after the other. It goes where it is sent.
type listener struct {
	r          *rollout
	user, room string
	at         int

	mu     sync.Mutex // guards seqs
	seqs   []uint64
	epoch  string
	moves  int
	way    []string
	failed error
	last   error // of a connection
}

func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seqs)
}

func (l *listener) run(ctx context.Context) {
	next := l.r.url(l.at)
	for ctx.Err() == nil {
		to, err := l.listen(ctx, next)
		l.last = err
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errTold) {
			l.failed = err
			return
		}
		if len(to) > 0 {
			next = to[0]
			continue
		}
		l.at++ // nobody there, or nobody knew better
		next = l.r.url(l.at % 3)
	}
}

var errTold = errors.New("told what must not be told")

// listen follows the room on one node until the connection ends; to is where it was sent.
func (l *listener) listen(ctx context.Context, base string) (to []string, err error) {
	s, err := Dial(ctx, base, l.user)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_, epoch, err := s.Subscribe(ctx, l.room, uint64(l.count()), l.epoch) //nolint:gosec // not negative
	if err != nil {
		return nil, err
	}
	l.epoch = epoch
	l.way = append(l.way, base)
	l.moves = len(l.way) - 1
	for {
		f, err := s.Read(ctx)
		if err != nil {
			return to, err
		}
		switch f.Op {
		case "event":
			if f.Seq == 0 {
				continue
			}
			l.mu.Lock()
			l.seqs = append(l.seqs, f.Seq)
			l.mu.Unlock()
		case "reconnect":
			var order struct{ To []string }
			if err := json.Unmarshal([]byte(f.Raw), &order); err != nil {
				return nil, fmt.Errorf("%w: %s", errTold, f.Raw)
			}
			to = order.To
		case "resync", "unsubscribed":
			return nil, fmt.Errorf("%w: %s", errTold, f.Raw)
		}
	}
}
