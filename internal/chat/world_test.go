package chat

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// world is a shard without a log: commands are decided against a real projection and folded by the real loop.
type world struct {
	t     testing.TB
	store *projection.Store
	loop  *apply.Loop
	recs  []petrel.Record
	pubs  []petrel.Publication
	users []petrel.UserID // of UserCreated, in order
	at    int64           // the clock: a second per entry
	ids   atomic.Uint64
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, at: 1_767_225_600_000} // 2026-01-01
	store, err := projection.Open(t.Context(), projection.Options{
		Path: filepath.Join(t.TempDir(), "projection.db"), Modules: []projection.Module{apply.Module(), Module()},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.store = store
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.loop, err = apply.New(apply.Options{
		Store: store,
		Domains: []apply.Domain{
			{Name: "chat", Kinds: Kinds(), Guards: GuardKinds(), Fold: Fold, Version: Version, Publish: Publish},
			{
				Name: "users", Kinds: []event.Kind{event.KindUserCreated},
				Fold: func(_ *projection.Tx, _ event.Stamp, ev event.Event) (uint64, error) {
					w.users = append(w.users, ev.(event.UserCreated).User)
					return 0, nil
				},
			},
		},
		Publish: func(p []petrel.Publication) { w.pubs = append(w.pubs, p...) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

type command interface {
	CommandKind() string
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

// planned is a decision on its way to the log.
type planned struct {
	entry *event.Entry
	d     event.Decision
}

// plan decides cmd without appending it.
func (w *world) plan(actor petrel.Actor, id petrel.CommandID, cmd command) (planned, error) {
	w.at += 1000
	s := event.Stamp{App: actor.App, Actor: actor, At: w.at, Command: id}
	var p planned
	err := w.store.View(w.t.Context(), func(r *projection.Reader) (err error) {
		p.d, err = cmd.Decide(r, s)
		return err
	})
	if err != nil {
		return p, err
	}
	p.entry = &event.Entry{App: s.App, Actor: actor, At: s.At, Command: id, Print: p.d.Print, Guards: p.d.Guards, Events: p.d.Events}
	binary.BigEndian.PutUint64(p.entry.ID[:], w.ids.Add(1))
	return p, nil
}

// append folds the planned entries in one transaction and says what became of each.
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
		recs = append(recs, petrel.Record{Index: n, Hash: sha256.Sum256(b), Payload: b})
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

// result is what the caller of a command sees.
type result struct {
	answer   any
	repeated bool
	changed  bool
	seqs     []uint64
	events   []event.Event
}

// do is the desk in small: decide, fold, decide again on conflict.
func (w *world) do(actor petrel.Actor, id petrel.CommandID, cmd command) (result, error) {
	w.t.Helper()
	for range 5 {
		p, err := w.plan(actor, id, cmd)
		if err != nil {
			return result{}, err
		}
		if done, res := w.finish(p); done {
			return res, nil
		}
	}
	return result{}, petrel.Errorf(petrel.CodeConflict, "again and again")
}

func (w *world) finish(p planned) (bool, result) {
	w.t.Helper()
	if len(p.d.Events) == 0 {
		return true, result{answer: p.d.Answer(p.entry.Stamp(0), nil), repeated: p.d.Repeated}
	}
	o := w.append(p)[0]
	if o.Conflicted {
		return false, result{}
	}
	return true, result{p.d.Answer(p.entry.Stamp(o.Index), o.Seqs), p.d.Repeated, true, o.Seqs, p.d.Events}
}

func (w *world) must(actor petrel.Actor, id petrel.CommandID, cmd command) result {
	w.t.Helper()
	res, err := w.do(actor, id, cmd)
	if err != nil {
		w.t.Fatalf("%s %+v: %v", cmd.CommandKind(), cmd, err)
	}
	return res
}

func (w *world) refuse(code petrel.Code, actor petrel.Actor, id petrel.CommandID, cmd command) {
	w.t.Helper()
	n := len(w.recs)
	if _, err := w.do(actor, id, cmd); petrel.CodeOf(err) != code {
		w.t.Errorf("%s by %s %+v: %v, want %s", cmd.CommandKind(), actor.User, cmd, err, code)
	}
	if len(w.recs) != n {
		w.t.Errorf("%s %+v was refused but appended something", cmd.CommandKind(), cmd)
	}
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (T, error) {
	var v T
	err := w.store.View(w.t.Context(), func(r *projection.Reader) (err error) {
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

func user(id string) petrel.Actor {
	return petrel.Actor{Kind: petrel.ActorUser, App: "1", User: petrel.UserID(id)}
}

func app() petrel.Actor { return petrel.Actor{Kind: petrel.ActorApp, App: "1"} }

func ptr[T any](v T) *T { return &v }

func room(kind event.RoomKind, id string, members ...string) CreateRoom {
	c := CreateRoom{ID: petrel.RoomID(id), Kind: kind}
	for _, m := range members {
		c.Members = append(c.Members, Member{User: petrel.UserID(m)})
	}
	return c
}

func post(room, text string) PostMessage { return PostMessage{Room: petrel.RoomID(room), Text: text} }

func (w *world) dump(sql string) string {
	w.t.Helper()
	return mustView(w, func(r *projection.Reader) (string, error) {
		out := ""
		err := r.Query(sql, func(row *projection.Row) error {
			out += fmt.Sprintln(row.Text(0))
			return nil
		})
		return out, err
	})
}
