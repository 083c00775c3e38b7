package gateway

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	request *prometheus.HistogramVec
	refused *prometheus.CounterVec
	panics  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, g *Gateway) *metrics {
	m := &metrics{
		request: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "petrel_gateway_request_seconds", Help: "From the head of a request to the end of its answer, by route. Streams last as long as they live.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 14),
		}, []string{"route", "class"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_gateway_refused_total", Help: "Refusals by code, or by the limit that was met."}, []string{"reason"}),
		panics:  prometheus.NewCounter(prometheus.CounterOpts{Name: "petrel_gateway_panics_total", Help: "Panics in handlers. Anything but 0 is a bug."}),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, fn func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(fn()) })
	}
	reg.MustRegister(m.request, m.refused, m.panics,
		gauge("petrel_gateway_sockets_used", "Accepted sockets.", g.sockets.Used),
		gauge("petrel_gateway_sockets_limit", "Limit of accepted sockets; refused from 95 %.", g.sockets.Total),
		gauge("petrel_gateway_connections_used", "WebSocket and SSE connections.", g.places.Used),
		gauge("petrel_gateway_connections_limit", "Limit of WebSocket and SSE connections; refused from 95 %.", g.places.Total))
	return m
}
