package raftlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Append implements Log.
func (l *raftLog) Append(ctx context.Context, payloads [][]byte) (first uint64, err error) {
	if err := checkPayloads(payloads); err != nil {
		return 0, err
	}
	start := time.Now()
	defer func() {
		l.m.append.Observe(time.Since(start).Seconds())
		l.m.outcomes.WithLabelValues(outcome(err)).Inc()
	}()
	if err := l.stopped(); err != nil {
		return 0, err
	}
	if r := l.raft(); r.State() == raft.Leader || l.fwd == nil {
		first, err = l.propose(ctx, payloads, nil)
		if l.fwd == nil || !errors.Is(err, raft.ErrNotLeader) {
			return first, err
		}
	}
	return l.forwardAppend(ctx, payloads)
}

func outcome(err error) string {
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return o.name
		}
	}
	return "appended"
}

// outcomes in the order in which an error is read; status is their number on the wire.
var outcomes = [...]struct {
	err    error
	name   string
	status byte
}{
	{petrel.ErrUnknownOutcome, "unknown", 2},
	{petrel.ErrDiskFull, "disk_full", 3},
	{petrel.ErrStopped, "stopped", 4},
	{petrel.ErrNotAppended, "not_appended", 1},
}

func (l *raftLog) acquire(ctx context.Context) error {
	select {
	case l.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *raftLog) release() { <-l.slot }

// propose appends on this node, which must lead. admit, when given, is asked with the term
// once everything else is ready and may refuse.
//
// The slot is held from choosing the first index until the batch is committed or has
// failed; the fold goes on without it.
func (l *raftLog) propose(ctx context.Context, payloads [][]byte, admit func(term uint64) error) (uint64, error) {
	no := func(err error) (uint64, error) { return 0, fmt.Errorf("raftlog: %w: %w", petrel.ErrNotAppended, err) }
	if err := l.acquire(ctx); err != nil {
		return no(err)
	}
	held := true
	defer func() {
		if held {
			l.release()
		}
	}()
	if err := l.stopped(); err != nil {
		return 0, err
	}
	if err := l.room(); err != nil {
		return 0, err
	}
	term, err := l.lead(ctx)
	if err != nil {
		return no(err)
	}
	if admit != nil {
		if err := admit(term); err != nil {
			return no(err)
		}
	}
	tail := l.fsm.end()
	b := batch{term: term, first: tail.index + 1, prev: tail.hash, payloads: payloads}
	data := b.encode()
	l.m.records.Observe(float64(len(payloads)))
	l.m.bytes.Observe(float64(len(data)))
	l.seq.Add(1)
	p := l.fsm.expect(term, b.first)
	start := time.Now()
	f := l.raft().ApplyLog(raft.Log{Data: data}, l.o.EnqueueTimeout)
	l.wait.start()
	go func() {
		defer l.wait.done()
		err := f.Error()
		switch {
		case err == nil: // committed, but not seen as ours: this replica had stopped
			err = errDead
		case errors.Is(err, raft.ErrLeadershipTransferInProgress):
			l.checkTransfer()
		}
		l.fsm.settle(p, l.explain(err))
	}()
	select {
	case <-p.done:
	case <-ctx.Done():
		held = false // whoever comes next must not guess at the tail
		l.wait.start()
		go func() {
			defer l.wait.done()
			<-p.done
			l.release()
		}()
		return 0, fmt.Errorf("raftlog: %w: %w", petrel.ErrUnknownOutcome, ctx.Err())
	}
	if p.err != nil {
		return 0, p.err
	}
	l.m.commit.Observe(p.committed.Sub(start).Seconds())
	l.m.returned.Observe(time.Since(p.committed).Seconds())
	select {
	case l.nudge <- struct{}{}:
	default:
	}
	return b.first, nil
}

// room refuses appends before the disk does.
func (l *raftLog) room() error {
	free, err := l.o.hooks.free(l.o.Dir)
	if err == nil && free < l.o.MinFree {
		return fmt.Errorf("raftlog: %w: %d bytes are free below %s, %d must be", petrel.ErrDiskFull, free, l.o.Dir, l.o.MinFree)
	}
	return nil
}

// lead returns the term in which this node leads and knows the tail: everything of earlier
// terms has gone through its fsm. The caller holds the slot.
func (l *raftLog) lead(ctx context.Context) (uint64, error) {
	r := l.raft()
	term := r.CurrentTerm()
	if r.State() != raft.Leader {
		return 0, raft.ErrNotLeader
	}
	if l.ready == term {
		return term, nil
	}
	if err := l.await(ctx, r.Barrier(l.o.EnqueueTimeout)); err != nil {
		return 0, err
	}
	if r.CurrentTerm() != term {
		return 0, raft.ErrLeadershipLost
	}
	l.ready = term
	clear(l.fence) // requests of older terms are refused by their term
	return term, nil
}

// explain turns raft's answer to an append into what became of it (design §3).
func (l *raftLog) explain(err error) error {
	what := petrel.ErrUnknownOutcome // leadership lost, shut down, and whatever raft may invent
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrAbortedByRestore),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		what = petrel.ErrNotAppended
	case errors.Is(err, errLingers):
	case noRoom(err):
		what = petrel.ErrDiskFull
	}
	if p := l.fatal.Load(); p != nil {
		err = errors.Join(err, *p)
	}
	return fmt.Errorf("raftlog: %w: %w", what, hideOutcome{err})
}

// hideOutcome keeps a cause's text but not its identity, so that an error of Append wraps
// one outcome only.
type hideOutcome struct{ error }

// Barrier implements Log.
//
// On the leader, raft's order does it: whatever Append had given to raft comes before the
// barrier's record, and what raft stored under an older term does not count (chain.next).
// From a follower the leader first refuses, for good, this node's forwarded appends whose
// answers were lost and which it has not given to raft yet.
func (l *raftLog) Barrier(ctx context.Context) error {
	if err := l.stopped(); err != nil {
		return err
	}
	if r := l.raft(); r.State() == raft.Leader || l.fwd == nil {
		if err := l.await(ctx, r.Barrier(l.o.EnqueueTimeout)); err != nil {
			return l.notNow("barrier", err)
		}
		index, _ := l.fsm.position()
		return l.fsm.waitApplied(ctx, index) // stopped meanwhile? then say so
	}
	return l.forwardBarrier(ctx)
}

// notNow wraps an error of something that changed nothing.
func (l *raftLog) notNow(what string, err error) error {
	if stop := l.stopped(); stop != nil {
		return stop
	}
	return fmt.Errorf("raftlog: %s: %w: %w", what, petrel.ErrNotAppended, err)
}
