package conn

import "github.com/prometheus/client_golang/prometheus"

// metrics are added up per write and per connection, never per frame and subscriber.
type metrics struct {
	opened, closed *prometheus.CounterVec
	received       prometheus.Counter
	framesSent     prometheus.Counter
	writes         prometheus.Counter
	write          prometheus.Histogram
	delivery       prometheus.Histogram
	slow           prometheus.Counter
	panics         prometheus.Counter
	reaperPaused   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, count func() int) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		opened:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_conn_opened_total", Help: "Connections opened."}, []string{"wire"}),
		closed:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_conn_closed_total", Help: "Connections ended, by the close code that ended them."}, []string{"wire", "code"}),
		received:   counter("petrel_conn_messages_received_total", "Messages read from clients."),
		framesSent: counter("petrel_conn_frames_sent_total", "Frames written to clients."),
		writes:     counter("petrel_conn_writes_total", "Batches written; frames over batches is how well writes coalesce."),
		write: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_conn_write_seconds", Help: "From a frame's queueing to the end of the write that carried it (a sample of the writes).",
			Buckets: prometheus.ExponentialBuckets(20e-6, 2.5, 16),
		}),
		delivery: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_conn_delivery_seconds", Help: "From the commit of the transaction on this node to the end of the write to a socket (one live connection of each publication).",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2.5, 16),
		}),
		slow:         counter("petrel_conn_slow_total", "Connections closed because their queue was full."),
		panics:       counter("petrel_conn_handler_panics_total", "Panics in handlers. Anything but 0 is a bug."),
		reaperPaused: prometheus.NewGauge(prometheus.GaugeOpts{Name: "petrel_conn_reaper_paused", Help: "1 while closing for silence is paused because too many went silent at once."}),
	}
	if reg != nil {
		reg.MustRegister(m.opened, m.closed, m.received, m.framesSent, m.writes, m.write, m.delivery, m.slow, m.panics, m.reaperPaused,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_conn_open", Help: "Connections open."}, func() float64 { return float64(count()) }))
	}
	return m
}
