package effect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// diary is a Calendar of a map, for bubbles: each schedule is due again a period after it was.
type diary struct {
	mu      sync.Mutex // guards all below
	next    map[scheduleKey]time.Time
	period  time.Duration
	refused map[scheduleKey]error // what firing it answers, while it is there
	err     error                 // of every read, while set
	fired   []string
	tries   map[scheduleKey]int
	pages   int
	begin   time.Time
}

func newDiary(period time.Duration) *diary {
	return &diary{begin: time.Now(), period: period, next: map[scheduleKey]time.Time{}, refused: map[scheduleKey]error{}, tries: map[scheduleKey]int{}}
}

func (d *diary) add(app petrel.AppID, name petrel.ScheduleName, in time.Duration) {
	d.mu.Lock()
	d.next[scheduleKey{app, name}] = time.Now().Add(in)
	d.mu.Unlock()
}

func (d *diary) refuse(app petrel.AppID, name petrel.ScheduleName, err error) {
	d.mu.Lock()
	d.refused[scheduleKey{app, name}] = err
	d.mu.Unlock()
}

func (d *diary) fail(err error) {
	d.mu.Lock()
	d.err = err
	d.mu.Unlock()
}

// told are those that were fired since the last call, in the order of their names: APP/NAME@SECONDS since the beginning.
func (d *diary) told() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Sorted(slices.Values(d.fired))
	d.fired = nil
	return out
}

func (d *diary) tried(app petrel.AppID, name petrel.ScheduleName) int {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tries[scheduleKey{app, name}]
}

func (d *diary) Due(_ context.Context, now time.Time, after job.ScheduleDue, limit int) ([]job.ScheduleDue, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pages++; d.err != nil {
		return nil, d.err
	}
	order := func(a, b job.ScheduleDue) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), cmp.Compare(a.App, b.App), cmp.Compare(a.Name, b.Name))
	}
	var due []job.ScheduleDue
	for k, next := range d.next {
		if s := (job.ScheduleDue{Due: next.UnixMilli(), App: k.app, Name: k.name}); !next.After(now) && order(s, after) > 0 {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, order)
	return due[:min(limit, len(due))], nil
}

func (d *diary) Next(_ context.Context, now time.Time) (first int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, next := range d.next {
		if ms := next.UnixMilli(); next.After(now) && (first == 0 || ms < first) {
			first = ms
		}
	}
	return first, d.err
}

func (d *diary) Fire(_ context.Context, app petrel.AppID, name petrel.ScheduleName) (job.Fired, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := scheduleKey{app, name}
	d.tries[k]++
	if err := d.refused[k]; err != nil {
		return job.Fired{}, err
	}
	due := d.next[k]
	if due.After(time.Now()) {
		return job.Fired{}, nil
	}
	d.next[k] = due.Add(d.period)
	d.fired = append(d.fired, fmt.Sprintf("%s/%s@%g", app, name, time.Since(d.begin).Seconds()))
	return job.Fired{Did: true, Due: due.UnixMilli()}, nil
}

// schedule starts a scheduler over the diary, and stops it at the end of the bubble.
func schedule(t *testing.T, d *diary, change func(*SchedulerOptions)) *Scheduler {
	t.Helper()
	o := SchedulerOptions{Calendar: d, Leading: func() (uint64, bool) { return 1, true }}
	if change != nil {
		change(&o)
	}
	s := NewScheduler(o)
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

func (d *diary) want(t *testing.T, want ...string) {
	t.Helper()
	if got := d.told(); !slices.Equal(got, want) {
		t.Errorf("after %s: fired %v, want %v", time.Since(d.begin), got, want)
	}
}

// valueOf is what a counter or a gauge has come to.
func valueOf(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil || len(all) != 1 || len(all[0].GetMetric()) != 1 {
		t.Fatal(all, err)
	}
	m := all[0].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// TestSchedulerFires: each at its time, however often the scheduler looks, and only on the node that leads.
func TestSchedulerFires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(time.Minute)
		d.add("1", "a", 300*time.Millisecond)
		d.add("2", "b", 1500*time.Millisecond)
		var mu sync.Mutex
		leads := true
		s := schedule(t, d, func(o *SchedulerOptions) {
			o.Leading = func() (uint64, bool) {
				mu.Lock()
				defer mu.Unlock()
				return 1, leads
			}
		})
		time.Sleep(50 * time.Second)
		d.want(t, "1/a@0.3", "2/b@1.5")
		mu.Lock()
		leads = false
		mu.Unlock()
		time.Sleep(50 * time.Second)
		d.want(t)
		mu.Lock()
		leads = true
		mu.Unlock()
		time.Sleep(2 * time.Second) // both are due since a minute; it looks every second
		if got := d.told(); len(got) != 2 {
			t.Errorf("leading again, it fired %v", got)
		}
		s.Stop()
		time.Sleep(5 * time.Minute)
		d.want(t)
	})
}

// TestSchedulerPages: of more than one read takes, all are fired in one round, those of a suspended app and those put off among them left out.
func TestSchedulerPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(time.Hour)
		for i := range 2*page + 1 {
			d.add("1", petrel.ScheduleName(fmt.Sprint("s", i)), 500*time.Millisecond)
			d.add("held", petrel.ScheduleName(fmt.Sprint("s", i)), 500*time.Millisecond)
		}
		s := schedule(t, d, func(o *SchedulerOptions) { o.Held = func(app petrel.AppID) bool { return app == "held" } })
		time.Sleep(600 * time.Millisecond)
		if got := slices.Compact(d.told()); len(got) != 2*page+1 {
			t.Errorf("%d were fired, want %d", len(got), 2*page+1)
		}
		d.mu.Lock()
		if d.pages != 1+5 { // one look at the beginning
			t.Errorf("there were %d reads, want 6", d.pages)
		}
		d.mu.Unlock()
		if n := valueOf(t, s.metrics.overdue); n != 0 {
			t.Errorf("%v are overdue", n)
		}
	})
}

// TestSchedulerHolds: schedules of a suspended app wait, without being tried or counted as overdue, and are fired when it is resumed.
func TestSchedulerHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(time.Hour)
		d.add("1", "a", time.Second)
		d.add("2", "b", time.Second)
		var mu sync.Mutex
		held := petrel.AppID("1")
		s := schedule(t, d, func(o *SchedulerOptions) {
			o.Held = func(app petrel.AppID) bool {
				mu.Lock()
				defer mu.Unlock()
				return app == held
			}
		})
		time.Sleep(30*time.Second + 500*time.Millisecond)
		d.want(t, "2/b@1")
		if n := d.tried("1", "a"); n != 0 {
			t.Errorf("that of a suspended app was tried %d times", n)
		}
		if n := valueOf(t, s.metrics.overdue); n != 0 {
			t.Errorf("%v are overdue", n)
		}
		mu.Lock()
		held = ""
		mu.Unlock()
		time.Sleep(time.Second)
		d.want(t, "1/a@31")
	})
}

// TestSchedulerPutsOff: what is refused is tried again after a while, or when the refusal says, alone; without room for jobs, all of its app.
func TestSchedulerPutsOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(time.Hour)
		d.add("1", "bad", time.Second)
		d.add("1", "good", 2*time.Second)
		d.refuse("1", "bad", petrel.Errorf(petrel.CodeInvalidField, "No."))
		d.add("2", "a", time.Second)
		d.add("2", "b", 2*time.Second)
		d.refuse("2", "a", petrel.Errorf(petrel.CodeJobsFull, "No room.").After(20*time.Second))
		s := schedule(t, d, func(o *SchedulerOptions) { o.PutOff = 7 * time.Second })
		time.Sleep(3500 * time.Millisecond)
		d.want(t, "1/good@2")
		if n := valueOf(t, s.metrics.overdue); n != 3 { // bad, a and b
			t.Errorf("%v are overdue, want 3", n)
		}
		d.refuse("2", "a", nil)
		time.Sleep(7 * time.Second) // at 10.5 s
		if one, all, b := d.tried("1", "bad"), d.tried("2", "a"), d.tried("2", "b"); one != 2 || all != 1 || b != 0 {
			t.Errorf("tried %d, %d and %d times, want 2, 1 and 0", one, all, b)
		}
		d.refuse("1", "bad", nil)
		time.Sleep(20 * time.Second)
		d.want(t, "1/bad@15", "2/a@21", "2/b@21")
		if n := valueOf(t, s.metrics.overdue); n != 0 {
			t.Errorf("%v are overdue, want none", n)
		}
		if bad, full := valueOf(t, s.metrics.putOff.WithLabelValues("invalid_field")), valueOf(t, s.metrics.putOff.WithLabelValues("jobs_full")); bad != 2 || full != 1 {
			t.Errorf("put off %v and %v times, want 2 and 1", bad, full)
		}
	})
}

// TestSchedulerCannotRead: that is counted, as what it is, and what is due meanwhile is fired once it can.
func TestSchedulerCannotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDiary(time.Hour)
		d.add("1", "a", time.Second)
		d.fail(errors.New("no disk"))
		s := schedule(t, d, nil)
		time.Sleep(3500 * time.Millisecond)
		d.want(t)
		if unread, off := valueOf(t, s.metrics.failures.WithLabelValues("internal")), valueOf(t, s.metrics.putOff.WithLabelValues("internal")); unread != 4 || off != 0 {
			t.Errorf("%v reads failed, and %v were put off, want 4 and 0", unread, off)
		}
		d.fail(nil)
		time.Sleep(time.Second)
		d.want(t, "1/a@4")
	})
}
