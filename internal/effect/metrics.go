package effect

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/job"
)

type metrics struct {
	runner      prometheus.Gauge
	attempts    *prometheus.HistogramVec
	lateness    *prometheus.HistogramVec
	interrupted prometheus.Counter
	failures    *prometheus.CounterVec
	jobs        *prometheus.GaugeVec
	mismatch    prometheus.Gauge
}

// outcomes by number; never written after initialisation.
var outcomes = map[event.JobOutcome]string{
	event.JobDone: "done", event.JobFailed: "failed", event.JobDead: "dead", event.JobInterrupted: "interrupted",
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		runner: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_effect_runner", Help: "1 on the node that runs the shard's jobs.",
		}),
		attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "petrel_effect_attempt_seconds", Help: "Attempts at jobs by kind and what became of them.",
			Buckets: prometheus.ExponentialBuckets(1e-4, 4, 10),
		}, []string{"kind", "outcome"}),
		lateness: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "petrel_effect_late_seconds", Help: "From when a job was due until its attempt began.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 4, 10),
		}, []string{"kind"}),
		interrupted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_effect_found_interrupted_total", Help: "Attempts that this node found begun by another runner, or by an entry of unknown outcome.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_effect_failures_total", Help: "Times that the log did not take what the runner had to write, by code; it tries again.",
		}, []string{"code"}),
	}
	m.jobs = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "petrel_jobs", Help: "Jobs by state, on the leader: of the apps with the most that waits, runs or is dead, and of all others together (other).",
	}, []string{"app", "state"})
	m.mismatch = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "petrel_job_ledger_mismatch", Help: "By how many jobs the ledgers do not add up, or differ from the rows, on the leader. Anything but 0 is an alarm.",
	})
	if reg != nil {
		reg.MustRegister(m.jobs, m.mismatch, m.runner, m.attempts, m.lateness, m.interrupted, m.failures)
	}
	return m
}

func (m *metrics) leads(is bool) {
	m.runner.Set(0)
	if is {
		m.runner.Set(1)
	}
}

func (m *metrics) late(j job.Job, now time.Time) {
	m.lateness.WithLabelValues(j.Kind).Observe(max(0, now.Sub(time.UnixMilli(j.Due)).Seconds()))
}

func (m *metrics) ended(kind string, o event.JobOutcome, took time.Duration) {
	m.attempts.WithLabelValues(kind, outcomes[o]).Observe(took.Seconds())
}
