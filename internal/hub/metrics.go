package hub

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	offer, page, resume   prometheus.Histogram
	offered, replayed     prometheus.Counter
	gaps, refused, failed prometheus.Counter

	whispered, dropped, received, damaged, asks, full, claims, unsure prometheus.Counter
	sent                                                              *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, h *Hub) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(10e-6, 2.5, 16)})
	}
	m := &metrics{
		offer:    histogram("petrel_hub_offer_seconds", "From the commit of the transaction to the offer to the last local subscriber."),
		page:     histogram("petrel_hub_page_seconds", "Reading one page of history."),
		resume:   histogram("petrel_hub_resume_seconds", "From subscribing in the past to being live."),
		offered:  counter("petrel_hub_offered_total", "Publications offered to live subscriptions."),
		replayed: counter("petrel_hub_replayed_total", "Publications offered from history."),
		gaps:     counter("petrel_hub_gaps_total", "Subscriptions sent back to history because a live publication was not the next."),
		refused:  counter("petrel_hub_refused_total", "Subscriptions refused because too many were catching up."),
		failed:   counter("petrel_hub_history_failures_total", "Reads of history that failed and are tried again."),

		whispered: counter("petrel_hub_ephemeral_offered_total", "Frames of the ephemeral lane queued for subscribers."),
		dropped:   counter("petrel_hub_ephemeral_dropped_total", "Frames of the ephemeral lane that found no room in a slow subscriber's queue."),
		received:  counter("petrel_hub_relay_received_total", "Ephemeral publications that came from other nodes."),
		damaged:   counter("petrel_hub_relay_damaged_total", "Payloads from other nodes that could not be read."),
		asks:      counter("petrel_hub_presence_asks_total", "Times another node was asked for all of its users of a channel."),
		full:      counter("petrel_hub_channels_full_total", "Subscriptions refused because a channel had as many members as it may have."),
		claims:    counter("petrel_hub_places_asked_total", "Times the other nodes were asked who is on channels whose members are limited."),
		unsure:    counter("petrel_hub_places_unsure_total", "Times a node did not answer that, so that what it reported last counted."),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_hub_relay_sent_total", Help: "Payloads given to the relay for other nodes, by whether it took them.",
		}, []string{"result"}),
	}
	if reg != nil {
		reg.MustRegister(m.offer, m.page, m.resume, m.offered, m.replayed, m.gaps, m.refused, m.failed,
			m.whispered, m.dropped, m.received, m.damaged, m.asks, m.full, m.claims, m.unsure, m.sent,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_catching_up", Help: "Subscriptions waiting for their next page."},
				func() float64 { return float64(h.queue.waiting()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_channels", Help: "Channels with a local subscriber."},
				func() float64 { n, _ := h.Counts(); return float64(n) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_subscriptions", Help: "Local subscriptions."},
				func() float64 { _, n := h.Counts(); return float64(n) }))
	}
	return m
}

// relayed counts a payload by what the relay made of it.
func (m *metrics) relayed(err error) {
	result := "taken"
	if err != nil {
		result = "refused"
	}
	m.sent.WithLabelValues(result).Inc()
}
