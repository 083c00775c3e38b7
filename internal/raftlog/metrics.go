package raftlog

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one shard on one node.
type metrics struct {
	append    prometheus.Histogram // Append, as its caller waits
	commit    prometheus.Histogram // from handing the batch to the engine to its commit
	returned  prometheus.Histogram // from the commit to Append's return
	apply     prometheus.Histogram // the Applier's share
	records   prometheus.Histogram // per batch
	bytes     prometheus.Histogram // per batch
	outcomes  *prometheus.CounterVec
	fenced    prometheus.Counter
	snapshot  prometheus.Histogram
	snapBytes prometheus.Gauge
	installed prometheus.Counter
	nudges    prometheus.Counter
	forwarded prometheus.Counter

	unregister func()
}

func newMetrics(reg prometheus.Registerer, status func() Status) *metrics {
	sec := prometheus.ExponentialBuckets(50e-6, 2, 18) // 50 µs … 6.5 s
	hist := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "petrel_raftlog_" + name, Help: help, Buckets: buckets})
	}
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "petrel_raftlog_" + name, Help: help})
	}
	m := &metrics{
		append:   hist("append_seconds", "Time in Append, whatever came of it.", sec),
		commit:   hist("commit_seconds", "From handing a batch to the engine to its commit (fsync of a quorum).", sec),
		returned: hist("return_seconds", "From the commit of a batch to Append's return.", sec),
		apply:    hist("apply_seconds", "Time in the Applier for the records at hand.", sec),
		records:  hist("batch_records", "Records in a batch.", prometheus.ExponentialBuckets(1, 2, 12)),
		bytes:    hist("batch_bytes", "Bytes of a batch.", prometheus.ExponentialBuckets(128, 4, 10)),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "petrel_raftlog_appends_total", Help: "Appends by outcome."},
			[]string{"outcome"}),
		fenced:   count("fenced_total", "Batches skipped because they were made for another term."),
		snapshot: hist("snapshot_seconds", "Time to take a snapshot.", prometheus.ExponentialBuckets(0.01, 2, 16)),
		snapBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_raftlog_snapshot_bytes",
			Help: "Size of the newest snapshot taken or received by this process.",
		}),
		installed: count("snapshots_installed_total", "Snapshots that a leader sent to this node."),
		forwarded: count("forwarded_total", "Appends that were sent to the leader on another node."),
		nudges:    count("nudges_total", "Empty records appended so that followers hear of a commit at once."),
	}
	m.unregister = func() {}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "petrel_raftlog_" + name, Help: help}, func() float64 { return f(status()) })
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	all := []prometheus.Collector{
		m.append, m.commit, m.returned, m.apply, m.records, m.bytes, m.outcomes, m.fenced, m.snapshot, m.snapBytes,
		m.installed, m.nudges, m.forwarded,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "petrel_raftlog_leader_changes_total", Help: "How often this node learned of another leader.",
		}, func() float64 { return float64(status().Leaders) }),
		gauge("lag", "Engine positions known to be committed and not applied here yet.", func(s Status) float64 { return float64(s.Lag) }),
		gauge("last_contact_seconds", "Since the leader was heard of; 0 on the leader.", func(s Status) float64 { return s.LastContact.Seconds() }),
		gauge("members", "Members of the group.", func(s Status) float64 { return float64(len(s.Members)) }),
		gauge("free_disk_bytes", "Free disk below the log; -1 unknown.", func(s Status) float64 { return float64(s.FreeDisk) }),
		gauge("disk_full", "1 while appends are refused for want of room.", func(s Status) float64 { return flag(s.DiskFull) }),
		gauge("term", "The term this node is in.", func(s Status) float64 { return float64(s.Term) }),
		gauge("leader", "1 on the leader.", func(s Status) float64 { return flag(s.IsLeader) }),
		gauge("stopped", "1 when the shard stopped for good.", func(s Status) float64 { return flag(s.Stopped != nil) }),
		gauge("applied_index", "Index of the last record applied.", func(s Status) float64 { return float64(s.Index) }),
		gauge("log_bytes", "Log written since the newest snapshot.", func(s Status) float64 { return float64(s.LogBytes) }),
	}
	reg.MustRegister(all...)
	m.unregister = func() {
		for _, c := range all {
			reg.Unregister(c)
		}
	}
	return m
}
