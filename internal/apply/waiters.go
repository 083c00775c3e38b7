package apply

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// errCanceled is what Wait returns after Cancel.
var errCanceled = errors.New("apply: the waiter was canceled")

// Outcome is what became of an entry.
type Outcome struct {
	// Index of the entry.
	Index uint64
	// Conflicted says that a guard did not hold: nothing changed; decide again.
	Conflicted bool
	// Seqs has one element per event, 0 where it takes none; nil when Conflicted.
	Seqs []uint64
}

func (o outcome) public() Outcome {
	return Outcome{Index: o.index, Conflicted: o.verdict != verdictFolded, Seqs: o.seqs}
}

// Waiter is one caller's wait for one entry.
type Waiter struct {
	ws    *waiters
	id    petrel.EntryID
	since time.Time
	done  chan struct{} // closed once out or err is set
	out   Outcome
	err   error
	next  *Waiter // others that wait for the same id
}

// Err is not nil when the table of waiters is full (a petrel.Error with CodeBusy) or the loop has
// failed. Look at it before appending: such a waiter never learns what became of the entry.
func (w *Waiter) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// Done is closed once Wait has something to return.
func (w *Waiter) Done() <-chan struct{} { return w.done }

// Wait returns what became of the entry, or an error that wraps ctx's, petrel.ErrUnknownOutcome (the
// loop failed, or a snapshot jumped over the entry) or is a petrel.Error with CodeBusy (see Err). After
// ctx's error it may be called again.
func (w *Waiter) Wait(ctx context.Context) (Outcome, error) {
	select {
	case <-w.done:
		return w.out, w.err
	default:
	}
	select {
	case <-w.done:
		return w.out, w.err
	case <-ctx.Done():
		return Outcome{}, fmt.Errorf("apply: wait for entry %s: %w", w.id, ctx.Err())
	}
}

// Cancel gives the waiter's place back. Always call it; after the outcome it does nothing.
func (w *Waiter) Cancel() {
	w.ws.mu.Lock()
	defer w.ws.mu.Unlock()
	select {
	case <-w.done:
		return
	default:
	}
	if w.ws.drop(w) {
		w.finish(Outcome{}, errCanceled)
	}
}

func (w *Waiter) finish(o Outcome, err error) {
	w.out, w.err = o, err
	close(w.done)
}

// waiters holds who waits for an entry or a position, and the window of recent outcomes.
type waiters struct {
	l *Loop

	mu        sync.Mutex // guards all below; the loop reads recent without it
	recent    *recent
	byID      map[petrel.EntryID]*Waiter
	count     int
	positions positions
	failed    error
	onRestore []func()
}

func (ws *waiters) init(l *Loop, r *recent) {
	ws.l, ws.recent, ws.byID = l, r, map[petrel.EntryID]*Waiter{}
}

// Expect registers interest in an entry, before it is appended. If the entry is among the last Window
// already, the waiter has its outcome at once. Call Cancel when done with it. An id stands for one
// decision: after a conflict, decide again under a new id, or the entry is taken for a duplicate.
func (l *Loop) Expect(id petrel.EntryID) *Waiter {
	ws := &l.waiters
	w := &Waiter{ws: ws, id: id, done: make(chan struct{}), since: l.opt.Now()}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	switch s, known := ws.recent.byID[id]; {
	case known:
		w.finish(s.first.public(), nil)
	case ws.failed != nil:
		w.finish(Outcome{}, ws.failed)
	case ws.count >= l.opt.MaxWaiters:
		w.finish(Outcome{}, petrel.Errorf(petrel.CodeBusy, "Too many commands wait for their outcome. Come back in a second.").After(time.Second))
	default:
		w.next = ws.byID[id]
		ws.byID[id] = w
		ws.count++
	}
	return w
}

// drop takes w out of the table. The caller holds mu.
func (ws *waiters) drop(w *Waiter) bool {
	for p, ok := ws.byID[w.id]; ok && p != nil; p = p.next {
		switch {
		case p == w && w.next == nil:
			delete(ws.byID, w.id)
		case p == w:
			ws.byID[w.id] = w.next
		case p.next == w:
			p.next = w.next
		default:
			continue
		}
		ws.count--
		return true
	}
	return false
}

// resolve finishes all that wait for id. The caller holds mu.
func (ws *waiters) resolve(id petrel.EntryID, o Outcome, err error, now time.Time) {
	for w := ws.byID[id]; w != nil; w = w.next {
		w.finish(o, err)
		ws.count--
		observe(ws.l.metrics.wait, w.since, now)
	}
	delete(ws.byID, id)
}

// release notes the outcomes of a committed transaction and finishes who waits for them.
func (ws *waiters) release(t *transaction) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.recent.last = t.block
	for i := range t.results {
		r := &t.results[i]
		ws.recent.add(r.id, r.outcome)
		if len(ws.byID) > 0 {
			ws.resolve(r.id, ws.recent.byID[r.id].first.public(), nil, t.committed)
		}
	}
	ws.positions.release(t.applied.Index)
}

// restored takes over the window of a snapshot.
func (ws *waiters) restored(r *recent, index uint64, jumped bool) {
	ws.mu.Lock()
	ws.recent = r
	for id := range ws.byID {
		if s, ok := r.byID[id]; ok {
			ws.resolve(id, s.first.public(), nil, ws.l.opt.Now())
		} else if jumped {
			ws.resolve(id, Outcome{}, fmt.Errorf("apply: a snapshot jumped over the entry: %w", petrel.ErrUnknownOutcome), ws.l.opt.Now())
		}
	}
	ws.positions.release(index)
	call := ws.onRestore
	ws.mu.Unlock()
	for _, fn := range call {
		fn()
	}
}

// fail finishes everybody: nothing will be folded any more.
func (ws *waiters) fail(err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.failed = fmt.Errorf("apply: the loop has stopped: %w: %w", petrel.ErrUnknownOutcome, err)
	for id := range ws.byID {
		ws.resolve(id, Outcome{}, ws.failed, ws.l.opt.Now())
	}
	ws.positions.fail(ws.failed)
}

// OnRestore adds a function to be called after every Restore, when the new state can be read. It runs
// on the log's goroutine: it must be quick, and must not call Apply, Snapshot or Restore.
func (l *Loop) OnRestore(fn func()) {
	l.waiters.mu.Lock()
	defer l.waiters.mu.Unlock()
	l.waiters.onRestore = append(l.waiters.onRestore[:len(l.waiters.onRestore):len(l.waiters.onRestore)], fn)
}

// WaitApplied returns once the projection holds the entry at index. Any number of callers may wait;
// each costs a place in a heap. An error wraps ctx's, or petrel.ErrUnknownOutcome when the loop failed.
func (l *Loop) WaitApplied(ctx context.Context, index uint64) error {
	if l.Applied().Index >= index {
		return nil
	}
	ws := &l.waiters
	ws.mu.Lock()
	if ws.failed != nil || l.Applied().Index >= index {
		defer ws.mu.Unlock()
		return ws.failed
	}
	p := &position{index: index, done: make(chan error, 1)}
	heap.Push(&ws.positions, p)
	ws.mu.Unlock()

	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if p.place >= 0 {
		heap.Remove(&ws.positions, p.place)
		return fmt.Errorf("apply: wait for index %d: %w", index, ctx.Err())
	}
	return <-p.done
}

// position is one caller of WaitApplied.
type position struct {
	index uint64
	done  chan error // capacity 1
	place int        // in the heap; -1 once released
}

// positions is a heap by index.
type positions []*position

func (p *positions) release(index uint64) {
	for len(*p) > 0 && (*p)[0].index <= index {
		heap.Pop(p).(*position).done <- nil
	}
}

func (p *positions) fail(err error) {
	for len(*p) > 0 {
		heap.Pop(p).(*position).done <- err
	}
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (p positions) Len() int           { return len(p) }
func (p positions) Less(i, j int) bool { return p[i].index < p[j].index }
func (p positions) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].place, p[j].place = i, j
}

// Push implements heap.Interface.
func (p *positions) Push(x any) {
	e := x.(*position)
	e.place = len(*p)
	*p = append(*p, e)
}

// Pop implements heap.Interface.
func (p *positions) Pop() any {
	old := *p
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*p = old[:len(old)-1]
	e.place = -1
	return e
}
