package petreltest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// simModel is what the committed log means, folded into plain maps: a second, slow and obvious implementation of the folds and guards,
// that replicas and clients are compared with.
type simModel struct {
	rooms    map[petrel.RoomID]*modelRoom
	commands map[string]uint64           // app, actor, kind and id of a command: index of the entry that it made
	folded   map[petrel.RequestID]uint64 // index of the entry that a request made
	ids      map[petrel.EntryID]bool
	log      []string // a line for every entry
	problems []string
}

type modelRoom struct {
	kind     event.RoomKind
	name     string
	version  uint64
	deleted  bool
	direct   string
	events   []modelEvent
	members  map[petrel.UserID]*modelMember
	left     map[petrel.UserID]bool // who was a member once and is not any more, or was not at some time
	messages map[petrel.MessageID]*modelMessage
}

type modelEvent struct {
	kind    string // of the publication
	index   uint64
	message petrel.MessageID // of message.new
}

type modelMember struct {
	role    event.Role
	version uint64
}

type modelMessage struct {
	seq     uint64
	user    petrel.UserID
	text    string
	version uint64
	edited  bool
	deleted bool
}

func newModel(recs []petrel.Record) (*simModel, error) {
	m := &simModel{
		rooms: map[petrel.RoomID]*modelRoom{}, commands: map[string]uint64{}, folded: map[petrel.RequestID]uint64{}, ids: map[petrel.EntryID]bool{},
	}
	for i, rec := range recs {
		if rec.Index != uint64(i+1) {
			return nil, fmt.Errorf("record %d of the log has index %d", i+1, rec.Index)
		}
		e, err := event.Decode(rec.Payload)
		if err != nil {
			return nil, err
		}
		m.entry(rec.Index, e)
	}
	return m, nil
}

func (m *simModel) entry(index uint64, e *event.Entry) {
	if m.ids[e.ID] {
		m.problems = append(m.problems, fmt.Sprintf("entry %s stands in the log twice", e.ID))
		return
	}
	m.ids[e.ID] = true
	for _, g := range e.Guards {
		if v, ours := m.version(e, g); ours && v != g.Version {
			m.log = append(m.log, fmt.Sprintf("entry %d is of try %s, and conflicted", index, e.Request))
			return
		}
	}
	m.log = append(m.log, fmt.Sprintf("entry %d is of try %s", index, e.Request))
	if before, twice := m.folded[e.Request]; twice && e.Request != "" {
		m.problems = append(m.problems, fmt.Sprintf("request %s made entry %d and again %d", e.Request, before, index))
	}
	m.folded[e.Request] = index
	for _, ev := range e.Events {
		m.event(index, e, ev)
	}
}

// version of the row that a guard names; guards of other domains are not modelled.
func (m *simModel) version(e *event.Entry, g event.Guard) (v uint64, ours bool) {
	var room *modelRoom
	if len(g.Key) > 0 {
		room = m.rooms[petrel.RoomID(g.Key[0])]
	}
	switch g.Kind {
	case event.GuardCommand:
		return m.commands[commandKey(e, g.Key[1], g.Key[0])], true
	case event.GuardDirect:
		for _, r := range m.rooms {
			if r.direct == strings.Join(g.Key, " ") && !r.deleted {
				return r.version, true
			}
		}
		return 0, true
	case event.GuardRoom, event.GuardMember, event.GuardMessage:
	default:
		return 0, false
	}
	if room == nil {
		return 0, true
	}
	switch g.Kind {
	case event.GuardMember:
		if member := room.members[petrel.UserID(g.Key[1])]; member != nil && !room.deleted {
			return member.version, true
		}
		return 0, true
	case event.GuardMessage:
		if message := room.messages[petrel.MessageID(g.Key[1])]; message != nil {
			return message.version, true
		}
		return 0, true
	}
	return room.version, true
}

func commandKey(e *event.Entry, kind, id string) string {
	return fmt.Sprint(e.App, " ", e.Actor, " ", kind, " ", id)
}

func (m *simModel) event(index uint64, e *event.Entry, ev event.Event) {
	switch ev := ev.(type) {
	case event.RoomCreated:
		r := &modelRoom{
			kind: ev.Kind, name: ev.Name, members: map[petrel.UserID]*modelMember{},
			left: map[petrel.UserID]bool{}, messages: map[petrel.MessageID]*modelMessage{},
		}
		var users []string
		for _, member := range ev.Members {
			r.members[member.User] = &modelMember{member.Role, index}
			users = append(users, string(member.User))
		}
		if ev.Kind == event.RoomDirect {
			slices.Sort(users)
			r.direct = strings.Join(users, " ")
		}
		if m.rooms[ev.Room] != nil {
			m.problems = append(m.problems, fmt.Sprintf("entry %d makes room %s again", index, ev.Room))
		}
		m.rooms[ev.Room] = r
		r.version = index
		m.made(index, e, r, "room.created", "chat.create_room")
	case event.RoomUpdated:
		r := m.rooms[ev.Room]
		r.name, r.version = ev.Name, index
		m.made(index, e, r, "room.updated", "chat.update_room")
	case event.RoomDeleted:
		r := m.rooms[ev.Room]
		r.deleted, r.version = true, index
		m.made(index, e, r, "room.deleted", "chat.delete_room")
	case event.MemberAdded:
		r := m.rooms[ev.Room]
		r.members[ev.User] = &modelMember{ev.Role, index}
		m.made(index, e, r, "member.added", unlessImplied(ev.Implied, "chat.put_member"))
	case event.MemberUpdated:
		r := m.rooms[ev.Room]
		r.members[ev.User] = &modelMember{ev.Role, index}
		m.made(index, e, r, "member.updated", unlessImplied(ev.Implied, "chat.put_member"))
	case event.MemberRemoved:
		r := m.rooms[ev.Room]
		delete(r.members, ev.User)
		r.left[ev.User] = true
		m.made(index, e, r, "member.removed", "chat.remove_member")
	case event.MessagePosted:
		r := m.rooms[ev.Room]
		m.made(index, e, r, "message.new", "chat.post_message")
		r.events[len(r.events)-1].message = ev.ID
		r.messages[ev.ID] = &modelMessage{seq: uint64(len(r.events)), user: ev.User, text: ev.Text, version: index}
	case event.MessageEdited:
		r := m.rooms[ev.Room]
		x := r.messages[ev.ID]
		x.text, x.edited, x.version = ev.Text, true, index
		m.made(index, e, r, "message.updated", "chat.edit_message")
	case event.MessageDeleted:
		r := m.rooms[ev.Room]
		x := r.messages[ev.ID]
		x.text, x.deleted, x.version = "", true, index
		m.made(index, e, r, "message.deleted", "chat.delete_message")
	}
}

func unlessImplied(implied bool, kind string) string {
	if implied {
		return ""
	}
	return kind
}

// made gives an event its seq, and notes which command it came from.
func (m *simModel) made(index uint64, e *event.Entry, r *modelRoom, kind, command string) {
	r.events = append(r.events, modelEvent{kind: kind, index: index})
	if e.Command != "" && command != "" {
		m.commands[commandKey(e, command, string(e.Command))] = index
	}
}

// check compares a replica with the model, through the domain's own reads.
func (m *simModel) check(n *simNode) error {
	app := petrel.Actor{Kind: petrel.ActorApp, App: simApp}
	return n.store.ViewBudget(n.ctx, projection.Budget{Steps: 1 << 20, Time: time.Hour}, func(r *projection.Reader) error {
		for _, id := range simKeys(m.rooms) {
			want := m.rooms[id]
			if want.deleted {
				if _, err := chat.Head(r, app, id); petrel.CodeOf(err) != petrel.CodeRoomDeleted {
					return fmt.Errorf("deleted room %s: %w", id, err)
				}
				continue
			}
			if err := want.check(r, app, id); err != nil {
				return err
			}
		}
		return nil
	})
}

func (want *modelRoom) check(r *projection.Reader, app petrel.Actor, id petrel.RoomID) error {
	room, err := chat.GetRoom(r, app, id)
	if err != nil {
		return fmt.Errorf("room %s: %w", id, err)
	}
	if room.Kind != want.kind || room.Name != want.name || room.Head != uint64(len(want.events)) {
		return fmt.Errorf("room %s is %+v, not %v %q with %d events", id, room, want.kind, want.name, len(want.events))
	}
	for after := uint64(0); after < room.Head; {
		page, _, err := chat.Replay(r, app.App, id, after, 100)
		if err != nil {
			return err
		}
		for _, p := range page {
			if w := want.events[after]; p.Seq != after+1 || p.Type != w.kind || p.Index != w.index {
				return fmt.Errorf("event %d of %s is %d %s of entry %d, not %s of entry %d", after+1, id, p.Seq, p.Type, p.Index, w.kind, w.index)
			}
			after++
		}
	}
	members, err := chat.ListMembers(r, app, id, "", 100)
	if err != nil {
		return err
	}
	got := map[petrel.UserID]event.Role{}
	for _, member := range members.Members {
		got[member.User] = member.Role
	}
	roles := map[petrel.UserID]event.Role{}
	for user, member := range want.members {
		roles[user] = member.role
	}
	if !maps.Equal(got, roles) {
		return fmt.Errorf("members of %s are %v, not %v", id, got, roles)
	}
	for _, mid := range simKeys(want.messages) {
		w := want.messages[mid]
		x, err := chat.GetMessage(r, app, id, mid)
		if err != nil {
			return fmt.Errorf("message %s of %s: %w", mid, id, err)
		}
		if x.Seq != w.seq || x.User != w.user || x.Text != w.text || (x.EditedAt != 0) != w.edited || (x.DeletedAt != 0) != w.deleted {
			return fmt.Errorf("message %s of %s is %+v, not %+v", mid, id, x, *w)
		}
	}
	return nil
}

// dump is every row of every table, but for how far the log's engine had come.
func dump(ctx context.Context, store *projection.Store) (rows []string, err error) {
	err = store.ViewBudget(ctx, projection.Budget{Steps: 1 << 20, Time: time.Hour}, func(r *projection.Reader) error {
		var tables []string
		err := r.Query(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'projection_applied' ORDER BY name`, func(row *projection.Row) error {
			tables = append(tables, row.Text(0))
			return nil
		})
		for _, table := range tables {
			var columns []string
			if err == nil {
				err = r.Query(`SELECT name FROM pragma_table_info(?)`, func(row *projection.Row) error {
					columns = append(columns, `quote("`+row.Text(0)+`")`)
					return nil
				}, table)
			}
			if err == nil {
				err = r.Query(`SELECT `+strings.Join(columns, ` || ' ' || `)+` FROM `+table+` ORDER BY 1`, func(row *projection.Row) error {
					rows = append(rows, table+": "+row.Text(0))
					return nil
				})
			}
		}
		return err
	})
	return rows, err
}

// replay folds the log from nothing, and returns what comes of it.
func (n *simNode) replay(recs []petrel.Record) (applied petrel.Applied, rows []string, err error) {
	store, err := projection.Open(n.ctx, projection.Options{Memory: &projection.MemoryDisk{}, Modules: n.modules(), CacheBytes: 1 << 20})
	if err != nil {
		return applied, nil, err
	}
	defer func() { n.s.must(store.Close()) }()
	loop, err := apply.New(apply.Options{Store: store, Domains: n.domains()})
	if err != nil {
		return applied, nil, err
	}
	if err := loop.Apply(n.ctx, recs, uint64(len(recs))); err != nil {
		return applied, nil, err
	}
	rows, err = dump(n.ctx, store)
	return store.Applied(), rows, err
}

func simKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
