package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// ErrPassed is PinAt's answer when the projection is beyond the index already.
var ErrPassed = errors.New("the projection is beyond that index")

// PinAt returns the state at the end of the first batch of the log that ends at index or after it. Where batches end
// is the same on every replica, so all that ask for one index get the same state, whatever calls the log was cut
// into; the transaction under way ends there for it. It waits for that batch, and returns ErrPassed when the
// projection is beyond index. Release what it returns, soon: see projection.Snapshot.
func (l *Loop) PinAt(ctx context.Context, index uint64) (*projection.Snapshot, error) {
	p := &pin{ctx: ctx, index: index, done: make(chan struct{})}
	l.pins.add(p)
	// Where nothing is being folded, nobody else serves the pin. Where something is, the end of that may have come just
	// before the pin: so it is looked at again, without waiting for a fold that waits for room on the disk.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if l.applying.TryLock() {
			l.pins.serve(l, nil)
			l.applying.Unlock()
		}
		select {
		case <-p.done:
			return p.snapshot, p.err
		case <-tick.C:
		case <-ctx.Done():
			if l.pins.remove(p) {
				return nil, fmt.Errorf("apply: pin index %d: %w", index, ctx.Err())
			}
			<-p.done
			if p.snapshot != nil {
				p.snapshot.Release()
			}
			return nil, fmt.Errorf("apply: pin index %d: %w", index, ctx.Err())
		}
	}
}

// pin is one caller of PinAt.
type pin struct {
	ctx      context.Context //nolint:containedctx // of the caller, who waits
	index    uint64
	done     chan struct{} // closed once one of these is set
	snapshot *projection.Snapshot
	err      error
}

type pins struct {
	mu  sync.Mutex // guards all; never held around the projection
	all []*pin
}

func (ps *pins) add(p *pin) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all = append(ps.all, p)
}

// remove reports whether p was still waiting.
func (ps *pins) remove(p *pin) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i, q := range ps.all {
		if p == q {
			ps.all = append(ps.all[:i], ps.all[i+1:]...)
			return true
		}
	}
	return false
}

// cut returns how many of recs go into the next transaction, and whose pin that is for: all of them and nobody's, mostly.
func (ps *pins) cut(recs []petrel.Record) (n int, due []*pin) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.all) == 0 {
		return len(recs), nil
	}
	n = len(recs)
	for _, p := range ps.all {
		for i := range recs[:n] {
			if recs[i].Mark != 0 && recs[i].Index >= p.index {
				if i+1 < n {
					n, due = i+1, nil
				}
				due = append(due, p)
				break
			}
		}
	}
	return n, due
}

// serve ends the pins that the present position decides: those that are due here, those of this very index, and those that
// came too late. The caller holds applying.
func (ps *pins) serve(l *Loop, due []*pin) {
	at := l.Applied().Index
	ps.mu.Lock()
	if len(ps.all) == 0 {
		ps.mu.Unlock()
		return
	}
	var here, late []*pin
	left := ps.all[:0]
	for _, p := range ps.all {
		switch {
		case p.index == at || contains(due, p):
			here = append(here, p)
		case p.index < at || l.failed != nil:
			late = append(late, p)
		default:
			left = append(left, p)
		}
	}
	ps.all = left
	ps.mu.Unlock()
	for _, p := range here {
		p.snapshot, p.err = l.opt.Store.Snapshot(p.ctx)
		close(p.done)
	}
	for _, p := range late {
		p.err = fmt.Errorf("apply: pin index %d at %d: %w", p.index, at, ErrPassed)
		if l.failed != nil {
			p.err = fmt.Errorf("apply: pin index %d: %w: %w", p.index, petrel.ErrStopped, l.failed)
		}
		close(p.done)
	}
}

func contains(all []*pin, p *pin) bool {
	for _, q := range all {
		if p == q {
			return true
		}
	}
	return false
}
