package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// fsm stands between raft and the Applier. raft calls ApplyBatch, Apply, Snapshot and
// Restore from one goroutine.
type fsm struct {
	ctx  context.Context // of the shard's life, handed to the Applier
	app  Applier
	m    *metrics
	halt func(error)
	hook func()

	mu      sync.Mutex // guards what follows; never held around the Applier
	tail    chain      // end of the chain, with what is being folded
	mark    uint64     // engine position up to which records have been folded or are to be skipped
	applied uint64     // own index that the Applier has committed
	dead    error      // set once: nothing is applied any more
	pending *proposal
	changed chan struct{} // closed and replaced when applied or dead changes
}

// proposal is the one append under way on a leader. term and first identify it: only the
// leader of a term makes batches for it, one at a time.
type proposal struct {
	term, first uint64
	done        chan struct{} // closed when err is set
	err         error
	committed   time.Time // zero unless it was seen to be committed
}

var (
	_ raft.BatchingFSM = (*fsm)(nil)

	errDead = errors.New("this replica has stopped applying")
)

func newFSM(ctx context.Context, app Applier, m *metrics, hook func(), halt func(error)) *fsm {
	f := &fsm{ctx: ctx, app: app, m: m, hook: hook, halt: halt, changed: make(chan struct{})}
	f.reset(app.Applied(), 0)
	return f
}

// reset takes over what the Applier holds; engine positions up to mark are in it.
func (f *fsm) reset(a petrel.Applied, mark uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tail, f.mark, f.applied = chain{a.Index, a.Hash}, max(a.Mark, mark), a.Index
	f.notify()
}

func (f *fsm) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Apply implements raft.FSM; raft prefers ApplyBatch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. It decides which batches count, tells the
// proposer that its own is committed, and returns after the Applier has committed. Each
// response is nil or an error.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	recs, tail, err := f.take(logs, out)
	mark := logs[len(logs)-1].Index
	f.hook()
	if err == nil && len(recs) > 0 {
		start := time.Now()
		err = f.app.Apply(f.ctx, recs, mark)
		f.m.apply.Observe(time.Since(start).Seconds())
		if err != nil {
			err = fmt.Errorf("apply records %d to %d: %w", recs[0].Index, tail.index, err)
		}
	}
	if err == nil {
		f.mu.Lock()
		f.applied, f.mark = tail.index, max(f.mark, mark)
		f.notify()
		f.mu.Unlock()
		return out
	}
	f.die(err)
	for i := range out {
		if out[i] == nil {
			out[i] = errDead
		}
	}
	return out
}

// take verifies the logs and returns their records, with the tail already moved.
func (f *fsm) take(logs []*raft.Log, out []any) (all []petrel.Record, tail chain, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead != nil {
		return nil, f.tail, errDead
	}
	for i, l := range logs {
		if l.Index <= f.mark || l.Type != raft.LogCommand || len(l.Data) == 0 {
			continue
		}
		b, err := decodeBatch(l.Data)
		if err != nil {
			return nil, f.tail, fmt.Errorf("record %d of the log: %w", l.Index, damage(err))
		}
		recs, next, err := f.tail.next(b, l.Term)
		switch {
		case errors.Is(err, errFenced):
			f.m.fenced.Inc()
			out[i] = errFenced
			f.settleLocked(b.term, b.first, fmt.Errorf("raftlog: %w: %w", petrel.ErrNotAppended, errFenced))
		case err != nil:
			return nil, f.tail, fmt.Errorf("record %d of the log: %w", l.Index, damage(err))
		default:
			recs[len(recs)-1].Mark = l.Index
			all, f.tail = append(all, recs...), next
			f.settleLocked(b.term, b.first, nil)
		}
	}
	return all, f.tail, nil
}

// die stops all applying. An error that only comes from Close is not worth a word.
func (f *fsm) die(err error) {
	f.mu.Lock()
	first := f.dead == nil
	if first {
		f.dead = err
		f.notify()
	}
	f.mu.Unlock()
	if first && f.ctx.Err() == nil {
		f.halt(err)
	}
}

// expect announces a proposal before it is given to raft.
func (f *fsm) expect(term, first uint64) *proposal {
	p := &proposal{term: term, first: first, done: make(chan struct{})}
	f.mu.Lock()
	f.pending = p
	f.mu.Unlock()
	return p
}

// settle ends a proposal that was not seen to be committed.
func (f *fsm) settle(p *proposal, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == p {
		f.settleLocked(p.term, p.first, err)
	}
}

func (f *fsm) settleLocked(term, first uint64, err error) {
	p := f.pending
	if p == nil || p.term != term || p.first != first {
		return
	}
	f.pending, p.err = nil, err
	if err == nil {
		p.committed = time.Now()
	}
	close(p.done)
}

func (f *fsm) end() chain {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tail
}

func (f *fsm) position() (index, mark uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.mark
}

// idle says whether everything taken from the engine has been applied.
func (f *fsm) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied == f.tail.index
}

// waitApplied returns nil once the Applier holds record index.
func (f *fsm) waitApplied(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		ok, dead, changed := f.applied >= index, f.dead, f.changed
		f.mu.Unlock()
		switch {
		case dead != nil:
			return fmt.Errorf("raftlog: %w: %w", petrel.ErrStopped, dead)
		case ok:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.ctx.Done():
			return fmt.Errorf("raftlog: %w", petrel.ErrStopped)
		}
	}
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	dead := f.dead
	f.mu.Unlock()
	if dead != nil {
		return nil, dead
	}
	s, err := f.app.Snapshot(f.ctx)
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{f.ctx, s}, nil
}

// Restore implements raft.FSM: a leader sent a snapshot. An error leaves the old
// projection standing and goes back to the leader, which tries again: a node that cannot
// read a snapshot waits.
func (f *fsm) Restore(r io.ReadCloser) error {
	return f.restore(r, snapshotIndex(r))
}

func (f *fsm) restore(r io.Reader, mark uint64) error {
	if err := f.app.Restore(f.ctx, r); err != nil {
		return fmt.Errorf("restore the snapshot at %d: %w", mark, err)
	}
	a := f.app.Applied()
	if a.Mark < mark { // what lies between was not for the Applier; say so, or a restart would restore again
		if err := f.app.Apply(f.ctx, nil, mark); err != nil {
			err = fmt.Errorf("apply mark %d after a snapshot: %w", mark, err)
			f.die(err)
			return err
		}
	}
	f.reset(a, mark)
	return nil
}

type fsmSnapshot struct {
	ctx context.Context
	s   Snapshot
}

// Persist implements raft.FSMSnapshot; raft cancels the sink after an error.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error { return s.s.WriteTo(s.ctx, sink) }

func (s *fsmSnapshot) Release() { s.s.Release() }
