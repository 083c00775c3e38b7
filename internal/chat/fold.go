package chat

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// schema holds the rows. A room's timeline is two tables under one numbering: a row's place is
// room key << seqBits | seq, so that a post costs one row and two index entries, pages of messages step over no
// other event, and a replay of n events reads n rows. (One table WITHOUT ROWID was the other candidate: its
// indexes repeat the key, and a page of messages would have to step over every join between them.)
//
// Keys are given in the order of the log and rows that have them are never removed: they are the same on every replica.
const schema = `
CREATE TABLE chat_app (
  key INTEGER PRIMARY KEY,
  id  TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE chat_user (
  key INTEGER PRIMARY KEY,
  app INTEGER NOT NULL,
  id  TEXT NOT NULL,
  UNIQUE (app, id)
) STRICT;

CREATE TABLE chat_room (
  key        INTEGER PRIMARY KEY,
  app        INTEGER NOT NULL,
  id         TEXT NOT NULL,
  kind       INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  created_by INTEGER,           -- user key; NULL: the app
  version    INTEGER NOT NULL,  -- index of the entry that last changed this row; posts do not
  deleted_at INTEGER,
  direct     TEXT,              -- the two users of a direct room, in order
  name       TEXT NOT NULL,
  custom     BLOB,
  UNIQUE (app, id)
) STRICT;
CREATE INDEX chat_room_all ON chat_room (app) WHERE deleted_at IS NULL;
CREATE INDEX chat_room_open ON chat_room (app) WHERE kind = 1 AND deleted_at IS NULL;
CREATE UNIQUE INDEX chat_room_direct ON chat_room (app, direct) WHERE direct IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE chat_member (
  room      INTEGER NOT NULL,
  user      INTEGER NOT NULL,
  role      INTEGER NOT NULL,
  since     INTEGER NOT NULL,   -- index of the entry that added the member
  joined_at INTEGER NOT NULL,
  version   INTEGER NOT NULL,
  PRIMARY KEY (room, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX chat_member_user ON chat_member (user, room);
CREATE INDEX chat_member_rank ON chat_member (room, role, since);

CREATE TABLE chat_message (
  place      INTEGER PRIMARY KEY,
  room       INTEGER NOT NULL,
  author     INTEGER NOT NULL,
  at         INTEGER NOT NULL,
  entry      INTEGER NOT NULL,  -- index of the entry that posted it
  print      INTEGER NOT NULL,
  id         TEXT NOT NULL,     -- of the message, and of the command that posted it
  text       TEXT,              -- as posted; NULL once deleted
  custom     BLOB,
  people     BLOB,              -- mentions, a JSON list
  edit       INTEGER,           -- place of its last edit
  edits      INTEGER,           -- how many there were
  version    INTEGER,           -- index of the entry that last changed it; NULL: entry
  deleted_at INTEGER
) STRICT;
CREATE UNIQUE INDEX chat_message_id ON chat_message (room, id);
CREATE UNIQUE INDEX chat_message_command ON chat_message (author, id);

CREATE TABLE chat_change (
  place      INTEGER PRIMARY KEY,
  kind       INTEGER NOT NULL,  -- of the event
  at         INTEGER NOT NULL,
  entry      INTEGER NOT NULL,
  actor      INTEGER NOT NULL,  -- user key, or the app's key made negative
  command    INTEGER,           -- kind of the command whose id this row keeps
  id         TEXT,              -- the command's id
  print      INTEGER,
  target     INTEGER,           -- place of the message that was edited or deleted
  user       INTEGER,           -- who was added, changed or removed
  role       INTEGER,
  text       TEXT,              -- new text of a message, name of a room; NULL once the message is deleted
  custom     BLOB,
  people     BLOB,              -- mentions, or the first members of a room: a JSON list
  deleted_at INTEGER            -- of the message
) STRICT;
CREATE UNIQUE INDEX chat_change_command ON chat_change (actor, command, id) WHERE id IS NOT NULL;
CREATE INDEX chat_change_target ON chat_change (target) WHERE target IS NOT NULL;
`

// A place is a room's key and a seq in one integer: 2^28 rooms per shard, 2^35 events per room.
const (
	seqBits = 35
	maxRoom = 1<<28 - 1
	maxSeq  = 1<<seqBits - 1
)

func placeOf(room int64, seq uint64) int64 { return room<<seqBits | int64(seq) }
func seqOf(place int64) uint64             { return uint64(place) & maxSeq }

// sqlLast is the last place in use in room %[1]s. Every room has its creation in chat_change, so the
// greater of the two tables' last places below the next room's is its own.
const sqlLast = `max(
  coalesce((SELECT place FROM chat_message WHERE place < (%[1]s + 1) << 35 ORDER BY place DESC LIMIT 1), 0),
  coalesce((SELECT place FROM chat_change  WHERE place < (%[1]s + 1) << 35 ORDER BY place DESC LIMIT 1), 0))`

const (
	sqlAppKey     = `SELECT key FROM chat_app WHERE id = ?`
	sqlAddApp     = `INSERT INTO chat_app (id) VALUES (?)`
	sqlUserKey    = `SELECT key FROM chat_user WHERE app = ? AND id = ?`
	sqlAddUser    = `INSERT INTO chat_user (app, id) VALUES (?, ?)`
	sqlRoomKey    = `SELECT key FROM chat_room WHERE app = ? AND id = ?`
	sqlAddRoom    = `INSERT INTO chat_room (app, id, kind, created_at, created_by, version, direct, name, custom) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlSetRoom    = `UPDATE chat_room SET name = ?, custom = ?, version = ? WHERE key = ?`
	sqlEndRoom    = `UPDATE chat_room SET deleted_at = ?, version = ? WHERE key = ?`
	sqlAddMember  = `INSERT INTO chat_member (room, user, role, since, joined_at, version) VALUES (?, ?, ?, ?, ?, ?)`
	sqlSetMember  = `UPDATE chat_member SET role = ?, version = ? WHERE room = ? AND user = ?`
	sqlEndMember  = `DELETE FROM chat_member WHERE room = ? AND user = ?`
	sqlAddMessage = `INSERT INTO chat_message (place, room, author, at, entry, print, id, text, custom, people) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlSetMessage = `UPDATE chat_message SET edit = ?, edits = coalesce(edits, 0) + 1, version = ? WHERE place = ?`
	sqlEndMessage = `UPDATE chat_message SET text = NULL, custom = NULL, people = NULL, deleted_at = ?, version = ? WHERE place = ?`
	sqlEndEdits   = `UPDATE chat_change SET text = NULL, custom = NULL, people = NULL, deleted_at = ? WHERE target = ?`
	sqlFindPlace  = `SELECT place FROM chat_message WHERE room = ? AND id = ?`
	sqlAddChange  = `INSERT INTO chat_change (place, kind, at, entry, actor, command, id, print, target, user, role, text, custom, people) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

// SQL that is put together from a part shared by several statements.
var (
	sqlPostHere = `SELECT a.key, r.key, u.key, ` + fmt.Sprintf(sqlLast, "r.key") + `
FROM chat_app a JOIN chat_room r ON r.app = a.key AND r.id = ?2 LEFT JOIN chat_user u ON u.app = a.key AND u.id = ?3
WHERE a.id = ?1`
	sqlRoomHead = `SELECT ` + fmt.Sprintf(sqlLast, "?1")
)

// Fold turns one event into rows and returns the seq it took. It is deterministic: everything it needs is in
// the stamp, the event and the rows. It refuses nothing; an error means that the projection is not what the
// log made it, and stops the shard.
func Fold(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
	if ev, ok := ev.(event.MessagePosted); ok {
		return foldPost(tx, s, ev)
	}
	f := &fold{tx: tx, s: s}
	var err error
	if f.app, err = key(tx, sqlAppKey, sqlAddApp, string(s.App)); err != nil {
		return 0, err
	}
	if f.actor, err = f.actorKey(); err != nil {
		return 0, err
	}
	switch ev := ev.(type) {
	case event.RoomCreated:
		err = f.roomCreated(ev)
	case event.RoomUpdated:
		err = f.roomUpdated(ev)
	case event.RoomDeleted:
		err = f.roomDeleted(ev)
	case event.MemberAdded:
		err = f.memberAdded(ev)
	case event.MemberUpdated:
		err = f.memberUpdated(ev)
	case event.MemberRemoved:
		err = f.memberRemoved(ev)
	case event.MessageEdited:
		err = f.messageEdited(ev)
	case event.MessageDeleted:
		err = f.messageDeleted(ev)
	default:
		err = fmt.Errorf("not an event of chat: %T", ev)
	}
	if err != nil {
		return 0, fmt.Errorf("chat: fold %T of entry %d: %w", ev, s.Index, err)
	}
	return f.seq, nil
}

// foldPost is the path that decides how many messages per second there can be: one read, one row.
func foldPost(tx *projection.Tx, s event.Stamp, ev event.MessagePosted) (uint64, error) {
	var app, room, user, last int64
	found, err := tx.Get(sqlPostHere, func(row *projection.Row) {
		app, room, user, last = row.Int(0), row.Int(1), row.Int(2), row.Int(3)
	}, s.App, ev.Room, ev.User)
	if err == nil && !found {
		err = fmt.Errorf("no room %q", ev.Room)
	}
	if err == nil && user == 0 {
		user, err = key(tx, sqlUserKey, sqlAddUser, app, string(ev.User))
	}
	if err == nil && seqOf(last) == maxSeq {
		err = fmt.Errorf("room %q has no seq left", ev.Room)
	}
	if err == nil {
		_, err = tx.Exec(sqlAddMessage, last+1, room, user, s.At, s.Index, int64(s.Print), ev.ID,
			ev.Text, ev.Custom, list(ev.Mentions))
	}
	if err != nil {
		return 0, fmt.Errorf("chat: fold post of entry %d: %w", s.Index, err)
	}
	return seqOf(last + 1), nil
}

// fold is what the other events share.
type fold struct {
	tx    *projection.Tx
	s     event.Stamp
	app   int64
	actor int64
	seq   uint64
}

// change is a row of chat_change in the making; zero fields are NULL.
type change struct {
	kind    event.Kind
	implied bool // keeps no command id
	target  int64
	user    int64
	role    event.Role
	text    any
	custom  []byte
	people  []byte
}

// take gives the room's next seq to the change.
func (f *fold) take(room int64, c change) error {
	var last int64
	if _, err := f.tx.Get(sqlRoomHead, func(row *projection.Row) { last = row.Int(0) }, room); err != nil {
		return err
	}
	if last < room<<seqBits { // the room's first
		last = room << seqBits
	}
	if seqOf(last) == maxSeq {
		return fmt.Errorf("room %d has no seq left", room)
	}
	var command, id, print any
	if f.s.Command != "" && !c.implied {
		command, id, print = commandNumber(c.kind), f.s.Command, int64(f.s.Print)
	}
	if c.kind == event.KindRoomCreated {
		print = int64(f.s.Print) // the room's own id is what a repeat is known by
	}
	f.seq = seqOf(last + 1)
	_, err := f.tx.Exec(sqlAddChange, last+1, int64(c.kind), f.s.At, f.s.Index, f.actor, command, id, print,
		unless0(c.target), unless0(c.user), unless0(int64(c.role)), c.text, c.custom, c.people)
	return err
}

func (f *fold) roomCreated(ev event.RoomCreated) error {
	var direct any
	if ev.Kind == event.RoomDirect && len(ev.Members) == 2 {
		direct = pair(ev.Members[0].User, ev.Members[1].User)
	}
	if _, err := f.tx.Exec(sqlAddRoom, f.app, ev.Room, int64(ev.Kind), f.s.At, unless0(max(f.actor, 0)), f.s.Index, direct, ev.Name, ev.Custom); err != nil {
		return err
	}
	room, err := f.room(ev.Room)
	if err != nil {
		return err
	}
	if room > maxRoom {
		return fmt.Errorf("the shard has no room key left for %q", ev.Room)
	}
	members := make([]Member, len(ev.Members))
	for i, m := range ev.Members {
		members[i] = Member(m)
		user, err := f.user(m.User)
		if err != nil {
			return err
		}
		if _, err := f.tx.Exec(sqlAddMember, room, user, int64(m.Role), f.s.Index, f.s.At, f.s.Index); err != nil {
			return err
		}
	}
	return f.take(room, change{kind: event.KindRoomCreated, text: ev.Name, custom: ev.Custom, people: list(members)})
}

func (f *fold) roomUpdated(ev event.RoomUpdated) error {
	room, err := f.room(ev.Room)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlSetRoom, ev.Name, ev.Custom, f.s.Index, room); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindRoomUpdated, text: ev.Name, custom: ev.Custom})
}

func (f *fold) roomDeleted(ev event.RoomDeleted) error {
	room, err := f.room(ev.Room)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlEndRoom, f.s.At, f.s.Index, room); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindRoomDeleted, text: ev.Name})
}

func (f *fold) memberAdded(ev event.MemberAdded) error {
	room, user, err := f.roomAndUser(ev.Room, ev.User)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlAddMember, room, user, int64(ev.Role), f.s.Index, f.s.At, f.s.Index); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindMemberAdded, implied: ev.Implied, user: user, role: ev.Role})
}

func (f *fold) memberUpdated(ev event.MemberUpdated) error {
	room, user, err := f.roomAndUser(ev.Room, ev.User)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlSetMember, int64(ev.Role), f.s.Index, room, user); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindMemberUpdated, implied: ev.Implied, user: user, role: ev.Role})
}

func (f *fold) memberRemoved(ev event.MemberRemoved) error {
	room, user, err := f.roomAndUser(ev.Room, ev.User)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlEndMember, room, user); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindMemberRemoved, user: user, role: ev.Role})
}

func (f *fold) messageEdited(ev event.MessageEdited) error {
	room, target, err := f.message(ev.Room, ev.ID)
	if err != nil {
		return err
	}
	if err := f.take(room, change{kind: event.KindMessageEdited, target: target, text: ev.Text, custom: ev.Custom, people: list(ev.Mentions)}); err != nil {
		return err
	}
	_, err = f.tx.Exec(sqlSetMessage, placeOf(room, f.seq), f.s.Index, target)
	return err
}

func (f *fold) messageDeleted(ev event.MessageDeleted) error {
	room, target, err := f.message(ev.Room, ev.ID)
	if err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlEndMessage, f.s.At, f.s.Index, target); err != nil {
		return err
	}
	if _, err := f.tx.Exec(sqlEndEdits, f.s.At, target); err != nil {
		return err
	}
	return f.take(room, change{kind: event.KindMessageDeleted, target: target})
}

// actorKey is the actor's user key, or the app's made negative for who is no user: the scope of command ids.
func (f *fold) actorKey() (int64, error) {
	if f.s.Actor.Kind == petrel.ActorUser {
		return f.user(f.s.Actor.User)
	}
	return -f.app, nil
}

func (f *fold) user(id petrel.UserID) (int64, error) {
	return key(f.tx, sqlUserKey, sqlAddUser, f.app, string(id))
}

func (f *fold) room(id petrel.RoomID) (int64, error) {
	return mustFind(f.tx, sqlRoomKey, f.app, id)
}

func (f *fold) roomAndUser(r petrel.RoomID, u petrel.UserID) (room, user int64, err error) {
	if room, err = f.room(r); err != nil {
		return 0, 0, err
	}
	user, err = f.user(u)
	return room, user, err
}

func (f *fold) message(r petrel.RoomID, id petrel.MessageID) (room, place int64, err error) {
	if room, err = f.room(r); err != nil {
		return 0, 0, err
	}
	place, err = mustFind(f.tx, sqlFindPlace, room, id)
	return room, place, err
}

// key returns the key that get finds, after add where there was none.
func key(tx *projection.Tx, get, add string, args ...any) (int64, error) {
	var k int64
	scan := func(row *projection.Row) { k = row.Int(0) }
	if found, err := tx.Get(get, scan, args...); err != nil || found {
		return k, err
	}
	if _, err := tx.Exec(add, args...); err != nil {
		return 0, err
	}
	_, err := tx.Get(get, scan, args...)
	return k, err
}

func mustFind(tx *projection.Tx, get string, args ...any) (int64, error) {
	var k int64
	found, err := tx.Get(get, func(row *projection.Row) { k = row.Int(0) }, args...)
	if err == nil && !found {
		err = fmt.Errorf("no row for %q", args)
	}
	return k, err
}

// Version returns the version of the row that g names, 0 when it is absent. See the guards' comments in event.
func Version(r *projection.Reader, s event.Stamp, g event.Guard) (uint64, error) {
	sql, width := "", 1
	switch g.Kind {
	case event.GuardRoom:
		sql = sqlRoomVersion
	case event.GuardMember:
		sql, width = sqlMemberVersion, 2
	case event.GuardMessage:
		sql, width = sqlMessageVersion, 2
	case event.GuardDirect:
		sql, width = sqlDirectVersion, 2
	case event.GuardCommand:
		return commandVersion(r, s, g)
	default:
		return 0, fmt.Errorf("chat: not a guard of chat: %d", g.Kind)
	}
	if len(g.Key) != width {
		return 0, fmt.Errorf("chat: guard %d has a key of %d parts", g.Kind, len(g.Key))
	}
	args := make([]any, 0, 3)
	args = append(args, s.App)
	if g.Kind == event.GuardDirect {
		args = append(args, pair(petrel.UserID(g.Key[0]), petrel.UserID(g.Key[1])))
	} else {
		for _, k := range g.Key {
			args = append(args, k)
		}
	}
	return version(r, sql, args...)
}

func commandVersion(r *projection.Reader, s event.Stamp, g event.Guard) (uint64, error) {
	if len(g.Key) != 2 {
		return 0, fmt.Errorf("chat: guard %d has a key of %d parts", g.Kind, len(g.Key))
	}
	id, kind := g.Key[0], g.Key[1]
	if kind == cmdPostMessage {
		return version(r, sqlPostVersion, s.App, s.Actor.User, id)
	}
	n := slices.Index(commands, kind)
	if n < 1 {
		return 0, fmt.Errorf("chat: no command %q", kind)
	}
	if s.Actor.Kind == petrel.ActorUser {
		return version(r, sqlUserCommandVersion, s.App, s.Actor.User, n, id)
	}
	return version(r, sqlAppCommandVersion, s.App, n, id)
}

func version(r *projection.Reader, sql string, args ...any) (v uint64, err error) {
	_, err = r.Get(sql, func(row *projection.Row) { v = row.Uint(0) }, args...)
	return v, err
}

const (
	sqlRoomVersion = `SELECT r.version FROM chat_app a JOIN chat_room r ON r.app = a.key AND r.id = ?2 WHERE a.id = ?1`

	sqlMemberVersion = `SELECT m.version FROM chat_app a JOIN chat_room r ON r.app = a.key AND r.id = ?2 AND r.deleted_at IS NULL
JOIN chat_user u ON u.app = a.key AND u.id = ?3 JOIN chat_member m ON m.room = r.key AND m.user = u.key WHERE a.id = ?1`

	sqlMessageVersion = `SELECT coalesce(x.version, x.entry) FROM chat_app a JOIN chat_room r ON r.app = a.key AND r.id = ?2
JOIN chat_message x ON x.room = r.key AND x.id = ?3 WHERE a.id = ?1`

	sqlDirectVersion = `SELECT r.version FROM chat_app a JOIN chat_room r ON r.app = a.key AND r.direct = ?2 AND r.deleted_at IS NULL WHERE a.id = ?1`

	sqlPostVersion = `SELECT x.entry FROM chat_app a JOIN chat_user u ON u.app = a.key AND u.id = ?2
JOIN chat_message x ON x.author = u.key AND x.id = ?3 WHERE a.id = ?1`

	sqlUserCommandVersion = `SELECT x.entry FROM chat_app a JOIN chat_user u ON u.app = a.key AND u.id = ?2
JOIN chat_change x ON x.actor = u.key AND x.command = ?3 AND x.id = ?4 WHERE a.id = ?1`

	sqlAppCommandVersion = `SELECT x.entry FROM chat_app a JOIN chat_change x ON x.actor = -a.key AND x.command = ?2 AND x.id = ?3 WHERE a.id = ?1`
)

// commands numbers the kinds of command in chat_change.command; 0 is none. Never renumber: the rows of two
// replicas must be equal. Posts keep their id in chat_message.
var commands = []string{
	"", cmdCreateRoom, cmdUpdateRoom, cmdDeleteRoom, cmdPutMember, cmdRemoveMember, cmdEditMessage, cmdDeleteMessage,
}

// commandNumber is the kind of command that makes such an event.
func commandNumber(k event.Kind) int {
	made := ""
	switch k {
	case event.KindRoomCreated:
		made = cmdCreateRoom
	case event.KindRoomUpdated:
		made = cmdUpdateRoom
	case event.KindRoomDeleted:
		made = cmdDeleteRoom
	case event.KindMemberAdded, event.KindMemberUpdated:
		made = cmdPutMember
	case event.KindMemberRemoved:
		made = cmdRemoveMember
	case event.KindMessageEdited:
		made = cmdEditMessage
	case event.KindMessageDeleted:
		made = cmdDeleteMessage
	}
	return slices.Index(commands, made)
}

// pair is the key of two people's direct room, whoever asks. A space is in no user id.
func pair(a, b petrel.UserID) string {
	return string(min(a, b)) + " " + string(max(a, b))
}

// list is the JSON of a list, nil when it is empty. Ids and roles need no escaping, but they take the one encoder.
func list[T any](v []T) []byte {
	if len(v) == 0 {
		return nil
	}
	return encode(v)
}

// unlist reads what list wrote.
func unlist[T any](b []byte) ([]T, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var v []T
	if err := json.NewDecoder(strings.NewReader(string(b))).Decode(&v); err != nil {
		return nil, fmt.Errorf("chat: read a list: %w", err)
	}
	return v, nil
}

func unless0(v int64) any {
	if v == 0 {
		return nil
	}
	return v
}
