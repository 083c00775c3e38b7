package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Kinds of chat events.
const (
	KindRoomCreated    Kind = 30
	KindRoomUpdated    Kind = 31
	KindRoomDeleted    Kind = 32
	KindMemberAdded    Kind = 33
	KindMemberUpdated  Kind = 34
	KindMemberRemoved  Kind = 35
	KindMessagePosted  Kind = 36
	KindMessageEdited  Kind = 37
	KindMessageDeleted Kind = 38
)

// Guards of chat.
const (
	GuardRoom    GuardKind = 20 // key: room. Its settings and existence; posts do not change it
	GuardMember  GuardKind = 21 // key: room, user. 0 as well when the room is deleted: a member's post needs no GuardRoom
	GuardMessage GuardKind = 22 // key: room, message
	GuardCommand GuardKind = 23 // key: command id, kind of command; scoped to the entry's app and actor. Absent means not yet made
	GuardDirect  GuardKind = 24 // key: the two users in order: the direct room of two people
)

// RoomKind is open, private or direct. Numbers are written into the log.
type RoomKind uint8

// Kinds of room.
const (
	RoomOpen    RoomKind = 1 // any user of the app may read, post and join; posting joins
	RoomPrivate RoomKind = 2 // members only
	RoomDirect  RoomKind = 3 // exactly two people, for ever
)

// Role of a member in a room. Numbers are written into the log.
type Role uint8

// Roles, weakest first.
const (
	RoleMember    Role = 1
	RoleModerator Role = 2
	RoleOwner     Role = 3
)

// Member is a user and a role within RoomCreated.
type Member struct {
	User petrel.UserID `cbor:"1,keyasint"`
	Role Role          `cbor:"2,keyasint"`
}

// RoomCreated is seq 1 of every room. Its members take no seq of their own.
type RoomCreated struct {
	Room    petrel.RoomID `cbor:"1,keyasint"`
	Kind    RoomKind      `cbor:"2,keyasint"`
	Name    string        `cbor:"3,keyasint,omitempty"`
	Members []Member      `cbor:"4,keyasint,omitempty"`
	Custom  []byte        `cbor:"5,keyasint,omitempty"` // JSON object
}

// RoomUpdated changes a room's settings; it holds all of them as they are afterwards, and what else a
// publication of it shows, so that none needs the projection.
type RoomUpdated struct {
	Room      petrel.RoomID `cbor:"1,keyasint"`
	Name      string        `cbor:"2,keyasint,omitempty"`
	Custom    []byte        `cbor:"3,keyasint,omitempty"`
	Kind      RoomKind      `cbor:"4,keyasint,omitempty"`
	CreatedAt int64         `cbor:"5,keyasint,omitempty"` // Unix milliseconds
	CreatedBy petrel.UserID `cbor:"6,keyasint,omitempty"` // empty: the app
}

// RoomDeleted hides a room for ever; its id stays taken.
type RoomDeleted struct {
	Room      petrel.RoomID `cbor:"1,keyasint"`
	Kind      RoomKind      `cbor:"2,keyasint,omitempty"`
	Name      string        `cbor:"3,keyasint,omitempty"`
	CreatedAt int64         `cbor:"4,keyasint,omitempty"` // Unix milliseconds
	CreatedBy petrel.UserID `cbor:"5,keyasint,omitempty"` // empty: the app
}

// MemberAdded says that a user joined or was added.
type MemberAdded struct {
	Room petrel.RoomID `cbor:"1,keyasint"`
	User petrel.UserID `cbor:"2,keyasint"`
	Role Role          `cbor:"3,keyasint"`
	// Implied: another event of the entry is what the command asked for (a first post that joins), and
	// that one keeps the command id.
	Implied bool `cbor:"4,keyasint,omitempty"`
}

// MemberUpdated changes a member's role.
type MemberUpdated struct {
	Room    petrel.RoomID `cbor:"1,keyasint"`
	User    petrel.UserID `cbor:"2,keyasint"`
	Role    Role          `cbor:"3,keyasint"`
	Implied bool          `cbor:"4,keyasint,omitempty"` // as in MemberAdded: the last owner left and this one follows
}

// MemberRemoved says that a user left or was removed.
type MemberRemoved struct {
	Room petrel.RoomID `cbor:"1,keyasint"`
	User petrel.UserID `cbor:"2,keyasint"`
	Role Role          `cbor:"3,keyasint,omitempty"` // held until now
	Kind RoomKind      `cbor:"4,keyasint,omitempty"` // of the room: leaving a private one ends the right to read it
}

// MessagePosted is a new message. Its author is User, who is the actor. Its ID is the command id of the post.
type MessagePosted struct {
	Room     petrel.RoomID    `cbor:"1,keyasint"`
	ID       petrel.MessageID `cbor:"2,keyasint"`
	User     petrel.UserID    `cbor:"3,keyasint"`
	Text     string           `cbor:"4,keyasint,omitempty"`
	Custom   []byte           `cbor:"5,keyasint,omitempty"` // JSON object
	Mentions []petrel.UserID  `cbor:"6,keyasint,omitempty"`
}

// MessageEdited holds the whole new content, and what stays of the message.
type MessageEdited struct {
	Room      petrel.RoomID    `cbor:"1,keyasint"`
	ID        petrel.MessageID `cbor:"2,keyasint"`
	Text      string           `cbor:"3,keyasint,omitempty"`
	Custom    []byte           `cbor:"4,keyasint,omitempty"`
	Mentions  []petrel.UserID  `cbor:"5,keyasint,omitempty"`
	Seq       uint64           `cbor:"6,keyasint,omitempty"` // of the message
	User      petrel.UserID    `cbor:"7,keyasint,omitempty"` // its author
	CreatedAt int64            `cbor:"8,keyasint,omitempty"` // Unix milliseconds
}

// MessageDeleted leaves a tombstone: the content goes from the projection, the id and seq stay.
type MessageDeleted struct {
	Room      petrel.RoomID    `cbor:"1,keyasint"`
	ID        petrel.MessageID `cbor:"2,keyasint"`
	Seq       uint64           `cbor:"3,keyasint,omitempty"` // of the message
	User      petrel.UserID    `cbor:"4,keyasint,omitempty"` // its author
	CreatedAt int64            `cbor:"5,keyasint,omitempty"` // Unix milliseconds
	EditedAt  int64            `cbor:"6,keyasint,omitempty"` // Unix milliseconds; 0: never
}

// EventKind implements Event.
func (RoomCreated) EventKind() Kind { return KindRoomCreated }

// EventKind implements Event.
func (RoomUpdated) EventKind() Kind { return KindRoomUpdated }

// EventKind implements Event.
func (RoomDeleted) EventKind() Kind { return KindRoomDeleted }

// EventKind implements Event.
func (MemberAdded) EventKind() Kind { return KindMemberAdded }

// EventKind implements Event.
func (MemberUpdated) EventKind() Kind { return KindMemberUpdated }

// EventKind implements Event.
func (MemberRemoved) EventKind() Kind { return KindMemberRemoved }

// EventKind implements Event.
func (MessagePosted) EventKind() Kind { return KindMessagePosted }

// EventKind implements Event.
func (MessageEdited) EventKind() Kind { return KindMessageEdited }

// EventKind implements Event.
func (MessageDeleted) EventKind() Kind { return KindMessageDeleted }

func (k RoomKind) String() string { return name("kind", roomKinds, uint8(k)) }

// MarshalText implements encoding.TextMarshaler: "open", "private", "direct".
func (k RoomKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote; anything else is a petrel.Error with CodeInvalidField.
func (k *RoomKind) UnmarshalText(b []byte) error {
	n, err := number("kind of a room", roomKinds, string(b))
	*k = RoomKind(n)
	return err
}

func (r Role) String() string { return name("role", roles, uint8(r)) }

// MarshalText implements encoding.TextMarshaler: "member", "moderator", "owner".
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote; anything else is a petrel.Error with CodeInvalidField.
func (r *Role) UnmarshalText(b []byte) error {
	n, err := number("role", roles, string(b))
	*r = Role(n)
	return err
}

// The names by number; never written after initialisation. 0 has none.
var (
	roomKinds = []string{RoomOpen: "open", RoomPrivate: "private", RoomDirect: "direct"}
	roles     = []string{RoleMember: "member", RoleModerator: "moderator", RoleOwner: "owner"}
)

func name(what string, names []string, n uint8) string {
	if n == 0 || int(n) >= len(names) {
		return fmt.Sprintf("%s(%d)", what, n)
	}
	return names[n]
}

func number(what string, names []string, s string) (int, error) {
	if i := slices.Index(names, s); i > 0 {
		return i, nil
	}
	return 0, petrel.Errorf(petrel.CodeInvalidField, "The %s is one of %s.", what, strings.Join(names[1:], ", "))
}
