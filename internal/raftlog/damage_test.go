package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// solo opens one voter over dir and waits until it leads.
func solo(t *testing.T, dir string, app raftlog.Applier, tune func(*raftlog.Options)) (raftlog.Log, error) {
	t.Helper()
	o := raftlog.Options{Dir: dir, Node: "n1", Applier: app, Bootstrap: true, MinFree: 1, SegmentSize: 16 << 10}
	if tune != nil {
		tune(&o)
	}
	l, err := raftlog.Open(t.Context(), o)
	if err != nil {
		return nil, err
	}
	until(t, func() error { return l.Barrier(t.Context()) })
	return l, nil
}

func mustSolo(t *testing.T, dir string, app raftlog.Applier, tune func(*raftlog.Options)) raftlog.Log {
	t.Helper()
	l, err := solo(t, dir, app, tune)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func until(t *testing.T, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("never: %v", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func add(t *testing.T, l raftlog.Log, payload string) uint64 {
	t.Helper()
	at, err := l.Append(t.Context(), [][]byte{[]byte(payload)})
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return at
}

func shut(t *testing.T, l raftlog.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// whole replays the log in dir into a new projection.
func whole(t *testing.T, dir string) []string {
	t.Helper()
	app := raftlogtest.NewRecorder()
	shut(t, mustSolo(t, dir, app, nil))
	return app.Payloads()
}

// TestSoleVoterStandsAtOnce: made or opened again, it does not wait for a leader that cannot be.
func TestSoleVoterStandsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		l := mustSolo(t, dir, raftlogtest.NewRecorder(), func(o *raftlog.Options) { o.Heartbeat = time.Hour })
		add(t, l, "here")
		shut(t, l)
	}
}

// A flipped bit anywhere in a segment, sealed or tail, is refused with a sentence, or it
// lies where nothing is read: then every record is still there as it was.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, dir, app, nil)
	for i := range 60 {
		add(t, l, fmt.Sprintf("%d:%s", i, strings.Repeat("payload ", i*3)))
	}
	shut(t, l)
	want := app.Payloads()
	files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%d segments, %v", len(files), err)
	}
	type flip struct {
		file string
		at   int
	}
	var flips []flip
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		end := len(bytes.TrimRight(b, "\x00"))
		for at := 0; at < end; at++ {
			if at < 48 || at > end-48 || at%61 == 0 { // headers and the last commit closely, the rest here and there
				flips = append(flips, flip{filepath.Base(f), at})
			}
		}
		flips = append(flips, flip{filepath.Base(f), min(end+64, len(b)-1)}) // never written
	}
	if testing.Short() {
		flips = flips[:100]
	}
	refused, harmless := 0, 0
	for _, f := range flips {
		bit := rand.N(8)
		bad := t.TempDir()
		if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(bad, "wal", f.file)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[f.at] ^= 1 << bit
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := solo(t, bad, app, nil)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), filepath.Join(bad, "wal")) || !strings.Contains(err.Error(), "backup") || !errors.Is(err, raftlog.ErrDamaged) {
				t.Fatalf("byte %d of %s: a sentence that does not help: %v", f.at, f.file, err)
			}
			_ = os.RemoveAll(bad)
			continue
		}
		harmless++
		shut(t, l)
		if diff := cmp.Diff(want, whole(t, bad)); diff != "" {
			t.Fatalf("byte %d bit %d of %s: opened, but differs (-want +got):\n%s", f.at, bit, f.file, diff)
		}
		_ = os.RemoveAll(bad)
	}
	t.Logf("%d flips in %d segments: %d refused, %d harmless", len(flips), len(files), refused, harmless)
	if refused < len(flips)/2 {
		t.Error("too few are refused to believe it")
	}
}

// What is not in the segments lies in two files. One of them may be cut off, damaged or gone; when both are, the
// log is refused, and nothing is removed: with one of them back everything is there again.
func TestDamagedMeta(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, dir, app, nil)
	for n := range 60 {
		add(t, l, big(n))
	}
	shut(t, l)
	want := app.Payloads()
	names := []string{filepath.Join("wal", "meta-a"), filepath.Join("wal", "meta-b")}
	good, err := os.ReadFile(filepath.Join(dir, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(good, "\x00"))
	for what, harm := range map[string]func(path string) error{
		"gone":    os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"cut off": func(path string) error { return os.Truncate(path, int64(rand.N(end))) },
		"flipped": func(path string) error {
			bad := bytes.Clone(good)
			bad[rand.N(end)] ^= 1 << rand.N(8)
			return os.WriteFile(path, bad, 0o644)
		},
	} {
		for _, harmed := range [][]string{names[:1], names[1:], names} {
			bad := copyDir(t, dir)
			for _, name := range harmed {
				if err := harm(filepath.Join(bad, name)); err != nil {
					t.Fatal(err)
				}
			}
			if len(harmed) == 2 {
				if l, err := solo(t, bad, app, nil); !errors.Is(err, raftlog.ErrDamaged) {
					shut(t, l)
					t.Errorf("both %s: %v", what, err)
				}
				if err := os.WriteFile(filepath.Join(bad, names[0]), good, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, whole(t, bad)); diff != "" {
				t.Errorf("%v %s (-want +got):\n%s", harmed, what, diff)
			}
			if other := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(harmed, n) }); len(other) == 1 {
				if err := os.Remove(filepath.Join(bad, other[0])); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, whole(t, bad)); diff != "" { // from the one that was written again
				t.Errorf("%v %s, then the other gone (-want +got):\n%s", harmed, what, diff)
			}
		}
	}
}

// Whole files gone or cut.
func TestMissingFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, dir, app, func(o *raftlog.Options) { o.TrailingLogs = 1 })
	for i := range 43 {
		add(t, l, fmt.Sprintf("%d:%s", i, strings.Repeat("x", 2000)))
		if i == 30 {
			until(t, func() error { return l.TakeSnapshot(t.Context()) })
		}
	}
	shut(t, l)
	segments, _ := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	for name, harm := range map[string]func(dir string) error{
		"first segment": func(d string) error { return os.Remove(filepath.Join(d, "wal", filepath.Base(segments[0]))) },
		"last segment": func(d string) error {
			return os.Remove(filepath.Join(d, "wal", filepath.Base(segments[len(segments)-1])))
		},
		"all of the log": func(d string) error { return os.RemoveAll(filepath.Join(d, "wal")) },
		"all snapshots":  func(d string) error { return os.RemoveAll(filepath.Join(d, "snapshots")) },
		"half a segment": func(d string) error {
			return os.Truncate(filepath.Join(d, "wal", filepath.Base(segments[0])), 5000)
		},
	} {
		bad := copyDir(t, dir)
		if err := harm(bad); err != nil {
			t.Fatal(err)
		}
		l, err := solo(t, bad, app, nil)
		if err == nil {
			shut(t, l)
			t.Errorf("%s: opened", name)
			continue
		}
		if !strings.Contains(err.Error(), bad) || !errors.Is(err, raftlog.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := copyDir(t, dir)
	state, _ := filepath.Glob(filepath.Join(bad, "snapshots", "*", "state.bin"))
	b, err := os.ReadFile(state[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(state[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err = solo(t, copyDir(t, bad), app, nil) // not needed: the projection stands after it; soon another takes its place
	if err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	if l, err := solo(t, bad, raftlogtest.NewRecorder(), nil); err == nil {
		shut(t, l)
		t.Error("a damaged snapshot was restored")
	} else if !errors.Is(err, raftlog.ErrDamaged) {
		t.Error(err)
	}
}

// sealing fills a log until its first segment is full, and returns images of the folder
// as a crash between that batch and the change to the next segment would leave it.
func sealing(t *testing.T) (image string, payloads []string) {
	t.Helper()
	dir := t.TempDir()
	taken := make(chan string, 1)
	sealed := false
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, dir, app, func(o *raftlog.Options) {
		o.Hook(func(op, _ string) error {
			if op == "meta" && sealed && len(taken) == 0 {
				to := t.TempDir()
				if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
					t.Error(err)
				}
				taken <- to
			}
			return nil
		}, nil, nil)
	})
	sealed = true
	for i := range 1000 {
		payloads = append(payloads, fmt.Sprintf("%04d:%s", i, strings.Repeat("y", 700)))
		add(t, l, payloads[i])
		if len(taken) > 0 {
			break
		}
	}
	shut(t, l)
	image = <-taken
	return image, payloads
}

// raft-wal 0.4.1 opens such a log and then refuses every append. When this fails, the
// engine has learned it: sealTail can go.
func TestEngineCannotGoOnAfterCrashAtSeal(t *testing.T) {
	t.Parallel()
	image, _ := sealing(t)
	meta := &metadb.BoltMetaDB{} // the engine's own
	segments, err := raftlog.Segments(filepath.Join(image, "wal"))
	if err == nil {
		_, err = meta.Load(filepath.Join(image, "wal"))
	}
	if err == nil {
		err = meta.CommitState(segments)
	}
	if err != nil {
		t.Fatal(err)
	}
	w, err := wal.Open(filepath.Join(image, "wal"), wal.WithMetaStore(meta), wal.WithSegmentSize(16<<10))
	if err != nil {
		t.Fatal(err)
	}
	last, _ := w.LastIndex()
	err = w.StoreLog(&raft.Log{Index: last + 1, Term: 9})
	if err == nil || !strings.Contains(err.Error(), wal.ErrSealed.Error()) {
		t.Errorf("append to a sealed tail: %v", err)
	}
	_ = w.Close()
	_ = meta.Close()
}

func TestCrashAtSeal(t *testing.T) {
	t.Parallel()
	image, payloads := sealing(t)
	check := func(dir string, min int) {
		t.Helper()
		app := raftlogtest.NewRecorder()
		l := mustSolo(t, dir, app, nil)
		got := app.Payloads()
		if len(got) < min || len(got) > len(payloads) {
			t.Fatalf("%d of %d records", len(got), len(payloads))
		}
		if diff := cmp.Diff(payloads[:len(got)], got); diff != "" {
			t.Fatal(diff)
		}
		for i := range 40 { // and through the next seals
			add(t, l, fmt.Sprintf("after %d %s", i, strings.Repeat("z", 900)))
		}
		shut(t, l)
		if n := len(whole(t, dir)); n != len(got)+40 {
			t.Fatalf("%d records after the restart, not %d", n, len(got)+40)
		}
	}
	check(copyDir(t, image), 15)

	// Torn: the last batch did not reach the disk whole, but the index frame behind it did.
	torn := copyDir(t, image)
	segments, _ := filepath.Glob(filepath.Join(torn, "wal", "*.wal"))
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte(strings.Repeat("y", 700)))
	copy(b[at:], make([]byte, 512))
	if err := os.WriteFile(segments[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	check(torn, 14)
}

// TestDamagedSnapshotIsReplaced: nobody needs the snapshot while the projection is whole, but the log
// before it is gone. So it is read at every start, and another takes its place.
func TestDamagedSnapshotIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	tune := func(o *raftlog.Options) { o.TrailingLogs = 1 }
	l := mustSolo(t, dir, app, tune)
	for i := range 20 {
		add(t, l, fmt.Sprintf("%d:%s", i, strings.Repeat("x", 2000)))
	}
	until(t, func() error { return l.TakeSnapshot(t.Context()) })
	shut(t, l)
	states := func() []string {
		list, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
		return list
	}
	bad := states()[0]
	if err := os.Truncate(bad, 100); err != nil {
		t.Fatal(err)
	}
	l = mustSolo(t, dir, app, tune)
	until(t, func() error {
		for _, s := range states() {
			if s != bad {
				return nil
			}
		}
		return errors.New("no other snapshot yet")
	})
	shut(t, l)

	// The new one is good: the projection can be lost now.
	want := app.Payloads()
	again := raftlogtest.NewRecorder()
	l = mustSolo(t, dir, again, tune)
	if diff := cmp.Diff(want, again.Payloads()); diff != "" {
		t.Errorf("restored from the new snapshot (-want +got):\n%s", diff)
	}
	shut(t, l)
}
