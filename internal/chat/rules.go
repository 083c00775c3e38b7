package chat

import (
	"fmt"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// kindRule says of one kind of event whether it takes a seq, and what its publication is called.
type kindRule struct {
	Kind event.Kind
	Type string
	Seq  bool
	What string
}

// kindRules is the first table of docs/CHAT.md. It is never written after initialisation.
var kindRules = []kindRule{
	{event.KindRoomCreated, "room.created", true, "a room, with its first members; always seq 1"},
	{event.KindRoomUpdated, "room.updated", true, "its name or custom field changed"},
	{event.KindRoomDeleted, "room.deleted", true, "the room is gone; always the last"},
	{event.KindMemberAdded, "member.added", true, "a user joined or was added"},
	{event.KindMemberUpdated, "member.updated", true, "a member has another role"},
	{event.KindMemberRemoved, "member.removed", true, "a member left or was removed"},
	{event.KindMessagePosted, "message.new", true, "a message, as it was posted"},
	{event.KindMessageEdited, "message.updated", true, "the message with its new content"},
	{event.KindMessageDeleted, "message.deleted", true, "the message's tombstone"},
}

func typeOf(k event.Kind) string {
	for i := range kindRules {
		if kindRules[i].Kind == k {
			return kindRules[i].Type
		}
	}
	return ""
}

// standing is what an actor is to a room. Its bits make the sets of the second table.
type standing uint8

const (
	stranger  standing = 1 << iota // a user of the app who is not in the room
	member                         // in the room, by role
	moderator                      //
	owner                          //
	backend                        // the app's own server, without Petrel-User

	everyone  = stranger | staffed
	staffed   = member | moderator | owner | backend
	inside    = member | moderator | owner
	keepers   = moderator | owner | backend
	governors = owner | backend
)

// standings is the order of the columns.
var standings = []struct {
	bit  standing
	name string
}{{stranger, "not a member"}, {member, "member"}, {moderator, "moderator"}, {owner, "owner"}, {backend, "app"}}

func standingOf(role event.Role) standing {
	switch role {
	case event.RoleMember:
		return member
	case event.RoleModerator:
		return moderator
	case event.RoleOwner:
		return owner
	}
	return stranger
}

// action is one thing that one may do in a room.
type action string

const (
	actRead        action = "read it, its members and its history"
	actPost        action = "post"
	actEditOwn     action = "edit an own message"
	actEditOther   action = "edit another's message"
	actDeleteOwn   action = "delete an own message"
	actDeleteOther action = "delete another's message"
	actUpdate      action = "change name and custom field"
	actDeleteRoom  action = "delete the room"
	actJoin        action = "join"
	actAdd         action = "add a member"
	actRemove      action = "remove a member"
	actLeave       action = "leave"
	actRole        action = "give and take roles"
)

// right is one line of the second table: who may do it, by kind of room.
type right struct {
	Action                action
	Open, Private, Direct standing
}

// rights is the second table of docs/CHAT.md. Posting in the name of nobody is not possible, hence no app there;
// a stranger's post in an open room joins. It is never written after initialisation.
var rights = []right{
	{actRead, everyone, staffed, staffed},
	{actPost, stranger | inside, inside, inside},
	{actEditOwn, inside, inside, inside},
	{actEditOther, backend, backend, backend},
	{actDeleteOwn, inside, inside, inside},
	{actDeleteOther, keepers, keepers, backend},
	{actUpdate, keepers, keepers, backend},
	{actDeleteRoom, governors, governors, backend},
	{actJoin, stranger, 0, 0},
	{actAdd, keepers, keepers, 0},
	{actRemove, keepers, keepers, 0},
	{actLeave, inside, inside, 0},
	{actRole, governors, governors, 0},
}

// may answers from the table.
func may(kind event.RoomKind, who standing, act action) bool {
	i := slices.IndexFunc(rights, func(r right) bool { return r.Action == act })
	if i < 0 {
		return false
	}
	switch kind {
	case event.RoomOpen:
		return rights[i].Open&who != 0
	case event.RoomPrivate:
		return rights[i].Private&who != 0
	case event.RoomDirect:
		return rights[i].Direct&who != 0
	}
	return false
}

// forbidden is the refusal for who may read the room but not do this.
func forbidden(kind event.RoomKind, act action) error {
	if !may(kind, everyone, act) {
		return petrel.Errorf(petrel.CodeForbidden, "In a %s room nobody may %s.", kind, act)
	}
	return petrel.Errorf(petrel.CodeForbidden, "In this %s room you may not %s.", kind, act)
}

// Tables renders the tables of this package as Markdown, by the name of their place in docs/CHAT.md.
func Tables() map[string]string {
	var kinds, limits, b strings.Builder
	kinds.WriteString("| type | takes a `seq` | what happened |\n|---|---|---|\n")
	for _, k := range kindRules {
		fmt.Fprintf(&kinds, "| `%s` | %s | %s |\n", k.Type, yes(k.Seq), k.What)
	}
	limits.WriteString("| field | limit | refused with |\n|---|---|---|\n")
	for _, l := range limitRows() {
		fmt.Fprintf(&limits, "| %s | %s | %s |\n", l.Field, strings.TrimSpace(l.Limit), l.Refusal)
	}
	for _, kind := range []event.RoomKind{event.RoomOpen, event.RoomPrivate, event.RoomDirect} {
		fmt.Fprintf(&b, "**%s room**\n\n| may |", strings.ToUpper(kind.String()[:1])+kind.String()[1:])
		for _, s := range standings {
			fmt.Fprintf(&b, " %s |", s.name)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(standings)) + "\n")
		for _, r := range rights {
			fmt.Fprintf(&b, "| %s |", r.Action)
			for _, s := range standings {
				fmt.Fprintf(&b, " %s |", yes(may(kind, s.bit, r.Action)))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	return map[string]string{"events": kinds.String(), "rights": strings.TrimSpace(b.String()) + "\n", "limits": limits.String()}
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "–"
}
