package node

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// newRegistry returns the registry of a process. It is handed to every part; nothing registers itself.
func newRegistry(b Build, h *health) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "petrel_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	state := func(name, help string, is ...string) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			now := h.answer().Status
			for _, s := range is {
				if s == now {
					return 1
				}
			}
			return 0
		})
	}
	reg.MustRegister(
		info,
		state("petrel_node_ready", "1 while traffic belongs here, as /readyz says.", "ok", "degraded"),
		state("petrel_node_degraded", "1 while writes are refused although the node runs: a full disk, no leader.", "degraded"),
		state("petrel_node_failed", "1 when the node failed for good.", "failed"),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), // open files against their limit, memory
	)
	return reg
}
