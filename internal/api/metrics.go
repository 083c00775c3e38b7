package api

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	frame     *prometheus.HistogramVec
	badFrames prometheus.Counter
	busy      prometheus.Counter
	resyncs   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *server) *metrics {
	m := &metrics{
		frame: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "petrel_api_frame_seconds", Help: "From the arrival of a socket's frame to the queueing of its answer, by op.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2.5, 14),
		}, []string{"op"}),
		badFrames: prometheus.NewCounter(prometheus.CounterOpts{Name: "petrel_api_bad_frames_total", Help: "Socket frames that could not be read."}),
		busy:      prometheus.NewCounter(prometheus.CounterOpts{Name: "petrel_api_busy_total", Help: "Commands refused because too many were under way."}),
		resyncs:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_api_resyncs_total", Help: "Subscriptions that were told to start anew."}, []string{"reason"}),
	}
	if reg != nil {
		reg.MustRegister(m.frame, m.badFrames, m.busy, m.resyncs,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_api_commands_used", Help: "Commands under way."}, func() float64 { return float64(s.inFlight.Used()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_api_commands_limit", Help: "Limit of commands under way; refused from 95 %."}, func() float64 { return float64(s.inFlight.Total()) }))
	}
	return m
}
