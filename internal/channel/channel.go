// Package channel holds the rules of Pusher's channels: what a name says of its channel, what may be in it,
// who may speak on it, what a member is, and the last publication that a cache channel keeps.
// Everything about them is ephemeral; nothing here is written to the log except what webhooks were told (command.go, fold.go):
// whoever owns a channel compares that with what is so, and writes down the difference, in the entry of the webhooks that tell it.
//
// # Invariants
//
//   - A Form comes from Parse alone: below it, no name is looked at again.
//   - What Parse and ParseMember refuse has a code and a sentence; they never panic, whatever they are given.
//   - A Cache never holds more bytes than it was given, and gives out nothing that is older than its app allows, or that a client sent.
//   - What was told of a channel is one row and its members; who changes it guards it. Every change of it is told once, and a
//     channel is vacated only after its last member was told to have left.
//
// A caller may rely on names and members being compared byte by byte: nothing is normalised.
package channel

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits that are Pusher's. Those that an app may set otherwise are the defaults of its settings.
const (
	MaxName   = 200 // bytes of a channel's name
	MaxEvent  = 200 // characters of an event's name
	MaxUserID = 128 // characters of a member's or user's id

	DefaultMaxMembers = 100              // users on a presence channel
	DefaultMaxInfo    = 1 << 10          // bytes of user_info
	DefaultCacheTTL   = 30 * time.Minute // how long a cache channel keeps its last publication; also the most
)

// Kind is what a channel asks of who subscribes.
type Kind uint8

// Kinds of channel.
const (
	Public       Kind = iota // anybody may subscribe
	Private                  // with a signature of the app
	Presence                 // with a signature over who it is; everybody sees who is there
	Encrypted                // private, and what is published is unreadable to the server
	ServerToUser             // what the app sends to a signed-in user; only their own connections may subscribe
)

func (k Kind) String() string {
	if k > ServerToUser {
		return "unknown"
	}
	return [...]string{"public", "private", "presence", "private-encrypted", "server-to-user"}[k]
}

// Prefixes of names.
const (
	PrefixPrivate      = "private-"
	PrefixPresence     = "presence-"
	PrefixEncrypted    = "private-encrypted-"
	PrefixServerToUser = "#server-to-user-"
	prefixCache        = "cache-"
)

// Form is what a name says of its channel.
type Form struct {
	Kind  Kind
	Cache bool          // the last publication is kept for who comes later
	User  petrel.UserID // of ServerToUser only: whose it is
}

// Parse reads a channel's name. It returns CodeInvalidID for one that no channel can have.
func Parse(name string) (Form, error) {
	if user, ok := strings.CutPrefix(name, PrefixServerToUser); ok {
		id, err := ParseUser(user)
		return Form{Kind: ServerToUser, User: id}, err
	}
	if name == "" {
		return Form{}, petrel.Errorf(petrel.CodeInvalidID, "The channel name is empty.")
	}
	if len(name) > MaxName {
		return Form{}, petrel.Errorf(petrel.CodeInvalidID, "The channel name is %d bytes long; at most %d are allowed.", len(name), MaxName)
	}
	for i := range len(name) {
		if !inName(name[i]) {
			return Form{}, petrel.Errorf(petrel.CodeInvalidID, "The channel name has a character outside A–Z a–z 0–9 _ - = @ , . ; at byte %d.", i)
		}
	}
	return formOf(name), nil
}

// formOf reads the prefixes of a name that is a valid one.
func formOf(name string) Form {
	f := Form{}
	switch {
	case strings.HasPrefix(name, PrefixEncrypted):
		f.Kind, name = Encrypted, name[len(PrefixEncrypted):]
	case strings.HasPrefix(name, PrefixPrivate):
		f.Kind, name = Private, name[len(PrefixPrivate):]
	case strings.HasPrefix(name, PrefixPresence):
		f.Kind, name = Presence, name[len(PrefixPresence):]
	}
	f.Cache = strings.HasPrefix(name, prefixCache)
	return f
}

// Authorised says whether a subscription needs a signature of the app.
func (f Form) Authorised() bool {
	return f.Kind == Private || f.Kind == Presence || f.Kind == Encrypted
}

// ClientEvents says whether subscribers may publish, where the app allows it at all.
func (f Form) ClientEvents() bool { return f.Kind == Private || f.Kind == Presence }

// Counted says whether the number of subscriptions is told to subscribers, where the app wants it: on presence channels the members are.
func (f Form) Counted() bool { return f.Kind != Presence && f.Kind != ServerToUser }

func inName(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("-_=@,.;", c) >= 0
}

// ParseUser reads the id of a member, or of a user who signs in: up to MaxUserID characters of UTF-8 without control characters.
// Such an id need not be one that chat's users may have.
func ParseUser(s string) (petrel.UserID, error) {
	switch {
	case s == "":
		return "", petrel.Errorf(petrel.CodeInvalidID, "The user id is empty.")
	case !utf8.ValidString(s):
		return "", petrel.Errorf(petrel.CodeInvalidID, "The user id is not UTF-8.")
	case utf8.RuneCountInString(s) > MaxUserID:
		return "", petrel.Errorf(petrel.CodeInvalidID, "The user id has %d characters; at most %d are allowed.", utf8.RuneCountInString(s), MaxUserID)
	}
	for i, c := range s {
		if c < ' ' || c == 0x7f {
			return "", petrel.Errorf(petrel.CodeInvalidID, "The user id has a control character at byte %d.", i)
		}
	}
	return petrel.UserID(s), nil
}
