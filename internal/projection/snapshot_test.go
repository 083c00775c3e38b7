package projection_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func snapshot(t testing.TB, s *projection.Store) *projection.Snapshot {
	t.Helper()
	n, err := s.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Release)
	return n
}

func written(t testing.TB, s *projection.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := snapshot(t, s).WriteTo(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// files lists what lies beside the projection.
func files(t testing.TB, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

var onlyOpen = []string{"p.db", "p.db-shm", "p.db-wal"}

// TestSnapshotIsPinned: what is written is the state at Snapshot, however much follows.
func TestSnapshotIsPinned(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path, func(o *projection.Options) { o.CheckpointBytes = 64 << 10 })
	add(t, s, 1, 2000)
	n := snapshot(t, s)
	for i := 2001; i <= 4000; i += 100 {
		add(t, s, i, i+99)
	}
	var b bytes.Buffer
	if err := n.WriteTo(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	n.Release()
	if n.Applied() != at(2000) {
		t.Errorf("the snapshot is of %+v", n.Applied())
	}
	if err := n.WriteTo(t.Context(), &b); err == nil {
		t.Error("WriteTo after Release: no error")
	}
	other := fresh(t)
	into := open(t, other)
	add(t, into, 1, 7)
	if err := into.Restore(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if into.Applied() != at(2000) || count(t, into) != 2000 {
		t.Errorf("restored: %d notes at %+v", count(t, into), into.Applied())
	}
	add(t, into, 2001, 2002)
	if s.Applied() != at(4000) || count(t, s) != 4000 {
		t.Errorf("the original: %d notes at %+v", count(t, s), s.Applied())
	}
	for _, p := range []string{path, other} {
		if d := cmp.Diff(onlyOpen, files(t, p)); d != "" {
			t.Errorf("files (-want +got):\n%s", d)
		}
	}
	if err := into.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open(t, other); again.Applied() != at(2002) || count(t, again) != 2002 {
		t.Errorf("opened again: %d notes at %+v", count(t, again), again.Applied())
	}
}

func TestRestoreMigrates(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t))
	add(t, s, 1, 3)
	newer := projection.Module{Name: "notes", Migrations: append(notes.Migrations[:1:1], `ALTER TABLE note ADD COLUMN stars INTEGER`)}
	into := open(t, fresh(t), func(o *projection.Options) { o.Modules = []projection.Module{newer} })
	if err := into.Restore(t.Context(), bytes.NewReader(written(t, s))); err != nil {
		t.Fatal(err)
	}
	err := into.View(t.Context(), func(r *projection.Reader) error {
		_, err := r.Get(`SELECT stars FROM note`, func(*projection.Row) {})
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// The other way round: an older build refuses and keeps what it has.
	if err := s.Restore(t.Context(), bytes.NewReader(written(t, into))); !errors.Is(err, projection.ErrNewerSchema) {
		t.Errorf("a snapshot of a newer schema: %v", err)
	}
	if s.Applied() != at(3) || count(t, s) != 3 {
		t.Errorf("after the refusal: %d notes at %+v", count(t, s), s.Applied())
	}
}

// TestRestoreRefuses: a damaged or torn snapshot changes nothing and leaves nothing behind.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	source := open(t, fresh(t))
	add(t, source, 1, 300)
	good := written(t, source)
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	path := fresh(t)
	s := open(t, path)
	add(t, s, 1, 5)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		in   []byte
		want error
	}{
		"nothing":              {t.Context(), nil, projection.ErrUnreadable},
		"not a snapshot":       {t.Context(), bytes.Repeat([]byte("x"), 100), projection.ErrUnreadable},
		"a bare SQLite file":   {t.Context(), good[28:], projection.ErrUnreadable},
		"torn":                 {t.Context(), good[:len(good)/2], projection.ErrUnreadable},
		"torn in the checksum": {t.Context(), good[:len(good)-1], projection.ErrUnreadable},
		"a bit in the length":  {t.Context(), changed(20), projection.ErrUnreadable},
		"a bit in the middle":  {t.Context(), changed(len(good) / 2), projection.ErrUnreadable},
		"a bit at the end":     {t.Context(), changed(len(good) - 1), projection.ErrUnreadable},
		"ctx is over":          {over, good, context.Canceled},
	} {
		if err := s.Restore(tc.ctx, bytes.NewReader(tc.in)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if s.Applied() != at(5) || count(t, s) != 5 {
			t.Fatalf("%s: %d notes at %+v", name, count(t, s), s.Applied())
		}
	}
	if d := cmp.Diff(onlyOpen, files(t, path)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

// TestRestoreUnderReaders: every View sees the old state or the new one, whole; a pinned snapshot fails.
func TestRestoreUnderReaders(t *testing.T) {
	t.Parallel()
	big := open(t, fresh(t))
	add(t, big, 1, 500)
	good := written(t, big)
	path := fresh(t)
	s := open(t, path)
	add(t, s, 1, 5)
	pinned := snapshot(t, s)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if n := count(t, s); n != 5 && n != 500 {
					t.Errorf("%d notes", n)
				}
			}
		})
	}
	for range 5 {
		if err := s.Restore(t.Context(), bytes.NewReader(good)); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if err := pinned.WriteTo(t.Context(), &bytes.Buffer{}); !errors.Is(err, petrel.ErrStopped) {
		t.Errorf("the snapshot of the file that is gone: %v", err)
	}
	add(t, s, 501, 501)
	if d := cmp.Diff(onlyOpen, files(t, path)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

func TestSnapshotStops(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path)
	add(t, s, 1, 100)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := snapshot(t, s).WriteTo(over, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ctx is over: %v", err)
	}
	if _, err := s.Snapshot(over); !errors.Is(err, context.Canceled) {
		t.Errorf("ctx is over: %v", err)
	}
	if err := snapshot(t, s).WriteTo(t.Context(), refuses{}); !errors.Is(err, errRefused) {
		t.Errorf("the other side refuses: %v", err)
	}
	if d := cmp.Diff(onlyOpen, files(t, path)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	held := snapshot(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := held.WriteTo(t.Context(), &bytes.Buffer{}); !errors.Is(err, petrel.ErrStopped) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := s.Snapshot(t.Context()); !errors.Is(err, petrel.ErrStopped) {
		t.Errorf("after Close: %v", err)
	}
	if d := cmp.Diff([]string{"p.db", "p.db.seal"}, files(t, path)); d != "" {
		t.Errorf("files after Close (-want +got):\n%s", d)
	}
}

var errRefused = errors.New("refused")

type refuses struct{}

func (refuses) Write([]byte) (int, error) { return 0, errRefused }

func TestClosed(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t))
	good := written(t, s)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"View":    s.View(t.Context(), func(*projection.Reader) error { return nil }),
		"Update":  s.Update(t.Context(), func(*projection.Tx) error { return nil }),
		"Restore": s.Restore(t.Context(), bytes.NewReader(good)),
	} {
		if !errors.Is(err, petrel.ErrStopped) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
