package chat

import (
	"testing"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// world is a shard whose clock goes a second per entry.
type world struct {
	*applytest.Shard
	pubs  []petrel.Publication
	users []petrel.UserID // of UserCreated, in order
	at    int64           // Unix milliseconds
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{at: 1_767_225_600_000} // 2026-01-01
	w.Shard = applytest.Open(t, Module(), apply.Options{
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
	return w
}

type command = applytest.Command

// plan decides cmd without appending it.
func (w *world) plan(actor petrel.Actor, id petrel.CommandID, cmd command) (applytest.Planned, error) {
	w.at += 1000
	return w.Plan(actor, w.at, id, cmd)
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
	w.T.Helper()
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

func (w *world) finish(p applytest.Planned) (bool, result) {
	w.T.Helper()
	if len(p.Decision.Events) == 0 {
		return true, result{answer: p.Decision.Answer(p.Entry.Stamp(0), nil), repeated: p.Decision.Repeated}
	}
	o := w.Fold(p)[0]
	if o.Conflicted {
		return false, result{}
	}
	return true, result{p.Decision.Answer(p.Entry.Stamp(o.Index), o.Seqs), p.Decision.Repeated, true, o.Seqs, p.Decision.Events}
}

func (w *world) must(actor petrel.Actor, id petrel.CommandID, cmd command) result {
	w.T.Helper()
	res, err := w.do(actor, id, cmd)
	if err != nil {
		w.T.Fatalf("%s %+v: %v", cmd.CommandKind(), cmd, err)
	}
	return res
}

func (w *world) refuse(code petrel.Code, actor petrel.Actor, id petrel.CommandID, cmd command) {
	w.T.Helper()
	n := len(w.Records)
	if _, err := w.do(actor, id, cmd); petrel.CodeOf(err) != code {
		w.T.Errorf("%s by %s %+v: %v, want %s", cmd.CommandKind(), actor.User, cmd, err, code)
	}
	if len(w.Records) != n {
		w.T.Errorf("%s %+v was refused but appended something", cmd.CommandKind(), cmd)
	}
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (T, error) {
	return applytest.View(w.Shard, fn)
}

func mustView[T any](w *world, fn func(r *projection.Reader) (T, error)) T {
	w.T.Helper()
	v, err := view(w, fn)
	if err != nil {
		w.T.Fatal(err)
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
