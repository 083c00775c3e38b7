package effect

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type webhookMetrics struct {
	calls   *prometheus.CounterVec
	events  prometheus.Counter
	seconds prometheus.Histogram
}

func newWebhookMetrics(reg prometheus.Registerer) *webhookMetrics {
	m := &webhookMetrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_effect_webhook_calls_total",
			Help: "Calls of webhooks by result: the class of the status, refused (the address is not public), failed (no answer).",
		}, []string{"result"}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_effect_webhook_events_total", Help: "Events that were told to webhooks and taken.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_effect_webhook_seconds", Help: "Time of one call of a webhook.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
	}
	if reg != nil {
		reg.MustRegister(m.calls, m.events, m.seconds)
	}
	return m
}

func (m *webhookMetrics) called(status int, err error, events int, took time.Duration) {
	m.seconds.Observe(took.Seconds())
	switch {
	case errors.Is(err, errNotPublic):
		m.calls.WithLabelValues("refused").Inc()
	case status == 0:
		m.calls.WithLabelValues("failed").Inc()
	default:
		m.calls.WithLabelValues(strconv.Itoa(status/100) + "xx").Inc()
	}
	if err == nil {
		m.events.Add(float64(events))
	}
}
