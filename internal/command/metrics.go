package command

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

type metrics struct {
	decide    prometheus.Histogram // read the state and decide
	commit    prometheus.Histogram // until a quorum has it
	wait      prometheus.Histogram // from there until it is applied here
	total     *prometheus.HistogramVec
	conflicts prometheus.Counter
	retries   prometheus.Counter
	unknown   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	hist := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_command_" + name + "_seconds", Help: help, Buckets: prometheus.ExponentialBuckets(1e-5, 2, 20),
		})
	}
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "petrel_command_" + name + "_total", Help: help})
	}
	m := &metrics{
		decide: hist("decide", "Reading the state and deciding one attempt of a command."),
		commit: hist("commit", "From the encoded entry until a quorum has fsynced it."),
		wait:   hist("wait", "From the commit until the entry is applied on this node."),
		total: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "petrel_command_total_seconds", Help: "A command from taking to answering it, by kind and code of the answer (ok).",
			Buckets: prometheus.ExponentialBuckets(1e-5, 2, 20),
		}, []string{"command", "code"}),
		conflicts: count("conflicts", "Attempts that a guard refused when they were applied."),
		retries:   count("retries", "Attempts that were certainly not appended and were made again."),
		unknown:   count("unknown_outcomes", "Entries whose outcome the log had to settle."),
	}
	if reg != nil {
		reg.MustRegister(m.decide, m.commit, m.wait, m.total, m.conflicts, m.retries, m.unknown)
	}
	return m
}

func (m *metrics) done(kind string, err error, took time.Duration) {
	code := string(petrel.CodeOf(err))
	if err == nil {
		code = "ok"
	}
	m.total.WithLabelValues(kind, code).Observe(took.Seconds())
}
