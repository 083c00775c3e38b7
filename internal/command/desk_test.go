package command_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alice = petrel.Actor{Kind: petrel.ActorUser, App: "1001", User: "alice"}

// house is a projection and a loop with one toy domain that counts; its log is whatever fate says.
type house struct {
	t     *testing.T
	store *projection.Store
	loop  *apply.Loop

	mu      sync.Mutex
	index   uint64
	hash    petrel.Hash
	fates   []fate // of the next appends; the last one repeats
	appends int
	held    [][]byte // appended but not yet applied
	barrier func(context.Context) error
}

// fate is what the log does with a batch of one.
type fate func(h *house, payload []byte) (uint64, error)

func landed(h *house, payload []byte) (uint64, error) { return h.apply(payload), nil }

func failed(err error) fate {
	return func(*house, []byte) (uint64, error) { return 0, fmt.Errorf("fake log: %w", err) }
}

// storedButFailed: the answer is lost, the entry is not.
func storedButFailed(h *house, payload []byte) (uint64, error) {
	h.apply(payload)
	return 0, fmt.Errorf("fake log: %w", petrel.ErrUnknownOutcome)
}

// storedLater: the entry is applied only by the next barrier.
func storedLater(h *house, payload []byte) (uint64, error) {
	h.mu.Lock()
	h.held = append(h.held, payload)
	h.mu.Unlock()
	return 0, fmt.Errorf("fake log: %w", petrel.ErrUnknownOutcome)
}

// rivalFirst folds another count before this one, so that the guard fails.
func rivalFirst(h *house, payload []byte) (uint64, error) {
	h.apply(h.rival())
	return h.apply(payload), nil
}

func newHouse(t *testing.T, fates ...fate) (*house, *command.Desk) {
	t.Helper()
	return newHouseWith(t, func(*command.Options) {}, fates...)
}

func newHouseWith(t *testing.T, set func(*command.Options), fates ...fate) (*house, *command.Desk) {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{
		Path:    filepath.Join(t.TempDir(), "p.db"),
		Modules: []projection.Module{apply.Module(), {Name: "toy", Migrations: []string{`CREATE TABLE toy (n INTEGER NOT NULL, version INTEGER NOT NULL) STRICT; INSERT INTO toy VALUES (0, 0);`}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	loop, err := apply.New(apply.Options{Store: store, Domains: []apply.Domain{{
		Name: "toy", Kinds: []event.Kind{event.KindUserCreated}, Guards: []event.GuardKind{event.GuardUser},
		Fold: func(tx *projection.Tx, s event.Stamp, _ event.Event) (seq uint64, err error) {
			if _, err := tx.Exec(`UPDATE toy SET n = n + 1, version = ?`, s.Index); err != nil {
				return 0, err
			}
			_, err = tx.Get(`SELECT n FROM toy`, func(r *projection.Row) { seq = r.Uint(0) })
			return seq, err
		},
		Version: func(r *projection.Reader, _ event.Stamp, _ event.Guard) (v uint64, err error) {
			_, err = r.Get(`SELECT version FROM toy`, func(r *projection.Row) { v = r.Uint(0) })
			return v, err
		},
		Publish: func(event.Stamp, event.Event, uint64) []petrel.Publication { return nil },
	}}})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, store: store, loop: loop, fates: fates}
	h.barrier = func(context.Context) error { h.release(); return nil }
	o := command.Options{
		Projection: store, Committer: h, Waiting: loop, Settler: h, MaxWait: time.Minute,
		Gate: func(_ *projection.Reader, a petrel.Actor) error {
			if a.App == "suspended" {
				return petrel.Errorf(petrel.CodeAppSuspended, "The app is suspended.")
			}
			return nil
		},
	}
	set(&o)
	return h, command.New(o)
}

func (h *house) CommitJoined(_ context.Context, payload []byte, _ func()) (uint64, error) {
	h.mu.Lock()
	f := h.fates[min(h.appends, len(h.fates)-1)]
	h.appends++
	h.mu.Unlock()
	return f(h, payload)
}

func (h *house) Barrier(ctx context.Context) error { return h.barrier(ctx) }

func (h *house) release() {
	h.mu.Lock()
	held := h.held
	h.held = nil
	h.mu.Unlock()
	for _, p := range held {
		h.apply(p)
	}
}

func (h *house) apply(payload []byte) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index++
	h.hash[0]++
	rec := petrel.Record{Index: h.index, Hash: h.hash, Payload: payload}
	if err := h.loop.Apply(context.Background(), []petrel.Record{rec}, h.index); err != nil {
		h.t.Errorf("apply: %v", err)
	}
	return h.index
}

func (h *house) rival() []byte {
	b, err := event.Encode(&event.Entry{ID: petrel.NewEntryID(), App: "1001", Actor: alice, Events: []event.Event{event.UserCreated{User: "rival"}}})
	if err != nil {
		h.t.Error(err)
	}
	return b
}

func (h *house) count() (n int64) {
	h.t.Helper()
	if err := h.store.View(context.Background(), func(r *projection.Reader) error {
		_, err := r.Get(`SELECT n FROM toy`, func(row *projection.Row) { n = row.Int(0) })
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// count is the toy's command: the count after it.
type count struct{ nothing bool }

func (count) CommandKind() string { return "toy.count" }

func (c count) Decide(r *projection.Reader, _ event.Stamp) (event.Decision, error) {
	var v uint64
	if _, err := r.Get(`SELECT version FROM toy`, func(row *projection.Row) { v = row.Uint(0) }); err != nil {
		return event.Decision{}, err
	}
	d := event.Decision{
		Guards: []event.Guard{{Kind: event.GuardUser, Key: []string{"toy"}, Version: v}},
		Events: []event.Event{event.UserCreated{User: "alice"}},
		Answer: func(_ event.Stamp, seqs []uint64) any {
			if seqs == nil {
				return uint64(0)
			}
			return seqs[0]
		},
	}
	if c.nothing {
		d.Events, d.Guards, d.Repeated = nil, nil, true
	}
	return d, nil
}

// TestOutcomes has a row for everything the log can do with an append.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		fates   []fate
		code    petrel.Code // "" is success
		count   int64       // of the toy afterwards
		appends int
	}{
		{"it lands", []fate{landed}, "", 1, 1},
		{"no leader at first", []fate{failed(petrel.ErrNotAppended), failed(petrel.ErrNotAppended), landed}, "", 1, 3},
		{"stored, the answer lost", []fate{storedButFailed, failed(petrel.ErrStopped)}, "", 1, 1},
		{"stored, applied by the barrier", []fate{storedLater, failed(petrel.ErrStopped)}, "", 1, 1},
		{"unknown, never stored, decided again", []fate{failed(petrel.ErrUnknownOutcome), landed}, "", 1, 2},
		{"a rival wins once", []fate{rivalFirst, landed}, "", 2, 2},
		{"rivals win always", []fate{rivalFirst}, petrel.CodeConflict, 12, 12},
		{"disk full", []fate{failed(petrel.ErrDiskFull)}, petrel.CodeDiskFull, 0, 1},
		{"stopped", []fate{failed(petrel.ErrStopped)}, petrel.CodeDraining, 0, 1},
		{"busy", []fate{func(*house, []byte) (uint64, error) {
			return 0, petrel.Errorf(petrel.CodeBusy, "Full.").After(time.Second)
		}}, petrel.CodeBusy, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, desk := newHouse(t, tt.fates...)
			res, err := desk.Do(t.Context(), alice, command.Meta{}, count{})
			if got := petrel.CodeOf(err); got != tt.code {
				t.Fatalf("code %q (%v), want %q", got, err, tt.code)
			}
			if got := h.count(); got != tt.count {
				t.Errorf("the toy stands at %d, want %d", got, tt.count)
			}
			if h.appends != tt.appends {
				t.Errorf("%d appends, want %d", h.appends, tt.appends)
			}
			if tt.code != "" {
				return
			}
			if res.Answer != uint64(tt.count) || !res.Changed || res.Position.Index != h.index {
				t.Errorf("result %+v, want answer %d at index %d", res, tt.count, h.index)
			}
		})
	}
}

func TestUnknownWhenTheDeadlinePasses(t *testing.T) {
	t.Parallel()
	for name, why := range map[string]error{
		"in the middle of a barrier": context.Canceled,
		"without a leader":           petrel.ErrNotAppended, // the barrier was not: that says nothing of the entry
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, desk := newHouse(t, storedLater)
			ctx, cancel := context.WithCancel(t.Context())
			h.barrier = func(ctx context.Context) error { cancel(); <-ctx.Done(); return fmt.Errorf("barrier: %w", why) }
			_, err := desk.Do(ctx, alice, command.Meta{}, count{})
			var e *petrel.Error
			if !errors.As(err, &e) || e.Code != petrel.CodeUnknownOutcome || e.RetryAfter <= 0 {
				t.Fatalf("got %v, want unknown_outcome with a time to come back", err)
			}
			if h.release(); h.count() != 1 {
				t.Error("the entry came late and was not counted")
			}
		})
	}
}

func TestNoLeaderUntilTheDeadline(t *testing.T) {
	t.Parallel()
	h, desk := newHouse(t)
	ctx, cancel := context.WithCancel(t.Context())
	h.fates = []fate{func(*house, []byte) (uint64, error) {
		cancel()
		return 0, petrel.ErrNotAppended
	}}
	if _, err := desk.Do(ctx, alice, command.Meta{}, count{}); petrel.CodeOf(err) != petrel.CodeNoLeader {
		t.Fatalf("got %v, want no_leader", err)
	}
}

func TestGateAndRepeat(t *testing.T) {
	t.Parallel()
	h, desk := newHouse(t, landed)
	_, err := desk.Do(t.Context(), petrel.Actor{Kind: petrel.ActorApp, App: "suspended"}, command.Meta{}, count{})
	if petrel.CodeOf(err) != petrel.CodeAppSuspended {
		t.Errorf("got %v, want app_suspended", err)
	}
	if _, err := desk.Do(t.Context(), alice, command.Meta{}, count{}); err != nil {
		t.Fatal(err)
	}
	res, err := desk.Do(t.Context(), alice, command.Meta{}, count{nothing: true})
	if err != nil {
		t.Fatal(err)
	}
	want := command.Result{Answer: uint64(0), Repeated: true, Position: petrel.Position{Index: 1}}
	if diff := cmp.Diff(want, res); diff != "" {
		t.Errorf("repeat (-want +got):\n%s", diff)
	}
	if h.appends != 1 {
		t.Errorf("%d appends, want 1", h.appends)
	}
}

// TestManyAtOnce: guards let every command in exactly once, however they meet.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h, desk := newHouse(t, landed)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint64]int{}
	for range 8 {
		wg.Go(func() {
			for done := 0; done < 5; {
				res, err := desk.Do(t.Context(), alice, command.Meta{}, count{})
				if petrel.CodeOf(err) == petrel.CodeConflict {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[res.Answer.(uint64)]++
				mu.Unlock()
				done++
			}
		})
	}
	wg.Wait()
	if h.count() != 40 || len(seen) != 40 {
		t.Errorf("count %d, %d different answers, want 40 of each", h.count(), len(seen))
	}
}
