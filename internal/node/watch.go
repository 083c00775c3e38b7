package node

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// How the cell is watched.
const (
	contactEvery = 100 * time.Millisecond // looks at the contact with the leader
	membersEvery = 2 * time.Second        // looks at every member
	memberEvery  = 3 * time.Second        // asks, while out of touch, whether this node is still a member
	probeEvery   = time.Second            // follows one entry to every follower
	probeWait    = 5 * time.Second        // for the next entry to come
	// staleAfter is how long a node is out of touch before it says that what it shows may be old. An election takes less.
	staleAfter = 2 * time.Second
	// refuseAfter is how long a node is out of touch before it refuses writes at once instead of waiting for a leader.
	refuseAfter = 3 * time.Second
)

// watch knows how this node stands to its cell, and measures it.
type watch struct {
	cell    *cell
	applied func(ctx context.Context, index uint64) error // waits until an entry is applied here
	index   func() uint64
	leaving func() bool
	looked  atomic.Int64 // when look was last done, nanoseconds since the node began
	full    atomic.Bool  // this node's disk is
	// What look alone uses.
	commits [staleAfter / contactEvery]uint64 // what was known to be committed at the last looks
	at      int                               // the oldest of them
	since   time.Time                         // since when this node is behind
	apart   atomic.Int64                      // nanoseconds out of touch with the leader, 0 below staleAfter

	follow  *prometheus.HistogramVec
	lag     *prometheus.GaugeVec
	living  *prometheus.GaugeVec
	members prometheus.Gauge
}

func newWatch(c *cell, reg prometheus.Registerer) *watch {
	w := &watch{
		cell: c,
		follow: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "petrel_cell_follower_apply_seconds",
			Help:    "On the leader: from its own apply of an entry until a follower says that it has applied it too, one way back included. One entry a second is followed.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 18),
		}, []string{"node"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "petrel_cell_lag_entries", Help: "Entries that the furthest node has applied and this one has not.",
		}, []string{"node"}),
		living: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "petrel_cell_node_alive", Help: "1 while the node is heard of on the bus, or is this one.",
		}, []string{"node"}),
		members: prometheus.NewGauge(prometheus.GaugeOpts{Name: "petrel_cell_members", Help: "Members of the log's group, with a vote or not."}),
	}
	reg.MustRegister(w.follow, w.lag, w.living, w.members, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "petrel_cell_stale_seconds", Help: "For how long this node has been out of touch with the leader; 0 in touch. Reads are marked meanwhile.",
	}, func() float64 { return w.stale().Seconds() }))
	return w
}

// stale is for how long this node has been out of touch with the leader, 0 while it is in touch.
func (w *watch) stale() time.Duration {
	if w == nil {
		return 0
	}
	apart := time.Duration(w.apart.Load())
	if at := w.looked.Load(); at != 0 { // a process that stood still finds out by this that it did
		if unlooked := time.Since(w.cell.began) - time.Duration(at); unlooked > staleAfter {
			apart = max(apart, unlooked)
		}
	}
	return apart
}

// start begins to watch, once the bus runs and the log is open; it ends with the cell.
func (w *watch) start() {
	c := w.cell
	c.bg.Go(func() { every(c.ctx, contactEvery, w.look) })
	c.bg.Go(func() { every(c.ctx, membersEvery, w.count) })
	c.bg.Go(func() { every(c.ctx, memberEvery, w.still) })
	c.bg.Go(func() { every(c.ctx, probeEvery, w.probe) })
}

func every(ctx context.Context, d time.Duration, do func(context.Context)) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			do(ctx)
		}
	}
}

// look asks the log for its contact with the leader, and how far behind it this node is; a node that leaves does not lead.
func (w *watch) look(ctx context.Context) {
	log := w.cell.log.Load()
	apart := min((*log).Stats().LastContact, time.Since(w.cell.began)) // one that has just started has not been apart for an hour
	st := (*log).Status()
	apart = max(apart, w.behind(st.AppliedMark, st.CommitMark, time.Now()))
	if apart < staleAfter {
		apart = 0
	}
	w.apart.Store(int64(apart))
	w.full.Store(st.DiskFull)
	w.looked.Store(int64(time.Since(w.cell.began))) // not a time of day: clocks jump
	if w.leaving() {
		w.leave(ctx)
	}
}

// leave lets a node that leaves hand over its leadership, beside what else it looks at: attempts at jobs may take as long as the
// drain does.
func (w *watch) leave(ctx context.Context) {
	if log := w.cell.log.Load(); !(*log).Status().IsLeader || len(w.cell.handing) > 0 {
		return
	}
	w.cell.bg.Go(func() { w.cell.handOver(ctx, w.cell.cfg.DrainTimeout) })
}

// behind is for how long this node has not applied what it knew to be committed: its disk is full, or it is too slow. 0
// below staleAfter.
func (w *watch) behind(applied, committed uint64, now time.Time) time.Duration {
	was := w.commits[w.at]
	w.commits[w.at] = committed
	w.at = (w.at + 1) % len(w.commits)
	switch {
	case applied >= was:
		w.since = time.Time{}
		return 0
	case w.since.IsZero():
		w.since = now.Add(-staleAfter)
	}
	return now.Sub(w.since)
}

// diskFull says that this node could not apply what it writes.
func (w *watch) diskFull() bool { return w != nil && w.full.Load() }

// still asks the leader, wherever it is, whether this node is a member: one that was removed is told nothing by the log,
// and would serve what it last knew for ever.
func (w *watch) still(ctx context.Context) {
	if w.stale() == 0 {
		return
	}
	for _, k := range w.cell.knownNodes() {
		_, err := w.cell.askAround(ctx, k.Peer, cellRequest{Op: opMember, Member: w.cell.self.Member})
		if petrel.CodeOf(err) == petrel.CodeNotFound {
			w.cell.removed()
			return
		}
		if err == nil {
			return
		}
	}
}

// count looks at every member.
func (w *watch) count(ctx context.Context) {
	w.cell.lookAtLevel()
	st := w.cell.status()
	if !st.IsLeader { // one node's view is enough
		w.lag.Reset()
		w.living.Reset()
		w.members.Set(float64(len(st.Members)))
		return
	}
	reports := w.cell.reports(ctx)
	w.members.Set(float64(len(st.Members)))
	w.lag.Reset()
	w.living.Reset()
	for _, m := range st.Members {
		name := nameOf(m.ID)
		r, heard := reports[m.ID]
		switch {
		case m.ID == w.cell.self.Member:
			w.living.WithLabelValues(name).Set(1)
			w.lag.WithLabelValues(name).Set(0)
		case heard:
			w.living.WithLabelValues(name).Set(1)
			w.lag.WithLabelValues(name).Set(float64(max(st.Index, r.Applied) - r.Applied))
		default:
			w.living.WithLabelValues(name).Set(0)
		}
	}
}

// probe follows the next entry from this node, when it leads, to every follower.
func (w *watch) probe(ctx context.Context) {
	b := w.cell.bus.Load()
	st := w.cell.status()
	if !st.IsLeader {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	next := w.index() + 1
	ask := binary.BigEndian.AppendUint64(nil, next)
	type arrival struct {
		node petrel.NodeID
		at   time.Time
	}
	arrivals := make(chan arrival, len(st.Members))
	asked := 0
	for _, m := range st.Members {
		if m.ID == w.cell.self.Member || !w.cell.alive(m.ID) {
			continue
		}
		asked++
		w.cell.bg.Go(func() {
			a := arrival{node: m.ID}
			if _, err := b.Request(ctx, m.ID, kindReached, ask); err == nil {
				a.at = time.Now()
			}
			arrivals <- a
		})
	}
	if asked == 0 || w.applied(ctx, next) != nil { // nothing was written
		return
	}
	here := time.Now()
	for range asked {
		select {
		case a := <-arrivals:
			if !a.at.IsZero() {
				w.follow.WithLabelValues(nameOf(a.node)).Observe(max(0, a.at.Sub(here)).Seconds())
			}
		case <-ctx.Done():
			return
		}
	}
}

// serveReached answers a leader's probe once the entry is applied here.
func (w *watch) serveReached(ctx context.Context, _ petrel.NodeID, payload []byte) ([]byte, error) {
	if len(payload) != 8 {
		return nil, errors.New("a probe has 8 bytes")
	}
	return nil, w.applied(ctx, binary.BigEndian.Uint64(payload))
}

var _ bus.Answer = (*watch)(nil).serveReached
