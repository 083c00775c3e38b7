package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestReplayIsEqual folds one random log on several replicas, cut into calls differently, restarted
// and handed records again at random, with a window small enough to be left behind: all rows and the
// digest must be equal wherever the indices are.
func TestReplayIsEqual(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		log := &testLog{}
		for range rapid.IntRange(1, 250).Draw(rt, "entries") {
			log.add(t, drawEntry(rt))
		}
		var want string
		for replica := range 2 {
			w := newWorldOf(t, 2*blockSize)
			for at := 0; at < len(log.recs); {
				n := rapid.IntRange(1, len(log.recs)-at).Draw(rt, "call")
				from := rapid.IntRange(max(0, at-3), at).Draw(rt, "again from")
				if err := w.loop.Apply(t.Context(), log.recs[from:at+n], uint64(at+n)); err != nil {
					rt.Fatal(err)
				}
				at += n
				if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
					w.reopen()
				}
			}
			got := w.dump()
			if replica == 0 {
				want = got
			}
			if d := cmp.Diff(want, got); d != "" {
				rt.Fatalf("replica %d differs:\n%s", replica, d)
			}
			if err := w.store.Close(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

func drawEntry(rt *rapid.T) *event.Entry {
	eid := fmt.Sprint("e", rapid.IntRange(0, 400).Draw(rt, "id"))
	room := rapid.SampledFrom([]string{"r", "s"}).Draw(rt, "room")
	who := rapid.SampledFrom([]string{"ann", "bob"}).Draw(rt, "user")
	version := uint64(rapid.IntRange(0, 30).Draw(rt, "version"))
	switch rapid.IntRange(0, 4).Draw(rt, "verb") {
	case 0:
		return blind(eid, room, eid)
	case 1:
		return join(eid, room, who, 0)
	case 2:
		return leave(eid, room, who, version)
	case 3:
		return found(eid, room, "")
	}
	return post(eid, room, who)
}

func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		damage func(w *world, recs []petrel.Record) []petrel.Record
		want   string
	}{
		"a gap": {func(_ *world, r []petrel.Record) []petrel.Record { return r[1:] }, "hands in index 3 where 2 is due"},
		"another history": {func(w *world, r []petrel.Record) []petrel.Record {
			f := w.log.recs[0]
			f.Hash[0]++
			return append([]petrel.Record{f}, r...)
		}, "entry at index 1 is not the one that was folded"},
		"no entry":          {func(_ *world, r []petrel.Record) []petrel.Record { r[1].Payload = []byte("?"); return r }, "decode the entry at index 3"},
		"a fold that fails": {func(w *world, r []petrel.Record) []petrel.Record { return w.with(r[:1], "boom") }, "fold the entry at index 3: toy: event 0, kind 36: toy: cannot fold this"},
		"a foreign kind": {func(w *world, r []petrel.Record) []petrel.Record {
			return w.withEvent(r[:1], event.UserCreated{User: "u"})
		}, "fold the entry at index 3: no domain folds event kind 15"},
		"a foreign guard": {func(w *world, r []petrel.Record) []petrel.Record {
			e := post("g", "r", "g")
			e.Guards[0].Kind = event.GuardApp
			w.log.recs = w.log.recs[:2]
			return append(r[:1:1], w.log.add(w.t, e)...)
		}, "no domain answers for guard kind 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.apply(post("e1", "r", "1"))
			waiting := w.loop.Expect(id("e2"))
			before := w.dump()
			recs := tc.damage(w, w.log.add(t, post("e2", "r", "2"), post("e3", "r", "3")))
			err := w.loop.Apply(t.Context(), recs, 9)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
			if d := cmp.Diff(before, w.dump()); d != "" {
				t.Errorf("something changed:\n%s", d)
			}
			if _, err := waiting.Wait(t.Context()); !errors.Is(err, petrel.ErrUnknownOutcome) {
				t.Errorf("the waiter got %v", err)
			}
			if err := w.loop.WaitApplied(t.Context(), 2); !errors.Is(err, petrel.ErrUnknownOutcome) {
				t.Errorf("the caller of WaitApplied got %v", err)
			}
			if again := w.loop.Apply(t.Context(), nil, 99); again == nil {
				t.Error("the loop goes on after a fatal error")
			}
		})
	}
}

func (w *world) with(r []petrel.Record, text string) []petrel.Record {
	return w.withEvent(r, event.MessagePosted{Room: "r", ID: "x", Text: text})
}

func (w *world) withEvent(r []petrel.Record, ev event.Event) []petrel.Record {
	w.log.recs = w.log.recs[:2]
	return append(r[:1:1], w.log.add(w.t, entry("x", nil, ev))...)
}

// TestCrashBetweenCommitAndPublish: what was committed is not published again; resume covers it.
func TestCrashBetweenCommitAndPublish(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) {
		o.Publish = func([]petrel.Publication) { panic("power loss") }
	})
	recs := w.log.add(t, post("e1", "r", "1"), post("e2", "r", "2"))
	func() {
		defer func() { _ = recover() }()
		_ = w.loop.Apply(t.Context(), recs, 5)
	}()
	w.opt.Publish = func(p []petrel.Publication) { w.pubs = append(w.pubs, p...) }
	w.reopen()
	if a := w.loop.Applied(); a.Index != 2 || a.Mark != 5 {
		t.Fatalf("applied %+v", a)
	}
	if err := w.loop.Apply(t.Context(), recs, 5); err != nil {
		t.Fatal(err)
	}
	w.apply(post("e3", "r", "3"))
	if len(w.pubs) != 1 || w.pubs[0].Seq != 3 {
		t.Errorf("published %+v, want only seq 3", w.pubs)
	}
	if got := w.outcome(id("e2")); got != "e2 folded at 2 seqs [2]" {
		t.Errorf("outcome after the restart: %s", got)
	}
}

func TestWaiters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.MaxWaiters = 3 })
	a, b, canceled := w.loop.Expect(id("e1")), w.loop.Expect(id("e1")), w.loop.Expect(id("e1"))
	full := w.loop.Expect(id("e2"))
	if petrel.CodeOf(full.Err()) != petrel.CodeBusy || a.Err() != nil {
		t.Errorf("beyond the bound: %v; within: %v", full.Err(), a.Err())
	}
	canceled.Cancel()
	canceled.Cancel()
	second := w.loop.Expect(id("e2"))
	if second.Err() != nil {
		t.Error("Cancel gave no place back")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := second.Wait(over); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait under a context that is over: %v", err)
	}
	w.apply(post("e1", "r", "1"), post("e2", "r", "1"))
	for i, wt := range []*Waiter{a, b} {
		o, err := wt.Wait(over)
		if d := cmp.Diff(Outcome{Index: 1, Seqs: []uint64{1}}, o); d != "" || err != nil {
			t.Errorf("waiter %d: %v %s", i, err, d)
		}
	}
	if o, err := second.Wait(over); err != nil || !o.Conflicted || o.Index != 2 {
		t.Errorf("second: %+v %v", o, err)
	}
	if _, err := canceled.Wait(t.Context()); !errors.Is(err, errCanceled) {
		t.Errorf("canceled: %v", err)
	}
	if n := w.loop.waiters.count; n != 0 || len(w.loop.waiters.byID) != 0 {
		t.Errorf("%d waiters left", n)
	}
}

func TestWaitApplied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.loop.WaitApplied(over, 3); !errors.Is(err, context.Canceled) || len(w.loop.waiters.positions) != 0 {
		t.Errorf("a context that is over: %v, %d places kept", err, len(w.loop.waiters.positions))
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := w.loop.WaitApplied(t.Context(), uint64(i%4)); err != nil {
				t.Error(err)
			}
			if a := w.loop.Applied().Index; a < uint64(i%4) {
				t.Errorf("released at %d, waited for %d", a, i%4)
			}
		})
	}
	for i := range 3 {
		w.apply(post(fmt.Sprint("e", i), "r", fmt.Sprint(i)))
	}
	wg.Wait()
}

func TestRestore(t *testing.T) {
	t.Parallel()
	a := newWorld(t)
	a.apply(found("f", "epoch", ""), post("e1", "r", "1"), blind("e2", "r", "2"))
	snap, err := a.loop.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	var file bytes.Buffer
	if err := snap.WriteTo(t.Context(), &file); err != nil {
		t.Fatal(err)
	}

	b := newWorld(t)
	called := 0
	b.loop.OnRestore(func() { called++; _ = b.loop.Applied() })
	held, unseen := b.loop.Expect(id("e2")), b.loop.Expect(id("e9"))
	defer unseen.Cancel()
	if err := b.loop.Restore(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a.dump(), b.dump()); d != "" {
		t.Errorf("(-original +restored)\n%s", d)
	}
	if o, err := held.Wait(t.Context()); err != nil || o.Index != 3 || o.Seqs[0] != 2 {
		t.Errorf("a waiter whose entry came with the snapshot: %+v %v", o, err)
	}
	if called != 1 || unseen.Err() != nil {
		t.Errorf("OnRestore ran %d times; the other waiter has %v", called, unseen.Err())
	}
	// Both fold the same from here on.
	for _, e := range []*event.Entry{blind("e2", "r", "2"), post("e3", "r", "3")} {
		recs := a.log.add(t, e)
		if err := errors.Join(a.loop.Apply(t.Context(), recs, 9), b.loop.Apply(t.Context(), recs, 9)); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(a.dump(), b.dump()); d != "" {
		t.Errorf("after the snapshot (-original +restored)\n%s", d)
	}
}

// TestRestoreBeyondTheWindow: who waits for an entry that may lie in the part nobody remembers is told
// that its outcome is unknown.
func TestRestoreBeyondTheWindow(t *testing.T) {
	t.Parallel()
	a := newWorldOf(t, blockSize)
	for i := range 3 * blockSize {
		a.apply(blind(fmt.Sprint("e", i), "r", "1"))
	}
	snap, err := a.loop.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	var file bytes.Buffer
	if err := snap.WriteTo(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	b := newWorldOf(t, blockSize)
	forgotten, known := b.loop.Expect(id("e0")), b.loop.Expect(id(fmt.Sprint("e", 3*blockSize-1)))
	if err := b.loop.Restore(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if _, err := forgotten.Wait(t.Context()); !errors.Is(err, petrel.ErrUnknownOutcome) {
		t.Errorf("forgotten: %v", err)
	}
	if o, err := known.Wait(t.Context()); err != nil || o.Index != 3*blockSize {
		t.Errorf("known: %+v %v", o, err)
	}
}

// TestDiskFull: the loop waits, says so, keeps the waiters, and goes on when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	said := make(chan string, 64)
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) {
		o.RetryPause = time.Millisecond
		o.Logger = slog.New(&sayHandler{said: said})
		o.Registerer = reg
	})
	w.apply(post("e1", "r", "1"))
	w.limitPages("PRAGMA max_page_count = 1") // SQLite takes the present size instead
	var big []*event.Entry
	for i := range 20 {
		e := post(fmt.Sprint("b", i), "r", fmt.Sprint("b", i))
		e.Events = []event.Event{event.MessagePosted{Room: "r", ID: petrel.MessageID(fmt.Sprint("b", i)), Text: strings.Repeat("x", 2000)}}
		big = append(big, e)
	}
	waiting := w.loop.Expect(id("b19"))
	before := w.dump()

	ctx, cancel := context.WithCancel(t.Context())
	recs := w.log.add(t, big...)
	done := make(chan error, 1)
	go func() { done <- w.loop.Apply(ctx, recs, 50) }()
	if s := <-said; !strings.Contains(s, "disk is full") {
		t.Errorf("said %q", s)
	}
	cancel()
	if err := <-done; !errors.Is(err, petrel.ErrDiskFull) || !errors.Is(err, context.Canceled) {
		t.Errorf("after ctx: %v", err)
	}
	if d := cmp.Diff(before, w.dump()); d != "" {
		t.Errorf("something changed:\n%s", d)
	}

	go func() { done <- w.loop.Apply(t.Context(), recs, 50) }()
	<-said
	w.limitPages("PRAGMA max_page_count = 100000")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if o, err := waiting.Wait(t.Context()); err != nil || o.Index != 21 {
		t.Errorf("the waiter: %+v %v", o, err)
	}
	for s := range said {
		if strings.Contains(s, "has room again") {
			break
		}
	}
}

func (w *world) limitPages(pragma string) {
	w.t.Helper()
	err := w.store.Update(context.Background(), func(tx *projection.Tx) error {
		_, err := tx.Get(pragma, func(*projection.Row) {})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// sayHandler hands on messages, and drops those that nobody waits for.
type sayHandler struct{ said chan string }

func (h *sayHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *sayHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *sayHandler) WithGroup(string) slog.Handler            { return h }
func (h *sayHandler) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.said <- r.Message:
	default:
	}
	return nil
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	twice := toy()
	twice.Name = "twin"
	noFold := Domain{Name: "empty"}
	for name, o := range map[string]Options{
		"no store":          {},
		"one kind, twice":   {Store: w.store, Domains: []Domain{toy(), twice}},
		"a domain without":  {Store: w.store, Domains: []Domain{noFold}},
		"the founding kind": {Store: w.store, Domains: []Domain{{Name: "x", Kinds: []event.Kind{event.KindShardFounded}, Fold: foldToy}}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
