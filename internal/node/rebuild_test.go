package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// fencedFolder is a data folder of member n1.aaaaaa, which knows n2, fenced and let go.
func fencedFolder(t *testing.T, now time.Time) (data string) {
	t.Helper()
	data = t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("shard-0/log/wal/1.wal", "log")
	write("member", `{"member":"n1.aaaaaa","origin":"founded"}`)
	if err := saveKnown(data, []knownNode{{Member: "n1.aaaaaa", Peer: "127.0.0.1:1"}, {Member: "n2.bbbbbb", Peer: "127.0.0.1:2"}}); err != nil {
		t.Fatal(err)
	}
	if err := (fencing{Cause: causeDiffers, Reason: "why", At: now, Member: "n1.aaaaaa", Left: true}).save(data); err != nil {
		t.Fatal(err)
	}
	return data
}

func folders(t *testing.T, data string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// TestRebuild: the shard is set aside, the folder is another member that joins, and what happened is kept.
func TestRebuild(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	data := fencedFolder(t, now)
	if err := rebuildIfDue(data, "n1", now, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	want := []string{"cell.json", "member", "rebuilds", "shard-0.fenced-1700000000"}
	if d := cmp.Diff(want, folders(t, data)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	m, err := loadMembership(data, "n1", false)
	if err != nil || m.Member == "n1.aaaaaa" || nameOf(m.Member) != "n1" || m.Origin != joined {
		t.Errorf("it is %+v now, %v", m, err)
	}
	if all, err := loadRebuilds(data); err != nil || len(all) != 1 || all[0].Reason != "why" || all[0].Member != "n1.aaaaaa" {
		t.Errorf("remembered: %+v, %v", all, err)
	}
	if err := rebuildIfDue(data, "n1", now, nil); err != nil {
		t.Errorf("with nothing to do: %v", err)
	}
}

// TestRebuildCutShort: a crash at any step is finished at the next start.
func TestRebuildCutShort(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for name, crash := range map[string]func(data string) error{
		"after the shard": func(data string) error {
			return os.Rename(filepath.Join(data, "shard-0"), filepath.Join(data, "shard-0.fenced-1700000000"))
		},
		"between two members": func(data string) error {
			return errors.Join(os.RemoveAll(filepath.Join(data, "shard-0")), os.Remove(filepath.Join(data, "member")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := fencedFolder(t, now)
			if err := crash(data); err != nil {
				t.Fatal(err)
			}
			if err := rebuildIfDue(data, "n1", now.Add(time.Second), slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			if m, err := loadMembership(data, "n1", false); err != nil || m.Member == "n1.aaaaaa" || m.Origin != joined {
				t.Errorf("it is %+v, %v", m, err)
			}
			if f, err := loadFencing(data); f != nil || err != nil {
				t.Errorf("still fenced: %+v, %v", f, err)
			}
		})
	}
}

// TestRebuildRefuses: what must not be set aside stays as it is.
func TestRebuildRefuses(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for name, tc := range map[string]struct {
		change func(data string) error
		want   string // "" does nothing, without an error
	}{
		"not let go yet": {func(data string) error { return fencing{Cause: causeRows, Member: "n1.aaaaaa"}.save(data) }, ""},
		"the third in an hour": {func(data string) error {
			var all []fencing
			for i := range 3 {
				all = append(all, fencing{At: now.Add(-time.Duration(i) * 20 * time.Minute)})
			}
			return saveRebuilds(data, all)
		}, "3 times within the last hour"},
		"nobody to join": {func(data string) error { return os.Remove(filepath.Join(data, cellFile)) }, "no other node of its cell is known"},
		"not readable":   {func(data string) error { return os.WriteFile(filepath.Join(data, rebuildFile), []byte("{"), 0o600) }, "read why this replica is fenced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := fencedFolder(t, now)
			if err := tc.change(data); err != nil {
				t.Fatal(err)
			}
			err := rebuildIfDue(data, "n1", now, slog.New(slog.DiscardHandler))
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !errors.Is(err, ErrFatal) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want a fatal one with %q", err, tc.want)
			}
			if !exists(filepath.Join(data, "shard-0", "log", "wal", "1.wal")) || !exists(filepath.Join(data, rebuildFile)) {
				t.Error("something was set aside")
			}
		})
	}
	data := fencedFolder(t, now)
	var old []fencing
	for range 5 {
		old = append(old, fencing{At: now.Add(-2 * time.Hour)}, fencing{At: now.Add(time.Hour)}) // a clock that jumped
	}
	if err := saveRebuilds(data, old); err != nil {
		t.Fatal(err)
	}
	if err := rebuildIfDue(data, "n1", now, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("with rebuilds of other hours: %v", err)
	}
}

// TestSetShardAside keeps the two newest.
func TestSetShardAside(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "shard-0")
	for _, at := range []int64{999_999_999, 1_000_000_000, 1_000_000_000, 1_000_000_005} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := setShardAside(dir, time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"shard-0.fenced-1000000001", "shard-0.fenced-1000000005"}, folders(t, data)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if kept, err := setShardAside(dir, time.Unix(2e9, 0)); kept != "" || err != nil {
		t.Errorf("with no shard: %q, %v", kept, err)
	}
}

// TestLeaveDamaged: in a cell a damaged log is rebuilt, alone it is refused.
func TestLeaveDamaged(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	damage := fmt.Errorf("record 7: %w", raftlog.ErrDamaged)
	data := fencedFolder(t, now)
	if err := os.Remove(filepath.Join(data, rebuildFile)); err != nil {
		t.Fatal(err)
	}
	if err := leaveDamaged(data, "n1.aaaaaa", errors.New("something else"), now); errors.Is(err, ErrRebuild) {
		t.Error("rebuilt for something else than damage")
	}
	if err := leaveDamaged(t.TempDir(), "n1.aaaaaa", damage, now); errors.Is(err, ErrRebuild) || !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("alone: %v", err)
	}
	if f, err := loadFencing(data); f != nil || err != nil {
		t.Errorf("fenced already: %v, %v", f, err)
	}
	err := leaveDamaged(data, "n1.aaaaaa", damage, now)
	if !errors.Is(err, ErrRebuild) || !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("in a cell: %v", err)
	}
	f, err := loadFencing(data)
	if err != nil || f == nil || !f.Left || f.Cause != causeDamaged || !strings.Contains(f.Reason, "record 7") {
		t.Errorf("written down: %+v, %v", f, err)
	}
}

// departure is a fencer whose cell lets it go at the third question.
type departure struct {
	*fencer
	did    []string
	asked  int
	failed chan error
}

func newDeparture(t *testing.T, data string, letGo int) *departure {
	d := &departure{failed: make(chan error, 1)}
	d.fencer = newFencer(fencerOptions{
		data: data, self: "n1.aaaaaa", logger: slog.New(slog.DiscardHandler),
		drain:    func(ctx context.Context) {},
		handOver: func(context.Context) { d.did = append(d.did, "hand over") },
		leave: func(context.Context) error {
			d.asked++
			d.did = append(d.did, "leave")
			if f, err := loadFencing(data); f == nil || f.Left || err != nil {
				t.Errorf("asks to leave before it is written down: %v, %v", f, err)
			}
			if d.asked < letGo {
				return petrel.Errorf(petrel.CodeConflict, "not now")
			}
			return nil
		},
		fail: func(err error) { d.failed <- err },
	})
	t.Cleanup(d.close)
	return d
}

// TestFence: written down first, leadership handed over, asked until the cell lets it go, then the node ends.
func TestFence(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := newDeparture(t, data, 3)
		if d.why() != "" {
			t.Error("fenced from the beginning")
		}
		d.fence(causeDiffers, "first")
		d.fence(causeRows, "second")
		err := <-d.failed
		if !errors.Is(err, ErrRebuild) || !strings.Contains(err.Error(), "differs: first") || d.why() != "differs: first" {
			t.Errorf("failed with %v, fenced because %q", err, d.why())
		}
		if !slices.Equal(d.did, []string{"hand over", "leave", "hand over", "leave", "hand over", "leave"}) {
			t.Errorf("did %q", d.did)
		}
		d.close()
	})
	if f, err := loadFencing(data); err != nil || f == nil || !f.Left || f.Reason != "first" {
		t.Errorf("written down: %+v, %v", f, err)
	}
}

// TestFenceResumes: a process that ends while the cell needs its vote goes on in its next life.
func TestFenceResumes(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		first := newDeparture(t, data, 1000)
		if resumed, err := first.resume(); resumed || err != nil {
			t.Errorf("resumed out of nothing: %v, %v", resumed, err)
		}
		first.fence(causeRows, "rot")
		time.Sleep(time.Minute)
		first.close()
		if first.asked < 25 || len(first.failed) != 0 {
			t.Errorf("asked %d times in a minute", first.asked)
		}
		second := newDeparture(t, data, 2)
		if resumed, err := second.resume(); !resumed || err != nil {
			t.Errorf("not resumed: %v, %v", resumed, err)
		}
		if err := <-second.failed; !errors.Is(err, ErrRebuild) {
			t.Error(err)
		}
		second.close()
	})
}
