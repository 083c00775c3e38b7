package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/bus/bustest"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestRecover: two of three nodes are lost for good. The third goes on alone with all that it held, in another life: positions
// of the former are refused, others join it with empty folders, and the lost two, started after all, cannot touch it.
func TestRecover(t *testing.T) {
	t.Parallel()
	cfgs := make([]Config, 3)
	nodes := make([]*Node, 3)
	for i := range cfgs {
		cfgs[i] = cellConfig(t, "n"+string(rune('1'+i)))
		host := bustest.Loopback(t)
		cfgs[i].Peer, cfgs[i].Bus = host+":7600", host+":7601"
		if i > 0 {
			cfgs[i] = joining(cfgs[i], cfgs[0], cfgs[0].Peer)
		}
		nodes[i] = startNode(t, cfgs[i])
	}
	until(t, "three voters", func() bool { return voters(t, nodes[0]) == 3 })
	app := createApp(t, nodes[1])
	waitApp(t, nodes[2], app.ID)
	before := do(t, nodes[2], app.ID, chat.CreateRoom{ID: "before", Kind: event.RoomOpen})
	ctx, logger := t.Context(), slog.New(slog.DiscardHandler)
	data := cfgs[2].Data

	// Neither is a folder in use touched, nor one whose cell has a quorum without it.
	var locked *LockedError
	if _, err := Recover(ctx, data, true, Build{}, logger); !errors.As(err, &locked) {
		t.Errorf("recovering a running node: %v", err)
	}
	if err := nodes[2].Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(ctx, data, false, Build{}, logger); petrel.CodeOf(err) != petrel.CodeConflict || !strings.Contains(err.Error(), "No quorum is lost") {
		t.Errorf("recovering beside a quorum: %v", err)
	}
	if err := errors.Join(nodes[0].Stop(), nodes[1].Stop()); err != nil {
		t.Fatal(err)
	}

	// What the folder says, asked twice: nothing changes by asking.
	was, err := InspectSurvivor(ctx, data)
	if err != nil || was.Enough() {
		t.Fatal(was, err)
	}
	if again, err := InspectSurvivor(ctx, data); err != nil || again.Mark != was.Mark || again.Term != was.Term {
		t.Errorf("asked again: %+v, %v; first %+v", again, err, was)
	}
	if was.Voters != 3 || was.Quorum != 2 || was.Answering() != 0 || was.Index < before.Position.Index || was.Written.IsZero() || was.Member != nodes[2].self.Member {
		t.Errorf("the survivor says %+v", was)
	}
	secret := readFile(t, filepath.Join(data, cellSecretFile))

	// Cut short after the first step, the folder does not start, and is recovered again.
	if err := newLife(data); err != nil {
		t.Fatal(err)
	}
	alone := cfgs[2]
	alone.Join, alone.CellSecretFile = "", ""
	if n, err := Open(ctx, Options{Config: alone}); !errors.Is(err, ErrFatal) || !strings.Contains(err.Error(), "node recover") {
		t.Errorf("a half recovered folder starts: %v, %v", n, err)
	}
	if _, err := Recover(ctx, data, false, Build{}, logger); err != nil {
		t.Fatal(err)
	}
	if now := readFile(t, filepath.Join(data, cellSecretFile)); now == secret || now == "" {
		t.Error("the lost nodes have the cell's secret still")
	}

	n3 := startNode(t, alone)
	if got := n3.shard.loop.Applied().Epoch; got == before.Position.Epoch || got == "" {
		t.Errorf("the epoch is %q, as before", got)
	}
	if _, err := n3.App(ctx, app.ID); err != nil {
		t.Errorf("what the survivor held is gone: %v", err)
	}
	do(t, n3, app.ID, chat.CreateRoom{ID: "after", Kind: event.RoomOpen})

	// The lost two have a quorum among themselves, and the address of the third.
	for i := range 2 {
		cfgs[i].Join, cfgs[i].CellSecretFile = "", ""
	}
	zombies := startTogether(t, cfgs[0], cfgs[1])
	do(t, zombies[0], app.ID, chat.CreateRoom{ID: "lost", Kind: event.RoomOpen})
	do(t, n3, app.ID, chat.CreateRoom{ID: "still-here", Kind: event.RoomOpen})
	if st := n3.shard.log.Status(); !st.IsLeader || len(st.Members) != 1 {
		t.Errorf("the survivor is %+v", st)
	}
	if hasRoom(t, n3, app.ID, "lost") || !hasRoom(t, n3, app.ID, "after") {
		t.Error("a lost node wrote over the survivor")
	}
	for i, z := range zombies {
		if err := errors.Join(z.Stop(), os.RemoveAll(cfgs[i].Data)); err != nil {
			t.Fatal(err)
		}
		cfgs[i] = joining(cfgs[i], alone, alone.Peer)
		nodes[i] = startNode(t, cfgs[i])
	}
	until(t, "three voters again", func() bool { return voters(t, n3) == 3 })
	last := do(t, nodes[0], app.ID, chat.CreateRoom{ID: "three-again", Kind: event.RoomOpen})
	for _, n := range []*Node{nodes[0], nodes[1], n3} {
		if err := n.shard.loop.WaitApplied(ctx, last.Position.Index); err != nil {
			t.Fatal(err)
		}
		for _, id := range []petrel.RoomID{"before", "after", "still-here", "three-again"} {
			if !hasRoom(t, n, app.ID, id) {
				t.Errorf("%s has no room %s", n.cfg.Name, id)
			}
		}
	}
}

// TestRecoverRefuses names what cannot be recovered from.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	ctx, logger := t.Context(), slog.New(slog.DiscardHandler)
	empty := filepath.Join(t.TempDir(), "none")
	if _, err := Recover(ctx, empty, true, Build{}, logger); err == nil || !strings.Contains(err.Error(), "no data folder with a log") {
		t.Errorf("nothing is recovered: %v", err)
	}
	if exists(empty) {
		t.Error("a folder was made by looking at it")
	}
	cfg := cellConfig(t, "n1")
	if err := startNode(t, cfg).Stop(); err != nil {
		t.Fatal(err)
	}
	f := fencing{Cause: causeDiffers, Reason: "its sums are not the others'", At: time.Now()}
	if err := f.save(cfg.Data); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(ctx, cfg.Data, false, Build{}, logger); petrel.CodeOf(err) != petrel.CodeConflict {
		t.Errorf("a fenced replica is recovered: %v", err)
	}
	if _, err := Recover(ctx, cfg.Data, true, Build{}, logger); err != nil {
		t.Errorf("not even with force: %v", err)
	}
	_ = startNode(t, cfg)

	// Somebody else's port counts as an answer, until force says that it is none.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := Survivor{Members: []SurvivorOf{{Member: "a", Voter: true, Answers: answers(ctx, l.Addr().String())}, {Member: "b", Answers: true}, {Member: "c", Voter: true}}}
	if s.Quorum = 2; s.Answering() != 1 || s.Enough() {
		t.Errorf("%d answer", s.Answering())
	}
}

func waitApp(t *testing.T, n *Node, app petrel.AppID) {
	t.Helper()
	until(t, "the app is known", func() bool { _, err := n.App(t.Context(), app); return err == nil })
}

func hasRoom(t *testing.T, n *Node, app petrel.AppID, id petrel.RoomID) (has bool) {
	t.Helper()
	err := n.shard.store.View(t.Context(), func(r *projection.Reader) error {
		_, err := chat.GetRoom(r, petrel.Actor{Kind: petrel.ActorApp, App: app}, id)
		has = err == nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// startTogether starts nodes that need each other.
func startTogether(t *testing.T, cfgs ...Config) []*Node {
	t.Helper()
	type opened struct {
		i   int
		n   *Node
		err error
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan opened, len(cfgs))
	for i, cfg := range cfgs {
		go func() {
			n, err := Open(ctx, Options{Config: cfg})
			if err == nil {
				err = n.Start(ctx)
			}
			done <- opened{i, n, err}
		}()
	}
	nodes := make([]*Node, len(cfgs))
	for range cfgs {
		o := <-done
		if o.err != nil {
			cancel()
			t.Errorf("%s: %v", cfgs[o.i].Name, o.err)
			continue
		}
		nodes[o.i] = o.n
		t.Cleanup(func() { _ = o.n.Stop() })
	}
	if t.Failed() {
		t.FailNow()
	}
	return nodes
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
