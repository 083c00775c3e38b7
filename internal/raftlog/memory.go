package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Fault is what a Memory does to one append instead of storing it and saying so.
type Fault int

// The faults that a real log can show, for tests of whoever stands above it.
const (
	FaultNone          Fault = iota
	FaultNotAppended         // refused, as when there is no leader
	FaultDiskFull            // refused for want of room
	FaultUnknownStored       // stored, but the answer is lost
	FaultUnknownLost         // lost together with the answer
)

// MemoryDisk is what a Memory leaves behind: open another one on it to play a restart.
// The zero value is an empty disk.
type MemoryDisk struct {
	mu   sync.Mutex
	base chain           // end of what was forgotten after a snapshot
	recs []petrel.Record // base.index+1 …
	snap []byte
	at   uint64 // index that snap covers; 0 is none
}

func (d *MemoryDisk) tail() chain {
	if n := len(d.recs); n > 0 {
		return chain{d.recs[n-1].Index, d.recs[n-1].Hash}
	}
	return d.base
}

// MemoryOptions of NewMemory.
type MemoryOptions struct {
	Node    petrel.NodeID // default "memory"
	Applier Applier
	Disk    *MemoryDisk  // default: a new one
	Fault   func() Fault // asked before each append, which it may hold up; default: never a fault
	OnFatal func(error)  // as in Options
	// MaxPending is how many records may wait for the fold before Append waits. Default 65536.
	MaxPending uint64
}

// Memory is the log's twin without engine, disk and peers: a sole leader of term 1. It
// applies in a goroutine of its own as the real one does, uses no clock and no system
// call, and so may be used within synctest.
type Memory struct {
	o      MemoryOptions
	ctx    context.Context // of the shard's life, handed to the Applier
	cancel context.CancelFunc
	done   chan struct{}

	work sync.Mutex // held around every call of the Applier

	mu      sync.Mutex    // guards what follows; taken before Disk.mu
	changed chan struct{} // closed and replaced whenever something below changes
	applied uint64
	closed  bool
	fatal   error
}

var _ Log = (*Memory)(nil)

// NewMemory returns a running log, with the Applier brought to the disk's snapshot when
// it stands before the records that are left.
func NewMemory(o MemoryOptions) (*Memory, error) {
	if o.Applier == nil {
		return nil, errors.New("raftlog: Applier is missing")
	}
	setDefault(&o.Node, "memory")
	setDefault(&o.MaxPending, MaxBatchRecords)
	if o.Disk == nil {
		o.Disk = &MemoryDisk{}
	}
	if o.Fault == nil {
		o.Fault = func() Fault { return FaultNone }
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	m := &Memory{o: o, done: make(chan struct{}), changed: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.catchUp(); err != nil {
		m.cancel()
		return nil, err
	}
	go m.run()
	return m, nil
}

func (m *Memory) catchUp() error {
	d := m.o.Disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := m.o.Applier.Applied(); a.Index < d.base.index || a.Index == 0 && d.at > 0 {
		if err := m.o.Applier.Restore(m.ctx, bytes.NewReader(d.snap)); err != nil {
			return fmt.Errorf("raftlog: restore the snapshot: %w", err)
		}
	}
	a := m.o.Applier.Applied()
	if a.Index > d.tail().index || a.Index < d.base.index {
		return fmt.Errorf("raftlog: the projection holds record %d, the log %d to %d", a.Index, d.base.index+1, d.tail().index)
	}
	want := d.base.hash
	if a.Index > d.base.index {
		want = d.recs[a.Index-d.base.index-1].Hash
	}
	if a.Hash != want {
		return fmt.Errorf("raftlog: projection and log disagree at record %d", a.Index)
	}
	m.applied = a.Index
	return nil
}

// run is the fold: everything at hand, at most 64 records at a time, until Close.
func (m *Memory) run() {
	defer close(m.done)
	for {
		m.mu.Lock()
		if m.closed || m.fatal != nil {
			m.mu.Unlock()
			return
		}
		changed, from := m.changed, m.applied
		m.mu.Unlock()
		recs := m.read(from, 64)
		if len(recs) == 0 {
			<-changed
			continue
		}
		last := recs[len(recs)-1].Index
		m.work.Lock()
		err := m.o.Applier.Apply(m.ctx, recs, last)
		m.work.Unlock()
		m.mu.Lock()
		switch {
		case err == nil:
			m.applied = last
		case m.ctx.Err() == nil: // not because of Close
			m.fatal = fmt.Errorf("apply records %d to %d: %w", recs[0].Index, last, err)
			go m.o.OnFatal(m.fatal)
		}
		m.notify()
		m.mu.Unlock()
	}
}

func (m *Memory) read(after uint64, limit int) []petrel.Record {
	d := m.o.Disk
	d.mu.Lock()
	defer d.mu.Unlock()
	recs := d.recs[after-d.base.index:]
	return recs[:min(limit, len(recs)):min(limit, len(recs))]
}

// notify wakes everyone who waits. The caller holds mu.
func (m *Memory) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// wait returns when ok does, with mu held throughout ok; or with an error.
func (m *Memory) wait(ctx context.Context, ok func() bool) error {
	for {
		m.mu.Lock()
		stopped, good, changed := m.stopped(), ok(), m.changed
		m.mu.Unlock()
		switch {
		case stopped != nil:
			return stopped
		case good:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *Memory) stopped() error {
	switch {
	case m.fatal != nil:
		return fmt.Errorf("raftlog: %w: %w", petrel.ErrStopped, m.fatal)
	case m.closed:
		return fmt.Errorf("raftlog: %w", petrel.ErrStopped)
	}
	return nil
}

// Append implements Log.
func (m *Memory) Append(ctx context.Context, payloads [][]byte) (uint64, error) {
	if err := checkPayloads(payloads); err != nil {
		return 0, err
	}
	fault := m.o.Fault()
	d := m.o.Disk
	err := m.wait(ctx, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.tail().index-m.applied <= m.o.MaxPending
	})
	if errors.Is(err, petrel.ErrStopped) {
		return 0, err
	}
	if err != nil {
		return 0, fmt.Errorf("raftlog: %w: %w", petrel.ErrNotAppended, err)
	}
	switch fault {
	case FaultNotAppended:
		return 0, fmt.Errorf("raftlog: %w: fault", petrel.ErrNotAppended)
	case FaultDiskFull:
		return 0, fmt.Errorf("raftlog: %w: fault", petrel.ErrDiskFull)
	case FaultUnknownLost:
		return 0, fmt.Errorf("raftlog: %w: fault", petrel.ErrUnknownOutcome)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.stopped(); err != nil {
		return 0, err
	}
	d.mu.Lock()
	t := d.tail()
	recs, _, err := t.next(batch{term: 1, first: t.index + 1, prev: t.hash, payloads: payloads}, 1)
	if n := len(recs); n > 0 {
		recs[n-1].Mark = recs[n-1].Index
	}
	d.recs = append(d.recs, recs...)
	d.mu.Unlock()
	if err != nil {
		return 0, err
	}
	m.notify()
	if fault == FaultUnknownStored {
		return 0, fmt.Errorf("raftlog: %w: fault", petrel.ErrUnknownOutcome)
	}
	return recs[0].Index, nil
}

// Barrier implements Log.
func (m *Memory) Barrier(ctx context.Context) error {
	m.o.Disk.mu.Lock()
	end := m.o.Disk.tail().index
	m.o.Disk.mu.Unlock()
	return m.wait(ctx, func() bool { return m.applied >= end })
}

// TakeSnapshot implements Log. It forgets every record that the snapshot covers.
func (m *Memory) TakeSnapshot(ctx context.Context) error {
	m.mu.Lock()
	err := m.stopped()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.work.Lock()
	snap, err := m.o.Applier.Snapshot(ctx)
	m.work.Unlock()
	if err != nil {
		return fmt.Errorf("raftlog: take a snapshot: %w", err)
	}
	defer snap.Release()
	var buf bytes.Buffer
	if err := snap.WriteTo(ctx, &buf); err != nil {
		return fmt.Errorf("raftlog: write the snapshot: %w", err)
	}
	m.mu.Lock() // so that run is not between reading applied and reading recs
	defer m.mu.Unlock()
	d := m.o.Disk
	d.mu.Lock()
	defer d.mu.Unlock()
	a := snap.Applied()
	if a.Index <= d.at || a.Index > m.applied {
		return nil
	}
	d.recs = append([]petrel.Record(nil), d.recs[a.Index-d.base.index:]...)
	d.base, d.snap, d.at = chain{a.Index, a.Hash}, buf.Bytes(), a.Index
	return nil
}

// Status implements Log.
func (m *Memory) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.o.Disk
	d.mu.Lock()
	defer d.mu.Unlock()
	end := d.tail().index
	s := Status{
		Node: m.o.Node, IsLeader: true, Leader: m.o.Node, Term: 1, Members: []Member{{ID: m.o.Node, Voter: true}},
		Index: m.applied, AppliedMark: m.applied, CommitMark: end, LastMark: end, Lag: end - m.applied, SnapshotMark: d.at, FreeDisk: -1, Stopped: m.fatal,
	}
	if m.closed || m.fatal != nil {
		s.IsLeader, s.Leader = false, ""
	}
	return s
}

// Stats implements Log.
func (m *Memory) Stats() MemberStats {
	s := m.Status()
	return MemberStats{Alive: s.IsLeader, LastTerm: s.Term, LastMark: s.LastMark}
}

var errAlone = errors.New("the in-memory log has one member")

// AddNonvoter implements Log: always an error.
func (m *Memory) AddNonvoter(context.Context, petrel.NodeID, string) error { return errAlone }

// AddVoter implements Log: always an error.
func (m *Memory) AddVoter(context.Context, petrel.NodeID, string) error { return errAlone }

// Remove implements Log: always an error.
func (m *Memory) Remove(context.Context, petrel.NodeID) error { return errAlone }

// TransferLeadership implements Log: always an error.
func (m *Memory) TransferLeadership(context.Context, petrel.NodeID) error { return errAlone }

// Close implements Log.
func (m *Memory) Close() error {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		m.notify()
	}
	m.mu.Unlock()
	m.cancel()
	<-m.done
	return nil
}

// checkPayloads refuses what no batch may be.
func checkPayloads(payloads [][]byte) error {
	if len(payloads) == 0 || len(payloads) > MaxBatchRecords {
		return fmt.Errorf("raftlog: %w: a batch has 1 to %d records, not %d", petrel.ErrNotAppended, MaxBatchRecords, len(payloads))
	}
	n := 0
	for _, p := range payloads {
		n += len(p)
	}
	if n > MaxBatchBytes {
		return fmt.Errorf("raftlog: %w: a batch holds at most %d bytes, not %d", petrel.ErrNotAppended, MaxBatchBytes, n)
	}
	return nil
}
