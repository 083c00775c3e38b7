package apply

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the loop.
type metrics struct {
	fold, publish, age, wait      prometheus.Histogram
	folded, conflicted, duplicate prometheus.Counter
	diskFull                      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, l *Loop) *metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18)})
	}
	entries := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "petrel_apply_entries_total", Help: "Entries applied, by outcome.",
	}, []string{"outcome"})
	m := &metrics{
		fold:       histogram("petrel_apply_fold_seconds", "From the start of a transaction to its commit."),
		publish:    histogram("petrel_apply_publish_seconds", "From the commit until all its publications are handed on."),
		age:        histogram("petrel_apply_age_seconds", "From the proposer's stamp of an entry to its commit here. Between nodes it includes the difference of their clocks."),
		wait:       histogram("petrel_apply_wait_seconds", "From Expect to the outcome: append and fold as a local proposer sees them."),
		folded:     entries.WithLabelValues("folded"),
		conflicted: entries.WithLabelValues("conflicted"),
		duplicate:  entries.WithLabelValues("duplicate"),
		diskFull: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_apply_disk_full", Help: "1 while folding waits for room on the disk.",
		}),
	}
	if reg == nil {
		return m
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "petrel_apply_waiters", Help: "Callers that wait for the outcome of an entry.",
	}, func() float64 {
		l.waiters.mu.Lock()
		defer l.waiters.mu.Unlock()
		return float64(l.waiters.count)
	})
	limit := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "petrel_apply_waiters_limit", Help: "How many may wait.",
	}, func() float64 { return float64(l.opt.MaxWaiters) })
	index := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "petrel_apply_index", Help: "Index of the last entry applied.",
	}, func() float64 { return float64(l.Applied().Index) })
	reg.MustRegister(m.fold, m.publish, m.age, m.wait, entries, m.diskFull, waiting, limit, index)
	return m
}

func (m *metrics) observe(t *transaction) {
	for i := range t.results {
		r := &t.results[i]
		switch r.outcome.verdict {
		case verdictFolded:
			m.folded.Inc()
		case verdictConflicted:
			m.conflicted.Inc()
		case verdictDuplicate:
			m.duplicate.Inc()
		}
		observe(m.age, time.UnixMilli(r.at), t.committed)
	}
}

// observe leaves h alone when there is no clock.
func observe(h prometheus.Observer, from, to time.Time) {
	if !to.IsZero() {
		h.Observe(to.Sub(from).Seconds())
	}
}
