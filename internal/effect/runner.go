package effect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Pauses.
const (
	firstPause = 100 * time.Millisecond // after the log did not take an entry
	maxPause   = 2 * time.Second
	lookAgain  = time.Minute     // between two looks through all lanes, whether there was news or not
	restGrace  = 2 * time.Second // that Rest leaves to attempts under way, if its caller does not say
	restMargin = time.Second     // of what its caller leaves, for writing down what was interrupted
)

// Runner runs the jobs of a shard while its node leads. Start and Stop may be called twice; Notice at any time.
type Runner struct {
	opt     Options
	metrics *metrics

	mu      sync.Mutex // guards what follows, up to the blank line
	notices []job.Notice
	news    bool // since the last look something came to wait
	missed  bool // too many notices: look through everything
	ends    []end
	started bool
	resting bool
	restBy  time.Time     // attempts that run then are interrupted
	rested  chan struct{} // closed when nothing runs any more, while resting

	// What follows belongs to the loop.
	plan     *plan
	attempts map[job.ID]*attempt // begun in the log, their end not written there
	left     []leftover          // attempts of others, to be reported as interrupted
	bytes    int                 // of the bodies of attempts
	runner   uint64              // 0: begin first
	term     uint64              // of leadership, when it began
	looked   time.Time           // when all lanes were looked through for no reason
	quiet    rate.Sometimes      // about failures

	off map[petrel.AppID]uint64 // of the watch: apps whose rows and ledger differ

	wake    chan struct{} // capacity 1
	working sync.WaitGroup
	looping sync.WaitGroup
	once    sync.Once
	ctx     context.Context //nolint:containedctx // the lifetime of the service
	stop    context.CancelCauseFunc
}

// leftover is an attempt of another runner.
type leftover struct {
	lane   job.Lane
	report job.Report
}

// maxNotices that wait for the loop: beyond them it looks through all lanes.
const maxNotices = 4096

// New returns a runner. It panics when a part is missing: that is a mistake of assembly.
func New(o Options) *Runner {
	r := &Runner{opt: o.withDefaults(), wake: make(chan struct{}, 1), quiet: rate.Sometimes{Interval: 5 * time.Second}}
	r.ctx, r.stop = context.WithCancelCause(context.Background())
	r.plan, r.attempts = newPlan(r.opt), map[job.ID]*attempt{}
	r.metrics, r.off = newMetrics(o.Registerer), map[petrel.AppID]uint64{}
	return r
}

// Start begins to look for work.
func (r *Runner) Start() {
	r.once.Do(func() {
		r.mu.Lock()
		r.started = true
		r.mu.Unlock()
		r.looping.Go(r.loop)
		if r.opt.View != nil {
			r.looping.Go(r.watch)
		}
	})
}

// Notice tells of what came to wait. It does not block: apply calls it.
func (r *Runner) Notice(notices ...job.Notice) {
	if len(notices) == 0 {
		return
	}
	r.mu.Lock()
	r.news = true
	if len(r.notices)+len(notices) > maxNotices {
		r.notices, r.missed = nil, true
	} else {
		r.notices = append(r.notices, notices...)
	}
	r.mu.Unlock()
	r.nudge()
}

// Look makes the runner look through everything: the projection was replaced.
func (r *Runner) Look() {
	r.mu.Lock()
	r.news, r.missed = true, true
	r.mu.Unlock()
	r.nudge()
}

// Rest begins nothing more and returns when the ends of all attempts are in the log, or ctx ends. Shortly before that, attempts that
// are still under way are interrupted, and written down so; without a deadline, after a moment. Of several calls the first deadline counts.
func (r *Runner) Rest(ctx context.Context) {
	grace := restGrace
	if by, ok := ctx.Deadline(); ok {
		left := max(0, time.Until(by))
		grace = left - min(left/4, restMargin)
	}
	r.mu.Lock()
	by := r.opt.Now().Add(grace)
	if !r.resting {
		r.resting, r.restBy, r.rested = true, by, make(chan struct{})
	} else if by.Before(r.restBy) {
		r.restBy = by
	}
	rested, started := r.rested, r.started
	r.mu.Unlock()
	if !started {
		return
	}
	r.nudge()
	select {
	case <-rested:
	case <-ctx.Done():
	}
}

// Resume ends a Rest.
func (r *Runner) Resume() {
	r.mu.Lock()
	if r.resting {
		r.resting = false
		select {
		case <-r.rested:
		default:
			close(r.rested) // who still waits for it waits for nothing
		}
	}
	r.mu.Unlock()
	r.nudge()
}

// Stop ends the loop and interrupts what runs. Rest first, or the next runner finds the attempts.
func (r *Runner) Stop() {
	r.once.Do(func() {}) // a Start that comes later does nothing
	r.stop(errResting)
	r.looping.Wait()
	r.working.Wait()
}

func (r *Runner) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// loop looks for work while this node leads, until Stop.
func (r *Runner) loop() {
	look := time.NewTicker(r.opt.LookEvery)
	defer look.Stop()
	pause := time.Duration(0)
	for {
		if r.ctx.Err() != nil {
			return
		}
		term, leads := r.opt.Leading()
		if leads && term != r.term { // another may have run them meanwhile, and left what it began
			r.term, r.runner = term, 0
			r.Look()
		}
		r.metrics.leads(leads && r.runner != 0)
		more, err := r.turn(term, leads)
		switch {
		case err != nil:
			pause = min(max(2*pause, firstPause), maxPause)
			r.failed(err)
		case more:
			pause = 0
			continue
		default:
			pause = 0
		}
		r.idle(look, pause)
	}
}

// idle waits until there may be something to do.
func (r *Runner) idle(look *time.Ticker, pause time.Duration) {
	var due <-chan time.Time
	wake := r.wake
	if pause > 0 {
		wake = nil
		t := time.NewTimer(pause/2 + r.opt.Jitter(pause))
		defer t.Stop()
		due = t.C
	} else if d := r.nextIn(); d < r.opt.LookEvery {
		t := time.NewTimer(max(d, time.Millisecond))
		defer t.Stop()
		due = t.C
	}
	tick := look.C
	if pause > 0 {
		tick = nil
	}
	select {
	case <-wake:
	case <-due:
	case now := <-tick:
		if now.Sub(r.looked) >= lookAgain {
			r.looked = now
			r.Look() // nothing should be there that the plan does not know; if a mistake of ours left something, it waits no longer than this
		}
	case <-r.ctx.Done():
	}
}

// nextIn is how long it takes until a job is due, or attempts are to be interrupted for a Rest; at most LookEvery.
func (r *Runner) nextIn() time.Duration {
	now, d := r.opt.Now(), r.opt.LookEvery
	if next := r.plan.next(); next > 0 {
		d = min(d, time.UnixMilli(next).Sub(now))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resting && now.Before(r.restBy) && len(r.attempts) > 0 {
		d = min(d, r.restBy.Sub(now))
	}
	return d
}

// turn does what there is to do now. more says that there is probably more.
func (r *Runner) turn(term uint64, leads bool) (more bool, err error) {
	resting := r.gather()
	if r.runner == 0 {
		if !leads || resting && len(r.attempts) == 0 {
			r.rest(resting, true)
			return false, nil
		}
		if began, err := r.begin(term); err != nil || !began {
			return false, err
		}
	}
	if err := r.look(); err != nil {
		return false, err
	}
	return r.step(leads, resting)
}

// gather takes over what attempts ended with.
func (r *Runner) gather() (resting bool) {
	r.mu.Lock()
	ends := r.ends
	r.ends = nil
	resting = r.resting
	late := resting && !r.opt.Now().Before(r.restBy)
	r.mu.Unlock()
	if late {
		for _, a := range r.attempts {
			a.cancel(errResting)
		}
	}
	for _, e := range ends {
		if r.attempts[e.attempt.job.ID] == e.attempt { // else another runner has repeated it meanwhile
			e.attempt.ended, e.attempt.report = true, e.report
		}
	}
	return resting
}

// begin makes this node the runner, when there is anything to run, and takes stock: what runs by the log and not here was
// interrupted, what runs here and not by the log is no longer ours.
func (r *Runner) begin(term uint64) (began bool, err error) {
	r.mu.Lock()
	news := r.news
	r.news = false
	r.mu.Unlock()
	if !news && len(r.attempts) == 0 {
		return false, nil
	}
	runner := uint64(0)
	some, err := r.opt.Book.Any(r.ctx)
	if err == nil && !some {
		return false, nil
	}
	if err == nil {
		runner, err = r.opt.Book.Begin(r.ctx, r.opt.Node, term)
	}
	if err == nil {
		err = r.takeStock(r.ctx)
	}
	if err != nil {
		r.Look()
		return false, err
	}
	r.runner = runner
	r.Look()
	r.opt.Logger.Info("this node runs the jobs", "term", term, "interrupted", len(r.left), "running", len(r.attempts))
	return true, nil
}

func (r *Runner) takeStock(ctx context.Context) error {
	running, err := r.opt.Book.Running(ctx)
	if err != nil {
		return err
	}
	r.plan, r.left, r.bytes = newPlan(r.opt), nil, 0
	mine := make(map[job.ID]*attempt, len(r.attempts))
	for _, j := range running {
		if a := r.attempts[j.ID]; a != nil && a.job.Attempts == j.Attempts {
			mine[j.ID] = a
			r.bytes += len(a.job.Body)
			r.plan.keep(a.lane())
			continue
		}
		r.left = append(r.left, leftover{job.Lane{App: j.App, Target: j.Target}, r.lost(j, fmt.Sprintf("attempt %d was interrupted: its node stopped leading, or the log could not say whether it had begun", j.Attempts))})
	}
	for id, a := range r.attempts {
		if mine[id] == nil {
			a.cancel(errResting)
		}
	}
	r.attempts = mine
	r.metrics.interrupted.Add(float64(len(r.left)))
	return nil
}

// look brings what came to wait into the plan.
func (r *Runner) look() error {
	r.mu.Lock()
	notices, missed := r.notices, r.missed
	r.notices, r.missed, r.news = nil, false, false
	r.mu.Unlock()
	if missed {
		notices = []job.Notice{{Some: true}}
	}
	for _, n := range notices {
		if !n.Some {
			r.plan.wait(n.Lane, n.Due)
			continue
		}
		lanes, err := r.opt.Book.Lanes(r.ctx, n.App)
		if err != nil {
			r.Look()
			return err
		}
		for _, l := range lanes {
			r.plan.wait(l.Lane, l.Due)
		}
	}
	return nil
}

// step writes ends and beginnings into the log, and starts what began.
func (r *Runner) step(leads, resting bool) (more bool, err error) {
	s := job.Step{Runner: r.runner, Reports: r.reports()}
	if leads && !resting && len(r.left) == 0 && r.bytes < r.opt.BodyBytes {
		s.Take, s.MaxBytes = r.plan.take(r.opt.Now().UnixMilli(), job.MaxStep, job.MaxStepApps, r.opt.Held), r.opt.BodyBytes-r.bytes
	}
	if len(s.Reports) == 0 && len(s.Take) == 0 {
		r.rest(resting, len(r.attempts) == 0)
		return false, nil
	}
	did, err := r.opt.Book.Step(r.ctx, s)
	if err != nil {
		if !certain(err) {
			r.runner = 0 // overtaken, or nobody knows what began: take stock
			r.Look()
		}
		return false, err
	}
	r.wrote(s, did)
	return true, nil
}

// reports are the ends that are not in the log yet, as many as one step takes.
func (r *Runner) reports() (out []job.Report) {
	apps := map[petrel.AppID]bool{}
	add := func(rep job.Report) {
		if len(out) < job.MaxStep && (apps[rep.App] || len(apps) < job.MaxStepApps) {
			apps[rep.App] = true
			out = append(out, rep)
		}
	}
	for _, l := range r.left {
		add(l.report)
	}
	for _, a := range r.attempts {
		if a.ended {
			add(a.report)
		}
	}
	return out
}

// wrote takes over what a step did.
func (r *Runner) wrote(s job.Step, did job.Stepped) {
	r.runner = did.Runner
	// The takes first: what they say of a lane was read before the reports, and knows nothing of what waits again because of them.
	begun := make(map[job.Lane]int, len(s.Take))
	for _, j := range did.Begun {
		begun[job.Lane{App: j.App, Target: j.Target}]++
	}
	for i, t := range s.Take {
		r.plan.took(t.Lane, begun[t.Lane], did.Next[i])
	}
	reported := make(map[job.ID]job.Report, len(s.Reports))
	for _, rep := range s.Reports {
		reported[rep.ID] = rep
		if a := r.attempts[rep.ID]; a != nil {
			delete(r.attempts, rep.ID)
			r.bytes -= len(a.job.Body)
			r.plan.ended(a.lane())
			r.again(a.lane(), rep)
		}
	}
	r.left = slices.DeleteFunc(r.left, func(l leftover) bool {
		rep, ok := reported[l.report.ID]
		if ok {
			r.again(l.lane, rep)
		}
		return ok
	})
	if len(did.Lost) > 0 {
		r.opt.Logger.Error("jobs were reported that do not run by the log", "jobs", fmt.Sprint(did.Lost))
	}
	for _, j := range did.Begun {
		r.start(j)
	}
}

// again plans the attempt that follows a report, if one does.
func (r *Runner) again(l job.Lane, rep job.Report) {
	if rep.Outcome == event.JobFailed || rep.Outcome == event.JobInterrupted {
		r.plan.wait(l, rep.Due)
	}
}

// rest tells Rest that nothing is left to do here.
func (r *Runner) rest(resting, nothing bool) {
	if !resting || !nothing {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.resting { // resumed meanwhile
		return
	}
	select {
	case <-r.rested:
	default:
		close(r.rested)
	}
}

// certain reports whether an error of a step leaves no doubt that nothing was written, and that this is still the runner.
func certain(err error) bool {
	if errors.Is(err, job.ErrNotRunner) {
		return false
	}
	switch petrel.CodeOf(err) {
	case petrel.CodeNoLeader, petrel.CodeDiskFull, petrel.CodeBusy, petrel.CodeTimeout, petrel.CodeUpgrading,
		petrel.CodeDraining, petrel.CodeConflict, petrel.CodeReadBudget:
		return true
	}
	return false
}

// failed says what keeps the runner from going on.
func (r *Runner) failed(err error) {
	r.metrics.failures.WithLabelValues(string(petrel.CodeOf(err))).Inc()
	switch {
	case r.ctx.Err() != nil:
	case errors.Is(err, job.ErrNotRunner):
		r.opt.Logger.Info("another node runs the jobs now")
	default:
		r.quiet.Do(func() {
			r.opt.Logger.Warn("the runner of jobs waits: the log does not take its entries; nothing is lost", "error", err)
		})
	}
}
