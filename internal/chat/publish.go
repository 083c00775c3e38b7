package chat

import (
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Publish returns what subscribers of the room hear of ev: one publication per event that takes a seq.
// It is pure; Replay makes the same Data from the rows through the same functions.
//
// A removal from a private room names in Revoked who may not hear any more; a deletion is Final.
func Publish(s event.Stamp, ev event.Event, seq uint64) []petrel.Publication {
	room := roomOf(ev)
	if seq == 0 || room == "" {
		return nil
	}
	p := publication(s.App, room, ev, creator(s.Actor), s.At, seq, 0, s.Index)
	p.Request = s.Request
	switch ev := ev.(type) {
	case event.MemberRemoved:
		if !may(ev.Kind, stranger, actRead) {
			p.Revoked = ev.User
		}
	case event.RoomDeleted:
		p.Final = true
	}
	return []petrel.Publication{p}
}

// Told says what the publication of an event is called, and in which room it is; "" for an event that has none.
func Told(ev event.Event) (name string, room petrel.RoomID) {
	return typeOf(ev.EventKind()), roomOf(ev)
}

func publication(app petrel.AppID, room petrel.RoomID, ev event.Event, by petrel.UserID, at int64, seq uint64, gone int64, index uint64) petrel.Publication {
	return petrel.Publication{
		Channel: petrel.RoomChannel(app, room), Seq: seq, Type: typeOf(ev.EventKind()),
		At: time.UnixMilli(at).UTC(), Data: encode(body(ev, by, at, seq, gone)), Index: index,
	}
}

// body returns what callers see of ev: a Room, a Membership or a Message. by made the room (RoomCreated only),
// at is the time of the event, and gone > 0 is when the message it speaks of was deleted since.
func body(ev event.Event, by petrel.UserID, at int64, seq uint64, gone int64) any {
	switch ev := ev.(type) {
	case event.RoomCreated:
		room := Room{ID: ev.Room, Kind: ev.Kind, Name: ev.Name, Custom: ev.Custom, CreatedAt: Time(at), CreatedBy: by}
		for _, m := range ev.Members {
			room.Members = append(room.Members, Member(m))
		}
		return room
	case event.RoomUpdated:
		return Room{ID: ev.Room, Kind: ev.Kind, Name: ev.Name, Custom: ev.Custom, CreatedAt: Time(ev.CreatedAt), CreatedBy: ev.CreatedBy}
	case event.RoomDeleted:
		return Room{ID: ev.Room, Kind: ev.Kind, Name: ev.Name, CreatedAt: Time(ev.CreatedAt), CreatedBy: ev.CreatedBy, DeletedAt: Time(at)}
	case event.MemberAdded:
		return Membership{ev.Room, ev.User, ev.Role}
	case event.MemberUpdated:
		return Membership{ev.Room, ev.User, ev.Role}
	case event.MemberRemoved:
		return Membership{ev.Room, ev.User, ev.Role}
	case event.MessagePosted:
		return redacted(Message{
			ID: ev.ID, Room: ev.Room, Seq: seq, User: ev.User, Text: ev.Text, Custom: ev.Custom,
			Mentions: ev.Mentions, CreatedAt: Time(at),
		}, gone)
	case event.MessageEdited:
		return redacted(Message{
			ID: ev.ID, Room: ev.Room, Seq: ev.Seq, User: ev.User, Text: ev.Text, Custom: ev.Custom,
			Mentions: ev.Mentions, CreatedAt: Time(ev.CreatedAt), EditedAt: Time(at),
		}, gone)
	case event.MessageDeleted:
		return redacted(Message{
			ID: ev.ID, Room: ev.Room, Seq: ev.Seq, User: ev.User, CreatedAt: Time(ev.CreatedAt), EditedAt: Time(ev.EditedAt),
		}, at)
	}
	return nil
}

// redacted returns m, as a tombstone where it was deleted.
func redacted(m Message, gone int64) Message {
	if gone == 0 {
		return m
	}
	m.Text, m.Custom, m.Mentions, m.DeletedAt = "", nil, nil, Time(gone)
	return m
}

// creator is the user behind an actor, "" for the app.
func creator(a petrel.Actor) petrel.UserID {
	if a.Kind == petrel.ActorUser {
		return a.User
	}
	return ""
}

func roomOf(ev event.Event) petrel.RoomID {
	switch ev := ev.(type) {
	case event.RoomCreated:
		return ev.Room
	case event.RoomUpdated:
		return ev.Room
	case event.RoomDeleted:
		return ev.Room
	case event.MemberAdded:
		return ev.Room
	case event.MemberUpdated:
		return ev.Room
	case event.MemberRemoved:
		return ev.Room
	case event.MessagePosted:
		return ev.Room
	case event.MessageEdited:
		return ev.Room
	case event.MessageDeleted:
		return ev.Room
	}
	return ""
}
