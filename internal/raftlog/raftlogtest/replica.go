package raftlogtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// ReplicaOptions of Group.Open.
type ReplicaOptions struct {
	Node    petrel.NodeID
	Applier raftlog.Applier
	// Fault is asked before each append; default: never a fault. A FaultUnknownStored is sent on its way, and only its answer is lost.
	Fault func() raftlog.Fault
	// OnFatal is called as in raftlog.Options.
	OnFatal func(error)
}

// Replica is one running member of a Group. Its fields are guarded by Group.mu.
type Replica struct {
	g      *Group
	o      ReplicaOptions
	d      *disk
	ctx    context.Context //nolint:containedctx // of the replica's life, handed to the Applier
	cancel context.CancelFunc
	done   chan struct{}
	work   chan struct{} // capacity 1: held around calls of the Applier; a lock that a bubble can wait for

	leading   bool
	leader    petrel.NodeID // that it last heard of in this term
	commit    uint64        // mark
	applied   uint64        // mark
	index     uint64        // of the last record applied
	progress  map[petrel.NodeID]*progress
	proposals []*proposal
	calls     []*call // sent to a leader, and not settled for good
	timer     *time.Timer
	news      chan struct{} // closed and replaced when something changes
	closed    bool
	fatal     error
}

var _ raftlog.Log = (*Replica)(nil)

// call is a request of a replica to the leader it knows.
type call struct {
	to     petrel.NodeID
	done   chan struct{}
	ended  bool
	void   bool // a barrier has promised that it never counts
	first  uint64
	mark   uint64
	err    error
	append bool
}

func (c *call) end(err error) {
	if !c.ended {
		c.ended, c.err = true, err
		close(c.done)
	}
}

// Open starts a member over its disk, which is made when there is none. The first member of all founds the group;
// others wait until a leader adds them.
func (g *Group) Open(o ReplicaOptions) (*Replica, error) {
	if o.Fault == nil {
		o.Fault = func() raftlog.Fault { return raftlog.FaultNone }
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	g.mu.Lock()
	if g.up[o.Node] != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("raftlogtest: %s is running", o.Node)
	}
	d := g.disks[o.Node]
	if d == nil {
		d = &disk{number: len(g.disks)}
		g.disks[o.Node] = d
	}
	founder := len(g.members) == 0
	if founder {
		g.members = []raftlog.Member{{ID: o.Node, Addr: string(o.Node), Voter: true}}
	}
	r := &Replica{
		g: g, o: o, d: d, done: make(chan struct{}), work: make(chan struct{}, 1), news: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	g.mu.Unlock()
	if err := r.catchUp(); err != nil {
		r.cancel()
		return nil, err
	}
	g.mu.Lock()
	g.up[o.Node] = r
	go r.run()
	if !founder || !g.elect(r) {
		g.changed()
	}
	g.mu.Unlock()
	return r, nil
}

// catchUp brings the Applier to the snapshot where it stands before it, and refuses one that does not fit the log.
func (r *Replica) catchUp() error {
	d := r.d // nobody else knows it yet
	if a := r.o.Applier.Applied(); a.Mark < d.base {
		if err := r.o.Applier.Restore(r.ctx, bytes.NewReader(d.snap)); err != nil {
			return fmt.Errorf("raftlogtest: restore the snapshot: %w", err)
		}
	}
	a := r.o.Applier.Applied()
	if a.Mark < d.base || a.Mark > d.last() {
		return fmt.Errorf("raftlogtest: the projection stands at mark %d, the log holds %d to %d", a.Mark, d.base+1, d.last())
	}
	if end := d.at(a.Mark).end; end != (chain{a.Index, a.Hash}) {
		return fmt.Errorf("raftlogtest: projection and log disagree at mark %d: record %d and %d", a.Mark, a.Index, end.index)
	}
	r.applied, r.commit, r.index = a.Mark, a.Mark, a.Index
	return nil
}

func (r *Replica) id() petrel.NodeID { return r.o.Node }

// notify wakes everyone who waits for news. The caller holds mu.
func (r *Replica) notify() {
	close(r.news)
	r.news = make(chan struct{})
}

// run hands what is committed to the Applier, at most 64 entries at a time, until Close.
func (r *Replica) run() {
	defer close(r.done)
	for {
		r.g.mu.Lock()
		if r.closed || r.fatal != nil {
			r.g.mu.Unlock()
			return
		}
		news, from, to := r.news, r.applied, min(r.commit, r.applied+64)
		var recs []petrel.Record
		var snap []byte
		if from < r.d.base {
			snap, to = r.d.snap, r.d.base
		} else {
			for mark := from + 1; mark <= to; mark++ {
				recs = append(recs, r.d.at(mark).recs...)
			}
		}
		r.g.mu.Unlock()
		if from == to {
			<-news
			continue
		}
		err := r.apply(recs, snap, to)
		r.g.mu.Lock()
		switch {
		case err == nil:
			r.applied = to
			r.index = r.o.Applier.Applied().Index
		case r.ctx.Err() == nil: // not because of Close
			r.fatal = fmt.Errorf("apply mark %d to %d: %w", from+1, to, err)
			r.leave()
			go r.o.OnFatal(r.fatal)
		}
		r.notify()
		r.g.mu.Unlock()
	}
}

func (r *Replica) apply(recs []petrel.Record, snap []byte, mark uint64) error {
	r.work <- struct{}{}
	defer func() { <-r.work }()
	switch {
	case snap != nil:
		return r.o.Applier.Restore(r.ctx, bytes.NewReader(snap))
	case len(recs) > 0:
		return r.o.Applier.Apply(r.ctx, recs, mark)
	}
	return nil
}

// leave takes the replica off the group. The caller holds mu.
func (r *Replica) leave() {
	if r.g.up[r.id()] != r {
		return
	}
	delete(r.g.up, r.id())
	r.stopTimer()
	r.stepDown()
	r.unanswered(func(*call) bool { return true })
	for _, other := range r.g.running() {
		other.unanswered(func(c *call) bool { return c.to == r.id() })
	}
	r.g.changed()
}

// unanswered ends calls whose answers cannot come any more. The caller holds mu.
func (r *Replica) unanswered(which func(*call) bool) {
	for _, c := range r.calls {
		if which(c) {
			c.end(r.lost(c))
		}
	}
}

var errNoAnswer = errors.New("the answer of the leader was lost")

func (r *Replica) lost(c *call) error {
	if c.append {
		return fmt.Errorf("raftlogtest: %w: %w", petrel.ErrUnknownOutcome, errNoAnswer)
	}
	return fmt.Errorf("raftlogtest: %w: %w", petrel.ErrNotAppended, errNoAnswer)
}

func (r *Replica) stopped() error {
	switch {
	case r.fatal != nil:
		return fmt.Errorf("raftlogtest: %w: %w", petrel.ErrStopped, r.fatal)
	case r.closed:
		return fmt.Errorf("raftlogtest: %w", petrel.ErrStopped)
	}
	return nil
}

func notAppended(why string) error {
	return fmt.Errorf("raftlogtest: %w: %s", petrel.ErrNotAppended, why)
}

// ask gives payloads to the leader, none for a barrier, and returns the call under way. The caller holds mu.
func (r *Replica) ask(payloads [][]byte) (*call, error) {
	c := &call{to: r.leader, done: make(chan struct{}), append: len(payloads) > 0}
	var l *Replica
	if r.leading {
		l = r
	} else if l = r.g.up[r.leader]; l == nil || !r.g.linked(r, l) {
		return nil, notAppended("no leader is known")
	}
	serve := func(answer func(func())) {
		switch {
		case c.void:
		case !l.leading:
			answer(func() { c.end(notAppended("it does not lead")) })
		default:
			var first, mark uint64
			done := func(err error) {
				answer(func() {
					c.first, c.mark = first, mark
					switch {
					case err == nil:
						c.end(nil)
					case c.append:
						c.end(fmt.Errorf("raftlogtest: %w: %w", petrel.ErrUnknownOutcome, err))
					default:
						c.end(notAppended(err.Error()))
					}
				})
			}
			first, mark = l.d.tail().end.index+1, l.d.last()+1
			l.propose(payloads, done)
		}
	}
	if l == r {
		serve(func(fn func()) { fn() })
		return c, nil
	}
	r.calls = append(r.calls, c)
	r.g.send(r, l, true, func() { serve(func(fn func()) { r.g.send(l, r, false, fn) }) })
	return c, nil
}

// Append implements raftlog.Log.
func (r *Replica) Append(ctx context.Context, payloads [][]byte) (uint64, error) {
	size := 0
	for _, p := range payloads {
		size += len(p)
	}
	if len(payloads) == 0 || len(payloads) > raftlog.MaxBatchRecords || size > raftlog.MaxBatchBytes {
		return 0, notAppended("the batch is empty or too large")
	}
	fault := r.o.Fault()
	if ctx.Err() != nil {
		return 0, notAppended("the context is over")
	}
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if err := r.stopped(); err != nil {
		return 0, err
	}
	switch fault {
	case raftlog.FaultNotAppended:
		return 0, notAppended("fault")
	case raftlog.FaultDiskFull:
		return 0, fmt.Errorf("raftlogtest: %w: fault", petrel.ErrDiskFull)
	case raftlog.FaultUnknownLost:
		return 0, fmt.Errorf("raftlogtest: %w: fault", petrel.ErrUnknownOutcome)
	}
	c, err := r.ask(payloads)
	if err != nil {
		return 0, err
	}
	if fault == raftlog.FaultUnknownStored {
		c.end(nil)
		c.err = r.lost(c)
	}
	if err := r.wait(ctx, c); err != nil {
		c.end(r.lost(c))
		return 0, fmt.Errorf("raftlogtest: %w: %w", petrel.ErrUnknownOutcome, err)
	}
	if !errors.Is(c.err, petrel.ErrUnknownOutcome) {
		r.calls = slices.DeleteFunc(r.calls, func(other *call) bool { return other == c })
	}
	return c.first, c.err
}

// wait lets go of mu until the call has ended.
func (r *Replica) wait(ctx context.Context, c *call) error {
	r.g.mu.Unlock()
	defer r.g.mu.Lock()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Barrier implements raftlog.Log. It makes calls whose answers were lost mean nothing from now on, wherever they are
// on their way; what a leader of an older term had taken of them cannot be committed once the barrier's own entry is.
func (r *Replica) Barrier(ctx context.Context) error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if err := r.stopped(); err != nil {
		return err
	}
	r.calls = slices.DeleteFunc(r.calls, func(c *call) bool {
		c.void = c.void || c.ended
		return c.ended
	})
	c, err := r.ask(nil)
	if err != nil {
		return err
	}
	if err := r.wait(ctx, c); err != nil {
		return notAppended(err.Error())
	}
	if c.err != nil {
		return c.err
	}
	for {
		if err := r.stopped(); err != nil {
			return err
		}
		if r.applied >= c.mark {
			return nil
		}
		news := r.news
		r.g.mu.Unlock()
		select {
		case <-news:
			r.g.mu.Lock()
		case <-ctx.Done():
			r.g.mu.Lock()
			return notAppended(ctx.Err().Error())
		}
	}
}

// TakeSnapshot implements raftlog.Log. It forgets every entry that the snapshot covers.
func (r *Replica) TakeSnapshot(ctx context.Context) error {
	r.g.mu.Lock()
	err := r.stopped()
	r.g.mu.Unlock()
	if err != nil {
		return err
	}
	r.work <- struct{}{}
	snap, err := r.o.Applier.Snapshot(ctx)
	<-r.work
	if err != nil {
		return fmt.Errorf("raftlogtest: take a snapshot: %w", err)
	}
	defer snap.Release()
	var buf bytes.Buffer
	if err := snap.WriteTo(ctx, &buf); err != nil {
		return fmt.Errorf("raftlogtest: write the snapshot: %w", err)
	}
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if mark := snap.Applied().Mark; mark > r.d.base {
		e := r.d.at(mark)
		r.d.entries = slices.Clone(r.d.entries[mark-r.d.base:])
		r.d.base, r.d.baseTerm, r.d.baseEnd, r.d.snap = mark, e.term, e.end, buf.Bytes()
	}
	return nil
}

// Status implements raftlog.Log.
func (r *Replica) Status() raftlog.Status {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	return raftlog.Status{
		Node: r.id(), IsLeader: r.leading, Leader: r.leader, Term: r.d.term, Members: slices.Clone(r.g.members),
		Index: r.index, AppliedMark: r.applied, CommitMark: r.commit, LastMark: r.d.last(), SnapshotMark: r.d.base, FreeDisk: -1,
		Lag: r.commit - r.applied, Stopped: r.fatal,
	}
}

// Stats implements raftlog.Log.
func (r *Replica) Stats() raftlog.MemberStats {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	s := raftlog.MemberStats{Alive: r.stopped() == nil, LastTerm: r.d.tail().term, LastMark: r.d.last()}
	if !r.led() {
		s.LastContact = time.Hour
	}
	return s
}

// AddNonvoter implements raftlog.Log.
func (r *Replica) AddNonvoter(_ context.Context, id petrel.NodeID, addr string) error {
	return r.reform(func(ms []raftlog.Member) []raftlog.Member {
		return append(ms, raftlog.Member{ID: id, Addr: addr})
	}, id)
}

// AddVoter implements raftlog.Log.
func (r *Replica) AddVoter(_ context.Context, id petrel.NodeID, addr string) error {
	return r.reform(func(ms []raftlog.Member) []raftlog.Member {
		return append(ms, raftlog.Member{ID: id, Addr: addr, Voter: true})
	}, id)
}

// Remove implements raftlog.Log.
func (r *Replica) Remove(_ context.Context, id petrel.NodeID) error {
	return r.reform(func(ms []raftlog.Member) []raftlog.Member { return ms }, id)
}

// reform replaces the member id.
func (r *Replica) reform(with func([]raftlog.Member) []raftlog.Member, id petrel.NodeID) error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if err := r.stopped(); err != nil {
		return err
	}
	if !r.leading || !r.g.hasQuorum(r) {
		return notAppended("it does not lead")
	}
	others := slices.DeleteFunc(slices.Clone(r.g.members), func(m raftlog.Member) bool { return m.ID == id })
	r.g.members = with(others)
	if !r.g.isVoter(r) {
		r.stepDown()
	}
	r.g.changed()
	return nil
}

// TransferLeadership implements raftlog.Log.
func (r *Replica) TransferLeadership(_ context.Context, to petrel.NodeID) error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if err := r.stopped(); err != nil {
		return err
	}
	if r.leading {
		for _, v := range r.g.electorate(r) {
			if v != r && (to == "" || v.id() == to) && r.g.elect(v) {
				return nil
			}
		}
	}
	return notAppended("leadership cannot be transferred")
}

// Close implements raftlog.Log.
func (r *Replica) Close() error {
	r.g.mu.Lock()
	if !r.closed {
		r.closed = true
		r.leave()
		r.notify()
	}
	r.g.mu.Unlock()
	r.cancel()
	<-r.done
	return nil
}
