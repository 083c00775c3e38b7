package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// epoch is when every world begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a shard without a log: commands are decided on a real projection, folded by the real loop, and heard of by a
// directory that was loaded once, in the beginning.
type world struct {
	t       testing.TB
	store   *projection.Store
	loop    *apply.Loop
	dir     *Directory
	recs    []petrel.Record
	actor   petrel.Actor
	now     time.Time
	changes []petrel.AppID // that OnChange was told of
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, now: epoch, actor: operator}
	w.store = openStore(t)
	w.dir = NewDirectory(DirectoryOptions{
		Now: func() time.Time { return w.now }, OnChange: func(app petrel.AppID) { w.changes = append(w.changes, app) },
	})
	w.loop = w.newLoop(w.store, w.dir.Publish)
	w.load()
	w.loop.OnRestore(w.load)
	return w
}

func openStore(t testing.TB) *projection.Store {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{
		Path: filepath.Join(t.TempDir(), "projection.db"), Modules: []projection.Module{apply.Module(), Module()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

func (w *world) newLoop(store *projection.Store, publish func(event.Stamp, event.Event, uint64) []petrel.Publication) *apply.Loop {
	w.t.Helper()
	loop, err := apply.New(apply.Options{Store: store, Domains: []apply.Domain{{
		Name: "identity", Kinds: Kinds(), Guards: GuardKinds(), Fold: Fold, Version: Version, Publish: publish,
	}}, Publish: func(p []petrel.Publication) { w.t.Errorf("identity published %v", p) }})
	if err != nil {
		w.t.Fatal(err)
	}
	return loop
}

func (w *world) load() {
	w.t.Helper()
	if err := w.dir.Load(w.t.Context(), w.store); err != nil {
		w.t.Fatal(err)
	}
}

type command interface {
	CommandKind() string
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

type planned struct {
	entry *event.Entry
	d     event.Decision
}

func (w *world) plan(cmd command) (planned, error) {
	w.now = w.now.Add(time.Second)
	s := event.Stamp{App: w.actor.App, Actor: w.actor, At: w.now.UnixMilli()}
	d, err := view(w, func(r *projection.Reader) (event.Decision, error) { return cmd.Decide(r, s) })
	return planned{w.entry(d.Guards, d.Events...), d}, err
}

func (w *world) entry(guards []event.Guard, events ...event.Event) *event.Entry {
	return &event.Entry{ID: petrel.NewEntryID(), App: w.actor.App, Actor: w.actor, At: w.now.UnixMilli(), Guards: guards, Events: events}
}

// append folds the entries in one transaction and says what became of each.
func (w *world) append(entries ...*event.Entry) []apply.Outcome {
	w.t.Helper()
	var recs []petrel.Record
	var waiters []*apply.Waiter
	for _, e := range entries {
		b, err := event.Encode(e)
		if err != nil {
			w.t.Fatal(err)
		}
		n := uint64(len(w.recs) + len(recs) + 1)
		h := sha256.Sum256(binary.BigEndian.AppendUint64(b, n))
		recs = append(recs, petrel.Record{Index: n, Hash: h, Payload: b[:len(b):len(b)]})
		waiters = append(waiters, w.loop.Expect(e.ID))
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
func (w *world) do(cmd command) (app App, repeated bool, err error) {
	w.t.Helper()
	p, err := w.plan(cmd)
	if err != nil {
		return App{}, false, err
	}
	if len(p.d.Events) > 0 {
		if o := w.append(p.entry)[0]; o.Conflicted || !cmp.Equal(o.Seqs, make([]uint64, len(p.d.Events))) {
			w.t.Fatalf("%s: %+v", cmd.CommandKind(), o)
		}
	}
	app = p.d.Answer(p.entry.Stamp(uint64(len(w.recs))), nil).(App)
	if now, err := view(w, func(r *projection.Reader) (App, error) { return AppByID(r, app.ID) }); err != nil || !cmp.Equal(app, now) {
		w.t.Errorf("%s answered what is not so (-answer +read): %v %s", cmd.CommandKind(), err, cmp.Diff(app, now))
	}
	return app, p.d.Repeated, nil
}

func (w *world) must(cmd command) App {
	w.t.Helper()
	app, _, err := w.do(cmd)
	if err != nil {
		w.t.Fatalf("%s: %v", cmd.CommandKind(), err)
	}
	return app
}

// restore replaces the projection by a snapshot of itself.
func (w *world) restore() {
	w.t.Helper()
	snap, err := w.loop.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer snap.Release()
	var b bytes.Buffer
	if err := snap.WriteTo(w.t.Context(), &b); err != nil {
		w.t.Fatal(err)
	}
	if err := w.loop.Restore(w.t.Context(), &b); err != nil {
		w.t.Fatal(err)
	}
}

// agree checks that the directory that was carried on says what a freshly loaded one does, and that a second replica
// folding the same records has the same digest.
func (w *world) agree() {
	w.t.Helper()
	fresh := NewDirectory(DirectoryOptions{})
	if err := fresh.Load(w.t.Context(), w.store); err != nil {
		w.t.Fatal(err)
	}
	a, b := w.dir.current.Load(), fresh.current.Load()
	if d := cmp.Diff([]any{a.apps, a.settings, a.keys, a.hooks}, []any{b.apps, b.settings, b.keys, b.hooks}, cmp.AllowUnexported(signer{}, hookTable{})); d != "" {
		w.t.Errorf("the directory drifted from the rows (-directory +rows):\n%s", d)
	}
	store := openStore(w.t)
	if err := w.newLoop(store, Publish).Apply(w.t.Context(), w.recs, uint64(len(w.recs))); err != nil {
		w.t.Fatal(err)
	}
	if store.Applied().Digest != w.store.Applied().Digest {
		w.t.Error("two replicas differ")
	}
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (v T, err error) {
	err = w.store.View(w.t.Context(), func(r *projection.Reader) (err error) {
		v, err = fn(r)
		return err
	})
	return v, err
}

var operator = petrel.Actor{Kind: petrel.ActorOperator}

// pair is a good pair for a key of any name.
func pair(key string) KeyPair { return KeyPair{key, Secret("secret-of-" + key + "-0123456789")} }
