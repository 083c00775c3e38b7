package job

import (
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a shard without a log: commands are decided on a real projection and folded by the real loop.
type world struct {
	t     testing.TB
	store *projection.Store
	loop  *apply.Loop
	recs  []petrel.Record
	now   int64 // Unix milliseconds
}

var (
	system   = petrel.Actor{Kind: petrel.ActorSystem}
	operator = petrel.Actor{Kind: petrel.ActorOperator}
)

func of(kind petrel.ActorKind, app petrel.AppID) petrel.Actor {
	return petrel.Actor{Kind: kind, App: app}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, now: 1_700_000_000_000}
	var err error
	w.store, err = projection.Open(t.Context(), projection.Options{
		Path: filepath.Join(t.TempDir(), "projection.db"), Modules: []projection.Module{apply.Module(), Module()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.loop, err = apply.New(apply.Options{Store: w.store, Domains: []apply.Domain{{
		Name: "job", Kinds: Kinds(), Guards: GuardKinds(), Fold: Fold, Version: Version, Publish: Publish,
	}}, Publish: func(p []petrel.Publication) { t.Errorf("job published %v", p) }})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

type command interface {
	CommandKind() string
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

// planned is a decision that is not in the log yet.
type planned struct {
	entry *event.Entry
	d     event.Decision
}

func (w *world) plan(actor petrel.Actor, cmd command) (planned, error) {
	s := event.Stamp{App: actor.App, Actor: actor, At: w.now}
	d, err := view(w, func(r *projection.Reader) (event.Decision, error) { return cmd.Decide(r, s) })
	return planned{&event.Entry{ID: petrel.NewEntryID(), App: actor.App, Actor: actor, At: w.now, Guards: d.Guards, Events: d.Events}, d}, err
}

// append folds the entries in one transaction and says what became of each.
func (w *world) append(plans ...planned) []apply.Outcome {
	w.t.Helper()
	var recs []petrel.Record
	var waiters []*apply.Waiter
	for _, p := range plans {
		b, err := event.Encode(p.entry)
		if err != nil {
			w.t.Fatal(err)
		}
		n := uint64(len(w.recs) + len(recs) + 1)
		h := sha256.Sum256(binary.BigEndian.AppendUint64(b, n))
		recs = append(recs, petrel.Record{Index: n, Hash: h, Payload: b[:len(b):len(b)]})
		waiters = append(waiters, w.loop.Expect(p.entry.ID))
	}
	w.recs = append(w.recs, recs...)
	if err := w.loop.Apply(w.t.Context(), recs, uint64(len(w.recs))); err != nil {
		w.t.Fatal(err)
	}
	var out []apply.Outcome
	for _, x := range waiters {
		o, err := x.Wait(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

// do decides cmd and folds what came of it.
func (w *world) do(actor petrel.Actor, cmd command) (any, error) {
	w.t.Helper()
	p, err := w.plan(actor, cmd)
	if err != nil {
		return nil, err
	}
	if len(p.d.Events) > 0 {
		if o := w.append(p)[0]; o.Conflicted {
			w.t.Fatalf("%s conflicted with nobody", cmd.CommandKind())
		}
	}
	return p.d.Answer(p.entry.Stamp(uint64(len(w.recs))), nil), nil
}

func must[T any](w *world, actor petrel.Actor, cmd command) T {
	w.t.Helper()
	answer, err := w.do(actor, cmd)
	if err != nil {
		w.t.Fatalf("%s: %v", cmd.CommandKind(), err)
	}
	return answer.(T)
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (v T, err error) {
	err = w.store.View(w.t.Context(), func(r *projection.Reader) (err error) {
		v, err = fn(r)
		return err
	})
	return v, err
}

func mustView[T any](w *world, fn func(r *projection.Reader) (T, error)) T {
	w.t.Helper()
	v, err := view(w, fn)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// dump returns the rows of a query, one column each, as lines.
func (w *world) dump(sql string) string {
	w.t.Helper()
	var b strings.Builder
	if err := w.store.ViewBudget(w.t.Context(), projection.Budget{Steps: 1 << 30}, func(r *projection.Reader) error {
		return r.Query(sql, func(row *projection.Row) error { b.WriteString(row.Text(0) + "\n"); return nil })
	}); err != nil {
		w.t.Fatal(err)
	}
	return b.String()
}

// agree folds the same records in one go elsewhere: every row must be the same.
func (w *world) agree() {
	w.t.Helper()
	other := newWorld(w.t)
	if err := other.loop.Apply(w.t.Context(), w.recs, uint64(len(w.recs))); err != nil {
		w.t.Fatal(err)
	}
	for _, sql := range []string{
		`SELECT concat_ws('|', key, app, state, kind, target, at, queued_at, attempts, interrupted, failures, losses, seq, hex(batch), version, body, hex(data), error) FROM job ORDER BY key`,
		`SELECT concat_ws('|', key, jobs, hex(data)) FROM job_body ORDER BY key`,
		`SELECT concat_ws('|', app, accepted, waiting, running, done, dead, discarded, kept, attempts, failed, interrupted, repeated, queued_at) FROM job_ledger ORDER BY app`,
		`SELECT concat_ws('|', node, term, at, version) FROM job_runner`,
		`SELECT concat_ws('|', app, name, due_when, zone, hex(data), paused, next, due, fired, missed, made, version) FROM job_schedule ORDER BY app, name`,
	} {
		if a, b := w.dump(sql), other.dump(sql); a != b {
			w.t.Fatalf("two replicas differ:\n%s\n%s", a, b)
		}
	}
	if w.loop.Applied().Digest != other.loop.Applied().Digest {
		w.t.Fatal("the digests differ")
	}
}
