package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// raftLog is Log over HashiCorp Raft. Open builds it (open.go).
//
// Order of locks: slot, then mu, then fsm.mu. The store and raft take none of ours.
type raftLog struct {
	o     Options
	log   *slog.Logger
	m     *metrics
	st    *store
	snaps *snapStore
	fsm   *fsm
	mux   *mux // nil without a Network

	ctx     context.Context // ends when Close gives up waiting, or when the shard stops
	cancel  context.CancelFunc
	closing chan struct{} // closed first in Close
	closed  sync.Once
	err     error // of Close
	fatal   atomic.Pointer[error]

	mu   sync.RWMutex // guards r and sole; held for writing while the group is reopened
	r    *raft.Raft
	sole bool // runs with the timings of a sole voter

	slot    chan struct{}     // 1: whoever sends has the right to propose
	ready   uint64            // term whose barrier this leader has passed; guarded by slot
	fence   map[uint64]uint64 // per forwarding session: appends up to this number are refused; guarded by slot
	nudge   chan struct{}     // a batch was committed
	seq     atomic.Uint64     // of batches proposed here, for nudge
	leaders atomic.Uint64     // that this node has learned of
	fwd     *forwarder        // nil without a Network
	bg      sync.WaitGroup    // our own goroutines
	wait    waitGroup         // goroutines that wait for raft's futures
}

var _ Log = (*raftLog)(nil)

// raft returns the engine of the moment. One that has been replaced answers ErrRaftShutdown.
func (l *raftLog) raft() *raft.Raft {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.r
}

// start runs the engine over the stores. The caller holds mu or is alone.
func (l *raftLog) start(sole bool) error {
	r, err := raft.NewRaft(l.config(sole), l.fsm, l.st, l.st, l.snaps, l.transport())
	if err != nil {
		return fmt.Errorf("raftlog: start the engine: %w", err)
	}
	l.r, l.sole = r, sole
	l.bg.Go(func() { l.watchLeadership(r) })
	l.bg.Go(func() { l.watchLeader(r) })
	return nil
}

func (l *raftLog) config(sole bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(l.o.Node)
	c.HeartbeatTimeout = l.o.Heartbeat
	if sole {
		c.HeartbeatTimeout = l.o.SoleHeartbeat
	}
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = min(500*time.Millisecond, c.HeartbeatTimeout)
	c.ShutdownOnRemove = false // a removed member stays readable until its operator stops it
	c.NoSnapshotRestoreOnStart = true
	c.TrailingLogs = l.o.TrailingLogs
	c.SnapshotInterval = 10 * 365 * 24 * time.Hour // watch decides
	c.SnapshotThreshold = 1 << 62
	c.NoLegacyTelemetry = true
	c.Logger = newHCLog(l.log)
	return c
}

func (l *raftLog) transport() raft.Transport {
	if l.mux == nil {
		_, t := raft.NewInmemTransport(raft.ServerAddress(l.o.Node))
		return t
	}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: l.mux.layer(), MaxPool: 3, Timeout: 10 * time.Second, Logger: newHCLog(l.log),
	})
}

// reopen restarts the engine with the timings of a cell. raft can reload heartbeat and
// election timeouts, but not the leader's lease, which must not exceed the heartbeat: a
// sole voter's 50 ms lease would cost a cell its leader at every stall of a disk.
func (l *raftLog) reopen(ctx context.Context) (done bool, err error) {
	if err := l.acquire(ctx); err != nil {
		return false, err
	}
	defer l.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sole {
		return false, nil
	}
	if err := l.stopped(); err != nil {
		return false, err
	}
	l.wait.drain(2 * time.Second)
	if err := l.r.Shutdown().Error(); err != nil {
		return false, fmt.Errorf("raftlog: stop the engine: %w", err)
	}
	l.ready = 0
	if err := l.start(false); err != nil {
		l.halt(err)
		return false, err
	}
	l.log.Info("the log runs with the timings of a cell from now on", "heartbeat", l.o.Heartbeat)
	return true, nil
}

// watchLeadership readies a new leader, so that its first append need not.
func (l *raftLog) watchLeadership(r *raft.Raft) {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.closing:
			return
		case leads := <-r.LeaderCh():
			l.log.Info("leadership of the log", "leads", leads, "term", r.CurrentTerm())
			if !leads {
				continue
			}
			ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
			if err := l.acquire(ctx); err == nil {
				if _, err := l.lead(ctx); err != nil {
					l.log.Debug("not ready to lead yet", "error", err)
				}
				l.release()
			}
			l.correctAddress(ctx, r)
			cancel()
		}
		if l.raft() != r {
			return
		}
	}
}

// watchLeader follows who leads, as this node sees it.
func (l *raftLog) watchLeader(r *raft.Raft) {
	ch := make(chan raft.Observation, 16)
	o := raft.NewObserver(ch, false, func(o *raft.Observation) bool { _, ok := o.Data.(raft.LeaderObservation); return ok })
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	_, last := r.LeaderWithID()
	for l.raft() == r {
		select {
		case <-l.ctx.Done():
			return
		case <-l.closing:
			return
		case <-ch:
		}
		if _, now := r.LeaderWithID(); now != "" && now != last {
			l.leaders.Add(1)
			last = now
		}
	}
}

// correctAddress enters this leader's own address when it has changed (a sole voter that
// was given a Network, or a node that moved).
func (l *raftLog) correctAddress(ctx context.Context, r *raft.Raft) {
	if l.mux == nil {
		return
	}
	for _, m := range members(r) {
		if m.ID == l.o.Node && m.Voter && m.Addr != l.mux.net.Addr() {
			f := r.AddVoter(raft.ServerID(l.o.Node), raft.ServerAddress(l.mux.net.Addr()), 0, l.o.EnqueueTimeout)
			if err := l.await(ctx, f); err != nil {
				l.log.Warn("could not enter this node's new address into the log", "error", err)
			}
		}
	}
}

// nudgeAfter is how long the leader waits for another batch before it appends an empty
// record so that the followers hear of the last commit.
const nudgeAfter = 300 * time.Microsecond

// nudger appends the empty records. One is under way at a time.
func (l *raftLog) nudger() {
	for {
		select {
		case <-l.closing:
			return
		case <-l.nudge:
		}
		before := l.seq.Load()
		select {
		case <-l.closing:
			return
		case <-time.After(nudgeAfter):
		}
		r := l.raft()
		if l.seq.Load() != before || r.State() != raft.Leader || len(members(r)) < 2 {
			continue
		}
		l.m.nudges.Inc()
		if err := l.await(l.ctx, r.Apply(nil, l.o.EnqueueTimeout)); err != nil {
			l.log.Debug("could not tell the followers of a commit", "error", err)
		}
	}
}

// halt stops the shard for good. It may be called from raft's own goroutines, more than once.
func (l *raftLog) halt(err error) {
	select {
	case <-l.closing:
		return
	default:
	}
	if !l.st.serving.Load() { // Open sees the error itself
		return
	}
	err = fmt.Errorf("the log of node %s stopped: %w", l.o.Node, err)
	if !l.fatal.CompareAndSwap(nil, &err) {
		return
	}
	l.log.Error("the shard stops: nothing is skipped to go on", "error", err)
	l.fsm.die(err)
	l.bg.Go(func() {
		l.wait.drain(time.Second) // raft forgets futures of committed records at Shutdown
		l.cancel()
		_ = l.raft().Shutdown().Error()
	})
	go l.o.OnFatal(err)
}

// stopped says why nothing can be asked of this log any more.
func (l *raftLog) stopped() error {
	if p := l.fatal.Load(); p != nil {
		return fmt.Errorf("raftlog: %w: %w", petrel.ErrStopped, *p)
	}
	select {
	case <-l.closing:
		return fmt.Errorf("raftlog: %w", petrel.ErrStopped)
	default:
		return nil
	}
}

// await waits for a future of raft's, or for ctx. raft's futures cannot be cancelled: the
// goroutine that waits on stays until it is answered.
func (l *raftLog) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	l.wait.start()
	go func() {
		defer l.wait.done()
		done <- f.Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements Log. Appends under way are given two seconds to end well.
func (l *raftLog) Close() error {
	l.closed.Do(func() {
		close(l.closing)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := l.acquire(ctx); err == nil {
			l.release()
		}
		l.wait.drain(2 * time.Second)
		if l.mux != nil {
			l.mux.close()
		}
		l.mu.Lock() // a reopening ends first
		r := l.r
		l.mu.Unlock()
		down := r.Shutdown()
		l.cancel()
		l.err = down.Error()
		l.bg.Wait()
		if l.fwd != nil {
			l.fwd.close()
		}
		if l.fatal.Load() == nil {
			l.st.markClean(l.log)
		}
		l.err = errors.Join(l.err, l.st.close())
		l.m.unregister()
	})
	return l.err
}

// waitGroup is a sync.WaitGroup whose wait can be given up.
type waitGroup struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // closed at zero; nil unless someone waits
}

func (w *waitGroup) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
}

func (w *waitGroup) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 && w.zero != nil {
		close(w.zero)
		w.zero = nil
	}
}

func (w *waitGroup) drain(limit time.Duration) {
	w.mu.Lock()
	if w.n == 0 {
		w.mu.Unlock()
		return
	}
	if w.zero == nil {
		w.zero = make(chan struct{})
	}
	zero := w.zero
	w.mu.Unlock()
	select {
	case <-zero:
	case <-time.After(limit):
	}
}
