package effect

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestMetricsAreFew: however many apps there are, a bounded number have lines of their own; the others are one.
func TestMetricsAreFew(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	r := New(Options{Book: newShelf(), Leading: func() (uint64, bool) { return 0, false }, Registerer: reg})
	defer r.Stop()
	var all []job.Ledger
	for i := range 100 {
		all = append(all, job.Ledger{App: petrel.AppID([]byte{'a' + byte(i/26), 'a' + byte(i%26)}), Waiting: uint64(i), Done: 1})
	}
	for range 2 {
		r.show(all)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	apps, done := map[string]bool{}, 0.0
	for _, f := range families {
		if f.GetName() != "petrel_jobs" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "app" {
					apps[l.GetValue()] = true
				} else if l.GetValue() == "done" {
					done += m.GetGauge().GetValue()
				}
			}
		}
	}
	if len(apps) != shownApps+1 || done != 100 {
		t.Errorf("%d apps and %v done jobs, want %d and 100", len(apps), done, shownApps+1)
	}
}
