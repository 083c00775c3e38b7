package apply

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// batches makes a log of batches of so many entries each.
func batches(t *testing.T, w *world, sizes ...int) []petrel.Record {
	t.Helper()
	for _, n := range sizes {
		recs := w.log.add(t, entries(n)...)
		recs[n-1].Mark = 2 * recs[n-1].Index
	}
	return w.log.recs
}

type pinned struct {
	s   *projection.Snapshot
	err error
}

func (w *world) pin(ctx context.Context, index uint64) <-chan pinned {
	c := make(chan pinned, 1)
	w.loop.pins.mu.Lock()
	before := len(w.loop.pins.all)
	w.loop.pins.mu.Unlock()
	go func() {
		s, err := w.loop.PinAt(ctx, index)
		c <- pinned{s, err}
	}()
	for { // until it is registered, or served already
		w.loop.pins.mu.Lock()
		n := len(w.loop.pins.all)
		w.loop.pins.mu.Unlock()
		if n > before || len(c) > 0 {
			return c
		}
		runtime.Gosched()
	}
}

// TestPinAt: whoever asks for an index gets the state at the end of its batch, however the log is cut into calls.
func TestPinAt(t *testing.T) {
	t.Parallel()
	sizes := []int{3, 1, 4, 1, 5, 9, 2, 6} // ends at 3, 4, 8, 9, 14, 23, 25, 31
	asked := map[uint64]uint64{1: 3, 3: 3, 4: 4, 5: 8, 13: 14, 15: 23, 23: 23, 26: 31, 31: 31}
	for _, calls := range [][]int{{8}, {1, 1, 1, 1, 1, 1, 1, 1}, {2, 6}, {5, 3}} {
		t.Run(fmt.Sprint(calls), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			recs := batches(t, w, sizes...)
			got := map[uint64]<-chan pinned{}
			for index := range asked {
				got[index] = w.pin(t.Context(), index)
			}
			batch := 0
			for _, n := range calls {
				count := 0
				for range n {
					count += sizes[batch]
					batch++
				}
				if err := w.loop.Apply(t.Context(), recs[:count], recs[count-1].Mark+1); err != nil {
					t.Fatal(err)
				}
				recs = recs[count:]
			}
			for index, want := range asked {
				p := <-got[index]
				if p.err != nil {
					t.Errorf("pin %d: %v", index, p.err)
					continue
				}
				if a := p.s.Applied(); a.Index != want || a.Mark < 2*want {
					t.Errorf("asked for %d, pinned %d with mark %d, want %d", index, a.Index, a.Mark, want)
				}
				p.s.Release()
			}
			if a := w.loop.Applied(); a.Index != 31 || a.Mark != 63 {
				t.Errorf("applied %d mark %d", a.Index, a.Mark)
			}
		})
	}
}

// TestPinAtOnce: at the very index, without anything being folded; beyond it, never; and only as long as the caller waits.
func TestPinAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recs := batches(t, w, 5, 5)
	if err := w.loop.Apply(t.Context(), recs[:5], 10); err != nil {
		t.Fatal(err)
	}
	s, err := w.loop.PinAt(t.Context(), 5)
	if err != nil || s.Applied().Index != 5 {
		t.Fatal(err)
	}
	s.Release()
	if _, err := w.loop.PinAt(t.Context(), 4); !errors.Is(err, ErrPassed) {
		t.Errorf("beyond it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := w.pin(ctx, 6)
	cancel()
	if p := <-waiting; !errors.Is(p.err, context.Canceled) {
		t.Errorf("after the caller is gone: %v", p.err)
	}
	waiting = w.pin(t.Context(), 7)
	if err := w.loop.Apply(t.Context(), recs[6:], 20); err == nil {
		t.Error("a gap is folded")
	}
	if p := <-waiting; !errors.Is(p.err, petrel.ErrStopped) {
		t.Errorf("after the loop failed: %v", p.err)
	}
}

// TestPinWithoutMarks: a call whose batches are not marked is one transaction, as ever.
func TestPinWithoutMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recs := w.log.add(t, entries(6)...)
	within, end := w.pin(t.Context(), 3), w.pin(t.Context(), 6)
	if err := w.loop.Apply(t.Context(), recs, 9); err != nil {
		t.Fatal(err)
	}
	if p := <-within; !errors.Is(p.err, ErrPassed) {
		t.Errorf("within: %v", p.err)
	}
	p := <-end
	if p.err != nil {
		t.Fatal(p.err)
	}
	p.s.Release()
}

// TestPinWhileApplying is for the race detector: pins come while the log is folded, and all of them end.
func TestPinWhileApplying(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sizes := make([]int, 60)
	for i := range sizes {
		sizes[i] = 1 + i%4
	}
	recs := batches(t, w, sizes...)
	done := make(chan error)
	go func() {
		for at := 0; at < len(recs); {
			n := at + 1
			for recs[n-1].Mark == 0 || n-at < 5 && n < len(recs) {
				n++
			}
			if err := w.loop.Apply(t.Context(), recs[at:n], recs[n-1].Mark); err != nil {
				done <- err
				return
			}
			at = n
		}
		done <- nil
	}()
	for i := uint64(1); i <= uint64(len(recs)); i += 3 {
		s, err := w.loop.PinAt(t.Context(), i)
		switch {
		case errors.Is(err, ErrPassed):
		case err != nil:
			t.Error(err)
		case s.Applied().Index < i || recs[s.Applied().Index-1].Mark == 0:
			t.Errorf("asked for %d, pinned %d", i, s.Applied().Index)
			s.Release()
		default:
			s.Release()
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
