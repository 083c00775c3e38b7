package projection

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one open projection.
type metrics struct {
	update             prometheus.Histogram
	rows               prometheus.Counter
	view               prometheus.Histogram
	refusals           prometheus.Counter
	checkpoint         prometheus.Histogram
	checkpointFailures prometheus.Counter
	file, wal          prometheus.GaugeFunc
	reg                prometheus.Registerer
}

func newMetrics(reg prometheus.Registerer, path string) *metrics {
	m := &metrics{
		reg: reg,
		update: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_projection_update_seconds", Help: "One write transaction, commit included, without its wait for the one before.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_projection_rows_total", Help: "Rows inserted, updated or deleted by committed transactions.",
		}),
		view: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_projection_view_seconds", Help: "One read, its wait for a place included.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 2, 18),
		}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_projection_read_budget_refusals_total", Help: "Reads that passed their budget of rows or time.",
		}),
		checkpoint: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_projection_checkpoint_seconds", Help: "Copying the write-ahead log back into the file.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 14),
		}),
		checkpointFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_projection_checkpoint_failures_total", Help: "Checkpoints that failed, most likely for want of room.",
		}),
		file: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "petrel_projection_file_bytes", Help: "Size of the projection's file.",
		}, func() float64 { return float64(fileSize(path)) }),
		wal: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "petrel_projection_wal_bytes", Help: "Size of the projection's write-ahead log. It is reused, not cut: a high-water mark.",
		}, func() float64 { return float64(fileSize(path + "-wal")) }),
	}
	if reg != nil {
		reg.MustRegister(m.all()...)
	}
	return m
}

// unregister lets the same registry serve a projection that is opened again.
func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.update, m.rows, m.view, m.refusals, m.checkpoint, m.checkpointFailures, m.file, m.wal}
}
