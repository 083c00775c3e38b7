package commit

import "github.com/prometheus/client_golang/prometheus"

// metrics of the pipeline.
type metrics struct {
	wait, append             prometheus.Histogram
	batchEntries, batchBytes prometheus.Histogram
	busy, failures           prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, p *Pipeline) *metrics {
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	seconds := prometheus.ExponentialBuckets(50e-6, 2, 18)
	m := &metrics{
		wait:         histogram("petrel_commit_wait_seconds", "From joining the pipeline until the entry's batch is sent.", seconds),
		append:       histogram("petrel_commit_append_seconds", "One append of a batch, failed ones included.", seconds),
		batchEntries: histogram("petrel_commit_batch_entries", "Entries in a batch.", prometheus.ExponentialBuckets(1, 2, 11)),
		batchBytes:   histogram("petrel_commit_batch_bytes", "Bytes of payload in a batch.", prometheus.ExponentialBuckets(128, 2, 13)),
		busy:         counter("petrel_commit_busy_total", "Commits refused because the pipeline was full."),
		failures:     counter("petrel_commit_failures_total", "Batches whose append failed or has an unknown outcome."),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			p.mu.Lock()
			defer p.mu.Unlock()
			return float64(value())
		})
	}
	reg.MustRegister(m.wait, m.append, m.batchEntries, m.batchBytes, m.busy, m.failures,
		gauge("petrel_commit_waiting_entries", "Entries that wait, those in flight included.", func() int { return p.entries }),
		gauge("petrel_commit_waiting_entries_limit", "How many may wait.", func() int { return p.opt.MaxWaiting }),
		gauge("petrel_commit_waiting_bytes", "Bytes of the entries that wait.", func() int { return p.bytes }),
		gauge("petrel_commit_waiting_bytes_limit", "How many may wait.", func() int { return p.opt.MaxWaitingBytes }),
	)
	return m
}
