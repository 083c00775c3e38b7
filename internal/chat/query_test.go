package chat

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func headOf(actor petrel.Actor, room petrel.RoomID) func(*projection.Reader) (uint64, error) {
	return func(r *projection.Reader) (uint64, error) { return Head(r, actor, room) }
}

// statements has every statement of the package by name; TestEveryStatementIsListed keeps it whole.
var statements = map[string]string{
	"sqlAppKey": sqlAppKey, "sqlAddApp": sqlAddApp, "sqlUserKey": sqlUserKey, "sqlAddUser": sqlAddUser, "sqlRoomKey": sqlRoomKey,
	"sqlAddRoom": sqlAddRoom, "sqlSetRoom": sqlSetRoom, "sqlEndRoom": sqlEndRoom, "sqlAddMember": sqlAddMember,
	"sqlSetMember": sqlSetMember, "sqlEndMember": sqlEndMember, "sqlAddMessage": sqlAddMessage, "sqlSetMessage": sqlSetMessage,
	"sqlEndMessage": sqlEndMessage, "sqlEndEdits": sqlEndEdits, "sqlFindPlace": sqlFindPlace, "sqlAddChange": sqlAddChange,
	"sqlPostHere": sqlPostHere, "sqlRoomHead": sqlRoomHead, "sqlRoomVersion": sqlRoomVersion, "sqlMemberVersion": sqlMemberVersion,
	"sqlMessageVersion": sqlMessageVersion, "sqlDirectVersion": sqlDirectVersion, "sqlPostVersion": sqlPostVersion,
	"sqlUserCommandVersion": sqlUserCommandVersion, "sqlAppCommandVersion": sqlAppCommandVersion,
	"sqlScene": sqlScene, "sqlPostScene": sqlPostScene, "sqlSettings": sqlSettings, "sqlDirect": sqlDirect, "sqlChangeAt": sqlChangeAt,
	"sqlMember": sqlMember, "sqlOtherOwner": sqlOtherOwner, "sqlLongest": sqlLongest, "sqlMembers": sqlMembers, "sqlMessage": sqlMessage,
	"sqlMessagesForward": sqlMessagesForward, "sqlMessagesBack": sqlMessagesBack, "sqlReplayPosts": sqlReplayPosts, "sqlPostAt": sqlPostAt,
	"sqlReplayChanges": sqlReplayChanges, "sqlChangeOfCommand": sqlChangeOfCommand, "sqlRoomOfCommand": sqlRoomOfCommand,
	"sqlAllRooms": sqlAllRooms, "sqlRoomsOfUser": sqlRoomsOfUser, "sqlOpenRooms": sqlOpenRooms,
}

// TestNoFullScans: no statement walks a table, or sorts what it read.
func TestNoFullScans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	err := w.Store.View(t.Context(), func(r *projection.Reader) error {
		for name, sql := range statements {
			if full, plan := projection.ExplainFullScan(r, sql); full || strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("%s:\n%s", name, plan)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryStatementIsListed(t *testing.T) {
	t.Parallel()
	parts := map[string]bool{"sqlLast": true, "sqlSceneColumns": true, "sqlSceneRows": true, "sqlMessageColumns": true, "sqlPostColumns": true, "sqlChangeColumns": true, "sqlRoomColumns": true}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*(?:const |var )?(sql[A-Z]\w*)\s*=`).FindAllStringSubmatch(string(raw), -1) {
			if _, ok := statements[m[1]]; !ok && !parts[m[1]] {
				t.Errorf("%s: %s is not among the statements", f, m[1])
			}
		}
	}
}

// TestReadsCostWhatTheyReturn: in a room of many joins and few messages, pages stay within a budget of a few rows.
func TestReadsCostWhatTheyReturn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := user("ada")
	w.must(ada, "", room(event.RoomOpen, "other"))
	w.must(ada, "", room(event.RoomOpen, "big"))
	w.must(ada, "m1", post("big", "first"))
	var plans []applytest.Planned
	for i := range 3000 {
		u := fmt.Sprint("u", i)
		p, err := w.plan(user(u), "", PutMember{Room: "big", User: petrel.UserID(u)})
		if err != nil {
			t.Fatal(err)
		}
		plans = append(plans, p)
	}
	w.Fold(plans...)
	w.must(ada, "m2", post("big", "last"))
	reads := map[string]func(r *projection.Reader) error{
		"newest": func(r *projection.Reader) error { _, err := ListMessages(r, ada, "big", MessagesQuery{}); return err },
		"forward": func(r *projection.Reader) error {
			_, err := ListMessages(r, ada, "big", MessagesQuery{After: 2})
			return err
		},
		"room":    func(r *projection.Reader) error { _, err := GetRoom(r, ada, "big"); return err },
		"rooms":   func(r *projection.Reader) error { _, err := ListRooms(r, ada, RoomsQuery{Open: true}); return err },
		"members": func(r *projection.Reader) error { _, err := ListMembers(r, ada, "big", "u2000", 10); return err },
		"events":  func(r *projection.Reader) error { _, err := ListEvents(r, ada, "big", 2900, 10); return err },
		"decide": func(r *projection.Reader) error {
			_, err := PostMessage{Room: "big", Text: "x"}.Decide(r, event.Stamp{App: "1", Actor: ada})
			return err
		},
		"leave": func(r *projection.Reader) error {
			_, err := RemoveMember{Room: "big", User: "ada"}.Decide(r, event.Stamp{App: "1", Actor: ada})
			return err
		},
	}
	for name, fn := range reads {
		if err := w.Store.ViewBudget(t.Context(), projection.Budget{Steps: 40}, fn); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadsRefuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := user("ada")
	w.must(ada, "", room(event.RoomPrivate, "den"))
	w.must(ada, "", room(event.RoomOpen, "gone"))
	w.must(ada, "", DeleteRoom{Room: "gone"})
	reads := map[string]func(a petrel.Actor, room petrel.RoomID, limit int) func(*projection.Reader) (any, error){
		"messages": func(a petrel.Actor, room petrel.RoomID, limit int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return ListMessages(r, a, room, MessagesQuery{Limit: limit}) }
		},
		"events": func(a petrel.Actor, room petrel.RoomID, limit int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return ListEvents(r, a, room, 0, limit) }
		},
		"members": func(a petrel.Actor, room petrel.RoomID, limit int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return ListMembers(r, a, room, "", limit) }
		},
		"room": func(a petrel.Actor, room petrel.RoomID, _ int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return GetRoom(r, a, room) }
		},
		"member": func(a petrel.Actor, room petrel.RoomID, _ int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return GetMember(r, a, room, "ada") }
		},
		"message": func(a petrel.Actor, room petrel.RoomID, _ int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return GetMessage(r, a, room, "m") }
		},
		"head": func(a petrel.Actor, room petrel.RoomID, _ int) func(*projection.Reader) (any, error) {
			return func(r *projection.Reader) (any, error) { return Head(r, a, room) }
		},
	}
	for name, read := range reads {
		for _, c := range []struct {
			actor petrel.Actor
			room  petrel.RoomID
			code  petrel.Code
		}{
			{user("eve"), "den", petrel.CodeRoomNotFound},
			{petrel.Actor{Kind: petrel.ActorApp, App: "2"}, "den", petrel.CodeRoomNotFound},
			{app(), "nowhere", petrel.CodeRoomNotFound},
			{app(), "gone", petrel.CodeRoomDeleted},
			{petrel.Actor{Kind: petrel.ActorOperator}, "den", petrel.CodeForbidden},
		} {
			if _, err := view(w, read(c.actor, c.room, 0)); petrel.CodeOf(err) != c.code {
				t.Errorf("%s of %s: %v, want %s", name, c.room, err, c.code)
			}
		}
		if name == "messages" || name == "events" || name == "members" {
			for _, limit := range []int{-1, MaxPage + 1} {
				if _, err := view(w, read(ada, "den", limit)); petrel.CodeOf(err) != petrel.CodeInvalidField {
					t.Errorf("%s with limit %d: %v", name, limit, err)
				}
			}
		}
	}
	if _, err := view(w, reads["message"](ada, "den", 0)); petrel.CodeOf(err) != petrel.CodeMessageNotFound {
		t.Errorf("no message: %v", err)
	}
	if _, err := view(w, func(r *projection.Reader) (any, error) { return GetMember(r, ada, "den", "bob") }); petrel.CodeOf(err) != petrel.CodeMemberNotFound {
		t.Errorf("no member: %v", err)
	}
	for _, rooms := range []map[petrel.RoomID]uint64{nil, manyRooms(MaxSyncRooms + 1)} {
		if _, err := view(w, func(r *projection.Reader) (any, error) { return Sync(r, ada, rooms, 0) }); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("sync of %d rooms: %v", len(rooms), err)
		}
	}
	if _, err := view(w, func(r *projection.Reader) (any, error) { return Sync(r, ada, manyRooms(MaxSyncRooms), 0) }); err != nil {
		t.Errorf("sync of %d rooms: %v", MaxSyncRooms, err)
	}
}

func manyRooms(n int) map[petrel.RoomID]uint64 {
	m := map[petrel.RoomID]uint64{}
	for i := range n {
		m[petrel.RoomID(fmt.Sprint("r", i))] = 0
	}
	return m
}

// TestSyncIsBounded: all rooms together give at most MaxPage events, and say that there is more.
func TestSyncIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := user("ada")
	for _, id := range []string{"a", "b", "c"} {
		w.must(ada, "", room(event.RoomOpen, id))
		var plans []applytest.Planned
		for i := range 450 {
			p, err := w.plan(ada, petrel.CommandID(fmt.Sprint(id, i)), post(id, "x"))
			if err != nil {
				t.Fatal(err)
			}
			plans = append(plans, p)
		}
		w.Fold(plans...)
	}
	got := mustView(w, func(r *projection.Reader) (map[petrel.RoomID]SyncRoom, error) {
		return Sync(r, ada, map[petrel.RoomID]uint64{"a": 0, "b": 0, "c": 0}, MaxPage)
	})
	for id, want := range map[petrel.RoomID]int{"a": 451, "b": 451, "c": MaxPage - 902} {
		if s := got[id]; len(s.Events) != want || s.Head != 451 || s.More != (want < 451) {
			t.Errorf("%s: %d events, head %d, more %v; want %d", id, len(s.Events), s.Head, s.More, want)
		}
	}
}
