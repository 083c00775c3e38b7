// Package command is the front desk of the durable lane: it lets a domain decide a command
// against the local projection, stamps it, commits it, waits until it is applied here, and
// decides again when a guard did not hold. It knows no rule of any domain.
//
// # Invariants
//
//   - Do returns a Result only for what is durable and applied on this node, or for an
//     answer that needed no entry (a repeat, or nothing to change).
//   - All chance and all clocks are drawn here, before the entry is appended. Every attempt
//     of a command has a new entry id and a new time, but the same command id.
//   - An entry whose outcome is unknown is never sent again. Its id, applied or not applied
//     when a later barrier passes, settles it; only then is the command decided anew.
//   - A refusal leaves nothing behind.
//
// # Failures
//
// Not appended and no leader: tried again with jittered pauses while the context lasts, then
// CodeNoLeader. No room: CodeDiskFull at once. Unknown when the context ends:
// CodeUnknownOutcome: the caller retries with the same command id. Conflicts that do not end:
// CodeConflict. A context that ends while nothing is in the log: CodeTimeout.
package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Command is an intent, imperative: the domains define them.
type Command interface {
	// CommandKind is the scope of the command's id and a label in metrics: a constant.
	CommandKind() string
	// Decide makes facts, guards and an answer of it, or refuses with a petrel.Error.
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

// Projection is what commands are decided on; *projection.Store.
type Projection interface {
	View(ctx context.Context, fn func(*projection.Reader) error) error
	Applied() petrel.Applied
}

// Committer makes an entry durable; *commit.Pipeline.
type Committer interface {
	// CommitJoined calls joined, if not nil, once the payload has its place before whatever joins later.
	CommitJoined(ctx context.Context, payload []byte, joined func()) (index uint64, err error)
}

// Waiting hears of what was applied; *apply.Loop.
type Waiting interface {
	Expect(id petrel.EntryID) *apply.Waiter
}

// Settler tells when an entry that has not been applied never will be; raftlog.Log.
type Settler interface {
	Barrier(ctx context.Context) error
}

var (
	_ Projection = (*projection.Store)(nil)
	_ Waiting    = (*apply.Loop)(nil)
)

// Options of New.
type Options struct {
	Projection Projection
	Committer  Committer
	Waiting    Waiting
	Settler    Settler
	// Shard that Position speaks of.
	Shard petrel.ShardID
	// Gate refuses an actor before anything is decided (suspended or unknown app). nil: lets all pass.
	Gate func(r *projection.Reader, a petrel.Actor) error
	// Level is the feature level that every node of the cell can read; what needs a higher one is refused with
	// CodeUpgrading. nil: everything may be written.
	Level func() int
	// Consequences returns what else goes into the entry of a decision that has events: more events and guards, of other
	// domains (the webhooks that a message causes). It is asked in the snapshot that was decided on; s.Seqs is empty. Its events follow those
	// of the decision, so they may name these by their place. A refusal refuses the command. nil: nothing follows from anything.
	Consequences func(r *projection.Reader, s event.Stamp, d event.Decision) ([]event.Event, []event.Guard, error)
	// Needs is the level that an event needs. Default event.Level.
	Needs func(event.Event) int
	// Attempts at deciding a command whose guards keep failing. Default 12.
	Attempts int
	// MaxWait bounds every command, whatever its context allows. Default 10 s.
	MaxWait time.Duration
	// Jitter returns a part of a pause by chance, so that those who failed together do not come back together. Default
	// rand.N; simulations hand in their own.
	Jitter func(time.Duration) time.Duration
	// Now is the clock that stamps entries. Default time.Now.
	Now func() time.Time
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer for metrics; may be nil.
	Registerer prometheus.Registerer
}

// Pauses between attempts when there is no leader.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = 200 * time.Millisecond
)

// Retry-After of refusals.
const (
	retrySoon = time.Second
	retryDisk = 5 * time.Second

	retryUpgrade = 30 * time.Second
)

// Desk takes commands. All methods may be called concurrently.
type Desk struct {
	opt       Options
	metrics   *metrics
	unsettled rate.Sometimes
}

// New returns a desk. It panics when a part is missing: that is a mistake of assembly.
func New(o Options) *Desk {
	if o.Projection == nil || o.Committer == nil || o.Waiting == nil || o.Settler == nil {
		panic("command: Options is missing a part")
	}
	if o.Gate == nil {
		o.Gate = func(*projection.Reader, petrel.Actor) error { return nil }
	}
	if o.Needs == nil {
		o.Needs = event.Level
	}
	if o.Attempts <= 0 {
		o.Attempts = 12
	}
	if o.MaxWait <= 0 {
		o.MaxWait = 10 * time.Second
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
	return &Desk{opt: o, metrics: newMetrics(o.Registerer), unsettled: rate.Sometimes{Interval: time.Second}}
}

// Meta is what comes with a command.
type Meta struct {
	Command petrel.CommandID // chosen by the client; empty: a repeat is not recognised
	Request petrel.RequestID
	// Joined is called when the command has its place in the log before whatever is done later, so that a caller
	// with many commands can keep their order without waiting for each. It must not block, and may be called more than
	// once: after a conflict, or without a leader, the command is decided again and its place is a later one. Not
	// called when no entry is needed or the command is refused. nil: nobody asks.
	Joined func()
}

// Result of a command.
type Result struct {
	// Answer is what the domain says of it; its type stands at the command.
	Answer any
	// Repeated: the first accepted answer is given again.
	Repeated bool
	// Changed: an entry was made.
	Changed bool
	// Position at or after which every read shows the command's effect.
	Position petrel.Position
}

// Do decides and commits cmd for actor and waits until it is applied on this node. Errors are
// petrel.Errors, except those of broken parts.
func (d *Desk) Do(ctx context.Context, actor petrel.Actor, meta Meta, cmd Command) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opt.MaxWait)
	defer cancel()
	start := d.opt.Now()
	res, err := d.do(ctx, actor, meta, cmd)
	d.metrics.done(cmd.CommandKind(), err, d.opt.Now().Sub(start))
	return res, err
}

func (d *Desk) do(ctx context.Context, actor petrel.Actor, meta Meta, cmd Command) (Result, error) {
	pause := firstPause
	for conflicts := 0; conflicts < d.opt.Attempts; {
		t, err := d.decide(ctx, actor, meta, cmd)
		if err != nil {
			return Result{}, err
		}
		if len(t.decision.Events) == 0 {
			return t.unchanged(d.opt.Shard), nil
		}
		d.opt.Logger.LogAttrs(ctx, slog.LevelDebug, "decided", slog.String("request", string(meta.Request)),
			slog.String("kind", cmd.CommandKind()), slog.Int("events", len(t.decision.Events)))
		if err := d.readable(t.decision.Events); err != nil {
			return Result{}, err
		}
		out, err := d.commit(ctx, t)
		switch {
		case err == nil && !out.Conflicted:
			d.opt.Logger.LogAttrs(ctx, slog.LevelDebug, "applied, answering", slog.String("request", string(meta.Request)),
				slog.Uint64("index", out.Index))
			return d.changed(t, out), nil
		case err == nil:
			d.metrics.conflicts.Inc()
			// The second time, somebody else keeps deciding on the same row: step out of their way.
			if conflicts++; conflicts > 1 && !sleep(ctx, d.opt.Jitter(min(firstPause<<conflicts, maxPause))) {
				return Result{}, petrel.Errorf(petrel.CodeTimeout, "The deadline passed while what the command rests on kept changing; nothing was written.").After(retrySoon)
			}
		case petrel.CodeOf(err) == petrel.CodeUnknownOutcome: // even if it wraps ErrNotAppended, as that of a barrier that did not pass
			return Result{}, err
		case errors.Is(err, petrel.ErrStopped):
			return Result{}, err
		case errors.Is(err, petrel.ErrNotAppended):
			if !sleep(ctx, pause/2+d.opt.Jitter(pause)) {
				return Result{}, petrel.Errorf(petrel.CodeNoLeader,
					"No leader could be reached in time; nothing was written. Try again with the same id.").After(retrySoon).Because(err)
			}
			pause = min(2*pause, maxPause)
			d.metrics.retries.Inc()
		default:
			return Result{}, err
		}
	}
	return Result{}, petrel.Errorf(petrel.CodeConflict,
		"What the command rests on changed %d times while it was decided. Read the present state and try again.", d.opt.Attempts).After(retrySoon)
}

// readable refuses what some node of the cell could not fold: its shard would stop at it.
func (d *Desk) readable(events []event.Event) error {
	if d.opt.Level == nil {
		return nil
	}
	level := d.opt.Level()
	for _, ev := range events {
		if need := d.opt.Needs(ev); need > level {
			return petrel.Errorf(petrel.CodeUpgrading, "The cell is being upgraded: this needs feature level %d on every node, and one still has %d. Try again when all nodes run the new build.", need, level).After(retryUpgrade)
		}
	}
	return nil
}

// try is one attempt at a command.
type try struct {
	stamp    event.Stamp
	decision event.Decision
	asked    int            // events of the command itself; what follows from them comes behind
	applied  petrel.Applied // that it was decided on
	joined   func()         // of the command's Meta
}

func (d *Desk) decide(ctx context.Context, actor petrel.Actor, meta Meta, cmd Command) (try, error) {
	start := d.opt.Now()
	t := try{joined: meta.Joined, stamp: event.Stamp{
		App: actor.App, Actor: actor, At: start.UnixMilli(), Command: meta.Command, Request: meta.Request,
	}}
	err := d.opt.Projection.View(ctx, func(r *projection.Reader) error {
		// Read before the snapshot is used, so never later than what it shows.
		t.applied = d.opt.Projection.Applied()
		if err := d.opt.Gate(r, actor); err != nil {
			return err
		}
		var err error
		if t.decision, err = cmd.Decide(r, t.stamp); err != nil {
			return err
		}
		t.asked = len(t.decision.Events)
		return d.follow(r, &t)
	})
	d.metrics.decide.Observe(d.opt.Now().Sub(start).Seconds())
	if errors.Is(err, petrel.ErrStopped) {
		return try{}, petrel.Errorf(petrel.CodeDraining, "This node is stopping. Try again in a moment.").After(retrySoon).Because(err)
	}
	return t, err
}

// follow adds to a decision what follows from it.
func (d *Desk) follow(r *projection.Reader, t *try) error {
	if d.opt.Consequences == nil || t.asked == 0 {
		return nil
	}
	events, guards, err := d.opt.Consequences(r, t.stamp, t.decision)
	if err != nil {
		return err
	}
	t.decision.Events = append(t.decision.Events[:t.asked:t.asked], events...)
	t.decision.Guards = append(slices.Clip(t.decision.Guards), guards...)
	return nil
}

// commit appends the attempt and waits for its outcome. An error that wraps ErrNotAppended says
// that the command may be decided again; every other error is the caller's answer.
func (d *Desk) commit(ctx context.Context, t try) (apply.Outcome, error) {
	id := petrel.NewEntryID()
	payload, err := event.Encode(&event.Entry{
		ID: id, App: t.stamp.App, Actor: t.stamp.Actor, At: t.stamp.At, Request: t.stamp.Request,
		Command: t.stamp.Command, Print: t.decision.Print, Guards: t.decision.Guards, Events: t.decision.Events,
	})
	if err != nil {
		return apply.Outcome{}, err
	}
	w := d.opt.Waiting.Expect(id)
	defer w.Cancel()
	if err := w.Err(); err != nil {
		return apply.Outcome{}, stopped(err)
	}
	start := d.opt.Now()
	index, err := d.opt.Committer.CommitJoined(ctx, payload, t.joined)
	committed := d.opt.Now()
	d.metrics.commit.Observe(committed.Sub(start).Seconds())
	switch {
	case err == nil:
		d.opt.Logger.LogAttrs(ctx, slog.LevelDebug, "in the log", slog.String("request", string(t.stamp.Request)), slog.Uint64("index", index))
		out, err := w.Wait(ctx)
		d.metrics.wait.Observe(d.opt.Now().Sub(committed).Seconds())
		if err != nil {
			return apply.Outcome{}, unknown(err)
		}
		return out, nil
	case errors.Is(err, petrel.ErrUnknownOutcome):
		return d.settle(ctx, w, id)
	case errors.Is(err, petrel.ErrDiskFull):
		return apply.Outcome{}, petrel.Errorf(petrel.CodeDiskFull,
			"The disk is full: writes wait until there is room again; reads go on.").After(retryDisk).Because(err)
	default:
		return apply.Outcome{}, stopped(err)
	}
}

// settle finds out what became of an entry: it is applied, or a barrier passes without it.
func (d *Desk) settle(ctx context.Context, w *apply.Waiter, id petrel.EntryID) (apply.Outcome, error) {
	d.metrics.unknown.Inc()
	d.unsettled.Do(func() { // the others are counted: a log that stopped leaves one for every sender
		d.opt.Logger.Warn("the outcome of an entry is unknown: waiting for the log to settle it", "entry", id.String())
	})
	barrier := make(chan error, 1)
	bctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { barrier <- d.passBarrier(bctx) }()
	select {
	case <-w.Done():
		cancel() // its goroutine ends by itself: the channel takes what it says
	case err := <-barrier:
		if err != nil {
			return apply.Outcome{}, unknown(err)
		}
		select {
		case <-w.Done(): // the barrier applied it
		default:
			return apply.Outcome{}, fmt.Errorf("a barrier passed without the entry: %w", petrel.ErrNotAppended)
		}
	}
	out, err := w.Wait(ctx)
	if err != nil {
		return apply.Outcome{}, unknown(err)
	}
	return out, nil
}

// passBarrier tries until a barrier passes or ctx ends.
func (d *Desk) passBarrier(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := d.opt.Settler.Barrier(ctx)
		if err == nil || errors.Is(err, petrel.ErrStopped) {
			return err
		}
		if !sleep(ctx, pause/2+d.opt.Jitter(pause)) {
			return err
		}
	}
}

func (d *Desk) changed(t try, out apply.Outcome) Result {
	t.stamp.Index = out.Index
	return Result{
		Answer: t.decision.Answer(t.stamp, out.Seqs[:t.asked]), Repeated: t.decision.Repeated, Changed: true,
		Position: petrel.Position{Shard: d.opt.Shard, Epoch: d.opt.Projection.Applied().Epoch, Index: out.Index},
	}
}

func (t try) unchanged(shard petrel.ShardID) Result {
	return Result{
		Answer: t.decision.Answer(t.stamp, nil), Repeated: t.decision.Repeated,
		Position: petrel.Position{Shard: shard, Epoch: t.applied.Epoch, Index: t.applied.Index},
	}
}

// unknown is the answer to a caller whose command may or may not have happened.
func unknown(cause error) error {
	return petrel.Errorf(petrel.CodeUnknownOutcome,
		"It is not known whether the command was carried out. Send it again with the same id: it will not happen twice.").After(retrySoon).Because(cause)
}

// stopped turns the end of a part into an answer, and leaves refusals and ErrNotAppended as they are.
func stopped(err error) error {
	if errors.Is(err, petrel.ErrStopped) {
		return petrel.Errorf(petrel.CodeDraining, "This node takes no writes any more. Try another, or again in a moment.").After(retrySoon).Because(err)
	}
	return err
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
