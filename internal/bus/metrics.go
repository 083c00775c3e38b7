package bus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Where frames and questions are dropped, as petrel_bus_dropped_total says it.
const (
	dropOutbox   = "outbox"   // refused: too much waits to be sent
	dropInbox    = "inbox"    // handlers are too slow
	dropWire     = "wire"     // the wire did not take it: not connected, or closing
	dropClient   = "client"   // the NATS client's buffer was full; counts occasions, not frames
	dropDamaged  = "damaged"  // not a frame
	dropVersion  = "version"  // a frame of another version
	dropFormer   = "former"   // of a life of a node that is over
	dropNamesake = "namesake" // another node uses this node's name, or this node's former life
	dropPeers    = "peers"    // too many nodes
	dropServing  = "serving"  // requests refused: too many are being answered
	dropRepair   = "repair"   // too many asks are open
	dropKind     = "kind"     // nobody handles this kind of message
)

var dropPlaces = []string{
	dropOutbox, dropInbox, dropWire, dropClient, dropDamaged, dropVersion, dropFormer,
	dropNamesake, dropPeers, dropServing, dropRepair, dropKind,
}

// Loss is what was received from one origin since it was first heard, and what was missing. Seen is
// Repaired and Lost and what is still waited for, or was when a bucket was left.
type Loss struct {
	Origin   petrel.NodeID
	Received uint64 // delivered to handlers
	Seen     uint64 // missing when first noticed
	Repaired uint64 // came in time after all
	Lost     uint64 // given up
	Late     uint64 // came twice, or after they were given up
}

// count is an origin's Loss as it is counted.
type count struct{ received, seen, repaired, lost, late, former atomic.Uint64 }

// metrics of one node's bus.
type metrics struct {
	bus      *Bus
	sentTo   map[destination]prometheus.Counter
	drops    map[string]prometheus.Counter
	requests *prometheus.CounterVec
	request  prometheus.Histogram

	mu      sync.Mutex // guards counts
	counts  map[petrel.NodeID]*count
	perPair [6]*prometheus.Desc
	age     *prometheus.Desc
	alive   *prometheus.Desc
	queued  *prometheus.Desc
	ring    *prometheus.Desc
	reg     prometheus.Registerer
	all     []prometheus.Collector
}

func newMetrics(b *Bus) *metrics {
	const ns = "petrel_bus_"
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(ns+name, help, labels, nil)
	}
	m := &metrics{
		bus: b, counts: map[petrel.NodeID]*count{}, sentTo: map[destination]prometheus.Counter{}, drops: map[string]prometheus.Counter{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "requests_total", Help: "Requests to other nodes by outcome."}, []string{"outcome"}),
		request: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: ns + "request_seconds", Help: "Time of a request to another node, whatever came of it.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		perPair: [6]*prometheus.Desc{
			desc("received_total", "Relay messages delivered, by origin.", "origin"),
			desc("gap_messages_total", "Relay messages found missing, by origin.", "origin"),
			desc("repaired_total", "Missing relay messages that came in time after all, by origin.", "origin"),
			desc("lost_total", "Missing relay messages given up, by origin.", "origin"),
			desc("late_total", "Relay messages that came twice or too late, by origin.", "origin"),
			desc("former_total", "Relay frames of a node's former life, by origin.", "origin"),
		},
		age:    desc("heartbeat_age_seconds", "Time since the last heartbeat of a node that is not forgotten.", "peer"),
		alive:  desc("peer_alive", "1 for a node that is alive, 0 for one that is dead and not forgotten.", "peer"),
		queued: desc("queue_bytes", "Bytes that wait.", "queue"),
		ring:   desc("ring_bytes", "Sent messages kept for repair, in bytes."),
	}
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "sent_total", Help: "Frames given to the wire: to all (heartbeats), to a bucket (the relay), to a node."}, []string{"to"})
	for to, name := range map[destination]string{toAll: "all", toBucket: "bucket", toNode: "node"} {
		m.sentTo[to] = sent.WithLabelValues(name)
	}
	drops := prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "dropped_total", Help: "What was refused or thrown away, by place."}, []string{"where"})
	for _, where := range dropPlaces {
		m.drops[where] = drops.WithLabelValues(where)
	}
	m.all = []prometheus.Collector{m, m.requests, m.request, sent, drops}
	return m
}

func (m *metrics) register(reg prometheus.Registerer) {
	if reg != nil {
		reg.MustRegister(m.all...)
		m.reg = reg
	}
}

func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

func (m *metrics) sent(to destination)  { m.sentTo[to].Inc() }
func (m *metrics) dropped(where string) { m.drops[where].Inc() }

func (m *metrics) requested(err error, took time.Duration) {
	outcome := "error"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, ErrBusy):
		outcome = "busy"
	case errors.Is(err, ErrNoPeer):
		outcome = "no_peer"
	case errors.Is(err, context.DeadlineExceeded):
		outcome = "timeout"
	case errors.Is(err, context.Canceled):
		outcome = "canceled"
	}
	m.requests.WithLabelValues(outcome).Inc()
	m.request.Observe(took.Seconds())
}

// origin returns the counts of one origin.
func (m *metrics) origin(node petrel.NodeID) *count {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.counts[node]
	if c == nil {
		c = &count{}
		m.counts[node] = c
	}
	return c
}

// forget ends the rows of a node.
func (m *metrics) forget(node petrel.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.counts, node)
}

func (m *metrics) loss() []Loss {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Loss, 0, len(m.counts))
	for node, c := range m.counts {
		all = append(all, Loss{node, c.received.Load(), c.seen.Load(), c.repaired.Load(), c.lost.Load(), c.late.Load()})
	}
	slices.SortFunc(all, func(a, b Loss) int { return cmp.Compare(a.Origin, b.Origin) })
	return all
}

// Describe is prometheus.Collector's.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range append(m.perPair[:], m.age, m.alive, m.queued, m.ring) {
		to <- d
	}
}

// Collect is prometheus.Collector's.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	for node, c := range m.counts {
		for i, v := range []*atomic.Uint64{&c.received, &c.seen, &c.repaired, &c.lost, &c.late, &c.former} {
			to <- prometheus.MustNewConstMetric(m.perPair[i], prometheus.CounterValue, float64(v.Load()), string(node))
		}
	}
	m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range m.bus.Peers() {
		alive := 0.0
		if p.Alive {
			alive = 1
		}
		gauge(m.alive, alive, string(p.Node))
		gauge(m.age, p.Silent.Seconds(), string(p.Node))
	}
	_, in := m.bus.inbox.used()
	_, out := m.bus.outbox.used()
	gauge(m.queued, float64(in), "inbox")
	gauge(m.queued, float64(out), "outbox")
	m.bus.sendMu.Lock()
	kept := m.bus.ring.bytes
	m.bus.sendMu.Unlock()
	gauge(m.ring, float64(kept))
}
