package effect

import (
	"cmp"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// How the ledgers are watched.
const (
	shownApps   = 10 // apps that have lines of their own in the metrics: those with the most that waits, runs or is dead
	auditedApps = 20 // apps whose rows are counted in one go, one after the other
	otherApps   = "other"
)

// watch shows the ledgers in the metrics and counts rows against them, while this node leads.
func (r *Runner) watch() {
	tick := time.NewTicker(r.opt.CountEvery)
	defer tick.Stop()
	after := petrel.AppID("")
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		if _, leads := r.opt.Leading(); !leads {
			r.metrics.jobs.Reset()
			r.metrics.mismatch.Set(0)
			after = ""
			continue
		}
		ledgers, err := r.ledgers()
		if err == nil {
			r.show(ledgers)
			after, err = r.audit(ledgers, after)
		}
		if err != nil && r.ctx.Err() == nil {
			r.opt.Logger.Warn("the ledgers of jobs could not be read", "error", err)
		}
	}
}

func (r *Runner) ledgers() (all []job.Ledger, err error) {
	for more := true; more; {
		after := petrel.AppID("")
		if len(all) > 0 {
			after = all[len(all)-1].App
		}
		err := r.opt.View(r.ctx, func(v *projection.Reader) error {
			some, err := job.Ledgers(v, after, page)
			all, more = append(all, some...), len(some) == page
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// show gives the apps with the most to do lines of their own, and all others one together.
func (r *Runner) show(ledgers []job.Ledger) {
	byLoad := slices.Clone(ledgers)
	load := func(l job.Ledger) uint64 { return l.Waiting + l.Running + l.Dead }
	slices.SortStableFunc(byLoad, func(a, b job.Ledger) int { return cmp.Compare(load(b), load(a)) })
	r.metrics.jobs.Reset()
	for i, l := range byLoad {
		app := string(l.App)
		if i >= shownApps {
			app = otherApps
		}
		for state, n := range map[string]uint64{"waiting": l.Waiting, "running": l.Running, "done": l.Done, "dead": l.Dead, "discarded": l.Discarded} {
			r.metrics.jobs.WithLabelValues(app, state).Add(float64(n))
		}
	}
}

// audit adds up every ledger, and counts the rows of some apps behind one. It returns the last of those, "" at the end.
func (r *Runner) audit(ledgers []job.Ledger, after petrel.AppID) (petrel.AppID, error) {
	off := uint64(0)
	for _, l := range ledgers {
		off += l.Off()
	}
	i, found := slices.BinarySearchFunc(ledgers, after, func(l job.Ledger, app petrel.AppID) int { return cmp.Compare(l.App, app) })
	if found {
		i++
	}
	last := petrel.AppID("")
	for _, l := range ledgers[i:min(i+auditedApps, len(ledgers))] {
		last = l.App
		err := r.opt.View(r.ctx, func(v *projection.Reader) error {
			n, err := job.Audit(v, l.App)
			if n > 0 {
				r.off[l.App] = n
			} else if err == nil {
				delete(r.off, l.App)
			}
			return err
		})
		if err != nil {
			return after, err
		}
	}
	for _, n := range r.off {
		off += n
	}
	r.metrics.mismatch.Set(float64(off))
	if off > 0 {
		r.opt.Logger.Error("the ledger of jobs does not add up: jobs may have been lost; report this", "off", off, "apps", len(r.off))
	}
	return last, nil
}
