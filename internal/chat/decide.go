package chat

import (
	"bytes"
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// What a command is decided on. A version of 0 means that the row is absent.
type (
	roomRow struct {
		key       int64
		id        petrel.RoomID
		kind      event.RoomKind
		createdAt int64
		version   uint64
		deletedAt int64
		// settings: loaded where they matter
		name      string
		custom    []byte
		createdBy petrel.UserID
	}
	memberRow struct {
		user    petrel.UserID
		key     int64 // of the user; 0: not known yet
		role    event.Role
		version uint64
	}
	// made is what an earlier command with the same id made.
	made struct {
		found bool
		print uint64
		ev    event.Event
		by    petrel.UserID
		at    int64
		seq   uint64
		gone  int64
	}
	// scene is a room, who asks, and what the same command made before.
	scene struct {
		app   int64
		room  roomRow
		actor memberRow
		who   standing
		prior made
	}
	// message is the present state of a message.
	message struct {
		Message
		version uint64
		edits   int
	}
	creation struct {
		scene                         // of the id asked for, with prior
		priorRoom     roomRow         // the room that prior made
		created       made            // how the room that has the id was made
		createdDirect bool            // it is the direct room of the two asked for
		direct        roomRow         // the direct room of the two asked for
		directCreated made            // how it was made
		known         []petrel.UserID // of the members
	}
)

func (r roomRow) present() Room {
	return Room{ID: r.id, Kind: r.kind, Name: r.name, Custom: r.custom, CreatedAt: Time(r.createdAt), CreatedBy: r.createdBy, DeletedAt: Time(r.deletedAt)}
}

// enter refuses who may not do act. Who may not read the room learns nothing of it, not even that it was deleted.
func (st scene) enter(act action) error {
	if st.room.key == 0 || !may(st.room.kind, st.who, actRead) {
		return petrel.Errorf(petrel.CodeRoomNotFound, "There is no such room, or you are not in it.")
	}
	if st.room.deletedAt != 0 {
		return errRoomDeleted()
	}
	if !may(st.room.kind, st.who, act) {
		return forbidden(st.room.kind, act)
	}
	return nil
}

// repeat answers a command that came before. It comes before every right: what one made stays answerable
// after one left.
func (st scene) repeat(print uint64) (d event.Decision, done bool, err error) {
	if !st.prior.found {
		return d, false, nil
	}
	if st.prior.print != print {
		return d, true, errIDReused("command id")
	}
	p := st.prior
	if _, deletion := p.ev.(event.RoomDeleted); st.room.deletedAt != 0 && !deletion {
		return d, true, errRoomDeleted()
	}
	return unchanged(body(p.ev, p.by, p.at, p.seq, p.gone), true), true, nil
}

// guards returns what every decision of st rests on: that the actor's membership and the room are as they were.
func (st scene) guards(s event.Stamp, kind string) []event.Guard {
	var g []event.Guard
	if s.Actor.Kind == petrel.ActorUser {
		g = append(g, guardMember(st.room.id, s.Actor.User, st.actor.version))
	}
	if s.Actor.Kind != petrel.ActorUser || st.actor.version == 0 {
		g = append(g, event.Guard{Kind: event.GuardRoom, Key: []string{string(st.room.id)}, Version: st.room.version})
	}
	return append(g, guardCommand(s, kind)...)
}

func guardMember(room petrel.RoomID, user petrel.UserID, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardMember, Key: []string{string(room), string(user)}, Version: version}
}

func guardMessage(room petrel.RoomID, id petrel.MessageID, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardMessage, Key: []string{string(room), string(id)}, Version: version}
}

// guardCommand asserts that no command of this id was folded: of two in one batch the second conflicts, is
// decided again and finds the first.
func guardCommand(s event.Stamp, kind string) []event.Guard {
	if s.Command == "" {
		return nil
	}
	return []event.Guard{{Kind: event.GuardCommand, Key: []string{string(s.Command), kind}}}
}

// changed answers with the body of the last event: the one that the command asked for.
func changed(print uint64, guards []event.Guard, events ...event.Event) event.Decision {
	return event.Decision{Events: events, Guards: guards, Print: print, Answer: func(s event.Stamp, seqs []uint64) any {
		i := len(seqs) - 1
		return body(events[i], creator(s.Actor), s.At, seqs[i], 0)
	}}
}

// unchanged answers without an entry.
func unchanged(answer any, repeated bool) event.Decision {
	return event.Decision{Repeated: repeated, Answer: func(event.Stamp, []uint64) any { return answer }}
}

func decidePost(st scene, taken bool, c PostMessage, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enter(actPost); err != nil {
		return event.Decision{}, err
	}
	if taken {
		return event.Decision{}, errIDReused("message id")
	}
	id := petrel.MessageID(s.Command)
	guards := append(st.guards(s, cmdPostMessage), guardMessage(c.Room, id, 0))
	post := event.MessagePosted{Room: c.Room, ID: id, User: s.Actor.User, Text: c.Text, Custom: c.Custom, Mentions: c.Mentions}
	if st.actor.version != 0 {
		return changed(print, guards, post), nil
	}
	join := event.MemberAdded{Room: c.Room, User: s.Actor.User, Role: event.RoleMember, Implied: true}
	return changed(print, guards, append(firstSeen(st.actor), join, post)...), nil
}

// firstSeen creates a user whom no chat command named before.
func firstSeen(m memberRow) []event.Event {
	if m.key != 0 {
		return nil
	}
	return []event.Event{event.UserCreated{User: m.user}}
}

func decideEdit(st scene, m message, after Message, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enterMessage(m, s, actEditOwn, actEditOther); err != nil {
		return event.Decision{}, err
	}
	switch {
	case m.DeletedAt != 0:
		return event.Decision{}, petrel.Errorf(petrel.CodeMessageDeleted, "The message was deleted.")
	case after.Text == m.Text && bytes.Equal(after.Custom, m.Custom) && slices.Equal(after.Mentions, m.Mentions):
		return unchanged(m.Message, false), nil
	case m.edits >= MaxEdits:
		return event.Decision{}, petrel.Errorf(petrel.CodeLimitReached, "The message was edited %d times; post a new one.", m.edits)
	}
	guards := append(st.guards(s, cmdEditMessage), guardMessage(m.Room, m.ID, m.version))
	return changed(print, guards, event.MessageEdited{
		Room: m.Room, ID: m.ID, Text: after.Text, Custom: after.Custom, Mentions: after.Mentions,
		Seq: m.Seq, User: m.User, CreatedAt: int64(m.CreatedAt),
	}), nil
}

func decideDeleteMessage(st scene, m message, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enterMessage(m, s, actDeleteOwn, actDeleteOther); err != nil {
		return event.Decision{}, err
	}
	if m.DeletedAt != 0 {
		return unchanged(m.Message, false), nil
	}
	guards := append(st.guards(s, cmdDeleteMessage), guardMessage(m.Room, m.ID, m.version))
	return changed(print, guards, event.MessageDeleted{
		Room: m.Room, ID: m.ID, Seq: m.Seq, User: m.User, CreatedAt: int64(m.CreatedAt), EditedAt: int64(m.EditedAt),
	}), nil
}

func (st scene) enterMessage(m message, s event.Stamp, own, other action) error {
	if err := st.enter(actRead); err != nil {
		return err
	}
	if m.Seq == 0 {
		return petrel.Errorf(petrel.CodeMessageNotFound, "There is no such message in this room.")
	}
	if s.Actor.Kind == petrel.ActorUser && m.User == s.Actor.User {
		return st.enter(own)
	}
	return st.enter(other)
}

func decideCreateRoom(st creation, c CreateRoom, s event.Stamp, print uint64) (event.Decision, error) {
	first := st.scene
	first.room = st.priorRoom
	if d, done, err := first.repeat(print); done {
		return d, err
	}
	if st.room.key != 0 {
		switch err := st.enter(actRead); {
		case petrel.CodeOf(err) == petrel.CodeRoomNotFound:
			return event.Decision{}, errIDReused("room id")
		case err != nil:
			return event.Decision{}, err
		case st.created.print != print && !st.createdDirect:
			return event.Decision{}, errIDReused("room id")
		}
		return unchanged(found(st.room, st.created, print), true), nil
	}
	if st.direct.key != 0 {
		return unchanged(found(st.direct, st.directCreated, print), true), nil
	}
	guards := append(guardCommand(s, cmdCreateRoom), event.Guard{Kind: event.GuardRoom, Key: []string{string(c.ID)}})
	if c.Kind == event.RoomDirect {
		a, b := c.Members[0].User, c.Members[1].User
		guards = append(guards, event.Guard{Kind: event.GuardDirect, Key: []string{string(min(a, b)), string(max(a, b))}})
	}
	var events []event.Event
	created := event.RoomCreated{Room: c.ID, Kind: c.Kind, Name: c.Name, Custom: c.Custom}
	for _, m := range c.Members {
		if !slices.Contains(st.known, m.User) {
			events = append(events, event.UserCreated{User: m.User})
		}
		created.Members = append(created.Members, event.Member(m))
	}
	return changed(print, guards, append(events, created)...), nil
}

// found answers a creation whose room is there: as it was made to who asks for the same again, else (a direct room
// that two people share) as it is, with the members it was made with, who are its members for ever.
func found(room roomRow, m made, print uint64) Room {
	first, _ := body(m.ev, m.by, m.at, m.seq, m.gone).(Room)
	if m.print == print {
		return first
	}
	now := room.present()
	now.Members = first.Members
	return now
}

func decideUpdateRoom(st scene, c UpdateRoom, custom []byte, given bool, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enter(actUpdate); err != nil {
		return event.Decision{}, err
	}
	after := st.room
	if c.Name != nil {
		if st.room.kind == event.RoomDirect && *c.Name != "" {
			return event.Decision{}, petrel.Errorf(petrel.CodeInvalidField, "A direct room has no name; show the other person's.")
		}
		after.name = *c.Name
	}
	if given {
		after.custom = custom
	}
	if after.name == st.room.name && bytes.Equal(after.custom, st.room.custom) {
		return unchanged(st.room.present(), false), nil
	}
	guards := st.guards(s, cmdUpdateRoom)
	if st.actor.version != 0 { // else it is among them already
		guards = append(guards, event.Guard{Kind: event.GuardRoom, Key: []string{string(st.room.id)}, Version: st.room.version})
	}
	return changed(print, guards, event.RoomUpdated{
		Room: st.room.id, Name: after.name, Custom: after.custom,
		Kind: st.room.kind, CreatedAt: st.room.createdAt, CreatedBy: st.room.createdBy,
	}), nil
}

func decideDeleteRoom(st scene, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if st.room.deletedAt != 0 && may(st.room.kind, st.who, actDeleteRoom) {
		gone := st.room.present()
		gone.Custom = nil // as the first answer
		return unchanged(gone, false), nil
	}
	if err := st.enter(actDeleteRoom); err != nil {
		return event.Decision{}, err
	}
	guards := st.guards(s, cmdDeleteRoom)
	if st.actor.version != 0 {
		guards = append(guards, event.Guard{Kind: event.GuardRoom, Key: []string{string(st.room.id)}, Version: st.room.version})
	}
	return changed(print, guards, event.RoomDeleted{
		Room: st.room.id, Kind: st.room.kind, Name: st.room.name, CreatedAt: st.room.createdAt, CreatedBy: st.room.createdBy,
	}), nil
}

func decidePutMember(st scene, target, otherOwner memberRow, c PutMember, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enter(actRead); err != nil {
		return event.Decision{}, err
	}
	if target.version == 0 {
		return decideAdd(st, target, c, s, print)
	}
	if c.Role == 0 || c.Role == target.role {
		return unchanged(Membership{c.Room, c.User, target.role}, false), nil
	}
	if err := st.enter(actRole); err != nil {
		return event.Decision{}, err
	}
	guards := append(st.guards(s, cmdPutMember), guardMember(c.Room, c.User, target.version))
	if target.role == event.RoleOwner && st.who != backend {
		if otherOwner.version == 0 {
			return event.Decision{}, petrel.Errorf(petrel.CodeForbidden, "The room would be left without an owner. Make another member owner first.")
		}
		guards = append(guards, guardMember(c.Room, otherOwner.user, otherOwner.version))
	}
	return changed(print, guards, event.MemberUpdated{Room: c.Room, User: c.User, Role: c.Role}), nil
}

func decideAdd(st scene, target memberRow, c PutMember, s event.Stamp, print uint64) (event.Decision, error) {
	act := actAdd
	self := s.Actor.Kind == petrel.ActorUser && s.Actor.User == c.User
	if self {
		act = actJoin
	}
	if err := st.enter(act); err != nil {
		return event.Decision{}, err
	}
	role := max(c.Role, event.RoleMember)
	if role > event.RoleMember {
		if err := st.enter(actRole); err != nil {
			return event.Decision{}, err
		}
	}
	guards := st.guards(s, cmdPutMember)
	if !self {
		guards = append(guards, guardMember(c.Room, c.User, 0))
	}
	return changed(print, guards, append(firstSeen(target), event.MemberAdded{Room: c.Room, User: c.User, Role: role})...), nil
}

func decideRemoveMember(st scene, target, otherOwner, heir memberRow, c RemoveMember, s event.Stamp, print uint64) (event.Decision, error) {
	if d, done, err := st.repeat(print); done {
		return d, err
	}
	if err := st.enter(actRead); err != nil {
		return event.Decision{}, err
	}
	self := s.Actor.Kind == petrel.ActorUser && s.Actor.User == c.User
	act := actRemove
	if self {
		act = actLeave
	}
	if target.version == 0 && (self || may(st.room.kind, st.who, act)) {
		return unchanged(Membership{Room: c.Room, User: c.User}, false), nil
	}
	if err := st.enter(act); err != nil {
		return event.Decision{}, err
	}
	if st.who == moderator && !self && target.role > event.RoleMember {
		return event.Decision{}, petrel.Errorf(petrel.CodeForbidden, "A moderator removes members only; ask an owner.")
	}
	guards := st.guards(s, cmdRemoveMember)
	if !self {
		guards = append(guards, guardMember(c.Room, c.User, target.version))
	}
	removed := event.MemberRemoved{Room: c.Room, User: c.User, Role: target.role, Kind: st.room.kind}
	switch {
	case otherOwner.version != 0: // who must still be one when this is folded
		guards = append(guards, guardMember(c.Room, otherOwner.user, otherOwner.version))
	case heir.version != 0:
		guards = append(guards, guardMember(c.Room, heir.user, heir.version))
		return changed(print, guards, event.MemberUpdated{Room: c.Room, User: heir.user, Role: event.RoleOwner, Implied: true}, removed), nil
	}
	return changed(print, guards, removed), nil
}

func errRoomDeleted() error {
	return petrel.Errorf(petrel.CodeRoomDeleted, "The room was deleted.")
}

func errIDReused(what string) error {
	return petrel.Errorf(petrel.CodeIDReused, "The %s was used for something else. Choose a new one; a retry must send the same content.", what)
}
