package effect

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/job"
)

// attempt is one attempt of this runner at a job, from its beginning in the log until its end is there.
type attempt struct {
	job    job.Job
	cancel context.CancelCauseFunc
	ended  bool // report is what is to be written
	report job.Report
}

func (a *attempt) lane() job.Lane { return job.Lane{App: a.job.App, Target: a.job.Target} }

// start carries the attempt out in a goroutine of its own, which hands its end to the runner.
func (r *Runner) start(j job.Job) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	a := &attempt{job: j, cancel: cancel}
	r.attempts[j.ID] = a
	r.bytes += len(j.Body)
	r.metrics.late(j, r.opt.Now())
	r.working.Go(func() {
		defer cancel(nil)
		began := r.opt.Now()
		err := r.try(ctx, j)
		rep := r.judge(j, err, context.Cause(ctx))
		r.metrics.ended(j.Kind, rep.Outcome, r.opt.Now().Sub(began))
		r.mu.Lock()
		r.ends = append(r.ends, end{a, rep})
		r.mu.Unlock()
		r.nudge()
	})
}

// end is what an attempt's goroutine hands over.
type end struct {
	attempt *attempt
	report  job.Report
}

// try calls the handler. A panic of it is an error.
func (r *Runner) try(ctx context.Context, j job.Job) (err error) {
	defer func() {
		if v := recover(); v != nil {
			r.opt.Logger.Error("a job's handler panicked: the attempt failed", "job", j.ID.String(), "kind", j.Kind, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler of %s panicked: %v", j.Kind, v)
		}
	}()
	h := r.opt.Kinds[j.Kind]
	if h == nil {
		return errUnknownKind
	}
	timeout := r.policy(j.Kind).Timeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no end after %s", timeout))
	defer cancel()
	err = h.Run(ctx, j, j.Attempts)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}

var errUnknownKind = errors.New("this build does not know the kind of the job")

// judge says what follows from the end of an attempt. All chance is drawn here, before the log.
func (r *Runner) judge(j job.Job, err, cause error) job.Report {
	now := r.opt.Now()
	rep := job.Report{App: j.App, ID: j.ID}
	p := r.policy(j.Kind)
	var retry Retry
	var never permanent
	switch {
	case err == nil:
		rep.Outcome = event.JobDone
		return rep
	case errors.Is(cause, errResting):
		return r.lost(j, fmt.Sprintf("attempt %d was interrupted: %s gave its work away", j.Attempts, r.opt.Node))
	case errors.Is(err, errUnknownKind):
		rep.Outcome, rep.Due = event.JobInterrupted, now.Add(p.Longest).UnixMilli()
	case errors.As(err, &never), j.Failures+1 >= p.Attempts:
		rep.Outcome = event.JobDead
	case errors.As(err, &retry):
		rep.Outcome, rep.Due = event.JobFailed, now.Add(max(retry.After, time.Millisecond)).UnixMilli()
	default:
		rep.Outcome, rep.Due = event.JobFailed, now.Add(p.pause(j.Failures+1, r.opt.Jitter)).UnixMilli()
	}
	rep.Error = err.Error()
	return rep
}

// lost reports an attempt of which nobody knows what it did. It follows again soon; after many, with a pause.
func (r *Runner) lost(j job.Job, why string) job.Report {
	rep := job.Report{App: j.App, ID: j.ID, Outcome: event.JobInterrupted, Error: why}
	p := r.policy(j.Kind)
	if j.Losses+1 >= p.Losses {
		rep.Outcome = event.JobDead
		return rep
	}
	rep.Due = r.opt.Now().UnixMilli()
	if j.Losses >= 2 {
		rep.Due += p.pause(j.Losses-1, r.opt.Jitter).Milliseconds()
	}
	return rep
}

// policy of a kind: as set in the options, or as its handler has it.
func (r *Runner) policy(kind string) Policy {
	p, ok := r.opt.Policies[kind]
	if own, has := r.opt.Kinds[kind].(interface{ Policy() Policy }); has && !ok {
		p = own.Policy()
	}
	return p.withDefaults()
}
