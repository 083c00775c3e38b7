package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
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
	var logs io.Writer = io.Discard
	if os.Getenv("PETREL_TEST_LOG") != "" {
		logs = os.Stderr
	}
	n, err := Open(t.Context(), Options{Config: cfg, Logger: slog.New(slog.NewTextHandler(logs, nil)).With("on", cfg.Name)})
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

func do(t *testing.T, n *Node, app petrel.AppID, c command.Command) command.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	res, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorUser, App: app, User: "ada"}, command.Meta{Command: petrel.CommandID(petrel.NewName())}, c)
	if err != nil {
		t.Fatalf("%s: %v", n.cfg.Name, err)
	}
	return res
}
