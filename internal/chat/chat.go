// Package chat holds rooms, their members and their messages: what a command becomes, what an event
// changes, what a read returns and what a subscriber hears.
//
// A command is decided against one snapshot of the projection (command.go, decide.go), its events are
// folded into rows by every replica alike (fold.go), and each event that takes a seq is published to the
// room's channel (publish.go) and can be replayed from its row for as long as the room lives (query.go).
// rules.go holds the two tables: which events take a seq, and who may do what. docs/CHAT.md shows both.
//
// # Invariants
//
//   - seq is dense from 1 in a room: every event of the table in rules.go takes the next one, nothing else does.
//     It is assigned by the fold, so two posts to one room never conflict.
//   - A replayed event has the bytes of the live publication, except that content of a message deleted since
//     is gone from it.
//   - A command id names one thing per (app, actor, kind of command), a message id one per room, for ever.
//     Both lie in the row that the command made, beside a fingerprint of what was asked.
//   - Content of a deleted message is in no row. (The log keeps it until a snapshot replaces that part.)
//   - A private or direct room does not exist for who is not in it: every answer is room_not_found.
//   - The direct room of two people is one at a time.
//   - Folding one event costs a bounded number of rows, whatever the size of the room: members × 1 at creation,
//     edits of one message at its deletion, at most three otherwise.
//
// What callers may not rely on: keys of rows, the order of rooms in a list beyond "as created", and the
// text of an error. Every refusal is a petrel.Error; any other error means that the projection failed.
package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Time is a moment in Unix milliseconds; its text form is RFC 3339 in UTC with exactly three decimals.
// 0 means never, and is left out of JSON where the field says omitempty.
type Time int64

const timeLayout = "2006-01-02T15:04:05.000Z"

func (t Time) String() string { return t.Time().Format(timeLayout) }

// Time returns t as a time.Time in UTC.
func (t Time) Time() time.Time { return time.UnixMilli(int64(t)).UTC() }

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) { return t.Time().AppendFormat(nil, timeLayout), nil }

// UnmarshalText reads any RFC 3339 time and cuts it to milliseconds.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return fmt.Errorf("read a time: %w", err)
	}
	*t = Time(v.UnixMilli())
	return nil
}

// Message is a message as callers see it, and the data of message.new, message.updated and message.deleted.
type Message struct {
	ID        petrel.MessageID `json:"id"`
	Room      petrel.RoomID    `json:"room"`
	Seq       uint64           `json:"seq"` // of message.new; it stays when the message is edited or deleted
	User      petrel.UserID    `json:"user"`
	Text      string           `json:"text"` // "" once deleted
	CreatedAt Time             `json:"created_at"`
	Custom    json.RawMessage  `json:"custom,omitempty"` // an object, canonical
	Mentions  []petrel.UserID  `json:"mentions,omitempty"`
	EditedAt  Time             `json:"edited_at,omitempty"`
	DeletedAt Time             `json:"deleted_at,omitempty"` // set: a tombstone without text, custom and mentions
}

// Room is a room as callers see it, and the data of room.created, room.updated and room.deleted.
type Room struct {
	ID        petrel.RoomID   `json:"id"`
	Kind      event.RoomKind  `json:"kind"`
	Name      string          `json:"name"`
	CreatedAt Time            `json:"created_at"`
	CreatedBy petrel.UserID   `json:"created_by,omitempty"` // empty: the app
	Members   []Member        `json:"members,omitempty"`    // room.created and the answer to CreateRoom only
	Custom    json.RawMessage `json:"custom,omitempty"`     // an object, canonical
	DeletedAt Time            `json:"deleted_at,omitempty"`
	Head      uint64          `json:"head,omitempty"` // reads only: the seq of the room's last event
	Role      *event.Role     `json:"role,omitempty"` // reads only: of the asking user, nil if not a member
}

// Member is a user and a role.
type Member struct {
	User petrel.UserID `json:"user"`
	Role event.Role    `json:"role"`
}

// Membership is the data of member.added, member.updated and member.removed (the role held until then),
// and the answer to the commands on members.
type Membership struct {
	Room petrel.RoomID `json:"room"`
	User petrel.UserID `json:"user"`
	Role event.Role    `json:"role,omitempty"` // absent: not a member
}

// Event is one item of a replay.
type Event struct {
	Seq  uint64          `json:"seq"`
	Type string          `json:"type"`
	At   Time            `json:"at"`
	Data json.RawMessage `json:"data"`
}

// Module is the part of the projection that chat keeps.
func Module() projection.Module {
	return projection.Module{Name: "chat", Migrations: []string{schema}}
}

// Kinds returns every kind of event that Fold takes.
func Kinds() []event.Kind {
	kinds := make([]event.Kind, 0, len(kindRules))
	for _, k := range kindRules {
		kinds = append(kinds, k.Kind)
	}
	return kinds
}

// GuardKinds returns every kind of guard that Version answers.
func GuardKinds() []event.GuardKind {
	return []event.GuardKind{event.GuardRoom, event.GuardMember, event.GuardMessage, event.GuardCommand, event.GuardDirect}
}

// encode is the one JSON encoder of what subscribers and replays see.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("chat: encode %T: %v", v, err)) // our own types, validated content: a broken invariant
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}
