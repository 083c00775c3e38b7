package projection_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/projection"
)

// TestMemoryInABubble: nothing of a projection in memory waits for anything outside of the bubble, sleeps,
// or stays when it is closed.
func TestMemoryInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		disk := &projection.MemoryDisk{}
		s := open(t, "", func(o *projection.Options) { o.Memory = disk })
		add(t, s, 1, 10)
		err := s.View(t.Context(), func(r *projection.Reader) error {
			add(t, s, 11, 20) // beside an open View
			synctest.Wait()   // whatever SQLite or the store left running waits by now
			a, err := r.Applied()
			if a != at(10) {
				t.Errorf("an open View moved on to %d", a.Index)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = s.ViewBudget(t.Context(), projection.Budget{Time: time.Hour}, func(*projection.Reader) error {
			time.Sleep(2 * time.Hour)
			return nil
		})
		if err != nil {
			t.Error("a View that only slept:", err)
		}
		if took := time.Since(began); took != 2*time.Hour {
			t.Errorf("something but the test slept: %v", took)
		}
		if n := count(t, s); n != 20 {
			t.Errorf("%d notes", n)
		}
	})
}

// TestMemoryOfOneView: an Update beside a View goes on with a copy; the first database ends with its last View.
func TestMemoryOfOneView(t *testing.T) {
	t.Parallel()
	s := open(t, "", func(o *projection.Options) { o.Memory = &projection.MemoryDisk{} })
	var nested func(depth int)
	nested = func(depth int) {
		err := s.View(t.Context(), func(r *projection.Reader) error {
			if depth < 3 { // fewer than the pool's places
				add(t, s, depth, depth)
				nested(depth + 1)
			}
			a, err := r.Applied()
			if want := depth - 1; a.Index != uint64(want) { //nolint:gosec // small
				t.Errorf("View %d sees %d", depth, a.Index)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	nested(1)
	if got := count(t, s); got != 2 || s.Applied() != at(2) {
		t.Errorf("%d notes at %+v", got, s.Applied())
	}
}

func BenchmarkMemory(b *testing.B) {
	for _, tc := range []struct {
		name string
		run  func(b *testing.B, s *projection.Store, i int)
	}{
		{"open", func(b *testing.B, _ *projection.Store, _ int) {
			s := open(b, "", func(o *projection.Options) { o.Memory = &projection.MemoryDisk{} })
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}},
		{"update", func(b *testing.B, s *projection.Store, i int) { add(b, s, i+1, i+1) }},
		{"view", func(b *testing.B, s *projection.Store, _ int) { count(b, s) }},
		{"update beside a view", func(b *testing.B, s *projection.Store, i int) {
			err := s.View(b.Context(), func(*projection.Reader) error {
				add(b, s, i+1, i+1)
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			s := open(b, "", func(o *projection.Options) { o.Memory = &projection.MemoryDisk{} })
			for i := range b.N {
				tc.run(b, s, i)
			}
		})
	}
}
