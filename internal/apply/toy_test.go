package apply

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The toy domain: messages with a seq per room, and members without one.

var toyModule = projection.Module{Name: "toy", Migrations: []string{`
CREATE TABLE toy_room (room TEXT PRIMARY KEY, head INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE toy_message (room TEXT, id TEXT, seq INTEGER NOT NULL, text TEXT, version INTEGER NOT NULL, PRIMARY KEY (room, id)) STRICT, WITHOUT ROWID;
CREATE TABLE toy_member (room TEXT, user TEXT, version INTEGER NOT NULL, PRIMARY KEY (room, user)) STRICT, WITHOUT ROWID;`}}

var errToy = errors.New("toy: cannot fold this")

func toy() Domain {
	return Domain{
		Name:   "toy",
		Kinds:  []event.Kind{event.KindMessagePosted, event.KindMemberAdded, event.KindMemberRemoved},
		Guards: []event.GuardKind{event.GuardMessage, event.GuardMember},
		Fold:   foldToy, Version: versionToy, Publish: publishToy,
	}
}

func foldToy(tx *projection.Tx, s event.Stamp, ev event.Event) (seq uint64, err error) {
	switch ev := ev.(type) {
	case event.MessagePosted:
		if ev.Text == "boom" {
			return 0, errToy
		}
		_, err = tx.Exec(`INSERT INTO toy_room VALUES (?, 1) ON CONFLICT (room) DO UPDATE SET head = head + 1`, ev.Room)
		if err == nil {
			_, err = tx.Get(`SELECT head FROM toy_room WHERE room = ?`, func(r *projection.Row) { seq = r.Uint(0) }, ev.Room)
		}
		if err == nil {
			_, err = tx.Exec(`INSERT INTO toy_message VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq, version = excluded.version`,
				ev.Room, ev.ID, seq, ev.Text, s.Index)
		}
	case event.MemberAdded:
		_, err = tx.Exec(`INSERT INTO toy_member VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET version = excluded.version`, ev.Room, ev.User, s.Index)
	case event.MemberRemoved:
		_, err = tx.Exec(`DELETE FROM toy_member WHERE room = ? AND user = ?`, ev.Room, ev.User)
	}
	return seq, err
}

func versionToy(r *projection.Reader, _ event.Stamp, g event.Guard) (v uint64, err error) {
	sql := `SELECT version FROM toy_message WHERE room = ? AND id = ?`
	if g.Kind == event.GuardMember {
		sql = `SELECT version FROM toy_member WHERE room = ? AND user = ?`
	}
	_, err = r.Get(sql, func(row *projection.Row) { v = row.Uint(0) }, g.Key[0], g.Key[1])
	return v, err
}

func publishToy(s event.Stamp, ev event.Event, seq uint64) []petrel.Publication {
	m, ok := ev.(event.MessagePosted)
	if !ok {
		return nil
	}
	return []petrel.Publication{{Channel: petrel.RoomChannel(s.App, m.Room), Seq: seq, Type: "message.new", Data: []byte(m.ID), Index: s.Index}}
}

// world is a loop over a real file, with what it published.
type world struct {
	t     testing.TB
	path  string
	store *projection.Store
	loop  *Loop
	pubs  []petrel.Publication
	opt   Options
	win   uint64
	log   *testLog
}

func newWorld(t testing.TB, change ...func(*Options)) *world { return newWorldOf(t, Window, change...) }

func newWorldOf(t testing.TB, window uint64, change ...func(*Options)) *world {
	w := &world{t: t, path: filepath.Join(t.TempDir(), "p.db"), win: window, log: &testLog{}}
	w.opt = Options{Domains: []Domain{toy()}, Publish: func(p []petrel.Publication) { w.pubs = append(w.pubs, p...) }}
	for _, c := range change {
		c(&w.opt)
	}
	w.open()
	t.Cleanup(func() { w.store.Close() })
	return w
}

func (w *world) open() {
	var err error
	w.store, err = projection.Open(context.Background(), projection.Options{Path: w.path, Modules: []projection.Module{Module(), toyModule}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.opt.Store = w.store
	if w.loop, err = newLoop(w.opt, w.win); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reopen() {
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

// apply appends entries to the world's log and folds them in one call.
func (w *world) apply(entries ...*event.Entry) {
	w.t.Helper()
	if err := w.loop.Apply(context.Background(), w.log.add(w.t, entries...), w.log.mark()); err != nil {
		w.t.Fatal(err)
	}
}

// testLog is the chain of records.
type testLog struct{ recs []petrel.Record }

func (l *testLog) mark() uint64 { return 2 * uint64(len(l.recs)) }

func (l *testLog) add(t testing.TB, entries ...*event.Entry) []petrel.Record {
	t.Helper()
	from := len(l.recs)
	for _, e := range entries {
		b, err := event.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		r := petrel.Record{Index: uint64(len(l.recs)) + 1, Payload: b}
		var prev petrel.Hash
		if len(l.recs) > 0 {
			prev = l.recs[len(l.recs)-1].Hash
		}
		r.Hash = sha256.Sum256(append(binary.BigEndian.AppendUint64(prev[:], r.Index), b...))
		l.recs = append(l.recs, r)
	}
	return l.recs[from:]
}

// id makes an entry id that a test can read: "e1".
func id(s string) (id petrel.EntryID) {
	copy(id[:], s)
	return id
}

func name(id petrel.EntryID) string { return strings.TrimRight(string(id[:]), "\x00") }

func entry(eid string, guards []event.Guard, events ...event.Event) *event.Entry {
	return &event.Entry{
		ID: id(eid), App: "1", Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "u"},
		At: 1_700_000_000_000, Guards: guards, Events: events,
	}
}

// post makes message m in a room, guarded by its absence.
func post(eid, room, m string) *event.Entry {
	return entry(eid, []event.Guard{{Kind: event.GuardMessage, Key: []string{room, m}}},
		event.MessagePosted{Room: petrel.RoomID(room), ID: petrel.MessageID(m), Text: "hello"})
}

// blind makes message m without a guard.
func blind(eid, room, m string) *event.Entry {
	e := post(eid, room, m)
	e.Guards = nil
	return e
}

func join(eid, room, user string, version uint64) *event.Entry {
	return entry(eid, []event.Guard{{Kind: event.GuardMember, Key: []string{room, user}, Version: version}},
		event.MemberAdded{Room: petrel.RoomID(room), User: petrel.UserID(user), Role: event.RoleMember})
}

func leave(eid, room, user string, version uint64) *event.Entry {
	e := join(eid, room, user, version)
	e.Events = []event.Event{event.MemberRemoved{Room: petrel.RoomID(room), User: petrel.UserID(user)}}
	return e
}

func found(eid, epoch, after string) *event.Entry {
	return entry(eid, nil, event.ShardFounded{Epoch: petrel.Epoch(epoch), After: petrel.Epoch(after)})
}

// dump lists every row that replicas must agree on.
func (w *world) dump() string {
	w.t.Helper()
	var b strings.Builder
	err := w.store.View(context.Background(), func(r *projection.Reader) error {
		a, err := r.Applied()
		fmt.Fprintf(&b, "applied %d mark %d epoch %s digest %x\n", a.Index, a.Mark, a.Epoch, a.Digest[:8])
		for _, q := range []string{
			`SELECT 'room', room, head, '' FROM toy_room ORDER BY room`,
			`SELECT 'message', room || '/' || id, seq, version FROM toy_message ORDER BY room, id`,
			`SELECT 'member', room || '/' || user, version, '' FROM toy_member ORDER BY room, user`,
			`SELECT 'block', block, length(body), hex(body) FROM apply_outcome ORDER BY block`,
		} {
			err = errors.Join(err, r.Query(q, func(row *projection.Row) error {
				fmt.Fprintln(&b, row.Text(0), row.Text(1), row.Text(2), row.Text(3))
				return nil
			}))
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return b.String()
}
