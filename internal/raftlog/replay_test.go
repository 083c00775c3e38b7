package raftlog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// TestReplay: what a log holds is folded anew up to where a projection stands, from the first record or from a snapshot, and
// nothing of it is changed.
func TestReplay(t *testing.T) {
	t.Parallel()
	for name, trailing := range map[string]uint64{"from the beginning": 1024, "from a snapshot": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			app := raftlogtest.NewRecorder()
			l := mustSolo(t, dir, app, func(o *raftlog.Options) { o.TrailingLogs = trailing })
			for i := range 30 {
				add(t, l, fmt.Sprintf("%d:%s", i, strings.Repeat("x", 2000)))
				if i%10 == 5 {
					until(t, func() error { return l.TakeSnapshot(t.Context()) })
				}
			}
			shut(t, l)
			before := sums(t, dir)
			again := raftlogtest.NewRecorder()
			last := uint64(0)
			r, err := raftlog.Replay(t.Context(), dir, again, app.Applied().Mark, func(at uint64) { last = at })
			if err != nil {
				t.Fatal(err)
			}
			if a, b := app.Applied(), again.Applied(); a.Index != b.Index || a.Hash != b.Hash || last < a.Mark {
				t.Errorf("replayed to %+v, want %+v; told of %d", b, a, last)
			}
			if d := cmp.Diff(app.Payloads(), again.Payloads()); d != "" {
				t.Errorf("(-live +again)\n%s", d)
			}
			if (r.From == 0) != (trailing == 1024) || r.Records == 0 || (r.Records == 30) != (r.From == 0) {
				t.Errorf("%+v", r)
			}
			if d := cmp.Diff(before, sums(t, dir)); d != "" {
				t.Errorf("the files were changed: %s", d)
			}
			if _, err := raftlog.Replay(t.Context(), dir, raftlogtest.NewRecorder(), 1<<20, nil); err == nil {
				t.Error("folded beyond the end of the log")
			}
			segments, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
			if err != nil || len(segments) == 0 {
				t.Fatal(segments, err)
			}
			flip(t, segments[0], "x")
			if _, err := raftlog.Replay(t.Context(), dir, raftlogtest.NewRecorder(), app.Applied().Mark, nil); !errors.Is(err, raftlog.ErrDamaged) {
				t.Errorf("a flipped bit: %v", err)
			}
		})
	}
}

// flip changes one bit in the middle of a run of what.
func flip(t *testing.T, path, what string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndex(string(b), strings.Repeat(what, 1000))
	if at < 0 {
		t.Fatalf("%s holds none of it", path)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
