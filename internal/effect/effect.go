// Package effect does outside what entries of the log ask for: it runs the jobs of a shard, on the node that leads it.
//
// The runner (runner.go) writes into the log that attempts begin, carries them out through the Handler of each job's kind
// (attempt.go), and writes down what became of them: both in one entry, as often as the log takes one, so that a busy runner
// commits many at once by itself. Whose turn it is, is in plan.go.
//
// # Invariants
//
//   - Nothing is done outside for a job whose attempt is not in the log and applied here.
//   - At least once outside, exactly once in the log: an attempt whose end is not in the log when its runner ends is
//     reported as interrupted by the next runner, and repeated. Every attempt at a job carries the same event id.
//   - A runner that was overtaken writes nothing any more: its entries carry a guard on the row that its successor changed. What it
//     finds running in the log after an entry of unknown outcome, and not in its memory, is interrupted like another's.
//   - Fair. Apps take turns, within an app its targets. An app gets no more places than are left free for others, a target no
//     more than TargetPlaces: who hangs, hangs in his own.
//   - What the runner holds is bounded: jobs in Places and BodyBytes, a few words for each lane in which something waits.
//   - A place is free again when the end of its attempt is in the log. While the disk is full or there is no leader, ends are
//     kept, and nothing begins.
//   - A handler that panics fails its attempt, not the node.
//
// What callers may not rely on: the order in which jobs run, not even within a lane.
package effect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Handler carries out the jobs of one kind. Run may be called many times at once. It returns nil when the job is done, and soon after
// ctx has ended in any case. An error is an attempt that failed: another follows by the kind's Policy, unless it wraps Permanent or
// Gone; Retry chooses when. attempt counts from 1 over the life of the job.
type Handler interface {
	Run(ctx context.Context, j job.Job, attempt int) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, j job.Job, attempt int) error

// Run implements Handler.
func (f HandlerFunc) Run(ctx context.Context, j job.Job, attempt int) error {
	return f(ctx, j, attempt)
}

// permanent is an error after which no attempt follows.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that another attempt would meet again: the job is dead.
func Permanent(err error) error { return permanent{err} }

// Gone marks that the job's target is no more; the job is dead, as with Permanent.
func Gone(err error) error { return permanent{fmt.Errorf("gone: %w", err)} }

// Retry is an error that says when to try again, for example because a receiver said so. It counts as a failure.
type Retry struct {
	After time.Duration
	Err   error
}

func (r Retry) Error() string { return r.Err.Error() }
func (r Retry) Unwrap() error { return r.Err }

// Policy says how often and for how long jobs of a kind are tried. A zero field takes the default.
type Policy struct {
	// Timeout of one attempt. Default 10 s.
	Timeout time.Duration
	// Attempts that may fail before the job is dead. Default 12: with the other defaults about half an hour.
	Attempts int
	// First pause, and the longest: each is twice the one before, of which a random half is taken off. Default 1 s and 15 min.
	First, Longest time.Duration
	// Losses is how many attempts may be interrupted before the job is dead: one that brings down its node
	// does not go round for ever. Default 25.
	Losses int
}

func (p Policy) withDefaults() Policy {
	if p.Timeout <= 0 {
		p.Timeout = 10 * time.Second
	}
	if p.Attempts <= 0 {
		p.Attempts = 12
	}
	if p.First <= 0 {
		p.First = time.Second
	}
	if p.Longest <= 0 {
		p.Longest = 15 * time.Minute
	}
	if p.Losses <= 0 {
		p.Losses = 25
	}
	return p
}

// pause is how long to wait after so many failures.
func (p Policy) pause(failures int, jitter func(time.Duration) time.Duration) time.Duration {
	d := p.Longest
	if shift := failures - 1; shift < 30 && p.First<<shift>>shift == p.First {
		d = min(d, p.First<<shift)
	}
	return d/2 + jitter(d/2+1)
}

// Book is where the jobs are written: the log and the projection. NewBook makes the real one.
type Book interface {
	// Begin makes this node the runner and returns what its steps name.
	Begin(ctx context.Context, node petrel.NodeID, term uint64) (runner uint64, err error)
	// Step writes down ends and beginnings; see job.Step.
	Step(ctx context.Context, s job.Step) (job.Stepped, error)
	// Running returns every job that is running by the log.
	Running(ctx context.Context) ([]job.Job, error)
	// Lanes returns every lane in which jobs wait, or those of one app.
	Lanes(ctx context.Context, app petrel.AppID) ([]job.LaneDue, error)
	// Any reports whether a job waits or runs.
	Any(ctx context.Context) (bool, error)
}

// Options of New.
type Options struct {
	Book Book
	// Node is this one's name in the log.
	Node petrel.NodeID
	// Leading says whether this node leads the shard and may run its jobs, and its term. It is asked often and must not wait.
	Leading func() (term uint64, ok bool)
	// Held says that an app is suspended: its jobs wait until it is resumed; attempts under way come to their end. It is asked often and
	// must not wait. nil: none is.
	Held func(app petrel.AppID) bool
	// Kinds of jobs and who carries them out. A job of another kind waits until a node comes that knows it.
	Kinds map[string]Handler
	// Policies by kind. Of a kind that is not listed the handler's own counts, if it has a method Policy() Policy.
	Policies map[string]Policy
	// Places is how many attempts run at once. Default 1,024.
	Places int
	// AppPlaces is the most that one app has of them. It also gets no more than are left free. Default half of Places.
	AppPlaces int
	// TargetPlaces is the most for one target of an app. Default 64.
	TargetPlaces int
	// BodyBytes is how much the bodies of running jobs may take before nothing more begins. Default 64 MiB.
	BodyBytes int
	// View reads the projection, for the metrics of the ledgers. nil: they are not watched.
	View View
	// CountEvery is how often the ledgers are looked at. Default 10 s.
	CountEvery time.Duration
	// LookEvery is how often Leading is asked. Default 500 ms.
	LookEvery time.Duration
	// Jitter returns a part of a pause by chance. Default rand.N.
	Jitter func(time.Duration) time.Duration
	// Now is the clock of due times. Default time.Now.
	Now func() time.Time
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer for metrics; may be nil.
	Registerer prometheus.Registerer
}

func (o Options) withDefaults() Options {
	if o.Book == nil || o.Leading == nil {
		panic("effect: Options is missing a part") // a mistake of assembly
	}
	if o.Places <= 0 {
		o.Places = 1024
	}
	if o.AppPlaces <= 0 {
		o.AppPlaces = max(1, o.Places/2)
	}
	if o.TargetPlaces <= 0 {
		o.TargetPlaces = 64
	}
	if o.BodyBytes <= 0 {
		o.BodyBytes = 64 << 20
	}
	if o.CountEvery <= 0 {
		o.CountEvery = 10 * time.Second
	}
	if o.LookEvery <= 0 {
		o.LookEvery = 500 * time.Millisecond
	}
	if o.Held == nil {
		o.Held = func(petrel.AppID) bool { return false }
	}
	if o.Jitter == nil {
		o.Jitter = rand.N[time.Duration] //nolint:gosec // not a secret
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// errResting interrupts attempts whose runner gives its work away.
var errResting = errors.New("effect: the runner hands its work to another")
