package projectiontest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// snapshotIsPinned: what is written is the state at Snapshot, however much follows.
func snapshotIsPinned(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t), func(o *projection.Options) { o.CheckpointBytes = 64 << 10 })
	Add(t, s, 1, 2000)
	n := snapshot(t, s)
	for i := 2001; i <= 4000; i += 100 {
		Add(t, s, i, i+99)
	}
	var b bytes.Buffer
	if err := n.WriteTo(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	n.Release()
	if n.Applied() != At(2000) {
		t.Errorf("the snapshot is of %+v", n.Applied())
	}
	if err := n.WriteTo(t.Context(), &b); err == nil {
		t.Error("WriteTo after Release: no error")
	}
	other := fresh(t)
	into := Open(t, other)
	Add(t, into, 1, 7)
	if err := into.Restore(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if into.Applied() != At(2000) || Count(t, into) != 2000 {
		t.Errorf("restored: %d notes at %+v", Count(t, into), into.Applied())
	}
	Add(t, into, 2001, 2002)
	if s.Applied() != At(4000) || Count(t, s) != 4000 {
		t.Errorf("the original: %d notes at %+v", Count(t, s), s.Applied())
	}
	if err := into.Close(); err != nil {
		t.Fatal(err)
	}
	if again := Open(t, other); again.Applied() != At(2002) || Count(t, again) != 2002 {
		t.Errorf("opened again: %d notes at %+v", Count(t, again), again.Applied())
	}
}

func restoreMigrates(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 3)
	newer := projection.Module{Name: "notes", Migrations: append(Notes().Migrations[:1:1], `ALTER TABLE note ADD COLUMN stars INTEGER`)}
	into := Open(t, fresh(t), func(o *projection.Options) { o.Modules = []projection.Module{newer} })
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
	if s.Applied() != At(3) || Count(t, s) != 3 {
		t.Errorf("after the refusal: %d notes at %+v", Count(t, s), s.Applied())
	}
}

// restoreRefuses: a damaged or torn snapshot changes nothing and leaves nothing behind.
func restoreRefuses(t *testing.T, fresh func(testing.TB) Place) {
	source := Open(t, fresh(t))
	Add(t, source, 1, 300)
	good := written(t, source)
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	s := Open(t, fresh(t))
	Add(t, s, 1, 5)
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
		if s.Applied() != At(5) || Count(t, s) != 5 {
			t.Fatalf("%s: %d notes at %+v", name, Count(t, s), s.Applied())
		}
	}
}

// restoreUnderReaders: every View sees the old state or the new one, whole; a pinned snapshot fails.
func restoreUnderReaders(t *testing.T, fresh func(testing.TB) Place) {
	big := Open(t, fresh(t))
	Add(t, big, 1, 500)
	good := written(t, big)
	s := Open(t, fresh(t))
	Add(t, s, 1, 5)
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
				if n := Count(t, s); n != 5 && n != 500 {
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
	Add(t, s, 501, 501)
}

func snapshotStops(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 100)
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
}

func closed(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
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

var errRefused = errors.New("refused")

type refuses struct{}

func (refuses) Write([]byte) (int, error) { return 0, errRefused }
