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
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// raftLog is Log over HashiCorp Raft. Open builds it (open.go).
//
// Order of locks: slot, then fsm.mu. The store and raft take none of ours.
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

	r       atomic.Pointer[raft.Raft]
	started chan struct{} // closed once r is set

	slot     chan struct{}     // 1: whoever sends has the right to propose
	ready    uint64            // term whose barrier this leader has passed; guarded by slot
	handed   time.Time         // when the last transfer of leadership ended; guarded by slot
	fence    map[uint64]uint64 // per forwarding session: appends up to this number are refused; guarded by slot
	nudge    chan struct{}     // a batch was committed
	changing chan struct{}     // 1: a change of members or of the leader is under way
	seq      atomic.Uint64     // of batches proposed here, for nudge
	reign    atomic.Pointer[reign]
	leaders  atomic.Uint64  // that this node has learned of
	fwd      *forwarder     // nil without a Network
	bg       sync.WaitGroup // our own goroutines
	wait     waitGroup      // goroutines that wait for raft's futures
}

var _ Log = (*raftLog)(nil)

// raft returns the engine; nil while Open is at work.
func (l *raftLog) raft() *raft.Raft { return l.r.Load() }

// start runs the engine over the stores, and what watches it. conf is the membership that the stores know.
func (l *raftLog) start(conf raft.Configuration) error {
	t := l.transport()
	r, err := l.engine(t)
	if err != nil {
		return fmt.Errorf("raftlog: start the engine: %w", err)
	}
	l.r.Store(r)
	l.reign.Store(newReign(r))
	close(l.started)
	if l.mux != nil {
		l.mux.start()
	}
	l.bg.Go(func() { l.watchLeadership(r) })
	l.bg.Go(func() { l.watchLeader(r) })
	l.bg.Go(l.watch)
	l.bg.Go(l.nudger)
	if soleVoter(conf, raft.ServerID(l.o.Node)) {
		l.bg.Go(func() { l.stand(t) })
	}
	return nil
}

// engine starts raft in a goroutine of its own: what the store refuses to read ends whoever asks (store.die).
func (l *raftLog) engine(t raft.Transport) (r *raft.Raft, err error) {
	err = errors.New("the store gave out")
	var wg sync.WaitGroup
	wg.Go(func() { r, err = raft.NewRaft(l.config(), l.fsm, l.st, l.st, l.snaps, t) })
	wg.Wait()
	if p := l.fatal.Load(); err != nil && p != nil {
		err = *p
	}
	return r, err
}

// stand makes a sole voter stand for election at once instead of waiting for a leader that cannot be: it
// tells itself what a leader tells the member that it hands over to. When that fails, the timeout does it.
func (l *raftLog) stand(t raft.Transport) {
	id, addr := raft.ServerID(l.o.Node), t.LocalAddr()
	q := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(addr)}}
	if err := t.TimeoutNow(id, addr, &q, &raft.TimeoutNowResponse{}); err != nil {
		l.log.Debug("could not hasten the election", "error", err)
	}
}

func soleVoter(conf raft.Configuration, id raft.ServerID) bool {
	voters, self := 0, false
	for _, s := range conf.Servers {
		if s.Suffrage == raft.Voter {
			voters++
			self = self || s.ID == id
		}
	}
	return self && voters == 1
}

func (l *raftLog) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(l.o.Node)
	c.HeartbeatTimeout = l.o.Heartbeat
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = c.HeartbeatTimeout
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
		addr, t := raft.NewInmemTransportWithTimeout(raft.ServerAddress(l.o.Node), l.o.Heartbeat/10)
		t.Connect(addr, t) // for stand
		return t
	}
	// One request at a time for each follower: raft's pipeline can stand still for ever after an answer that is no
	// success, while heartbeats go on, so that the follower is given nothing more and nobody notices
	// (hashicorp/raft issue 612). With one batch in flight there is nothing to gain from it.
	return transport{patience: l.o.Heartbeat, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: l.mux.raft, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second, Logger: newHCLog(l.log),
	})}
}

// watchLeadership readies a new leader, so that its first append need not, and runs autopilot while it leads.
func (l *raftLog) watchLeadership(r *raft.Raft) {
	var auto *autopilot.Autopilot
	if l.mux != nil && l.o.MemberStats != nil {
		auto = newPilot(l, r).auto
		defer func() { <-auto.Stop() }()
	}
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.closing:
			return
		case leads := <-r.LeaderCh():
			l.log.Info("leadership of the log", "leads", leads, "term", r.CurrentTerm())
			if !leads {
				if auto != nil {
					auto.Stop()
				}
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
			if auto != nil {
				auto.Start(l.ctx)
			}
		}
	}
}

// reign is one leader as this node sees it; nobody is known while id is "".
type reign struct {
	id   petrel.NodeID
	addr string
	life context.Context // ends when this node knows another leader, or has lost contact with this one
	end  context.CancelFunc
}

func newReign(r *raft.Raft) *reign {
	addr, id := r.LeaderWithID()
	rn := &reign{id: petrel.NodeID(id), addr: string(addr)}
	rn.life, rn.end = context.WithCancel(context.Background())
	return rn
}

// watchLeader follows who leads. raft tells of every change, also when it forgets a leader that has been
// silent for too long.
func (l *raftLog) watchLeader(r *raft.Raft) {
	changed := make(chan raft.Observation, 16) // more are dropped: the latest is what counts
	o := raft.NewObserver(changed, false, func(o *raft.Observation) bool { _, ok := o.Data.(raft.LeaderObservation); return ok })
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	known := l.reign.Load().id
	for {
		now, was := newReign(r), l.reign.Load()
		if now.id != was.id || now.addr != was.addr {
			l.reign.Store(now)
			was.end()
		}
		if now.id != "" && now.id != known {
			known = now.id
			l.leaders.Add(1)
		}
		select {
		case <-l.ctx.Done():
			return
		case <-l.closing:
			return
		case <-changed:
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
		select {
		case <-l.started:
			_ = l.raft().Shutdown().Error()
		case <-l.closing: // Open sees to the rest
		}
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
		down := l.raft().Shutdown()
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
