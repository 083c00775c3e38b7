package chat

import (
	"fmt"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// loadScene loads the room and the actor's place in it. For a command, whose kind is given, it also loads the
// room's settings and what a command with the stamp's id made before. Rows that are absent leave zeros.
func loadScene(r *projection.Reader, s event.Stamp, room petrel.RoomID, kind string) (scene, error) {
	var st scene
	_, err := r.Get(sqlScene, func(row *projection.Row) { st = scanScene(row, s, room) }, s.App, room, s.Actor.User)
	if err != nil || kind == "" {
		return st, err
	}
	if err := loadSettings(r, &st.room); err != nil || s.Command == "" {
		return st, err
	}
	st.prior, err = loadPrior(r, st, s, kind)
	return st, err
}

func scanScene(row *projection.Row, s event.Stamp, room petrel.RoomID) scene {
	st := scene{
		app:   row.Int(0),
		room:  roomRow{key: row.Int(1), id: room, kind: event.RoomKind(row.Int(2)), createdAt: row.Int(3), version: row.Uint(4), deletedAt: row.Int(5)},
		actor: memberRow{user: s.Actor.User, key: row.Int(6), role: event.Role(row.Int(7)), version: row.Uint(8)},
	}
	switch s.Actor.Kind {
	case petrel.ActorApp:
		st.who = backend
	case petrel.ActorUser:
		st.who = standingOf(st.actor.role)
	}
	return st
}

// loadPrior loads what the command made before, as the room of st shows it.
func loadPrior(r *projection.Reader, st scene, s event.Stamp, kind string) (made, error) {
	scope := st.actor.key
	if s.Actor.Kind != petrel.ActorUser {
		scope = -st.app
	}
	var m made
	var bad error
	_, err := r.Get(sqlChangeOfCommand, func(row *projection.Row) { m, _, bad = scanChange(row, st.room) },
		scope, commandIndex(kind), s.Command)
	if err == nil {
		err = bad
	}
	return m, err
}

// loadPost loads all that a post is decided on in one statement, and the earlier post of the same id, if any.
func loadPost(r *projection.Reader, s event.Stamp, room petrel.RoomID) (st scene, taken bool, err error) {
	var mine int64
	_, err = r.Get(sqlPostScene, func(row *projection.Row) {
		st = scanScene(row, s, room)
		taken, mine = !row.IsNull(9), row.Int(10)
	}, s.App, room, s.Actor.User, s.Command)
	if err != nil || mine == 0 {
		return st, taken, err
	}
	var bad error
	_, err = r.Get(sqlPostAt, func(row *projection.Row) { st.prior, _, bad = scanPost(row, st.room) }, mine)
	if err == nil {
		err = bad
	}
	return st, taken, err
}

func loadCreation(r *projection.Reader, s event.Stamp, c CreateRoom) (creation, error) {
	var st creation
	var err error
	if st.scene, err = loadScene(r, s, c.ID, cmdCreateRoom); err != nil {
		return st, err
	}
	if st.prior.found {
		// The id of the room may have been made: the row knows which room it was.
		if err := loadPriorRoom(r, &st, s); err != nil {
			return st, err
		}
	}
	if st.created, err = loadMade(r, st.room); err != nil {
		return st, err
	}
	if c.Kind == event.RoomDirect {
		_, err := r.Get(sqlDirect, func(row *projection.Row) {
			st.direct.key, st.direct.id = row.Int(0), petrel.RoomID(row.Text(1))
		}, st.app, pair(c.Members[0].User, c.Members[1].User))
		if err == nil {
			err = loadSettings(r, &st.direct)
		}
		if err == nil {
			st.directCreated, err = loadMade(r, st.direct)
		}
		if err != nil {
			return st, err
		}
		st.createdDirect = st.direct.key != 0 && st.direct.key == st.room.key
	}
	for _, m := range c.Members {
		found, err := r.Get(sqlUserKey, func(*projection.Row) {}, st.app, m.User)
		if err != nil {
			return st, err
		}
		if found {
			st.known = append(st.known, m.User)
		}
	}
	return st, nil
}

func loadPriorRoom(r *projection.Reader, st *creation, s event.Stamp) error {
	scope := st.actor.key
	if s.Actor.Kind != petrel.ActorUser {
		scope = -st.app
	}
	if _, err := r.Get(sqlRoomOfCommand, func(row *projection.Row) {
		st.priorRoom.key, st.priorRoom.id = row.Int(0), petrel.RoomID(row.Text(1))
	}, scope, commandIndex(cmdCreateRoom), s.Command); err != nil {
		return err
	}
	if err := loadSettings(r, &st.priorRoom); err != nil {
		return err
	}
	in := st.scene
	in.room = st.priorRoom
	var err error
	st.prior, err = loadPrior(r, in, s, cmdCreateRoom)
	return err
}

// loadMade returns how the room was made; nothing for a room that is not there.
func loadMade(r *projection.Reader, room roomRow) (m made, err error) {
	if room.key == 0 {
		return m, nil
	}
	var bad error
	_, err = r.Get(sqlChangeAt, func(row *projection.Row) { m, _, bad = scanChange(row, room) }, placeOf(room.key, 1))
	if err == nil {
		err = bad
	}
	return m, err
}

// loadSettings fills in everything of the room whose key is set.
func loadSettings(r *projection.Reader, room *roomRow) error {
	if room.key == 0 {
		return nil
	}
	_, err := r.Get(sqlSettings, func(row *projection.Row) {
		room.name, room.custom, room.createdBy = row.Text(0), row.Bytes(1), petrel.UserID(row.Text(2))
		room.kind, room.createdAt, room.version, room.deletedAt = event.RoomKind(row.Int(3)), row.Int(4), row.Uint(5), row.Int(6)
	}, room.key)
	return err
}

func loadMember(r *projection.Reader, app petrel.AppID, room int64, user petrel.UserID) (memberRow, error) {
	m := memberRow{user: user}
	_, err := r.Get(sqlMember, func(row *projection.Row) {
		m.key, m.role, m.version = row.Int(0), event.Role(row.Int(1)), row.Uint(2)
	}, app, room, user)
	return m, err
}

// loadOtherOwner returns an owner of the room other than the user given, if there is one.
func loadOtherOwner(r *projection.Reader, room, not int64) (memberRow, error) {
	return loadRanked(r, sqlOtherOwner, room, not)
}

// loadHeir returns who becomes owner when the last one goes.
func loadHeir(r *projection.Reader, room int64) (memberRow, error) {
	m, err := loadRanked(r, sqlLongest, room, int64(event.RoleModerator))
	if err == nil && m.version == 0 {
		m, err = loadRanked(r, sqlLongest, room, int64(event.RoleMember))
	}
	return m, err
}

func loadRanked(r *projection.Reader, sql string, args ...any) (memberRow, error) {
	var m memberRow
	_, err := r.Get(sql, func(row *projection.Row) {
		m = memberRow{key: row.Int(0), user: petrel.UserID(row.Text(1)), role: event.Role(row.Int(2)), version: row.Uint(3)}
	}, args...)
	return m, err
}

// loadMessage returns the message as it is now; its Seq is 0 when there is none.
func loadMessage(r *projection.Reader, room roomRow, id petrel.MessageID) (message, error) {
	var m message
	var bad error
	_, err := r.Get(sqlMessage, func(row *projection.Row) { m, bad = scanMessage(row, room.id) }, room.key, id)
	if err == nil {
		err = bad
	}
	return m, err
}

func commandIndex(kind string) int {
	for i, k := range commands {
		if k == kind {
			return i
		}
	}
	panic(fmt.Sprintf("chat: no command %q", kind)) // a constant of this package
}

const (
	sqlSceneColumns = `SELECT a.key, r.key, r.kind, r.created_at, r.version, r.deleted_at, u.key, m.role, m.version`
	sqlSceneRows    = `
FROM (SELECT 1) LEFT JOIN chat_app a ON a.id = ?1 LEFT JOIN chat_room r ON r.app = a.key AND r.id = ?2
LEFT JOIN chat_user u ON u.app = a.key AND u.id = ?3 LEFT JOIN chat_member m ON m.room = r.key AND m.user = u.key`
	sqlScene     = sqlSceneColumns + sqlSceneRows
	sqlPostScene = sqlSceneColumns + `,
  (SELECT x.place FROM chat_message x WHERE x.room = r.key AND x.id = ?4),
  (SELECT x.place FROM chat_message x WHERE x.author = u.key AND x.id = ?4)` + sqlSceneRows

	sqlSettings = `SELECT r.name, r.custom, c.id, r.kind, r.created_at, r.version, r.deleted_at
FROM chat_room r LEFT JOIN chat_user c ON c.key = r.created_by WHERE r.key = ?`
	sqlDirect = `SELECT key, id FROM chat_room WHERE app = ? AND direct = ? AND deleted_at IS NULL`
	sqlMember = `SELECT u.key, m.role, m.version FROM chat_app a JOIN chat_user u ON u.app = a.key AND u.id = ?3
LEFT JOIN chat_member m ON m.room = ?2 AND m.user = u.key WHERE a.id = ?1`
	sqlOtherOwner = `SELECT m.user, u.id, m.role, m.version FROM chat_member m JOIN chat_user u ON u.key = m.user
WHERE m.room = ?1 AND m.role = 3 AND m.user <> ?2 ORDER BY m.since LIMIT 1`
	sqlLongest = `SELECT m.user, u.id, m.role, m.version FROM chat_member m JOIN chat_user u ON u.key = m.user
WHERE m.room = ?1 AND m.role = ?2 ORDER BY m.since LIMIT 1`
	sqlMembers = `SELECT u.id, m.role, m.joined_at FROM chat_member m JOIN chat_user u ON u.key = m.user
WHERE m.room = ?1 AND m.user > ?2 ORDER BY m.user LIMIT ?3`

	sqlMessageColumns = `SELECT m.place, m.id, u.id, m.at, CASE WHEN e.place IS NULL THEN m.text ELSE e.text END,
  CASE WHEN e.place IS NULL THEN m.custom ELSE e.custom END, CASE WHEN e.place IS NULL THEN m.people ELSE e.people END,
  e.at, m.deleted_at, coalesce(m.version, m.entry), m.edits
FROM chat_message m JOIN chat_user u ON u.key = m.author LEFT JOIN chat_change e ON e.place = m.edit`
	sqlMessage         = sqlMessageColumns + ` WHERE m.room = ?1 AND m.id = ?2`
	sqlMessagesForward = sqlMessageColumns + ` WHERE m.place > ?1 AND m.place < ?2 ORDER BY m.place LIMIT ?3`
	sqlMessagesBack    = sqlMessageColumns + ` WHERE m.place > ?1 AND m.place < ?2 ORDER BY m.place DESC LIMIT ?3`

	sqlPostColumns = `SELECT m.place, m.at, m.entry, m.id, u.id, m.text, m.custom, m.people, m.deleted_at, m.print
FROM chat_message m JOIN chat_user u ON u.key = m.author`
	sqlReplayPosts = sqlPostColumns + ` WHERE m.place > ?1 AND m.place <= ?2`
	sqlPostAt      = sqlPostColumns + ` WHERE m.place = ?1`

	sqlChangeColumns = `SELECT x.place, x.kind, x.at, x.entry, x.print, p.id, x.role, x.text, x.custom, x.people, x.deleted_at,
  m.place, m.id, m.at, w.id, e.at, b.id
FROM chat_change x LEFT JOIN chat_user p ON p.key = x.user LEFT JOIN chat_message m ON m.place = x.target
LEFT JOIN chat_user w ON w.key = m.author LEFT JOIN chat_change e ON e.place = m.edit LEFT JOIN chat_user b ON b.key = x.actor`
	sqlReplayChanges   = sqlChangeColumns + ` WHERE x.place > ?1 AND x.place <= ?2`
	sqlChangeAt        = sqlChangeColumns + ` WHERE x.place = ?1`
	sqlChangeOfCommand = sqlChangeColumns + ` WHERE x.actor = ?1 AND x.command = ?2 AND x.id = ?3`
	sqlRoomOfCommand   = `SELECT r.key, r.id FROM chat_change x JOIN chat_room r ON r.key = x.place >> 35
WHERE x.actor = ?1 AND x.command = ?2 AND x.id = ?3`
)

// The lists of rooms, in order of key.
var (
	sqlRoomColumns = `SELECT r.key, r.id, r.kind, r.name, r.custom, r.created_at, c.id, m.role, ` + fmt.Sprintf(sqlLast, "r.key")

	sqlAllRooms = `SELECT r.key, r.id, r.kind, r.name, r.custom, r.created_at, c.id, NULL, ` + fmt.Sprintf(sqlLast, "r.key") + `
FROM chat_room r LEFT JOIN chat_user c ON c.key = r.created_by
WHERE r.app = ?1 AND r.deleted_at IS NULL AND r.key > ?2 ORDER BY r.key LIMIT ?3`

	sqlRoomsOfUser = sqlRoomColumns + `
FROM chat_member m JOIN chat_room r ON r.key = m.room AND r.deleted_at IS NULL LEFT JOIN chat_user c ON c.key = r.created_by
WHERE m.user = ?1 AND m.room > ?2 ORDER BY m.room LIMIT ?3`

	sqlOpenRooms = sqlRoomColumns + `
FROM chat_room r LEFT JOIN chat_user c ON c.key = r.created_by LEFT JOIN chat_member m ON m.room = r.key AND m.user = ?4
WHERE r.app = ?1 AND r.kind = 1 AND r.deleted_at IS NULL AND r.key > ?2 ORDER BY r.key LIMIT ?3`
)
