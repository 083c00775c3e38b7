package chat

import (
	"fmt"
	"testing"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestRights tries every action of the table as every standing in every kind of room, through the commands, and
// compares with the table: what it says is what happens.
func TestRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t) // shared: each case is an app of its own
	cases := 0
	for _, kind := range []event.RoomKind{event.RoomOpen, event.RoomPrivate, event.RoomDirect} {
		for _, s := range standings {
			if kind == event.RoomDirect && (s.bit == moderator || s.bit == owner) {
				continue // there are none
			}
			for _, r := range rights {
				cases++
				t.Run(fmt.Sprintf("%s/%s/%s", kind, s.name, r.Action), func(t *testing.T) {
					tryRight(t, stage{w, petrel.AppID(fmt.Sprint("app", cases))}, kind, s.bit, r.Action)
				})
			}
		}
	}
}

// stage is an app within a world.
type stage struct {
	*world
	app petrel.AppID
}

func (w stage) user(id string) petrel.Actor {
	return petrel.Actor{Kind: petrel.ActorUser, App: w.app, User: petrel.UserID(id)}
}

func (w stage) backend() petrel.Actor { return petrel.Actor{Kind: petrel.ActorApp, App: w.app} }

func tryRight(t *testing.T, w stage, kind event.RoomKind, who standing, act action) {
	actor := scenery(w, kind, who)
	var cmd command
	switch act {
	case actRead:
		_, err := view(w.world, headOf(actor, "room"))
		verdict(t, kind, who, act, err)
		return
	case actPost:
		cmd = post("room", "hi")
		if who == backend { // refused before any room is looked at
			w.refuse(petrel.CodeInvalidField, actor, "p", cmd)
			return
		}
	case actEditOwn, actDeleteOwn:
		if who == backend {
			return // the app has no messages of its own
		}
		if who == stranger { // who left: only in an open room is there such a message
			if kind != event.RoomOpen {
				return
			}
			w.must(actor, "own", post("room", "mine"))
			w.must(actor, "", RemoveMember{Room: "room", User: actor.User})
		} else {
			w.must(actor, "own", post("room", "mine"))
		}
		cmd = EditMessage{Room: "room", ID: "own", Text: ptr("new")}
		if act == actDeleteOwn {
			cmd = DeleteMessage{Room: "room", ID: "own"}
		}
	case actEditOther:
		cmd = EditMessage{Room: "room", ID: "other", Text: ptr("new")}
	case actDeleteOther:
		cmd = DeleteMessage{Room: "room", ID: "other"}
	case actUpdate:
		cmd = UpdateRoom{Room: "room", Custom: []byte(`{"a":1}`)}
	case actDeleteRoom:
		cmd = DeleteRoom{Room: "room"}
	case actJoin:
		if who != stranger {
			return // nobody joins twice, and the app is nobody
		}
		cmd = PutMember{Room: "room", User: actor.User}
	case actAdd:
		cmd = PutMember{Room: "room", User: "new"}
	case actRemove:
		cmd = RemoveMember{Room: "room", User: "bob"}
	case actLeave:
		if who == stranger || who == backend {
			return // who is not in it changes nothing, or is not allowed to look
		}
		cmd = RemoveMember{Room: "room", User: actor.User}
	case actRole:
		cmd = PutMember{Room: "room", User: "bob", Role: event.RoleModerator}
	}
	_, err := w.do(actor, "try", cmd)
	verdict(t, kind, who, act, err)
}

func verdict(t *testing.T, kind event.RoomKind, who standing, act action, err error) {
	t.Helper()
	want := petrel.CodeForbidden
	switch {
	case may(kind, who, act):
		want = ""
	case !may(kind, who, actRead):
		want = petrel.CodeRoomNotFound
	}
	if got := petrel.CodeOf(err); got != want {
		t.Errorf("%v, want code %q", err, want)
	}
}

// scenery makes "room" with bob in it, who wrote "other", and returns an actor of the standing.
func scenery(w stage, kind event.RoomKind, who standing) petrel.Actor {
	me := w.user("me")
	if kind == event.RoomDirect {
		w.must(w.user("bob"), "", room(kind, "room", "me"))
		w.must(w.user("bob"), "other", post("room", "bob's"))
		switch who {
		case stranger:
			return w.user("eve")
		case backend:
			return w.backend()
		}
		return me
	}
	w.must(w.user("zoe"), "", room(kind, "room", "bob"))
	w.must(w.user("bob"), "other", post("room", "bob's"))
	role := map[standing]event.Role{member: event.RoleMember, moderator: event.RoleModerator, owner: event.RoleOwner}[who]
	switch who {
	case stranger:
		return me
	case backend:
		return w.backend()
	}
	w.must(w.user("zoe"), "", PutMember{Room: "room", User: "me", Role: role})
	return me
}

// TestKindRules: every event that chat folds takes a seq exactly when the table says so.
func TestKindRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	took := map[event.Kind]bool{}
	note := func(r result) {
		for i, ev := range r.events {
			took[ev.EventKind()] = r.seqs[i] > 0
		}
	}
	ada := user("ada")
	note(w.must(ada, "", room(event.RoomOpen, "r")))
	note(w.must(ada, "", UpdateRoom{Room: "r", Name: ptr("n")}))
	note(w.must(ada, "", PutMember{Room: "r", User: "bob"}))
	note(w.must(ada, "", PutMember{Room: "r", User: "bob", Role: event.RoleOwner}))
	note(w.must(ada, "", RemoveMember{Room: "r", User: "bob"}))
	note(w.must(ada, "m", post("r", "x")))
	note(w.must(ada, "", EditMessage{Room: "r", ID: "m", Text: ptr("y")}))
	note(w.must(ada, "", DeleteMessage{Room: "r", ID: "m"}))
	note(w.must(ada, "", DeleteRoom{Room: "r"}))
	for _, k := range kindRules {
		if got, ok := took[k.Kind]; !ok || got != k.Seq {
			t.Errorf("%s: takes a seq %v (seen %v), the table says %v", k.Type, got, ok, k.Seq)
		}
	}
	if len(Kinds()) != len(kindRules) || took[event.KindUserCreated] {
		t.Error("kinds and table differ")
	}
}
