package chat

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// The commands. Each is decided in two steps: Decide loads the few rows it rests on, then a pure function of
// decide.go makes events, guards and the answer of them. The stamp's Command is the client's id for it; without
// one a repeat is not recognised (but one that changes nothing still succeeds).

// CreateRoom makes a room; its creator becomes the owner (in a direct room, one of two members). Answer: Room.
// The direct room of two people is found when it exists, whatever ID and Custom say.
type CreateRoom struct {
	ID      petrel.RoomID // empty: made
	Kind    event.RoomKind
	Name    string
	Members []Member // a role of 0 is member; the creator need not be named
	Custom  json.RawMessage
}

// UpdateRoom changes a room's settings. Answer: Room.
type UpdateRoom struct {
	Room   petrel.RoomID
	Name   *string         // nil: unchanged
	Custom json.RawMessage // nil: unchanged; null or {}: none
}

// DeleteRoom hides a room from everybody at once, for ever. Answer: Room, with DeletedAt.
type DeleteRoom struct{ Room petrel.RoomID }

// PutMember adds a user (oneself: joins) or changes a member's role. Answer: Membership.
type PutMember struct {
	Room petrel.RoomID
	User petrel.UserID
	Role event.Role // 0: member for a new one, unchanged for one who is there
}

// RemoveMember removes a user (oneself: leaves). When the last owner goes and others stay, the moderator who
// has been there longest becomes owner, without moderators the member who has. Answer: Membership (the role held).
type RemoveMember struct {
	Room petrel.RoomID
	User petrel.UserID
}

// PostMessage posts in the name of the acting user. The message's id is the command's; without one it is made.
// In an open room it joins who is not in it. Answer: Message.
type PostMessage struct {
	Room     petrel.RoomID
	Text     string
	Custom   json.RawMessage
	Mentions []petrel.UserID
}

// EditMessage replaces the fields given. Answer: Message.
type EditMessage struct {
	Room     petrel.RoomID
	ID       petrel.MessageID
	Text     *string         // nil: unchanged
	Custom   json.RawMessage // nil: unchanged; null or {}: none
	Mentions []petrel.UserID // nil: unchanged; empty: none
}

// DeleteMessage leaves a tombstone. Deleting it again is no error. Answer: Message, with DeletedAt.
type DeleteMessage struct {
	Room petrel.RoomID
	ID   petrel.MessageID
}

// Kinds of command: the scope of a command id. They are in guards in the log: never rename one.
const (
	cmdCreateRoom    = "chat.create_room"
	cmdUpdateRoom    = "chat.update_room"
	cmdDeleteRoom    = "chat.delete_room"
	cmdPutMember     = "chat.put_member"
	cmdRemoveMember  = "chat.remove_member"
	cmdPostMessage   = "chat.post_message"
	cmdEditMessage   = "chat.edit_message"
	cmdDeleteMessage = "chat.delete_message"
)

// CommandKind names the kind of command: the scope of its id, and a label of metrics.
func (CreateRoom) CommandKind() string { return cmdCreateRoom }

// CommandKind is as in CreateRoom.
func (UpdateRoom) CommandKind() string { return cmdUpdateRoom }

// CommandKind is as in CreateRoom.
func (DeleteRoom) CommandKind() string { return cmdDeleteRoom }

// CommandKind is as in CreateRoom.
func (PutMember) CommandKind() string { return cmdPutMember }

// CommandKind is as in CreateRoom.
func (RemoveMember) CommandKind() string { return cmdRemoveMember }

// CommandKind is as in CreateRoom.
func (PostMessage) CommandKind() string { return cmdPostMessage }

// CommandKind is as in CreateRoom.
func (EditMessage) CommandKind() string { return cmdEditMessage }

// CommandKind is as in CreateRoom.
func (DeleteMessage) CommandKind() string { return cmdDeleteMessage }

// Decide makes the room, finds it, or refuses.
func (c CreateRoom) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	var err error
	if err = checkActor(s.Actor); err != nil {
		return event.Decision{}, err
	}
	if c.Kind < event.RoomOpen || c.Kind > event.RoomDirect {
		return event.Decision{}, petrel.Errorf(petrel.CodeInvalidField, "The kind of the room is one of open, private, direct.")
	}
	if err = checkName(c.Name); err != nil {
		return event.Decision{}, err
	}
	if c.Custom, err = canonical(c.Custom); err != nil {
		return event.Decision{}, err
	}
	sent := c // the fingerprint is of what was sent, not of what was made of it
	if c.Members, err = membersOf(c, s.Actor); err != nil {
		return event.Decision{}, err
	}
	if c.ID == "" {
		c.ID = petrel.RoomID(petrel.NewName())
	}
	st, err := loadCreation(r, s, c)
	if err != nil {
		return event.Decision{}, err
	}
	return decideCreateRoom(st, c, s, sent.print())
}

func (c CreateRoom) print() uint64 {
	p := newPrint(cmdCreateRoom, string(c.ID)).add(c.Kind.String()).add(c.Name).add(string(c.Custom))
	for _, m := range c.Members {
		p = p.add(string(m.User)).add(m.Role.String())
	}
	return p.sum()
}

// Decide changes the room or refuses.
func (c UpdateRoom) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	p := newPrint(cmdUpdateRoom, string(c.Room)).maybe(c.Name).given(c.Custom != nil)
	if c.Name != nil {
		if err := checkName(*c.Name); err != nil {
			return event.Decision{}, err
		}
	}
	given := c.Custom != nil
	custom, err := canonical(c.Custom)
	if err != nil {
		return event.Decision{}, err
	}
	st, err := loadScene(r, s, c.Room, cmdUpdateRoom)
	if err != nil {
		return event.Decision{}, err
	}
	return decideUpdateRoom(st, c, custom, given, s, p.add(string(custom)).sum())
}

// Decide deletes the room or refuses.
func (c DeleteRoom) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	st, err := loadScene(r, s, c.Room, cmdDeleteRoom)
	if err != nil {
		return event.Decision{}, err
	}
	return decideDeleteRoom(st, s, newPrint(cmdDeleteRoom, string(c.Room)).sum())
}

// Decide adds the user, changes the role, or refuses.
func (c PutMember) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if c.Role > event.RoleOwner {
		return event.Decision{}, petrel.Errorf(petrel.CodeInvalidField, "The role is one of member, moderator, owner.")
	}
	st, err := loadScene(r, s, c.Room, cmdPutMember)
	if err != nil {
		return event.Decision{}, err
	}
	target, err := loadMember(r, s.App, st.room.key, c.User)
	if err != nil {
		return event.Decision{}, err
	}
	others, err := loadOtherOwner(r, st.room.key, target.key)
	if err != nil {
		return event.Decision{}, err
	}
	return decidePutMember(st, target, others, c, s, newPrint(cmdPutMember, string(c.Room)).add(string(c.User)).add(c.Role.String()).sum())
}

// Decide removes the member or refuses.
func (c RemoveMember) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	st, err := loadScene(r, s, c.Room, cmdRemoveMember)
	if err != nil {
		return event.Decision{}, err
	}
	target, err := loadMember(r, s.App, st.room.key, c.User)
	if err != nil {
		return event.Decision{}, err
	}
	var otherOwner, heir memberRow
	if target.role == event.RoleOwner {
		if otherOwner, err = loadOtherOwner(r, st.room.key, target.key); err != nil {
			return event.Decision{}, err
		}
		if otherOwner.version == 0 {
			if heir, err = loadHeir(r, st.room.key); err != nil {
				return event.Decision{}, err
			}
		}
	}
	return decideRemoveMember(st, target, otherOwner, heir, c, s, newPrint(cmdRemoveMember, string(c.Room)).add(string(c.User)).sum())
}

// Decide posts the message, recognises a repeat, or refuses.
func (c PostMessage) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkActor(s.Actor); err != nil {
		return event.Decision{}, err
	}
	if s.Actor.Kind != petrel.ActorUser {
		return event.Decision{}, petrel.Errorf(petrel.CodeInvalidField, "A message needs an author. Send the header Petrel-User with the id of the user who posts.")
	}
	if err := checkText(c.Text); err != nil {
		return event.Decision{}, err
	}
	var err error
	if c.Custom, err = canonical(c.Custom); err != nil {
		return event.Decision{}, err
	}
	if c.Mentions, err = checkMentions(c.Mentions); err != nil {
		return event.Decision{}, err
	}
	if s.Command == "" {
		s.Command = petrel.CommandID(petrel.NewName())
	}
	st, taken, err := loadPost(r, s, c.Room)
	if err != nil {
		return event.Decision{}, err
	}
	return decidePost(st, taken, c, s, c.print())
}

func (c PostMessage) print() uint64 {
	p := newPrint(cmdPostMessage, string(c.Room)).add(c.Text).add(string(c.Custom))
	for _, u := range c.Mentions {
		p = p.add(string(u))
	}
	return p.sum()
}

// Decide edits the message or refuses.
func (c EditMessage) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if c.Text != nil {
		if err := checkText(*c.Text); err != nil {
			return event.Decision{}, err
		}
	}
	custom, err := canonical(c.Custom)
	if err != nil {
		return event.Decision{}, err
	}
	mentions, err := checkMentions(c.Mentions)
	if err != nil {
		return event.Decision{}, err
	}
	p := newPrint(cmdEditMessage, string(c.Room)).add(string(c.ID)).maybe(c.Text).
		given(c.Custom != nil).add(string(custom)).given(c.Mentions != nil)
	for _, u := range mentions {
		p = p.add(string(u))
	}
	st, err := loadScene(r, s, c.Room, cmdEditMessage)
	if err != nil {
		return event.Decision{}, err
	}
	m, err := loadMessage(r, st.room, c.ID)
	if err != nil {
		return event.Decision{}, err
	}
	after := m.Message
	if c.Text != nil {
		after.Text = *c.Text
	}
	if c.Custom != nil {
		after.Custom = custom
	}
	if c.Mentions != nil {
		after.Mentions = mentions
	}
	return decideEdit(st, m, after, s, p.sum())
}

// Decide deletes the message or refuses.
func (c DeleteMessage) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	st, err := loadScene(r, s, c.Room, cmdDeleteMessage)
	if err != nil {
		return event.Decision{}, err
	}
	m, err := loadMessage(r, st.room, c.ID)
	if err != nil {
		return event.Decision{}, err
	}
	return decideDeleteMessage(st, m, s, newPrint(cmdDeleteMessage, string(c.Room)).add(string(c.ID)).sum())
}

// membersOf returns the members a room begins with, its creator first.
func membersOf(c CreateRoom, a petrel.Actor) ([]Member, error) {
	var all []Member
	if a.Kind == petrel.ActorUser {
		role := event.RoleOwner
		if c.Kind == event.RoomDirect {
			role = event.RoleMember
		}
		all = append(all, Member{a.User, role})
	}
	if len(c.Members) > MaxCreateMembers {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "A room may be created with at most %d members; add the others afterwards.", MaxCreateMembers)
	}
	for _, m := range c.Members {
		if m.Role > event.RoleOwner {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "The role is one of member, moderator, owner.")
		}
		if m.Role == 0 {
			m.Role = event.RoleMember
		}
		if a.Kind == petrel.ActorUser && m.User == a.User {
			continue // named oneself: the creator's role stands
		}
		if slices.ContainsFunc(all, func(x Member) bool { return x.User == m.User }) {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "The members name one user twice.")
		}
		all = append(all, m)
	}
	if c.Kind != event.RoomDirect {
		return all, nil
	}
	if c.Name != "" {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "A direct room has no name; show the other person's.")
	}
	if len(all) != 2 {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "A direct room is of exactly two people.")
	}
	for i := range all {
		if all[i].Role != event.RoleMember {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "In a direct room both are members.")
		}
	}
	return all, nil
}

// checkActor refuses who has no standing in any room.
func checkActor(a petrel.Actor) error {
	if a.Kind == petrel.ActorApp || a.Kind == petrel.ActorUser && a.User != "" {
		return nil
	}
	return petrel.Errorf(petrel.CodeForbidden, "Only users of an app and the app itself act in rooms.")
}

// fingerprint tells a repeat from a reused id: the first 8 bytes of a SHA-256 over the fields as they were
// sent, each with its length. A user who makes two of them collide deceives only themselves.
type fingerprint []byte

func newPrint(kind, room string) fingerprint { return fingerprint(nil).add(kind).add(room) }

func (p fingerprint) add(field string) fingerprint {
	return append(binary.AppendUvarint(p, uint64(len(field))), field...)
}

func (p fingerprint) given(v bool) fingerprint {
	if v {
		return append(p, 1)
	}
	return append(p, 0)
}

func (p fingerprint) maybe(field *string) fingerprint {
	if field == nil {
		return p.given(false)
	}
	return p.given(true).add(*field)
}

func (p fingerprint) sum() uint64 {
	h := sha256.Sum256(p)
	return binary.BigEndian.Uint64(h[:8])
}
