// Package petrel holds the nouns that every other package speaks in: typed ids,
// positions, actors, publications and error codes. It has no behaviour beyond
// validation and imports nothing of ours.
//
// # Invariants
//
//   - A typed id that came from a Parse function satisfies its alphabet and length;
//     code below the edge never validates an id again.
//   - The list of error codes only grows: clients keep them.
//   - A Position is opaque to clients and comparable only within one (shard, epoch).
package petrel

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/google/uuid"
)

// Limits of ids, in bytes (design: "ids").
const (
	MaxNameLen = 64  // rooms, messages, apps, command ids
	MaxUserLen = 128 // users
)

// AppID names a tenant. Numeric by default, because some server SDKs of the Pusher
// family accept nothing else; any id of the common alphabet is valid.
type AppID string

// UserID names a user within an app: 1–128 of A–Z a–z 0–9 _ - . : @ =, but no id is "." or "..".
type UserID string

// RoomID names a room within an app: 1–64 of the same alphabet.
type RoomID string

// MessageID names a message within a room: 1–64 of the same alphabet.
type MessageID string

// CommandID is chosen by the client so that a retry is recognised, scoped to
// (app, actor, kind of command): 1–64 of the same alphabet. The id of a message is
// the command id of the post that made it.
type CommandID string

// HookID names a webhook of an app: 1–64 of the same alphabet.
type HookID string

// ScheduleName names a schedule of an app: 1–64 of the same alphabet.
type ScheduleName string

// RequestID follows one request from ingress to delivery through logs and entries.
type RequestID string

// NodeID names one process of a cell.
type NodeID string

// ConnID names one connection on one node for the life of the connection.
type ConnID string

// Epoch names one life of a shard's log. Positions of different epochs do not compare.
type Epoch string

// ShardID numbers a raft group and its projection.
type ShardID uint32

// EntryID identifies an entry of the log whatever node proposed it (UUIDv7).
type EntryID [16]byte

func (id EntryID) String() string { return uuid.UUID(id).String() }

// NewEntryID returns a fresh id. It draws on the clock and on randomness: never call it in a fold.
func NewEntryID() EntryID { return EntryID(uuid.Must(uuid.NewV7())) }

// NewName returns a fresh id for a room, message or command (UUIDv7, sortable by time).
func NewName() string { return uuid.Must(uuid.NewV7()).String() }

// NewEpoch returns a fresh random epoch.
func NewEpoch() Epoch {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24)
	return Epoch(hex.EncodeToString(b[:]))
}

// ParseRoomID, like its siblings, returns a *Error with CodeInvalidID when s is too long, not in the alphabet, or "." or "..".
func ParseRoomID(s string) (RoomID, error) { return parse[RoomID]("room id", s, MaxNameLen) }

// ParseMessageID validates a message id.
func ParseMessageID(s string) (MessageID, error) {
	return parse[MessageID]("message id", s, MaxNameLen)
}

// ParseCommandID validates a command id.
func ParseCommandID(s string) (CommandID, error) {
	return parse[CommandID]("command id", s, MaxNameLen)
}

// ParseUserID validates a user id.
func ParseUserID(s string) (UserID, error) { return parse[UserID]("user id", s, MaxUserLen) }

// ParseAppID validates an app id.
func ParseAppID(s string) (AppID, error) { return parse[AppID]("app id", s, MaxNameLen) }

// ParseHookID validates the id of a webhook.
func ParseHookID(s string) (HookID, error) { return parse[HookID]("hook id", s, MaxNameLen) }

// ParseScheduleName validates the name of a schedule.
func ParseScheduleName(s string) (ScheduleName, error) {
	return parse[ScheduleName]("name of the schedule", s, MaxNameLen)
}

func parse[T ~string](what, s string, max int) (T, error) {
	if s == "" {
		return "", Errorf(CodeInvalidID, "The %s is empty. Use 1 to %d characters of A–Z a–z 0–9 _ - . : @ =.", what, max)
	}
	if len(s) > max {
		return "", Errorf(CodeInvalidID, "The %s is %d bytes long; at most %d are allowed.", what, len(s), max)
	}
	if s == "." || s == ".." { // clients, proxies and servers take them out of addresses: nobody could ask for it again
		return "", Errorf(CodeInvalidID, "The %s is %q, which cannot stand in an address. Choose another.", what, s)
	}
	for i := 0; i < len(s); i++ {
		if !inAlphabet(s[i]) {
			return "", Errorf(CodeInvalidID, "The %s has a character outside A–Z a–z 0–9 _ - . : @ = at byte %d.", what, i)
		}
	}
	return T(s), nil
}

func inAlphabet(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '_', '-', '.', ':', '@', '=':
		return true
	}
	return false
}

// ActorKind says on whose authority a command runs.
type ActorKind uint8

// The kinds of actor. Their numbers are written into the log: never renumber.
const (
	ActorUser     ActorKind = 1 // a user, by token or by a server call with Petrel-User: the user's own rights
	ActorApp      ActorKind = 2 // the app's backend, by key and secret: every right within the app
	ActorOperator ActorKind = 3 // who runs this installation, through the admin listener or the command line
	ActorSystem   ActorKind = 4 // Petrel itself: schedules, workers
)

func (k ActorKind) String() string {
	switch k {
	case ActorUser:
		return "user"
	case ActorApp:
		return "app"
	case ActorOperator:
		return "operator"
	case ActorSystem:
		return "system"
	}
	return fmt.Sprintf("actor(%d)", uint8(k))
}

// Actor is who asks, always in the context of one app (except operators and the system, whose App may be empty).
type Actor struct {
	Kind ActorKind
	App  AppID
	User UserID // set for ActorUser only
}
