package identity

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/apply/applytest"
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
	*applytest.Shard
	dir     *Directory
	actor   petrel.Actor
	now     time.Time
	changes []petrel.AppID // that OnChange was told of
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{now: epoch, actor: operator}
	w.dir = NewDirectory(DirectoryOptions{
		Now: func() time.Time { return w.now }, OnChange: func(app petrel.AppID) { w.changes = append(w.changes, app) },
	})
	w.Shard = openShard(t, w.dir.Publish)
	w.load()
	w.Loop.OnRestore(w.load)
	return w
}

func openShard(t testing.TB, publish func(event.Stamp, event.Event, uint64) []petrel.Publication) *applytest.Shard {
	t.Helper()
	return applytest.Open(t, Module(), apply.Options{Domains: []apply.Domain{{
		Name: "identity", Kinds: Kinds(), Guards: GuardKinds(), Fold: Fold, Version: Version, Publish: publish,
	}}, Publish: func(p []petrel.Publication) { t.Errorf("identity published %v", p) }})
}

func (w *world) load() {
	w.T.Helper()
	if err := w.dir.Load(w.T.Context(), w.Store); err != nil {
		w.T.Fatal(err)
	}
}

type command = applytest.Command

func (w *world) plan(cmd command) (applytest.Planned, error) {
	w.now = w.now.Add(time.Second)
	return w.Plan(w.actor, w.now.UnixMilli(), "", cmd)
}

func (w *world) entry(guards []event.Guard, events ...event.Event) *event.Entry {
	return &event.Entry{ID: petrel.NewEntryID(), App: w.actor.App, Actor: w.actor, At: w.now.UnixMilli(), Guards: guards, Events: events}
}

// do decides cmd and folds what came of it.
func (w *world) do(cmd command) (app App, repeated bool, err error) {
	w.T.Helper()
	p, err := w.plan(cmd)
	if err != nil {
		return App{}, false, err
	}
	if len(p.Decision.Events) > 0 {
		if o := w.Append(p.Entry)[0]; o.Conflicted || !cmp.Equal(o.Seqs, make([]uint64, len(p.Decision.Events))) {
			w.T.Fatalf("%s: %+v", cmd.CommandKind(), o)
		}
	}
	app = p.Decision.Answer(p.Entry.Stamp(uint64(len(w.Records))), nil).(App)
	if now, err := view(w, func(r *projection.Reader) (App, error) { return AppByID(r, app.ID) }); err != nil || !cmp.Equal(app, now) {
		w.T.Errorf("%s answered what is not so (-answer +read): %v %s", cmd.CommandKind(), err, cmp.Diff(app, now))
	}
	return app, p.Decision.Repeated, nil
}

func (w *world) must(cmd command) App {
	w.T.Helper()
	app, _, err := w.do(cmd)
	if err != nil {
		w.T.Fatalf("%s: %v", cmd.CommandKind(), err)
	}
	return app
}

// restore replaces the projection by a snapshot of itself.
func (w *world) restore() {
	w.T.Helper()
	snap, err := w.Loop.Snapshot(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	defer snap.Release()
	var b bytes.Buffer
	if err := snap.WriteTo(w.T.Context(), &b); err != nil {
		w.T.Fatal(err)
	}
	if err := w.Loop.Restore(w.T.Context(), &b); err != nil {
		w.T.Fatal(err)
	}
}

// agree checks that the directory that was carried on says what a freshly loaded one does, and that a second replica
// folding the same records has the same digest.
func (w *world) agree() {
	w.T.Helper()
	fresh := NewDirectory(DirectoryOptions{})
	if err := fresh.Load(w.T.Context(), w.Store); err != nil {
		w.T.Fatal(err)
	}
	a, b := w.dir.current.Load(), fresh.current.Load()
	if d := cmp.Diff([]any{a.apps, a.settings, a.keys, a.hooks}, []any{b.apps, b.settings, b.keys, b.hooks}, cmp.AllowUnexported(signer{}, hookTable{}), cmpopts.IgnoreFields(signer{}, "macs")); d != "" {
		w.T.Errorf("the directory drifted from the rows (-directory +rows):\n%s", d)
	}
	w.Agree(openShard(w.T, Publish))
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (T, error) {
	return applytest.View(w.Shard, fn)
}

var operator = petrel.Actor{Kind: petrel.ActorOperator}

// pair is a good pair for a key of any name.
func pair(key string) KeyPair { return KeyPair{key, Secret("secret-of-" + key + "-0123456789")} }
