package chat

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Reads for callers. Each asks first whether the actor may read the room: room_not_found where not,
// room_deleted where it is gone. Limits of 0 take the default; others outside 1 to MaxPage are invalid_field.

// GetRoom returns the room as it is, with its head and the actor's role.
func GetRoom(r *projection.Reader, actor petrel.Actor, room petrel.RoomID) (Room, error) {
	st, err := enter(r, actor, room)
	if err != nil {
		return Room{}, err
	}
	if err := loadSettings(r, &st.room); err != nil {
		return Room{}, err
	}
	out := st.room.present()
	if st.actor.version != 0 {
		out.Role = &st.actor.role
	}
	out.Head, err = head(r, st.room.key)
	return out, err
}

// Head returns the seq of the room's last event. It is what a subscription begins with, after the check of rights.
func Head(r *projection.Reader, actor petrel.Actor, room petrel.RoomID) (uint64, error) {
	st, err := enter(r, actor, room)
	if err != nil {
		return 0, err
	}
	return head(r, st.room.key)
}

// RoomsQuery chooses a page of rooms in the order of their creation.
type RoomsQuery struct {
	After petrel.RoomID // exclusive; empty: from the beginning
	Limit int           // default DefaultEvents
	Open  bool          // for a user: also the open rooms that the user is not in
}

// RoomPage is a page of rooms.
type RoomPage struct {
	Rooms []Room `json:"rooms"`
	More  bool   `json:"more"`
}

// ListRooms returns the rooms that a user is in, or all rooms for the app.
func ListRooms(r *projection.Reader, actor petrel.Actor, q RoomsQuery) (RoomPage, error) {
	if err := checkActor(actor); err != nil {
		return RoomPage{}, err
	}
	limit, err := pageLimit(q.Limit, DefaultEvents)
	if err != nil {
		return RoomPage{}, err
	}
	st, err := loadScene(r, event.Stamp{App: actor.App, Actor: actor}, q.After, "")
	if err != nil {
		return RoomPage{}, err
	}
	if q.After != "" && petrel.CodeOf(st.enter(actRead)) == petrel.CodeRoomNotFound { // a room deleted since still marks the place
		return RoomPage{}, petrel.Errorf(petrel.CodeInvalidField, "There is no room with the id given as after.")
	}
	var rows []listedRoom
	switch {
	case actor.Kind == petrel.ActorApp:
		rows, err = listRooms(r, sqlAllRooms, st.app, st.room.key, limit+1)
	default:
		rows, err = listRooms(r, sqlRoomsOfUser, st.actor.key, st.room.key, limit+1)
		if err == nil && q.Open {
			var open []listedRoom
			open, err = listRooms(r, sqlOpenRooms, st.app, st.room.key, limit+1, st.actor.key)
			rows = mergeRooms(rows, open)
		}
	}
	if err != nil {
		return RoomPage{}, err
	}
	page := RoomPage{Rooms: []Room{}, More: len(rows) > limit}
	for _, row := range rows[:min(limit, len(rows))] {
		page.Rooms = append(page.Rooms, row.Room)
	}
	return page, nil
}

// MemberInfo is one line of a page of members.
type MemberInfo struct {
	User     petrel.UserID `json:"user"`
	Role     event.Role    `json:"role"`
	JoinedAt Time          `json:"joined_at"`
}

// MemberPage is a page of members, in the order in which the app first heard of them.
type MemberPage struct {
	Members []MemberInfo `json:"members"`
	More    bool         `json:"more"`
}

// ListMembers returns the members after the user given (exclusive; empty: from the beginning).
func ListMembers(r *projection.Reader, actor petrel.Actor, room petrel.RoomID, after petrel.UserID, limit int) (MemberPage, error) {
	limit, err := pageLimit(limit, DefaultEvents)
	if err != nil {
		return MemberPage{}, err
	}
	st, err := enter(r, actor, room)
	if err != nil {
		return MemberPage{}, err
	}
	var from int64
	if after != "" {
		m, err := loadMember(r, actor.App, st.room.key, after)
		if err != nil {
			return MemberPage{}, err
		}
		if m.key == 0 {
			return MemberPage{}, petrel.Errorf(petrel.CodeInvalidField, "There is no user with the id given as after.")
		}
		from = m.key
	}
	page := MemberPage{Members: []MemberInfo{}}
	err = r.Query(sqlMembers, func(row *projection.Row) error {
		if page.More = len(page.Members) == limit; !page.More {
			page.Members = append(page.Members, MemberInfo{petrel.UserID(row.Text(0)), event.Role(row.Int(1)), Time(row.Int(2))})
		}
		return nil
	}, st.room.key, from, limit+1)
	return page, err
}

// GetMember returns one member, or member_not_found.
func GetMember(r *projection.Reader, actor petrel.Actor, room petrel.RoomID, user petrel.UserID) (Membership, error) {
	st, err := enter(r, actor, room)
	if err != nil {
		return Membership{}, err
	}
	m, err := loadMember(r, actor.App, st.room.key, user)
	if err == nil && m.version == 0 {
		err = petrel.Errorf(petrel.CodeMemberNotFound, "The user is not a member of this room.")
	}
	return Membership{room, user, m.role}, err
}

// GetMessage returns the message as it is now: edited, or a tombstone.
func GetMessage(r *projection.Reader, actor petrel.Actor, room petrel.RoomID, id petrel.MessageID) (Message, error) {
	st, err := enter(r, actor, room)
	if err != nil {
		return Message{}, err
	}
	m, err := loadMessage(r, st.room, id)
	if err == nil && m.Seq == 0 {
		err = petrel.Errorf(petrel.CodeMessageNotFound, "There is no such message in this room.")
	}
	return m.Message, err
}

// MessagesQuery chooses a page of messages by seq, both bounds exclusive. With After the page begins there and
// goes forward; otherwise it ends at Before (0: at the end) and goes back.
type MessagesQuery struct {
	Before, After uint64
	HasAfter      bool // After of 0 counts: from the beginning
	Limit         int  // default DefaultMessages
}

// MessagePage is a page of messages, ascending. More says that there are others beyond it, in its direction.
type MessagePage struct {
	Messages []Message `json:"messages"`
	More     bool      `json:"more"`
}

// ListMessages returns the messages as they are now: edited, or tombstones.
func ListMessages(r *projection.Reader, actor petrel.Actor, room petrel.RoomID, q MessagesQuery) (MessagePage, error) {
	limit, err := pageLimit(q.Limit, DefaultMessages)
	if err != nil {
		return MessagePage{}, err
	}
	st, err := enter(r, actor, room)
	if err != nil {
		return MessagePage{}, err
	}
	forward := q.HasAfter || q.After > 0
	sql := sqlMessagesBack
	if forward {
		sql = sqlMessagesForward
	}
	low, high := placeOf(st.room.key, min(q.After, maxSeq)), placeOf(st.room.key+1, 0)
	if q.Before > 0 && q.Before <= maxSeq {
		high = placeOf(st.room.key, q.Before)
	}
	page := MessagePage{Messages: []Message{}}
	err = r.Query(sql, func(row *projection.Row) error {
		if page.More = len(page.Messages) == limit; page.More {
			return nil
		}
		m, err := scanMessage(row, room)
		page.Messages = append(page.Messages, m.Message)
		return err
	}, low, high, limit+1)
	if !forward {
		slices.Reverse(page.Messages)
	}
	return page, err
}

// EventPage is a page of a room's events, ascending. Head is the seq of the room's last.
type EventPage struct {
	Events []Event `json:"events"`
	Head   uint64  `json:"head"`
}

// ListEvents returns the events after a seq (exclusive). An after beyond the head gives none: the caller
// compares it with Head.
func ListEvents(r *projection.Reader, actor petrel.Actor, room petrel.RoomID, after uint64, limit int) (EventPage, error) {
	limit, err := pageLimit(limit, DefaultEvents)
	if err != nil {
		return EventPage{}, err
	}
	st, err := enter(r, actor, room)
	if err != nil {
		return EventPage{}, err
	}
	pubs, head, err := replay(r, actor.App, st.room, after, limit)
	page := EventPage{Events: make([]Event, 0, len(pubs)), Head: head}
	for _, p := range pubs {
		page.Events = append(page.Events, Event{p.Seq, p.Type, Time(p.At.UnixMilli()), p.Data})
	}
	return page, err
}

// SyncRoom is the part of a sync that is about one room: its events after the seq asked for, or why there are none.
type SyncRoom struct {
	Events []Event     `json:"events"`
	Head   uint64      `json:"head"`
	More   bool        `json:"more"` // ask again with the last seq given
	Code   petrel.Code `json:"code,omitempty"`
}

// Sync returns the events of many rooms at once, each after its seq: at most MaxSyncRooms rooms and MaxPage
// events together, given to the rooms in the order of their ids. A room that cannot be read has a Code.
func Sync(r *projection.Reader, actor petrel.Actor, rooms map[petrel.RoomID]uint64, limit int) (map[petrel.RoomID]SyncRoom, error) {
	limit, err := pageLimit(limit, DefaultEvents)
	if err != nil {
		return nil, err
	}
	if len(rooms) == 0 || len(rooms) > MaxSyncRooms {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "Name from 1 to %d rooms.", MaxSyncRooms)
	}
	out := make(map[petrel.RoomID]SyncRoom, len(rooms))
	left := MaxPage
	for _, id := range slices.Sorted(maps.Keys(rooms)) {
		st, err := enter(r, actor, id)
		if code := petrel.CodeOf(err); code == petrel.CodeRoomNotFound || code == petrel.CodeRoomDeleted {
			out[id] = SyncRoom{Events: []Event{}, Code: code}
			continue
		}
		if err != nil {
			return nil, err
		}
		one := SyncRoom{Events: []Event{}}
		var pubs []petrel.Publication
		if pubs, one.Head, err = replay(r, actor.App, st.room, rooms[id], min(limit, left)); err != nil {
			return nil, err
		}
		for _, p := range pubs {
			one.Events = append(one.Events, Event{p.Seq, p.Type, Time(p.At.UnixMilli()), p.Data})
		}
		left -= len(pubs)
		one.More = rooms[id]+uint64(len(pubs)) < one.Head
		out[id] = one
	}
	return out, nil
}

// Replay returns the publications of a room after a seq (exclusive), at most limit (cut to MaxPage; 0 takes
// DefaultEvents), and the room's head. It asks nobody's rights: the hub did when the subscription began.
// A deleted room is room_deleted, so that a subscriber who was still catching up is told.
func Replay(r *projection.Reader, app petrel.AppID, room petrel.RoomID, after uint64, limit int) ([]petrel.Publication, uint64, error) {
	st, err := enter(r, petrel.Actor{Kind: petrel.ActorApp, App: app}, room)
	if err != nil {
		return nil, 0, err
	}
	if limit <= 0 {
		limit = DefaultEvents
	}
	return replay(r, app, st.room, after, min(limit, MaxPage))
}

// EventAt returns one event as a replay shows it, also of a room that is gone since. It asks nobody's rights.
func EventAt(r *projection.Reader, app petrel.AppID, room petrel.RoomID, seq uint64) (p petrel.Publication, found bool, err error) {
	st, err := loadScene(r, event.Stamp{App: app, Actor: petrel.Actor{Kind: petrel.ActorApp, App: app}}, room, "")
	if err != nil || st.room.key == 0 || seq == 0 || seq > maxSeq {
		return petrel.Publication{}, false, err
	}
	pubs, _, err := replay(r, app, st.room, seq-1, 1)
	if err != nil || len(pubs) == 0 {
		return petrel.Publication{}, false, err
	}
	return pubs[0], true, nil
}

// replay reads exactly the rows that it returns: seqs are dense, so a range of n seqs is n rows of the two tables.
func replay(r *projection.Reader, app petrel.AppID, room roomRow, after uint64, limit int) ([]petrel.Publication, uint64, error) {
	head, err := head(r, room.key)
	if err != nil || after >= head || limit == 0 {
		return nil, head, err
	}
	if err := loadSettings(r, &room); err != nil {
		return nil, 0, err
	}
	out := make([]petrel.Publication, min(uint64(limit), head-after))
	low, high := placeOf(room.key, after), placeOf(room.key, after+uint64(len(out)))
	each := func(scan func(*projection.Row, roomRow) (made, uint64, error)) func(*projection.Row) error {
		return func(row *projection.Row) error {
			m, index, err := scan(row, room)
			if err == nil {
				out[m.seq-after-1] = publication(app, room.id, m.ev, m.by, m.at, m.seq, m.gone, index)
			}
			return err
		}
	}
	if err := r.Query(sqlReplayPosts, each(scanPost), low, high); err != nil {
		return nil, 0, err
	}
	if err := r.Query(sqlReplayChanges, each(scanChange), low, high); err != nil {
		return nil, 0, err
	}
	for i := range out {
		if out[i].Seq == 0 {
			return nil, 0, fmt.Errorf("chat: room %q has no event %d: the projection is damaged", room.id, after+uint64(i)+1)
		}
	}
	return out, head, nil
}

func enter(r *projection.Reader, actor petrel.Actor, room petrel.RoomID) (scene, error) {
	if err := checkActor(actor); err != nil {
		return scene{}, err
	}
	st, err := loadScene(r, event.Stamp{App: actor.App, Actor: actor}, room, "")
	if err != nil {
		return scene{}, err
	}
	return st, st.enter(actRead)
}

func head(r *projection.Reader, room int64) (seq uint64, err error) {
	_, err = r.Get(sqlRoomHead, func(row *projection.Row) { seq = seqOf(row.Int(0)) }, room)
	return seq, err
}

type listedRoom struct {
	key int64
	Room
}

func listRooms(r *projection.Reader, sql string, args ...any) ([]listedRoom, error) {
	var rows []listedRoom
	err := r.Query(sql, func(row *projection.Row) error {
		l := listedRoom{row.Int(0), Room{
			ID: petrel.RoomID(row.Text(1)), Kind: event.RoomKind(row.Int(2)), Name: row.Text(3), Custom: row.Bytes(4),
			CreatedAt: Time(row.Int(5)), CreatedBy: petrel.UserID(row.Text(6)), Head: seqOf(row.Int(8)),
		}}
		if role := event.Role(row.Int(7)); role != 0 {
			l.Role = &role
		}
		rows = append(rows, l)
		return nil
	}, args...)
	return rows, err
}

// mergeRooms merges two lists in order of key and drops what is in both.
func mergeRooms(a, b []listedRoom) []listedRoom {
	all := append(slices.Clone(a), b...)
	slices.SortStableFunc(all, func(x, y listedRoom) int { return int(x.key - y.key) })
	return slices.CompactFunc(all, func(x, y listedRoom) bool { return x.key == y.key })
}

func scanMessage(row *projection.Row, room petrel.RoomID) (message, error) {
	m := message{Message: Message{
		ID: petrel.MessageID(row.Text(1)), Room: room, Seq: seqOf(row.Int(0)), User: petrel.UserID(row.Text(2)),
		CreatedAt: Time(row.Int(3)), Text: row.Text(4), Custom: row.Bytes(5), EditedAt: Time(row.Int(7)), DeletedAt: Time(row.Int(8)),
	}, version: row.Uint(9), edits: int(row.Int(10))}
	var err error
	m.Mentions, err = unlist[petrel.UserID](row.Bytes(6))
	return m, err
}

// scanPost reads a row of sqlReplayPosts, or sqlPostAt.
func scanPost(row *projection.Row, room roomRow) (made, uint64, error) {
	mentions, err := unlist[petrel.UserID](row.Bytes(7))
	user := petrel.UserID(row.Text(4))
	return made{
		found: true, seq: seqOf(row.Int(0)), at: row.Int(1), print: row.Uint(9), gone: row.Int(8), by: user,
		ev: event.MessagePosted{
			Room: room.id, ID: petrel.MessageID(row.Text(3)), User: user, Text: row.Text(5), Custom: row.Bytes(6), Mentions: mentions,
		},
	}, row.Uint(2), err
}

// scanChange reads a row of sqlChange… back into the event that made it, as far as body shows it.
func scanChange(row *projection.Row, room roomRow) (made, uint64, error) {
	m := made{
		found: true, seq: seqOf(row.Int(0)), at: row.Int(2), print: row.Uint(4), gone: row.Int(10), by: petrel.UserID(row.Text(16)),
	}
	user, role := petrel.UserID(row.Text(5)), event.Role(row.Int(6))
	text, custom, people := row.Text(7), json.RawMessage(row.Bytes(8)), row.Bytes(9)
	target, id, author := seqOf(row.Int(11)), petrel.MessageID(row.Text(12)), petrel.UserID(row.Text(14))
	posted, edited := row.Int(13), row.Int(15)
	var err error
	switch kind := event.Kind(row.Int(1)); kind {
	case event.KindRoomCreated:
		ev := event.RoomCreated{Room: room.id, Kind: room.kind, Name: text, Custom: custom}
		var members []Member
		members, err = unlist[Member](people)
		for _, x := range members {
			ev.Members = append(ev.Members, event.Member(x))
		}
		m.ev = ev
	case event.KindRoomUpdated:
		m.ev = event.RoomUpdated{Room: room.id, Name: text, Custom: custom, Kind: room.kind, CreatedAt: room.createdAt, CreatedBy: room.createdBy}
	case event.KindRoomDeleted:
		m.ev = event.RoomDeleted{Room: room.id, Name: text, Kind: room.kind, CreatedAt: room.createdAt, CreatedBy: room.createdBy}
	case event.KindMemberAdded:
		m.ev = event.MemberAdded{Room: room.id, User: user, Role: role}
	case event.KindMemberUpdated:
		m.ev = event.MemberUpdated{Room: room.id, User: user, Role: role}
	case event.KindMemberRemoved:
		m.ev = event.MemberRemoved{Room: room.id, User: user, Role: role, Kind: room.kind}
	case event.KindMessageEdited:
		ev := event.MessageEdited{Room: room.id, ID: id, Text: text, Custom: custom, Seq: target, User: author, CreatedAt: posted}
		ev.Mentions, err = unlist[petrel.UserID](people)
		m.ev = ev
	case event.KindMessageDeleted:
		m.ev = event.MessageDeleted{Room: room.id, ID: id, Seq: target, User: author, CreatedAt: posted, EditedAt: edited}
	default:
		err = fmt.Errorf("chat: a row of kind %d", kind)
	}
	return m, row.Uint(3), err
}
