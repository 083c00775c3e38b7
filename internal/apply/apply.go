// Package apply turns the log into state: it takes committed entries in order, checks their
// guards, folds their events into the projection, one transaction for what it is handed, then
// releases whoever waits for them and hands their publications on.
//
// # Invariants
//
//   - Order. Entries are folded in the order of their index, each exactly once: one at or below
//     the applied position is skipped, a gap is fatal.
//   - Determinism. What an entry does depends on the projection and the entry alone: no clock, no
//     chance, nothing of this node, and not on how the log was cut into calls.
//     The running digest (a SHA-256 over every outcome) is equal on all replicas at equal index, and so
//     is, between processes of one build, what was written on the way from one index to another (Proof).
//   - All or nothing. The guards of an entry are all checked before any of its events is folded.
//     One mismatch and the entry is conflicted: it changes nothing and takes no seq.
//   - A fold never rejects. Its error means that this build or this file is wrong: the loop stops
//     for good, says where, and never skips.
//   - Commit, then answer, then publish. A waiter is released and a publication handed on only
//     after the transaction that holds the entry is committed; publications go out in log order.
//
// # The same entry twice
//
// Nobody resends an entry whose outcome is unknown (package commit never resends at all), but a log
// must not depend on everybody's good manners. Guards alone do not make a second copy harmless: a
// member added, removed, and added again by the copy, for its guard "not a member" holds again. So
// the ids and outcomes of the last Window entries are part of the projection, written in the same
// transaction in blocks of 64 (one small row per transaction or per 64 entries, not one per entry).
// An entry whose id is among the Window entries before it is a duplicate: it is not folded and takes
// no seq. That is decided from replicated state only, so all replicas agree. A copy that comes later
// than Window entries meets the guards only. Window is part of the log's meaning: changing it needs a
// new feature level of the cell.
//
// The same window answers a late Expect, also after a restart or an installed snapshot.
//
// # What a crash does
//
// Between commit and publish, the publications of that transaction are gone: they are not published
// again. Nobody misses them, because every durable subscription begins from a position it names and
// reads the gap from the projection; connections of this node died with it.
//
// One call of Apply is one transaction, however large, unless somebody asks for the state in between
// (PinAt); then it ends at the end of a batch (Record.Mark) and another follows. It never ends within a batch: a
// projection that stood in the middle of one would not fit the chain that the log verifies. Cutting by
// rows was tried on paper and dropped for that reason; a batch has at most 1,000 entries, and the log may
// hand in fewer batches at a time.
//
// # Disk full
//
// When the projection has no room, the loop keeps trying, loudly: nothing is skipped and nothing fails
// but the waiters' patience. Reads go on meanwhile.
package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Domain is what one domain package hands in: which events and guards are its, and what they mean.
type Domain struct {
	// Name for errors and logs.
	Name string
	// Kinds of events that Fold and Publish take. No two domains share one.
	Kinds []event.Kind
	// Guards that Version answers for. No two domains share one.
	Guards []event.GuardKind
	// Fold writes what ev changes and returns the seq that it took, 0 if it takes none. Deterministic.
	// An error is fatal.
	Fold func(tx *projection.Tx, s event.Stamp, ev event.Event) (seq uint64, err error)
	// Version returns the present version of the guarded row: the index of the entry that last changed
	// it, 0 when absent. An error is fatal.
	Version func(r *projection.Reader, s event.Stamp, g event.Guard) (version uint64, err error)
	// Publish makes the publications of an event. Pure; called after the commit. May be nil.
	Publish func(s event.Stamp, ev event.Event, seq uint64) []petrel.Publication
}

// Options of New.
type Options struct {
	// Store is the projection; its modules include Module(). The loop is its only writer.
	Store *projection.Store
	// Domains that fold.
	Domains []Domain
	// Publish takes the publications of one transaction, in log order. It must not block and owns the
	// slice. nil drops them.
	Publish func([]petrel.Publication)
	// MaxWaiters is how many Expects may be pending. Default 65,536; commit's bound is far below it.
	MaxWaiters int
	// RetryPause between two attempts while the disk is full. Default 500 ms.
	RetryPause time.Duration
	// Now is the local clock for histograms and Publication.Applied; folding never sees it. nil leaves
	// both empty.
	Now func() time.Time
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer for metrics; may be nil.
	Registerer prometheus.Registerer
}

func (o Options) withDefaults() (Options, error) {
	if o.Store == nil {
		return o, errors.New("apply: Options.Store is missing")
	}
	if o.Publish == nil {
		o.Publish = func([]petrel.Publication) {}
	}
	if o.MaxWaiters <= 0 {
		o.MaxWaiters = 1 << 16
	}
	if o.RetryPause <= 0 {
		o.RetryPause = 500 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = func() time.Time { return time.Time{} }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Loop is the state machine behind the log. Its Apply, Snapshot and Restore are what raftlog drives.
type Loop struct {
	opt     Options
	metrics *metrics
	kinds   map[event.Kind]*Domain
	guards  map[event.GuardKind]*Domain

	// applying makes Apply, Snapshot and Restore take turns. Taken before waiters.mu.
	applying sync.Mutex
	failed   error // the first fatal error: every later Apply returns it

	waiters waiters
	proofs  *proofs
	pins    pins
	trace   []byte // of the entry being folded; kept for its room
}

// New returns a loop that stands where the projection stands.
func New(o Options) (*Loop, error) { return newLoop(o, Window) }

// newLoop is New with a window that tests can make small.
func newLoop(o Options, window uint64) (*Loop, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Loop{opt: o, kinds: map[event.Kind]*Domain{}, guards: map[event.GuardKind]*Domain{}}
	for i := range o.Domains {
		d := &o.Domains[i]
		if d.Fold == nil || (d.Version == nil && len(d.Guards) > 0) {
			return nil, fmt.Errorf("apply: domain %s has no Fold or no Version", d.Name)
		}
		for _, k := range d.Kinds {
			if l.kinds[k] != nil || k == event.KindShardFounded {
				return nil, fmt.Errorf("apply: two domains fold event kind %d", k)
			}
			l.kinds[k] = d
		}
		for _, g := range d.Guards {
			if l.guards[g] != nil {
				return nil, fmt.Errorf("apply: two domains answer for guard kind %d", g)
			}
			l.guards[g] = d
		}
	}
	recent, err := loadRecent(context.Background(), o.Store, window)
	if err != nil {
		return nil, err
	}
	l.proofs = newProofs(l.Applied(), Proofs)
	l.metrics = newMetrics(o.Registerer, l)
	l.waiters.init(l, recent)
	return l, nil
}

// Applied returns what the projection holds.
func (l *Loop) Applied() petrel.Applied { return l.opt.Store.Applied() }

// Apply folds recs and moves the mark on, in one transaction. It returns once that is committed, its
// waiters are released and its publications are handed on. recs may be empty: only the mark moves.
//
// An error is fatal for the shard, unless it is ctx's: then nothing was skipped, and what was not
// folded may be handed in again. While the disk is full it does not return.
func (l *Loop) Apply(ctx context.Context, recs []petrel.Record, mark uint64) error {
	l.applying.Lock()
	defer l.applying.Unlock()
	if l.failed != nil {
		return l.failed
	}
	err := l.apply(ctx, recs, mark)
	if err != nil && ctx.Err() == nil {
		l.failed = err
		l.waiters.fail(err)
		l.pins.serve(l, nil)
	}
	return err
}

func (l *Loop) apply(ctx context.Context, recs []petrel.Record, mark uint64) error {
	recs, err := l.unseen(recs)
	if err != nil {
		return err
	}
	entries := make([]*event.Entry, len(recs))
	for i := range recs {
		if entries[i], err = event.Decode(recs[i].Payload); err != nil {
			return fmt.Errorf("apply: decode the entry at index %d: %w", recs[i].Index, err)
		}
	}
	if len(recs) == 0 && mark <= l.Applied().Mark {
		return nil
	}
	for { // once, unless somebody has asked for the state at the end of a batch within
		n, due := l.pins.cut(recs)
		end := mark
		if n < len(recs) {
			end = recs[n-1].Mark
		}
		t, err := l.transaction(ctx, recs[:n], entries[:n], end)
		if err != nil {
			return err
		}
		l.finish(t)
		l.pins.serve(l, due)
		if recs, entries = recs[n:], entries[n:]; len(recs) == 0 {
			return nil
		}
	}
}

// unseen drops the records that are folded already; it refuses a gap, and another history.
func (l *Loop) unseen(recs []petrel.Record) ([]petrel.Record, error) {
	a := l.Applied()
	next := a.Index + 1
	for len(recs) > 0 && recs[0].Index < next {
		if recs[0].Index == a.Index && recs[0].Hash != a.Hash {
			return nil, fmt.Errorf("apply: the log's entry at index %d is not the one that was folded: its chain hash is %x…, the projection's %x…",
				a.Index, recs[0].Hash[:4], a.Hash[:4])
		}
		recs = recs[1:]
	}
	for i := range recs {
		if want := next + uint64(i); recs[i].Index != want {
			return nil, fmt.Errorf("apply: the log hands in index %d where %d is due", recs[i].Index, want)
		}
	}
	return recs, nil
}

// transaction folds recs and commits them. While the disk is full it tries again; when ctx ends meanwhile,
// in a pause or in a try, the error tells both.
func (l *Loop) transaction(ctx context.Context, recs []petrel.Record, entries []*event.Entry, mark uint64) (*transaction, error) {
	for attempt := 0; ; attempt++ {
		start := l.opt.Now()
		t := l.begin()
		err := l.opt.Store.Update(ctx, func(tx *projection.Tx) error { return t.fold(tx, recs, entries, mark) })
		if err == nil {
			t.committed = l.opt.Now()
			observe(l.metrics.fold, start, t.committed)
			if attempt > 0 {
				l.metrics.diskFull.Set(0)
				l.opt.Logger.Info("the disk has room again: folding goes on", "index", t.applied.Index)
			}
			return t, nil
		}
		if attempt > 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("apply: %w: %w", petrel.ErrDiskFull, ctx.Err())
		}
		if !errors.Is(err, petrel.ErrDiskFull) {
			return nil, fmt.Errorf("apply: %w", err)
		}
		l.sayDiskFull(attempt, err)
		if err := pause(ctx, l.opt.RetryPause); err != nil {
			return nil, fmt.Errorf("apply: %w: %w", petrel.ErrDiskFull, err)
		}
	}
}

// sayDiskFull logs once in about five seconds.
func (l *Loop) sayDiskFull(attempt int, err error) {
	l.metrics.diskFull.Set(1)
	if every := max(1, int(5*time.Second/l.opt.RetryPause)); attempt%every == 0 {
		l.opt.Logger.Error("the disk is full: folding waits for room, nothing is lost; free some space",
			"index", l.Applied().Index, "attempts", attempt+1, "error", err)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish does what follows a commit: releases waiters, then publishes.
func (l *Loop) finish(t *transaction) {
	l.proofs.add(t.results)
	l.waiters.release(t)
	l.metrics.observe(t)
	if len(t.events) == 0 {
		return
	}
	var pubs []petrel.Publication
	for _, f := range t.events {
		if f.domain.Publish == nil {
			continue
		}
		for _, p := range f.domain.Publish(f.stamp, f.event, f.seq) {
			p.Applied = t.committed
			pubs = append(pubs, p)
		}
	}
	if len(pubs) > 0 {
		l.opt.Publish(pubs)
	}
	observe(l.metrics.publish, t.committed, l.opt.Now())
}

// Snapshot pins the present state. It is cheap; see projection.Snapshot.
func (l *Loop) Snapshot(ctx context.Context) (*projection.Snapshot, error) {
	l.applying.Lock()
	defer l.applying.Unlock()
	return l.opt.Store.Snapshot(ctx)
}

// Restore replaces the projection by a snapshot. Waiters whose entries the snapshot holds among its
// last Window are released with their outcome; if it jumped further, all others end with
// petrel.ErrUnknownOutcome. Then the OnRestore functions run. For errors see projection.Store.Restore.
func (l *Loop) Restore(ctx context.Context, r io.Reader) error {
	l.applying.Lock()
	defer l.applying.Unlock()
	before := l.Applied().Index
	if err := l.opt.Store.Restore(ctx, r); err != nil {
		return err
	}
	recent, err := loadRecent(ctx, l.opt.Store, l.waiters.recent.window())
	if err != nil {
		l.failed = err // the state is there, but without the window it cannot be continued
		l.waiters.fail(err)
		return err
	}
	l.proofs.reset(l.Applied())
	after := l.Applied().Index
	l.opt.Logger.Info("the projection was replaced by a snapshot", "from", before, "to", after)
	l.waiters.restored(recent, after, after > before+recent.window())
	return nil
}
