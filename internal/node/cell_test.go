package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/bus/bustest"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// cellConfig is a node's on ports that the kernel chooses.
func cellConfig(t *testing.T, name string) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Data, cfg.Name = filepath.Join(t.TempDir(), name), name
	cfg.Listen, cfg.Admin, cfg.Peer, cfg.Bus = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return cfg
}

func joining(cfg, first Config, addr string) Config {
	cfg.Join, cfg.CellSecretFile = addr, filepath.Join(first.Data, cellSecretFile)
	return cfg
}

func startNode(t *testing.T, cfg Config) *Node {
	t.Helper()
	return startFaulty(t, cfg, nil)
}

func startFaulty(t *testing.T, cfg Config, faults *Faults) *Node {
	t.Helper()
	var logs io.Writer = io.Discard
	if os.Getenv("PETREL_TEST_LOG") != "" {
		logs = os.Stderr
	}
	n, err := Open(t.Context(), Options{Config: cfg, Faults: faults, Logger: slog.New(slog.NewTextHandler(logs, nil)).With("on", cfg.Name)})
	if err != nil {
		t.Fatalf("%s: %v", cfg.Name, err)
	}
	t.Cleanup(func() { _ = n.Stop() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatalf("%s: %v", cfg.Name, err)
	}
	return n
}

// until asks again and again; the test's own deadline is the only one.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func voters(t *testing.T, n *Node) int {
	t.Helper()
	info, err := n.Cell(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Voters
}

// TestCellGrows: a node that ran alone becomes the first of three; each of them takes writes and shows them.
func TestCellGrows(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	alone := first
	alone.Peer, alone.Bus = "", ""
	n1 := startNode(t, alone)
	app, err := n1.CreateApp(t.Context(), NewApp{Name: "before the cell"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}

	n1 = startNode(t, first)
	addr := n1.cell.port.Addr()
	n2 := startNode(t, joining(cellConfig(t, "n2"), first, addr))
	n3 := startNode(t, joining(cellConfig(t, "n3"), first, addr))
	until(t, "three voters", func() bool { return voters(t, n1) == 3 })

	for i, n := range []*Node{n1, n2, n3} {
		room := petrel.RoomID(fmt.Sprint("room", i))
		res := do(t, n, app.ID, chat.CreateRoom{ID: room, Kind: event.RoomOpen})
		for _, other := range []*Node{n1, n2, n3} {
			if err := other.shard.loop.WaitApplied(t.Context(), res.Position.Index); err != nil {
				t.Fatal(err)
			}
			if _, err := other.App(t.Context(), app.ID); err != nil {
				t.Errorf("%s does not know the app: %v", other.cfg.Name, err)
			}
		}
	}
	a, b, c := n1.shard.store.Applied(), n2.shard.store.Applied(), n3.shard.store.Applied()
	if a.Digest != b.Digest || b.Digest != c.Digest || a.Index != b.Index || b.Index != c.Index {
		t.Errorf("replicas differ: %+v %+v %+v", a, b, c)
	}

	// The leader leaves in order: another leads at once, and writes go on.
	n1.Drain(t.Context())
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}
	do(t, n2, app.ID, chat.CreateRoom{ID: "without-n1", Kind: event.RoomOpen})
	// It comes back by itself, on another port: its folder knows the others.
	n1 = startNode(t, first)
	do(t, n1, app.ID, chat.CreateRoom{ID: "with-n1", Kind: event.RoomOpen})
}

// TestCellRefusals: what would lose the majority, or two nodes of one name, is refused with a reason; a removed node stops
// by itself, and a wiped one takes the place that it had.
func TestCellRefusals(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	addr := n1.cell.port.Addr()
	refused := func(what string, err error, want petrel.Code) {
		t.Helper()
		if petrel.CodeOf(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	refused("remove the only node", n1.RemoveNode(t.Context(), "n1", false), petrel.CodeConflict)
	refused("transfer to nobody", n1.TransferLeadership(t.Context(), "n9"), petrel.CodeNotFound)

	second := joining(cellConfig(t, "n2"), first, addr)
	n2 := startNode(t, second)
	until(t, "two voters", func() bool { return voters(t, n1) == 2 })
	twin := joining(cellConfig(t, "n2"), first, addr)
	ctx, cancel := context.WithCancel(t.Context())
	said := make(chan string, 16)
	go func() {
		n, err := Open(ctx, Options{Config: twin, Logger: slog.New(slog.NewTextHandler(chanWriter(said), nil))})
		if err == nil {
			t.Error("two nodes have one name")
			_ = n.Stop()
		}
		close(said)
	}()
	for line := range said {
		if strings.Contains(line, "A node named n2 is in the cell already") {
			cancel()
		}
	}
	cancel()
	third := joining(cellConfig(t, "n3"), first, addr)
	n3 := startNode(t, third)
	until(t, "three voters", func() bool { return voters(t, n1) == 3 })

	// n3's disk is lost: what comes back under its name is a new member in its place.
	was := n3.self.Member
	if err := errors.Join(n3.Stop(), os.RemoveAll(third.Data)); err != nil {
		t.Fatal(err)
	}
	n3 = startNode(t, third)
	until(t, "three voters again", func() bool {
		info, err := n1.Cell(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.Voters == 3 && len(info.Nodes) == 3 && !slices.ContainsFunc(info.Nodes, func(i NodeInfo) bool { return i.Member == was || !i.Alive })
	})

	// Two of three are needed: with n2 down, n3 may not go.
	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "n1 hears that n2 is gone", func() bool { return !n1.cell.alive(n2.self.Member) })
	refused("remove one of two that are left", n1.RemoveNode(t.Context(), "n3", false), petrel.CodeConflict)
	refused("drain one of two that are left", n1.DrainNode(t.Context(), "n3", false), petrel.CodeConflict)
	refused("replace by one that is down", n1.ReplaceNode(t.Context(), "n3", "n2"), petrel.CodeConflict)
	n2 = startNode(t, second)
	until(t, "n1 hears of n2", func() bool { return n1.cell.alive(n2.self.Member) })

	// Whichever leads, any node removes any other; the removed one stops and says why.
	if err := n2.RemoveNode(t.Context(), "n3", false); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n3.Failed():
		if err := n3.Err(); !strings.Contains(err.Error(), "was removed from its cell") {
			t.Errorf("the removed node says: %v", err)
		}
	case <-t.Context().Done():
	}
	if err := n3.Stop(); err != nil {
		t.Error(err)
	}
	third.Join = ""
	if n, err := Open(t.Context(), Options{Config: third}); err == nil {
		_ = n.Stop()
		t.Error("a removed node starts as if nothing were")
	}
}

// TestJoinBySnapshot: what the log has forgotten comes to a new node as a snapshot, and its clients as a history.
func TestJoinBySnapshot(t *testing.T) {
	t.Parallel()
	short := &Faults{Log: func(o *raftlog.Options) { o.TrailingLogs, o.SegmentSize = 1, 4<<10 }}
	first := cellConfig(t, "n1")
	n1 := startFaulty(t, first, short)
	app := createApp(t, n1)
	do(t, n1, app.ID, chat.CreateRoom{ID: "r", Kind: event.RoomOpen})
	var res command.Result
	for i := range 40 {
		res = do(t, n1, app.ID, chat.PostMessage{Room: "r", Text: fmt.Sprint("hi ", i)})
	}
	if err := n1.shard.log.TakeSnapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	n2 := startFaulty(t, joining(cellConfig(t, "n2"), first, n1.cell.port.Addr()), short)
	if n2.shard.log.Status().SnapshotMark == 0 {
		t.Error("no snapshot came")
	}
	if err := n2.shard.loop.WaitApplied(t.Context(), res.Position.Index); err != nil {
		t.Fatal(err)
	}
	if a, b := n1.shard.store.Applied(), n2.shard.store.Applied(); a.Index == b.Index && a.Digest != b.Digest {
		t.Errorf("they differ: %+v %+v", a, b)
	}
	if _, err := n2.App(t.Context(), app.ID); err != nil {
		t.Errorf("the new node does not know the app: %v", err)
	}
	token, err := n2.MintToken(t.Context(), app.ID, "ada", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	status, body := fetch(t, "GET", "http://"+n2.Addr()+"/v1/rooms/r/events?after=0&limit=100", "", "Authorization", "Bearer "+token.Token)
	if status != 200 || strings.Count(body, `"message.new"`) != 40 {
		t.Errorf("the history on the new node: %d, %d messages of 40", status, strings.Count(body, `"message.new"`))
	}
	until(t, "two voters", func() bool { return voters(t, n1) == 2 })
	do(t, n2, app.ID, chat.PostMessage{Room: "r", Text: "hi from n2"})
}

// TestJoinInVain: who asks to be taken in where that will never happen ends, and says what is wrong and what to do.
func TestJoinInVain(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	elsewhere := cellConfig(t, "n9")
	startNode(t, elsewhere)
	for name, c := range map[string]struct {
		addr, secretOf, says string
	}{
		"another cell's secret": {n1.cell.port.Addr(), elsewhere.Data, "is of another cell than this node's secret: copy DATA/cell-secret of that node"},
		"the public port":       {n1.Addr(), first.Data, "is not the port between nodes: --join wants the --peer address"},
		"the bus":               {n1.cell.busTo, first.Data, "is not the port between nodes: --join wants the --peer address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := cellConfig(t, "n2")
			cfg.Join, cfg.CellSecretFile = c.addr, filepath.Join(c.secretOf, cellSecretFile)
			n, err := Open(t.Context(), Options{Config: cfg})
			if err == nil {
				_ = n.Stop()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("it ends with %v; want %q", err, c.says)
			}
		})
	}
	self := joining(first, first, n1.cell.port.Addr())
	c := &cell{cfg: &self, port: n1.cell.port}
	if err := c.askIn(t.Context()); err == nil || !strings.Contains(err.Error(), "names this node itself") {
		t.Errorf("a node that joins itself: %v", err)
	}
}

// TestAllMove: nodes that all have other addresses at once find each other by --join, elect a leader, and have the log and
// the bus know them where they are; and again, back to where they were.
func TestAllMove(t *testing.T) {
	t.Parallel()
	places := []string{bustest.Loopback(t), bustest.Loopback(t)}
	at := func(cfg Config, place string) Config {
		cfg.Peer, cfg.Bus = fmt.Sprintf("%s:76%s0", place, cfg.Name[1:]), fmt.Sprintf("%s:76%s1", place, cfg.Name[1:])
		return cfg
	}
	var cfgs []Config
	nodes := make([]*Node, 3)
	for i := range nodes {
		cfg := at(cellConfig(t, fmt.Sprint("n", i+1)), places[0])
		if i > 0 {
			cfg = joining(cfg, cfgs[0], cfgs[0].Peer)
		}
		cfgs = append(cfgs, cfg)
		nodes[i] = startNode(t, cfg)
	}
	until(t, "three voters", func() bool { return voters(t, nodes[2]) == 3 })
	app := createApp(t, nodes[0])
	for move := 1; move <= 2; move++ {
		var all []string
		for i := range cfgs {
			cfgs[i] = at(cfgs[i], places[move%2])
			all = append(all, cfgs[i].Peer)
		}
		for _, n := range nodes {
			if err := n.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		var starting sync.WaitGroup
		for i := range cfgs {
			cfgs[i].Join = strings.Join(all, ",")
			starting.Go(func() {
				n, err := Open(t.Context(), Options{Config: cfgs[i]})
				if err == nil {
					err = n.Start(t.Context())
				}
				if err != nil {
					t.Error(err)
				}
				nodes[i] = n
			})
		}
		starting.Wait()
		if t.Failed() {
			t.FailNow()
		}
		do(t, nodes[0], app.ID, chat.CreateRoom{ID: petrel.RoomID(fmt.Sprint("after-", move)), Kind: event.RoomOpen})
		for i, n := range nodes {
			t.Cleanup(func() { _ = n.Stop() })
			until(t, fmt.Sprintf("n%d knows and hears all where they are", i+1), func() bool {
				info, err := n.Cell(t.Context())
				return err == nil && info.Leader != "" && !slices.ContainsFunc(info.Nodes, func(m NodeInfo) bool { return !m.Alive || !slices.Contains(all, m.Peer) }) &&
					len(n.cell.peers()) == 2 && !slices.ContainsFunc(n.cell.peers(), func(p bus.Peer) bool { return !p.Alive })
			})
		}
	}
}

// TestTwoProcessesOfOneMember: who starts a copy of a node's folder is told so, and does not vote with it.
func TestTwoProcessesOfOneMember(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	second := joining(cellConfig(t, "n2"), first, n1.cell.port.Addr())
	n2 := startNode(t, second)
	until(t, "two voters", func() bool { return voters(t, n1) == 2 })
	second.Peer = n2.cell.port.Addr()
	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	copied := second
	copied.Data, copied.Peer = filepath.Join(t.TempDir(), "copy"), "127.0.0.1:0"
	if err := os.CopyFS(copied.Data, os.DirFS(second.Data)); err != nil {
		t.Fatal(err)
	}
	n2 = startNode(t, second)
	n, err := Open(t.Context(), Options{Config: copied})
	if err == nil || !strings.Contains(err.Error(), "one of the two data folders is a copy") {
		t.Errorf("a copy starts: %v", err)
	}
	if err == nil {
		_ = n.Stop()
	}
	if err := n2.Err(); err != nil {
		t.Errorf("the original stopped: %v", err)
	}
}

// TestStartWithoutLeader: a node that cannot reach its cell says so on its public listener, to everybody and at once.
func TestStartWithoutLeader(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	second := joining(cellConfig(t, "n2"), first, n1.cell.port.Addr())
	second.Listen = bustest.Loopback(t) + ":8080"
	n2 := startNode(t, second)
	until(t, "two voters", func() bool { return voters(t, n1) == 2 })
	first.Peer, second.Peer = n1.cell.port.Addr(), n2.cell.port.Addr()
	if err := errors.Join(n2.Stop(), n1.Stop()); err != nil {
		t.Fatal(err)
	}
	opened := make(chan *Node)
	go func() {
		n, err := Open(t.Context(), Options{Config: second})
		if err != nil {
			t.Error(err)
		}
		opened <- n
	}()
	until(t, "the door answers", func() bool {
		resp, err := http.Get("http://" + second.Listen + "/v1/rooms")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "" &&
			strings.Contains(string(b), "no_leader") && strings.Contains(string(b), "has not heard of n1")
	})
	startNode(t, first)
	n2 = <-opened
	defer n2.Stop()
	if err := n2.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, body := fetch(t, "GET", "http://"+second.Listen+"/v1/rooms", ""); status != 401 {
		t.Errorf("once it has started: %d %s", status, body)
	}
}

// TestCellFencesWhoDiffers: a replica whose folds come to something else is found within seconds, turns everybody away, and is
// rebuilt by the others as a new member.
func TestCellFencesWhoDiffers(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	addr := n1.cell.port.Addr()
	n2 := startNode(t, joining(cellConfig(t, "n2"), first, addr))
	third := joining(cellConfig(t, "n3"), first, addr)
	n3 := startFaulty(t, third, &Faults{Domains: func(domains []apply.Domain) []apply.Domain {
		for i := range domains {
			fold := domains[i].Fold
			domains[i].Fold = func(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
				if c, ok := ev.(event.RoomCreated); ok && c.Name == "where clocks are read" {
					c.Name = "an hour later"
					ev = c
				}
				return fold(tx, s, ev)
			}
		}
		return domains
	}})
	until(t, "three voters", func() bool { return voters(t, n1) == 3 })
	app := createApp(t, n1)
	until(t, "n2 knows the app", func() bool { _, err := n2.App(t.Context(), app.ID); return err == nil })
	do(t, n2, app.ID, chat.CreateRoom{ID: "r", Kind: event.RoomOpen, Name: "where clocks are read"})
	select {
	case <-n3.Failed():
	case <-t.Context().Done():
	}
	if err := n3.Err(); !errors.Is(err, ErrRebuild) || !strings.Contains(err.Error(), "differs") {
		t.Errorf("the node that differs fails with: %v", err)
	}
	was := n3.self.Member
	if err := n3.Stop(); err != nil {
		t.Error(err)
	}
	n3 = startNode(t, third)
	if n3.self.Member == was {
		t.Error("it comes back as the member that it was")
	}
	until(t, "three voters again", func() bool { return voters(t, n1) == 3 })
	res := do(t, n1, app.ID, chat.CreateRoom{ID: "s", Kind: event.RoomOpen})
	for _, n := range []*Node{n1, n2, n3} {
		if err := n.shard.loop.WaitApplied(t.Context(), res.Position.Index); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := n1.shard.store.Applied(), n3.shard.store.Applied(); a.Digest != b.Digest {
		t.Errorf("the rebuilt replica differs: %+v %+v", a, b)
	}
}

// chanWriter hands on what is written, as long as there is room.
type chanWriter chan string

func (w chanWriter) Write(b []byte) (int, error) {
	select {
	case w <- string(b):
	default:
	}
	return len(b), nil
}

// do is insist: on a starved machine an election may come at any time.
func do(t *testing.T, n *Node, app petrel.AppID, c command.Command) command.Result {
	t.Helper()
	return insist(t, n, app, c)
}

// createApp asks until there is a leader to take it.
func createApp(t *testing.T, n *Node) (app App) {
	t.Helper()
	until(t, "the app is made", func() bool {
		var err error
		app, err = n.CreateApp(t.Context(), NewApp{})
		if c := petrel.CodeOf(err); err != nil && c != petrel.CodeNoLeader && c != petrel.CodeUnknownOutcome && c != petrel.CodeTimeout {
			t.Fatalf("%s: %v", n.cfg.Name, err)
		}
		return err == nil
	})
	return app
}
