package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestHistories folds random commands, several at a time and often repeated, and checks what must hold whatever they
// were: dense seqs, answers and reads that agree with what was published, replay equal to live but for what was
// deleted, each command id answered once, one direct room for two people, and two replicas with equal rows.
func TestHistories(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++ // each history is an app of its own: opening a projection costs more than a history
		w.pubs = nil
		h := &history{world: w, rt: rt, app: petrel.AppID(fmt.Sprint(n)), answers: map[string]string{}}
		for range rapid.IntRange(1, 12).Draw(rt, "batches") {
			h.batch()
		}
		h.check()
	})
	checkReplica(t, w)
}

type history struct {
	*world
	rt      *rapid.T
	app     petrel.AppID
	answers map[string]string // first accepted answer by actor and command id
	n       int
}

// batch decides some commands on one state and folds them together; those that conflict are decided again.
func (h *history) batch() {
	type attempt struct {
		actor petrel.Actor
		id    petrel.CommandID
		cmd   command
	}
	var plans []applytest.Planned
	var tries []attempt
	for range rapid.IntRange(1, 5).Draw(h.rt, "size") {
		a := attempt{actor: h.drawActor(), cmd: h.drawCommand()}
		a.id = petrel.CommandID(fmt.Sprint("c", rapid.IntRange(0, 30).Draw(h.rt, "id")))
		p, err := h.plan(a.actor, a.id, a.cmd)
		if err != nil {
			if petrel.CodeOf(err) == petrel.CodeInternal {
				h.rt.Fatalf("%T %+v: %v", a.cmd, a.cmd, err)
			}
			continue
		}
		if len(p.Decision.Events) == 0 {
			_, res := h.finish(p)
			h.note(a.actor, a.id, a.cmd, res)
			continue
		}
		plans, tries = append(plans, p), append(tries, a)
	}
	if len(plans) == 0 {
		return
	}
	for i, o := range h.Fold(plans...) {
		a, p := tries[i], plans[i]
		if !o.Conflicted {
			h.note(a.actor, a.id, a.cmd, result{p.Decision.Answer(p.Entry.Stamp(o.Index), o.Seqs), false, true, o.Seqs, p.Decision.Events})
			continue
		}
		res, err := h.do(a.actor, a.id, a.cmd)
		if c := petrel.CodeOf(err); c == petrel.CodeInternal || c == petrel.CodeConflict {
			h.rt.Fatalf("%T %+v again: %v", a.cmd, a.cmd, err)
		}
		if err == nil {
			h.note(a.actor, a.id, a.cmd, res)
		}
	}
}

// note checks that a changing command id is answered with a change once, and ever after with the first answer or its tombstone.
func (h *history) note(actor petrel.Actor, id petrel.CommandID, cmd command, res result) {
	key := fmt.Sprint(actor.Kind, actor.User, " ", id, " ", cmd.CommandKind())
	answer := string(encode(res.answer))
	first, seen := h.answers[key]
	switch {
	case res.changed && seen:
		h.rt.Fatalf("%s was carried out twice: %s, then %s", key, first, answer)
	case res.changed:
		h.answers[key] = answer
	case res.repeated && seen && answer != first:
		if m, ok := res.answer.(Message); !ok || m.DeletedAt == 0 || m.Text != "" {
			h.rt.Fatalf("%s answered %s, at first %s", key, answer, first)
		}
	}
}

func (h *history) drawActor() petrel.Actor {
	who := rapid.SampledFrom([]string{"ada", "bob", "eve", "app"}).Draw(h.rt, "actor")
	if who == "app" {
		return h.backend()
	}
	return petrel.Actor{Kind: petrel.ActorUser, App: h.app, User: petrel.UserID(who)}
}

func (h *history) backend() petrel.Actor { return petrel.Actor{Kind: petrel.ActorApp, App: h.app} }

func (h *history) drawCommand() command {
	h.n++
	rt := h.rt
	room := petrel.RoomID(rapid.SampledFrom([]string{"r1", "r2", "d1"}).Draw(rt, "room"))
	person := petrel.UserID(rapid.SampledFrom([]string{"ada", "bob", "eve", "zoe"}).Draw(rt, "user"))
	id := petrel.MessageID(fmt.Sprint("c", rapid.IntRange(0, 30).Draw(rt, "message")))
	text := rapid.SampledFrom([]string{"a", "b", "<&>", "é\u2028"}).Draw(rt, "text")
	custom := json.RawMessage(rapid.SampledFrom([]string{"", "", `{}`, `{"k":[1,"<"]}`}).Draw(rt, "custom"))
	role := event.Role(rapid.IntRange(0, 3).Draw(rt, "role"))
	switch rapid.IntRange(0, 15).Draw(rt, "verb") {
	case 0, 1:
		kind := event.RoomKind(rapid.IntRange(1, 2).Draw(rt, "kind"))
		return CreateRoom{ID: room, Kind: kind, Custom: custom, Members: []Member{{person, role}}}
	case 2:
		return CreateRoom{ID: room, Kind: event.RoomDirect, Members: []Member{{User: person}}}
	case 3:
		return UpdateRoom{Room: room, Name: &text, Custom: custom}
	case 4:
		if h.n%4 == 0 { // seldom: it ends the story of the room
			return DeleteRoom{Room: room}
		}
		return PutMember{Room: room, User: person}
	case 5, 6:
		return PutMember{Room: room, User: person, Role: role}
	case 7:
		return RemoveMember{Room: room, User: person}
	case 8, 9:
		return EditMessage{Room: room, ID: id, Text: &text, Custom: custom}
	case 10:
		return DeleteMessage{Room: room, ID: id}
	default:
		return PostMessage{Room: room, Text: text, Custom: custom, Mentions: []petrel.UserID{person}}
	}
}

func (h *history) check() {
	live := map[petrel.RoomID][]petrel.Publication{}
	for _, p := range h.pubs {
		id := petrel.RoomID(p.Channel.Name)
		live[id] = append(live[id], p)
		if p.Seq != uint64(len(live[id])) {
			h.rt.Fatalf("%s: seq %d after %d publications", id, p.Seq, len(live[id])-1)
		}
		if !json.Valid(p.Data) {
			h.rt.Fatalf("%s %d: %s", id, p.Seq, p.Data)
		}
	}
	for id, pubs := range live {
		h.checkRoom(id, pubs)
	}
	if doubles := h.Dump(`SELECT direct FROM chat_room WHERE deleted_at IS NULL AND direct IS NOT NULL GROUP BY app, direct HAVING count(*) > 1`); doubles != "" {
		h.rt.Fatalf("two direct rooms of %s", doubles)
	}
}

// checkRoom compares replay, in pages, and the list of messages with what was live.
func (h *history) checkRoom(id petrel.RoomID, pubs []petrel.Publication) {
	if pubs[len(pubs)-1].Type == "room.deleted" {
		if _, err := view(h.world, func(r *projection.Reader) (any, error) { _, _, err := Replay(r, h.app, id, 0, 0); return nil, err }); petrel.CodeOf(err) != petrel.CodeRoomDeleted {
			h.rt.Fatalf("replay of a deleted room: %v", err)
		}
		return
	}
	now := map[petrel.MessageID]Message{} // the state that the live events add up to
	var order []petrel.MessageID
	for _, p := range pubs {
		var m Message
		if err := json.Unmarshal(p.Data, &m); err != nil {
			h.rt.Fatal(err)
		}
		switch p.Type {
		case "message.new":
			order = append(order, m.ID)
			now[m.ID] = m
		case "message.updated", "message.deleted":
			now[m.ID] = m
		}
	}
	for after := uint64(0); after < uint64(len(pubs)); {
		page := mustView(h.world, func(r *projection.Reader) ([]petrel.Publication, error) {
			p, head, err := Replay(r, h.app, id, after, 3)
			if head != uint64(len(pubs)) {
				h.rt.Fatalf("head %d of %d", head, len(pubs))
			}
			return p, err
		})
		for _, p := range page {
			want := pubs[after]
			var m Message
			if err := json.Unmarshal(p.Data, &m); err != nil {
				h.rt.Fatal(err)
			}
			if gone := now[m.ID].DeletedAt; gone != 0 && want.Type != "message.deleted" && (want.Type == "message.new" || want.Type == "message.updated") {
				var was Message
				if err := json.Unmarshal(want.Data, &was); err != nil {
					h.rt.Fatal(err)
				}
				want.Data = encode(redacted(was, int64(gone)))
			}
			if !bytes.Equal(p.Data, want.Data) || p.Type != want.Type || !p.At.Equal(want.At) || p.Seq != want.Seq || p.Index != want.Index {
				h.rt.Fatalf("%s: live %d %s %s\nreplay %d %s %s", id, want.Seq, want.Type, want.Data, p.Seq, p.Type, p.Data)
			}
			after = p.Seq
		}
	}
	var want []Message
	for _, m := range order {
		want = append(want, now[m])
	}
	got := mustView(h.world, func(r *projection.Reader) (MessagePage, error) {
		return ListMessages(r, h.backend(), id, MessagesQuery{Limit: MaxPage})
	})
	if d := cmp.Diff(string(encode(want)), string(encode(got.Messages))); d != "" && len(want)+len(got.Messages) > 0 {
		h.rt.Fatalf("%s: messages (-live +read)\n%s", id, d)
	}
}

// checkReplica folds the same records in one go elsewhere: every row must be the same.
func checkReplica(t *testing.T, w *world) {
	t.Helper()
	w.Agree(newWorld(t).Shard,
		`SELECT concat_ws('|', key, app, id) FROM chat_user ORDER BY key`,
		`SELECT concat_ws('|', key, app, id, kind, created_at, created_by, version, deleted_at, direct, name, quote(custom)) FROM chat_room ORDER BY key`,
		`SELECT concat_ws('|', room, user, role, since, joined_at, version) FROM chat_member ORDER BY room, user`,
		`SELECT concat_ws('|', place, room, author, at, entry, print, id, text, quote(custom), quote(people), edit, edits, version, deleted_at) FROM chat_message ORDER BY place`,
		`SELECT concat_ws('|', place, kind, at, entry, actor, command, id, print, target, user, role, text, quote(custom), quote(people), deleted_at) FROM chat_change ORDER BY place`,
	)
}
