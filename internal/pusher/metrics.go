package pusher

import "github.com/prometheus/client_golang/prometheus"

// metrics are the package's own; connections, refusals at the door and times of requests are counted by conn and gateway.
type metrics struct {
	connects *prometheus.CounterVec // by result: "ok" or a close code
	frames   *prometheus.CounterVec // by event and result
	pings    prometheus.Counter     // the frames that are pings, looked up once
	events   *prometheus.CounterVec // by where they came from
	notTold  prometheus.Counter
	fallback *prometheus.CounterVec // requests of sessions over HTTP, by kind and result
	partial  prometheus.Counter
	calls    *prometheus.CounterVec // by why a call of the HTTP API was not authenticated
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_pusher_" + name, Help: help}, labels)
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	m := &metrics{
		connects: counter("connects_total", "Handshakes of Pusher clients, by what came of them: ok, or the close code.", "result"),
		frames:   counter("frames_total", "Frames of Pusher clients, by their event and what came of them.", "event", "result"),
		events:   counter("events_total", "Events published, by where they came from: http or client.", "from"),
		calls:    counter("unauthenticated_total", "Calls of Pusher's HTTP API that were not authenticated, by why.", "why"),
	}
	m.pings = m.frames.WithLabelValues("ping", "ok")
	m.fallback = counter("fallback_requests_total", "Requests of clients that got no WebSocket, by kind (stream, poll, send, preflight) and what came of them. Their share of all connections says how well WebSocket works.", "kind", "result")
	m.notTold = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "petrel_pusher_events_not_relayed_total", Help: "Events that the other nodes of the cell could not be told of.",
	})
	m.partial = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "petrel_pusher_partial_counts_total", Help: "Queries that were answered without the part of a node that did not say in time.",
	})
	if reg != nil {
		reg.MustRegister(m.notTold, m.partial)
	}
	return m
}
