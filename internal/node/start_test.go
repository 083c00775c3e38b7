package node

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTakenAddressFoundsNothing: the first app is shown once, so a start that cannot serve must not make it.
func TestTakenAddressFoundsNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = t.TempDir(), l.Addr().String(), "127.0.0.1:0"
	if n, err := Open(t.Context(), Options{Config: cfg}); err == nil {
		_ = n.Stop()
		t.Fatal("a node opened an address that is taken")
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, "shard-0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was founded all the same: %v", err)
	}
}

// TestProjectionGone: a node builds a missing projection again and says so.
func TestProjectionGone(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	start := func(logs io.Writer) []App {
		n, err := Open(t.Context(), Options{Config: cfg, Logger: NewLogger(logs, "info", "json")})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		apps, err := n.Apps(t.Context())
		if err := errors.Join(err, n.Stop()); err != nil {
			t.Fatal(err)
		}
		return apps
	}
	before := start(io.Discard)
	files, err := filepath.Glob(filepath.Join(cfg.Data, "shard-0", "projection.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files { // the seal too: as if it had never been there
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	logs := &logSink{}
	after := start(logs)
	if len(after) != 1 || after[0].ID != before[0].ID {
		t.Errorf("apps afterwards: %v, want %v", after, before)
	}
	if !strings.Contains(logs.String(), `"level":"ERROR"`) || !strings.Contains(logs.String(), "built again") {
		t.Errorf("nothing loud in the log:\n%s", logs.String())
	}
}
