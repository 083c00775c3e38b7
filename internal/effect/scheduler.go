package effect

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Calendar is the shard's schedules, as the scheduler reads and fires them; NewCalendar's.
type Calendar interface {
	// Due is a page of those that are due at a time, behind one; a full page has limit of them.
	Due(ctx context.Context, now time.Time, after job.ScheduleDue, limit int) ([]job.ScheduleDue, error)
	// Next is when the first behind a time is due, Unix milliseconds; 0: none.
	Next(ctx context.Context, now time.Time) (int64, error)
	// Fire fires one, or finds that another has.
	Fire(ctx context.Context, app petrel.AppID, name petrel.ScheduleName) (job.Fired, error)
}

// SchedulerOptions are the options of NewScheduler. Calendar and Leading are required.
type SchedulerOptions struct {
	Calendar Calendar
	// Leading says whether this node leads the shard and may fire its schedules.
	Leading func() (term uint64, ok bool)
	// Held says that an app is suspended: its schedules wait until it is resumed. nil: none is.
	Held func(app petrel.AppID) bool
	// LookEvery is how often the schedules are looked through at least. Default 1 s.
	LookEvery time.Duration
	// PutOff is after how long a schedule that could not be fired is tried again, unless the refusal says. Default 5 s.
	PutOff time.Duration
	// Now is the clock of due times. Default time.Now.
	Now        func() time.Time
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *SchedulerOptions) defaults() {
	if o.Calendar == nil || o.Leading == nil {
		panic("effect: SchedulerOptions is missing a part") // a mistake of assembly
	}
	if o.Held == nil {
		o.Held = func(petrel.AppID) bool { return false }
	}
	if o.LookEvery <= 0 {
		o.LookEvery = time.Second
	}
	if o.PutOff <= 0 {
		o.PutOff = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// atOnce is how many schedules are fired at the same time: their entries share appends.
const atOnce = 64

// Scheduler fires the schedules of a shard, while its node leads, when their time has come. It holds nothing that the projection does not
// hold but who is put off. Start and Stop may be called twice.
type Scheduler struct {
	opt     SchedulerOptions
	metrics *scheduleMetrics
	quiet   rate.Sometimes // about what is put off

	mu     sync.Mutex // guards putOff
	putOff map[scheduleKey]time.Time

	once    sync.Once
	looping sync.WaitGroup
	ctx     context.Context //nolint:containedctx // the lifetime of the service
	stop    context.CancelFunc
}

// scheduleKey names a schedule, or with an empty name all of an app's.
type scheduleKey struct {
	app  petrel.AppID
	name petrel.ScheduleName
}

// NewScheduler returns a scheduler. It panics when a part is missing: that is a mistake of assembly.
func NewScheduler(o SchedulerOptions) *Scheduler {
	o.defaults()
	s := &Scheduler{opt: o, metrics: newScheduleMetrics(o.Registerer), quiet: rate.Sometimes{Interval: 5 * time.Second}, putOff: map[scheduleKey]time.Time{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Start begins to look for schedules that are due.
func (s *Scheduler) Start() { s.once.Do(func() { s.looping.Go(s.loop) }) }

// Stop ends it. What is being fired is fired, or not, as the log says.
func (s *Scheduler) Stop() {
	s.once.Do(func() {}) // a Start that comes later does nothing
	s.stop()
	s.looping.Wait()
}

func (s *Scheduler) loop() {
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-look.C:
		}
		pause := s.opt.LookEvery
		if _, leads := s.opt.Leading(); leads {
			next, err := s.round()
			if err != nil {
				s.unread(err)
			} else if next > 0 { // the clock may be changed while we wait, so never for long
				pause = min(pause, max(time.UnixMilli(next).Sub(s.opt.Now()), time.Millisecond))
			}
		} else {
			s.forget()
		}
		look.Reset(pause)
	}
}

// forget lets go what was put off: another node looks after it.
func (s *Scheduler) forget() {
	s.mu.Lock()
	clear(s.putOff)
	s.mu.Unlock()
	s.metrics.overdue.Set(0)
}

// round fires what is due, and returns when the next is.
func (s *Scheduler) round() (next int64, err error) {
	now := s.opt.Now()
	s.mu.Lock()
	for k, until := range s.putOff {
		if !until.After(now) {
			delete(s.putOff, k)
		}
	}
	s.mu.Unlock()
	var fire []job.ScheduleDue
	waits := 0
	held := map[petrel.AppID]bool{}
	for after, more := (job.ScheduleDue{}), true; more; {
		due, err := s.opt.Calendar.Due(s.ctx, now, after, page)
		if err != nil {
			return 0, err
		}
		more = len(due) == page
		for _, d := range due {
			after = d
			is, asked := held[d.App]
			if !asked {
				is = s.opt.Held(d.App)
				held[d.App] = is
			}
			switch {
			case is:
			case s.isPutOff(d):
				waits++
			default:
				fire = append(fire, d)
			}
		}
	}
	waits += s.fire(fire)
	s.metrics.overdue.Set(float64(waits))
	return s.opt.Calendar.Next(s.ctx, now)
}

func (s *Scheduler) isPutOff(d job.ScheduleDue) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, one := s.putOff[scheduleKey{d.App, d.Name}]
	_, all := s.putOff[scheduleKey{app: d.App}]
	return one || all
}

// fire fires schedules, many at once, and returns how many of them could not be.
func (s *Scheduler) fire(due []job.ScheduleDue) (failed int) {
	var g errgroup.Group
	g.SetLimit(atOnce)
	var mu sync.Mutex // guards failed
	for _, d := range due {
		g.Go(func() error {
			if s.isPutOff(d) || s.one(d) != nil {
				mu.Lock()
				failed++
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait() // none fails
	return failed
}

func (s *Scheduler) one(d job.ScheduleDue) error {
	fired, err := s.opt.Calendar.Fire(s.ctx, d.App, d.Name)
	if err != nil {
		s.later(d, err)
		return err
	}
	if fired.Did {
		late := s.opt.Now().Sub(time.UnixMilli(fired.Due))
		s.metrics.fired(late, fired.Missed)
		if fired.Missed > 0 {
			s.opt.Logger.Info("a schedule is late, and times of it were missed", "app", d.App, "schedule", d.Name, "late", late, "missed", fired.Missed)
		}
	}
	return nil
}

// later puts a schedule off that could not be fired, or all of an app that has no room for jobs.
func (s *Scheduler) later(d job.ScheduleDue, err error) {
	s.failed(d.App, d.Name, err)
	key, pause := scheduleKey{d.App, d.Name}, s.opt.PutOff
	if petrel.CodeOf(err) == petrel.CodeJobsFull {
		key.name = ""
	}
	var refusal *petrel.Error
	if errors.As(err, &refusal) && refusal.RetryAfter > 0 {
		pause = refusal.RetryAfter
	}
	s.mu.Lock()
	s.putOff[key] = s.opt.Now().Add(pause)
	s.mu.Unlock()
}

// failed says what keeps a schedule from being fired.
func (s *Scheduler) failed(app petrel.AppID, name petrel.ScheduleName, err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.metrics.putOff.WithLabelValues(string(petrel.CodeOf(err))).Inc()
	s.quiet.Do(func() {
		s.opt.Logger.Warn("a schedule is due and cannot be fired: it is put off, and not lost", "app", app, "schedule", name, "error", err)
	})
}

// unread says why nobody knows what is due.
func (s *Scheduler) unread(err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.metrics.failures.WithLabelValues(string(petrel.CodeOf(err))).Inc()
	s.quiet.Do(func() {
		s.opt.Logger.Warn("the schedules cannot be looked through: what is due is late, and not lost", "error", err)
	})
}

type scheduleMetrics struct {
	lateness prometheus.Histogram
	missed   prometheus.Counter
	putOff   *prometheus.CounterVec
	failures *prometheus.CounterVec
	overdue  prometheus.Gauge
}

func newScheduleMetrics(reg prometheus.Registerer) *scheduleMetrics {
	m := &scheduleMetrics{
		lateness: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "petrel_schedule_late_seconds", Help: "From when a schedule was due until that was in the log. Its count is how many were fired by this node.",
			Buckets: prometheus.ExponentialBuckets(1e-2, 4, 10),
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_schedule_missed_total", Help: "Times of schedules that passed while no node could fire them; each was counted in the next event that was told.",
		}),
		putOff: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_schedule_put_off_total", Help: "Times that a schedule was due and could not be fired, by code: jobs_full when too many jobs of its app wait. It is tried again.",
		}, []string{"code"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_schedule_failures_total", Help: "Times that the schedules could not be looked through, by code. It is tried again.",
		}, []string{"code"}),
		overdue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_schedules_overdue", Help: "Schedules that are due and could not be fired, on the leader. Those of suspended apps are not counted.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.lateness, m.missed, m.putOff, m.failures, m.overdue)
	}
	return m
}

func (m *scheduleMetrics) fired(late time.Duration, missed uint) {
	m.lateness.Observe(max(0, late.Seconds()))
	m.missed.Add(float64(missed))
}
