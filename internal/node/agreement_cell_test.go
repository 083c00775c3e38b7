package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// comparingNode starts a node that compares all the time.
func comparingNode(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := openComparing(t, cfg)
	if err != nil {
		t.Fatalf("%s: %v", cfg.Name, err)
	}
	return n
}

func openComparing(t *testing.T, cfg Config) (*Node, error) {
	logs := slog.DiscardHandler
	if os.Getenv("PETREL_TEST_LOG") != "" {
		logs = slog.NewTextHandler(os.Stderr, nil)
	}
	cfg.DrainTimeout = time.Second
	n, err := Open(t.Context(), Options{Config: cfg, CompareEvery: 20 * time.Millisecond, Logger: slog.New(logs).With("on", cfg.Name)})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = n.Stop() })
	return n, n.Start(t.Context())
}

// comparingCell is n nodes, all of them voters, with an app.
func comparingCell(t *testing.T, n int) (nodes []*Node, app petrel.AppID) {
	t.Helper()
	first := cellConfig(t, "n1")
	nodes = []*Node{comparingNode(t, first)}
	addr := nodes[0].cell.port.Addr()
	for i := 2; i <= n; i++ {
		nodes = append(nodes, comparingNode(t, joining(cellConfig(t, "n"+string(rune('0'+i))), first, addr)))
	}
	until(t, "all vote", func() bool { return voters(t, nodes[0]) == n })
	var a App
	until(t, "an app is made", func() bool {
		var err error
		a, err = nodes[0].CreateApp(t.Context(), NewApp{Name: "compared"})
		return err == nil
	})
	return nodes, a.ID
}

// tamper changes rows of one replica behind the log's back.
func tamper(t *testing.T, n *Node, sql string) {
	t.Helper()
	err := n.shard.store.Update(t.Context(), func(tx *projection.Tx) error {
		changed, err := tx.Exec(sql)
		if err == nil && changed == 0 {
			err = errors.New("nothing was changed")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// insist sends a command until it is answered: a starved machine loses its leader now and then.
func insist(t *testing.T, n *Node, app petrel.AppID, c command.Command) command.Result {
	t.Helper()
	id := command.Meta{Command: petrel.CommandID(petrel.NewName())}
	var res command.Result
	until(t, "the command is answered", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var err error
		res, err = n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorUser, App: app, User: "ada"}, id, c)
		switch petrel.CodeOf(err) {
		case "":
			return true
		case petrel.CodeNoLeader, petrel.CodeUnknownOutcome, petrel.CodeTimeout, petrel.CodeBusy:
			return false
		}
		t.Fatalf("%s: %v", n.cfg.Name, err)
		return false
	})
	return res
}

func waitApplied(t *testing.T, n *Node, index uint64) {
	t.Helper()
	if err := n.shard.loop.WaitApplied(t.Context(), index); err != nil {
		t.Fatal(err)
	}
}

// leads returns the node that leads.
func leads(t *testing.T, nodes []*Node) (at int) {
	t.Helper()
	until(t, "somebody leads", func() bool {
		for i, n := range nodes {
			if n.cell.status().IsLeader {
				at = i
				return true
			}
		}
		return false
	})
	return at
}

// TestWrongReplicaIsRebuilt: a replica whose rows were changed folds the next entry to something else than the others. It is
// found, fenced and named, and comes back as a new member with the state of the others; writes go on. So it is with the
// leader, and with the follower of two.
func TestWrongReplicaIsRebuilt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		nodes  int
		leader bool
	}{
		"a follower": {3, false}, "the leader": {3, true}, "the follower of two": {2, false},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: three nodes each are enough at a time
			nodes, app := comparingCell(t, tc.nodes)
			res := insist(t, nodes[0], app, chat.CreateRoom{ID: "room", Kind: event.RoomOpen})
			wrong := leads(t, nodes)
			if !tc.leader {
				wrong = (wrong + 1) % len(nodes)
			}
			bad, good := nodes[wrong], nodes[(wrong+1)%len(nodes)]
			waitApplied(t, bad, res.Position.Index)
			waitApplied(t, good, res.Position.Index)
			tamper(t, bad, `UPDATE chat_change SET place = place + 7`) // the room's head: the next event takes another seq
			insist(t, good, app, chat.PostMessage{Room: "room", Text: "hello"})

			until(t, "somebody is fenced", func() bool { return bad.Err() != nil || good.Err() != nil })
			if tc.nodes == 2 && good.Err() != nil { // the lead may have changed meanwhile, and the leader's side stays
				bad, good, wrong = good, bad, 1-wrong
			}
			if err := bad.Err(); !errors.Is(err, ErrRebuild) || !strings.Contains(err.Error(), "what its folds") {
				t.Errorf("it failed with %v", err)
			}
			was, cfg := bad.self.Member, bad.cfg
			if a := bad.health.answer(); a.Status != "failed" || !strings.Contains(a.Detail, string(was)) {
				t.Errorf("its health is %+v", a)
			}
			if err := bad.Stop(); err != nil {
				t.Error(err)
			}
			back := comparingNode(t, cfg)
			if back.self.Member == was || back.self.Origin != joined {
				t.Errorf("it came back as %+v, was %s", back.self, was)
			}
			until(t, "all vote again", func() bool { return voters(t, good) == tc.nodes })
			last := insist(t, back, app, chat.PostMessage{Room: "room", Text: "hello again"})
			nodes[wrong] = back
			for _, n := range nodes {
				waitApplied(t, n, last.Position.Index)
				if why := n.fencer.why(); why != "" {
					t.Errorf("%s is fenced: %s", n.cfg.Name, why)
				}
			}
			if a, b := good.shard.store.Applied(), back.shard.store.Applied(); a.Digest != b.Digest {
				t.Errorf("they differ still: %+v %+v", a, b)
			}
			if kept, _ := filepath.Glob(filepath.Join(cfg.Data, "shard-0.fenced-*")); len(kept) != 1 {
				t.Errorf("set aside: %q", kept)
			}
		})
	}
}

// TestFencedAcrossAStop: a replica that is stopped while the cell still needs its vote is rebuilt after the next start.
func TestFencedAcrossAStop(t *testing.T) {
	t.Parallel()
	nodes, app := comparingCell(t, 3)
	res := insist(t, nodes[0], app, chat.CreateRoom{ID: "room", Kind: event.RoomOpen})
	waitApplied(t, nodes[2], res.Position.Index)
	was, cfg := nodes[2].self.Member, nodes[2].cfg
	if err := nodes[2].Stop(); err != nil {
		t.Fatal(err)
	}
	if err := (fencing{Cause: causeRows, Reason: "rot", At: time.Now(), Member: was}).save(cfg.Data); err != nil {
		t.Fatal(err)
	}
	if _, err := openComparing(t, cfg); !errors.Is(err, ErrRebuild) {
		t.Fatalf("a fenced replica was opened: %v", err)
	}
	back := comparingNode(t, cfg)
	if back.self.Member == was {
		t.Errorf("it came back as %s", was)
	}
	insist(t, back, app, chat.PostMessage{Room: "room", Text: "hello"})
}

// TestDamagedLogIsRebuilt: in a cell, a log with a flipped bit is not refused but fetched anew from the others.
func TestDamagedLogIsRebuilt(t *testing.T) {
	t.Parallel()
	nodes, app := comparingCell(t, 3)
	res := insist(t, nodes[0], app, chat.CreateRoom{ID: "room", Kind: event.RoomOpen})
	waitApplied(t, nodes[2], res.Position.Index)
	was, cfg := nodes[2].self.Member, nodes[2].cfg
	if err := nodes[2].Stop(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(cfg.Data, "shard-0", "log", "wal", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	raw, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(raw), string(app)) // inside an entry
	if at < 0 {
		t.Fatal("the app is not in the log")
	}
	raw[at] ^= 1
	if err := os.WriteFile(segments[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openComparing(t, cfg); !errors.Is(err, ErrRebuild) {
		t.Fatalf("a damaged log was opened, or refused: %v", err)
	}
	back := comparingNode(t, cfg)
	if back.self.Member == was {
		t.Errorf("it came back as %s", was)
	}
	until(t, "three vote", func() bool { return voters(t, nodes[0]) == 3 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := back.App(ctx, app); err != nil {
		t.Error(err)
	}
}

// TestScrubOfACell: a bit that flipped in one replica's rows, in a room that nobody touches, shows in no digest. A scrub finds
// and names it while others write, and the replica is rebuilt.
func TestScrubOfACell(t *testing.T) {
	t.Parallel()
	nodes, app := comparingCell(t, 3)
	insist(t, nodes[0], app, chat.CreateRoom{ID: "quiet", Kind: event.RoomOpen})
	insist(t, nodes[0], app, chat.PostMessage{Room: "quiet", Text: "what was said"})
	res := insist(t, nodes[0], app, chat.CreateRoom{ID: "busy", Kind: event.RoomOpen})
	for _, n := range nodes {
		waitApplied(t, n, res.Position.Index)
	}
	at := leads(t, nodes)
	writing, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for range 4 {
		writers.Go(func() {
			for writing.Err() == nil {
				_, _ = nodes[at].desk.Do(writing, petrel.Actor{Kind: petrel.ActorUser, App: app, User: "ada"},
					command.Meta{Command: petrel.CommandID(petrel.NewName())}, chat.PostMessage{Room: "busy", Text: "more"})
			}
		})
	}
	verify := func(n *Node) (v Verification) {
		if err := n.agreement.beginScrub(false); err != nil {
			t.Fatal(err)
		}
		until(t, "the scrub ends", func() bool { v = n.agreement.verification(); return !v.Running })
		return v
	}
	for _, n := range nodes {
		until(t, "all were compared, and are equal", func() bool { // not all may answer in time
			v := verify(n)
			if len(v.Differences) > 0 || len(v.Nodes) != 3 {
				t.Fatalf("%s finds: %+v", n.cfg.Name, v)
			}
			return v.Equal && v.Rows >= 10
		})
	}
	bad := nodes[(at+1)%3]
	tamper(t, bad, `UPDATE chat_message SET text = 'what wAs said' WHERE text = 'what was said'`)
	var found []RowDifference
	until(t, "it is found", func() bool { // not all may answer in time
		found = append(found, verify(nodes[at]).Differences...)
		return bad.Err() != nil || slices.ContainsFunc(found, func(d RowDifference) bool { return len(d.Wrong) > 0 })
	})
	for _, d := range found {
		if d.Table != "chat_message" || len(d.Keys) > 1 || len(d.Wrong) > 0 && !slices.Equal(d.Wrong, []petrel.NodeID{bad.self.Member}) {
			t.Errorf("found: %+v", d)
		}
	}
	until(t, "the replica with other rows is fenced", func() bool { return bad.Err() != nil })
	if err := bad.Err(); !errors.Is(err, ErrRebuild) || !strings.Contains(err.Error(), "table chat_message") {
		t.Errorf("it failed with %v", err)
	}
}
