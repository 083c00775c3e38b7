package hub

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	offer, page, resume   prometheus.Histogram
	offered, replayed     prometheus.Counter
	gaps, refused, failed prometheus.Counter
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
	}
	if reg != nil {
		reg.MustRegister(m.offer, m.page, m.resume, m.offered, m.replayed, m.gaps, m.refused, m.failed,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_catching_up", Help: "Subscriptions waiting for their next page."},
				func() float64 { return float64(h.queue.waiting()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_channels", Help: "Channels with a local subscriber."},
				func() float64 { n, _ := h.Counts(); return float64(n) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_hub_subscriptions", Help: "Local subscriptions."},
				func() float64 { _, n := h.Counts(); return float64(n) }))
	}
	return m
}
