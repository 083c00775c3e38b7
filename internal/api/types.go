package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// The types below describe chat's own to readers of the API; they are never filled. A test holds their fields against chat's.

// Message describes chat.Message.
type Message struct {
	ID        string         `json:"id" doc:"Chosen by the sender, or made. Unique in the room."`
	Room      string         `json:"room"`
	Seq       uint64         `json:"seq" doc:"Of the event that made it; dense from 1 among all events of the room."`
	User      string         `json:"user" doc:"The author."`
	Text      string         `json:"text" doc:"Empty once deleted."`
	CreatedAt time.Time      `json:"created_at" doc:"RFC 3339, UTC, milliseconds."`
	Custom    map[string]any `json:"custom,omitempty" doc:"As the sender chose."`
	Mentions  []string       `json:"mentions,omitempty" nullable:"false"`
	EditedAt  *time.Time     `json:"edited_at,omitempty"`
	DeletedAt *time.Time     `json:"deleted_at,omitempty" doc:"Set on a tombstone: text, custom and mentions are gone."`
}

// Room describes chat.Room.
type Room struct {
	ID        string         `json:"id"`
	Kind      roomKind       `json:"kind"`
	Name      string         `json:"name"`
	CreatedAt time.Time      `json:"created_at"`
	CreatedBy string         `json:"created_by,omitempty" doc:"Absent: the app."`
	Members   []member       `json:"members,omitempty" nullable:"false" doc:"In the answer to a creation, and in room.created."`
	Custom    map[string]any `json:"custom,omitempty"`
	DeletedAt *time.Time     `json:"deleted_at,omitempty"`
	Head      uint64         `json:"head,omitempty" doc:"Seq of the room's last event; in reads."`
	Role      *role          `json:"role,omitempty" doc:"Of the asking user; absent if not a member. In reads."`
}

// Membership describes chat.Membership.
type Membership struct {
	Room string `json:"room"`
	User string `json:"user"`
	Role role   `json:"role,omitempty"`
}

// MemberInfo describes chat.MemberInfo.
type MemberInfo struct {
	User     string    `json:"user"`
	Role     role      `json:"role"`
	JoinedAt time.Time `json:"joined_at"`
}

// Event describes chat.Event.
type Event struct {
	Seq  uint64         `json:"seq" doc:"Dense from 1 in the room."`
	Type string         `json:"type" enum:"room.created,room.updated,room.deleted,member.added,member.updated,member.removed,message.new,message.updated,message.deleted"`
	At   time.Time      `json:"at"`
	Data map[string]any `json:"data" doc:"The room, membership or message."`
}

// SyncRoom describes chat.SyncRoom.
type SyncRoom struct {
	Events []chat.Event `json:"events" nullable:"false"`
	Head   uint64       `json:"head"`
	More   bool         `json:"more" doc:"Ask again with the last seq given."`
	Code   code         `json:"code,omitempty" doc:"Why there are no events: room_not_found or room_deleted."`
}

type member struct {
	User string `json:"user"`
	Role role   `json:"role"`
}

type roomKind string

// Schema implements huma.SchemaProvider.
func (roomKind) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Enum: []any{"open", "private", "direct"}}
}

type role string

// Schema implements huma.SchemaProvider.
func (role) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Enum: []any{"member", "moderator", "owner"}}
}

type code string

// Schema implements huma.SchemaProvider.
func (code) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "docs/ERRORS.md lists them."}
}

// newMember is a member to be: a user id, or an object with a role.
type newMember struct{ chat.Member }

// Schema implements huma.SchemaProvider.
func (newMember) Schema(r huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeString, Description: "A user id; the role is member."},
		{
			Type: huma.TypeObject, AdditionalProperties: false, Required: []string{"user"},
			Properties: map[string]*huma.Schema{"user": {Type: huma.TypeString}, "role": role("").Schema(r)},
		},
	}}
}

// UnmarshalJSON reads both forms; the schema was checked before.
func (m *newMember) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte{'"'}) {
		return json.Unmarshal(b, &m.User)
	}
	return json.Unmarshal(b, &m.Member)
}

// object is a JSON object taken as it is; null is kept apart from absence.
type object json.RawMessage

// Schema implements huma.SchemaProvider.
func (object) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, Nullable: true, AdditionalProperties: true, Description: "Any JSON object; null or {} for none."}
}

// UnmarshalJSON keeps the bytes.
func (o *object) UnmarshalJSON(b []byte) error {
	*o = append((*o)[:0], b...)
	return nil
}

// seqNumber is a seq in a body.
type seqNumber uint64

// Schema implements huma.SchemaProvider: huma's own for a map's values would refuse without a word.
func (seqNumber) Schema(r huma.Registry) *huma.Schema { return whole{}.Schema(r) }

// whole is a query parameter that may be absent, which is not the same as 0.
type whole struct {
	Value uint64
	Set   bool
}

// Schema implements huma.SchemaProvider.
func (whole) Schema(huma.Registry) *huma.Schema {
	zero := 0.0
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: &zero}
}

// Receiver implements huma.ParamWrapper.
func (w *whole) Receiver() reflect.Value { return reflect.ValueOf(w).Elem().Field(0) }

// OnParamSet implements huma.ParamReactor.
func (w *whole) OnParamSet(isSet bool, _ any) { w.Set = isSet }

// The parts of requests below are exported only because huma does not look into unexported ones.

// InRoom is the part of an address that names a room.
type InRoom struct {
	Room petrel.RoomID `path:"room" doc:"The room's id."`
}

// Resolve implements huma.Resolver: ids are checked before anything else happens.
func (p *InRoom) Resolve(huma.Context) []error {
	_, err := petrel.ParseRoomID(string(p.Room))
	return refusals(err)
}

// ForUser is the part of an address that names a user.
type ForUser struct {
	User petrel.UserID `path:"user" doc:"The user's id."`
}

// Resolve implements huma.Resolver.
func (p *ForUser) Resolve(huma.Context) []error {
	_, err := petrel.ParseUserID(string(p.User))
	return refusals(err)
}

// OfMessage is the part of an address that names a message.
type OfMessage struct {
	Message petrel.MessageID `path:"message" doc:"The message's id."`
}

// Resolve implements huma.Resolver.
func (p *OfMessage) Resolve(huma.Context) []error {
	_, err := petrel.ParseMessageID(string(p.Message))
	return refusals(err)
}

// Idempotent are the headers of commands.
type Idempotent struct {
	Positioned
	Key petrel.CommandID `header:"Idempotency-Key" doc:"Chosen by the client: a repeat with the same key does nothing and gives the first answer again."`
}

// Resolve implements huma.Resolver.
func (p *Idempotent) Resolve(huma.Context) []error {
	if p.Key == "" {
		return nil
	}
	_, err := petrel.ParseCommandID(string(p.Key))
	return refusals(err)
}

// Positioned is the header of reads, and of commands that rest on what another node answered.
type Positioned struct {
	Position string `header:"Petrel-Position" doc:"From an answer: the node waits until it has come as far, then reads, or decides."`
}

// Limited is the size of a page.
type Limited struct {
	Limit int `query:"limit" minimum:"1" maximum:"1000" doc:"Items per page."`
}

func refusals(err error) []error {
	if err == nil {
		return nil
	}
	return []error{gateway.NewProblem(err)}
}

// answer is every successful answer: a status, the position that it rests on, and a body.
type answer[B any] struct {
	Status   int
	Position string `header:"Petrel-Position" doc:"Opaque: send it with a read that must show this."`
	Body     B
}

// reading is the answer to a read.
type reading[B any] struct {
	Status   int
	Position string `header:"Petrel-Position" doc:"Opaque: send it with a read that must show this."`
	Stale    string `header:"Petrel-Stale" doc:"Absent while the node is in touch with the leader; else for how many seconds it has not been, so that newer things may exist elsewhere."`
	Body     B
}

// Names of the kinds and roles, as parsed from a body whose schema was checked.
func kindOf(k roomKind) event.RoomKind {
	var out event.RoomKind
	_ = out.UnmarshalText([]byte(k)) // 0 for an unknown one, which chat refuses
	return out
}

func roleOf(r role) event.Role {
	var out event.Role
	_ = out.UnmarshalText([]byte(r)) // 0 for none
	return out
}
