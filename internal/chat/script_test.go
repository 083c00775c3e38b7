package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/scripttest"
)

// TestScripts runs testdata/*.txt (scripttest).
//
// A line of a step is "WHO[/COMMAND-ID] VERB ARGS": a command, folded at once. WHO is a user or "app". A step that
// begins with "race" decides all its commands on the same state and folds them in one batch. "WHO get|rooms|members|
// messages|events|sync …" reads; "replay ROOM AFTER" is the hub's read; "rows TABLE" shows what is stored.
func TestScripts(t *testing.T) {
	t.Parallel()
	scripttest.Run(t, func(t *testing.T) scripttest.Story { return scripttest.Story{Step: script{newWorld(t)}.step} })
}

type script struct{ *world }

func (s script) step(lines []string) string {
	var out strings.Builder
	if lines[0] == "race" {
		s.race(&out, lines[1:])
		return out.String()
	}
	for _, l := range lines {
		w := strings.Fields(l)
		switch {
		case w[0] == "rows":
			out.WriteString(s.rows(w[1]))
		case w[0] == "replay":
			out.WriteString(s.replay(petrel.RoomID(w[1]), number(s.T, w[2])))
		case slices.Contains([]string{"get", "rooms", "members", "messages", "events", "sync"}, w[1]):
			out.WriteString(s.read(w))
		default:
			actor, id, cmd := s.parse(l)
			res, err := s.do(actor, id, cmd)
			s.report(&out, res, err)
		}
	}
	return out.String()
}

func (s script) race(out *strings.Builder, lines []string) {
	var plans []applytest.Planned
	for _, l := range lines {
		actor, id, cmd := s.parse(l)
		p, err := s.plan(actor, id, cmd)
		if err != nil {
			s.T.Fatal(l, err)
		}
		plans = append(plans, p)
	}
	for i, o := range s.Fold(plans...) {
		p := plans[i]
		if !o.Conflicted {
			s.report(out, result{p.Decision.Answer(p.Entry.Stamp(o.Index), o.Seqs), false, true, o.Seqs, p.Decision.Events}, nil)
			continue
		}
		out.WriteString("conflicted; again: ")
		actor, id, cmd := s.parse(lines[i])
		res, err := s.do(actor, id, cmd)
		s.report(out, res, err)
	}
}

func (s script) report(out *strings.Builder, res result, err error) {
	if err != nil {
		fmt.Fprintln(out, err)
		return
	}
	switch {
	case res.changed:
		fmt.Fprintf(out, "folded %d %s\n", res.seqs, names(res.events))
	case res.repeated:
		fmt.Fprint(out, "repeated ")
	default:
		fmt.Fprint(out, "unchanged ")
	}
	answer := string(encode(res.answer))
	shown := false
	for _, p := range s.pubs {
		if string(p.Data) == answer {
			shown = true
		}
		more := ""
		if p.Revoked != "" {
			more = " revoked " + string(p.Revoked)
		}
		if p.Final {
			more += " final"
		}
		fmt.Fprintf(out, "publish %s %d %s %s%s\n", p.Channel.Name, p.Seq, p.Type, p.Data, more)
	}
	if !shown {
		fmt.Fprintf(out, "answer %s\n", answer)
	}
	s.pubs = nil
	whole := madeID.ReplaceAllString(out.String(), "MADE-ID")
	out.Reset()
	out.WriteString(whole)
}

// madeID finds ids that were made: scripts hold nothing that differs from run to run.
var madeID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

func names(events []event.Event) string {
	var all []string
	for _, ev := range events {
		all = append(all, strings.TrimPrefix(fmt.Sprintf("%T", ev), "event."))
	}
	return strings.Join(all, " ")
}

func (s script) actor(who string) petrel.Actor {
	if who == "app" {
		return app()
	}
	return user(who)
}

// parse reads "WHO[/ID] VERB ROOM ARGS". A last argument that begins with { is the JSON of other fields.
func (s script) parse(line string) (petrel.Actor, petrel.CommandID, command) {
	line, fields, _ := strings.Cut(line, " {")
	var f struct {
		Name     *string
		Text     *string
		Custom   json.RawMessage
		Mentions []petrel.UserID
	}
	if fields != "" {
		if err := json.Unmarshal([]byte("{"+fields), &f); err != nil {
			s.T.Fatalf("%s: %v", fields, err)
		}
	}
	w := strings.Fields(line)
	who, id, _ := strings.Cut(w[0], "/")
	room := petrel.RoomID(w[2])
	if room == "-" {
		room = ""
	}
	rest := w[3:]
	return s.actor(who), petrel.CommandID(id), s.verb(w[1], room, rest, f.Name, f.Text, f.Custom, f.Mentions)
}

func (s script) verb(verb string, room petrel.RoomID, rest []string, name, text *string, custom json.RawMessage, mentions []petrel.UserID) command {
	role := func(i int) (r event.Role) {
		if len(rest) > i {
			if err := r.UnmarshalText([]byte(rest[i])); err != nil {
				s.T.Fatal(err)
			}
		}
		return r
	}
	switch verb {
	case "create":
		c := CreateRoom{ID: room, Custom: custom}
		if name != nil {
			c.Name = *name
		}
		if err := c.Kind.UnmarshalText([]byte(rest[0])); err != nil {
			s.T.Fatal(err)
		}
		for _, u := range rest[1:] {
			c.Members = append(c.Members, Member{User: petrel.UserID(u)})
		}
		return c
	case "update":
		return UpdateRoom{Room: room, Name: name, Custom: custom}
	case "delete":
		return DeleteRoom{Room: room}
	case "put":
		return PutMember{Room: room, User: petrel.UserID(rest[0]), Role: role(1)}
	case "remove":
		return RemoveMember{Room: room, User: petrel.UserID(rest[0])}
	case "post":
		return PostMessage{Room: room, Text: strings.Join(rest, " "), Custom: custom, Mentions: mentions}
	case "edit":
		if len(rest) > 1 {
			text = ptr(strings.Join(rest[1:], " "))
		}
		return EditMessage{Room: room, ID: petrel.MessageID(rest[0]), Text: text, Custom: custom, Mentions: mentions}
	case "erase":
		return DeleteMessage{Room: room, ID: petrel.MessageID(rest[0])}
	}
	s.T.Fatalf("no verb %q", verb)
	return nil
}

func (s script) read(w []string) string {
	actor := s.actor(w[0])
	v, err := view(s.world, func(r *projection.Reader) (any, error) {
		opt := map[string]string{}
		for _, o := range w[2:] {
			if k, v, ok := strings.Cut(o, "="); ok {
				opt[k] = v
			}
		}
		n := func(k string) uint64 { return number(s.T, opt[k]) }
		switch w[1] {
		case "rooms":
			return ListRooms(r, actor, RoomsQuery{After: petrel.RoomID(opt["after"]), Limit: int(n("limit")), Open: opt["open"] != ""})
		case "sync":
			rooms := map[petrel.RoomID]uint64{}
			for k := range opt {
				rooms[petrel.RoomID(k)] = n(k)
			}
			return Sync(r, actor, rooms, 0)
		}
		room := petrel.RoomID(w[2])
		switch w[1] {
		case "get":
			if len(w) > 3 {
				return GetMessage(r, actor, room, petrel.MessageID(w[3]))
			}
			return GetRoom(r, actor, room)
		case "members":
			return ListMembers(r, actor, room, petrel.UserID(opt["after"]), int(n("limit")))
		case "messages":
			_, has := opt["after"]
			return ListMessages(r, actor, room, MessagesQuery{Before: n("before"), After: n("after"), HasAfter: has, Limit: int(n("limit"))})
		default:
			return ListEvents(r, actor, room, n("after"), int(n("limit")))
		}
	})
	if err != nil {
		return fmt.Sprintln(err)
	}
	return pretty(v)
}

// pretty prints a page one item a line.
func pretty(v any) string {
	var b strings.Builder
	switch v := v.(type) {
	case RoomPage:
		for _, x := range v.Rooms {
			fmt.Fprintf(&b, "%s\n", encode(x))
		}
		fmt.Fprintln(&b, "more", v.More)
	case MemberPage:
		for _, x := range v.Members {
			fmt.Fprintf(&b, "%s %s\n", x.User, x.Role)
		}
		fmt.Fprintln(&b, "more", v.More)
	case MessagePage:
		for _, x := range v.Messages {
			fmt.Fprintf(&b, "%s\n", encode(x))
		}
		fmt.Fprintln(&b, "more", v.More)
	case EventPage:
		for _, x := range v.Events {
			fmt.Fprintf(&b, "%d %s %s\n", x.Seq, x.Type, x.Data)
		}
		fmt.Fprintln(&b, "head", v.Head)
	case map[petrel.RoomID]SyncRoom:
		for _, id := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(&b, "%s: ", id)
			for _, x := range v[id].Events {
				fmt.Fprintf(&b, "%d %s, ", x.Seq, x.Type)
			}
			fmt.Fprintf(&b, "head %d, more %v %s\n", v[id].Head, v[id].More, v[id].Code)
		}
	default:
		fmt.Fprintf(&b, "%s\n", encode(v))
	}
	return b.String()
}

func (s script) replay(room petrel.RoomID, after uint64) string {
	var b strings.Builder
	err := s.Store.View(s.T.Context(), func(r *projection.Reader) error {
		pubs, head, err := Replay(r, "1", room, after, 0)
		for _, p := range pubs {
			fmt.Fprintf(&b, "%d %s %s\n", p.Seq, p.Type, p.Data)
		}
		if err == nil {
			fmt.Fprintln(&b, "head", head)
		}
		return err
	})
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}

// rows shows what is stored, without the columns that are only times and hashes.
func (s script) rows(table string) string {
	sql := map[string]string{
		"messages": `SELECT concat_ws(' ', place & 0xffff, id, 'text=' || quote(text), 'custom=' || quote(CAST(custom AS TEXT)), 'people=' || quote(CAST(people AS TEXT)),
			'edit=' || (edit & 0xffff), 'edits=' || edits, 'entry=' || entry, 'version=' || version, iif(deleted_at, 'deleted', NULL)) FROM chat_message ORDER BY place`,
		"changes": `SELECT concat_ws(' ', place & 0xffff, 'kind=' || kind, 'command=' || command, 'id=' || id, 'target=' || (target & 0xffff), 'user=' || user, 'role=' || role,
			'text=' || quote(text), 'custom=' || quote(CAST(custom AS TEXT)), iif(deleted_at, 'deleted', NULL)) FROM chat_change ORDER BY place`,
		"members": `SELECT concat_ws(' ', r.id, u.id, 'role=' || m.role, 'since=' || m.since, 'version=' || m.version)
			FROM chat_member m JOIN chat_room r ON r.key = m.room JOIN chat_user u ON u.key = m.user ORDER BY m.room, m.user`,
		"rooms": `SELECT concat_ws(' ', key, id, 'kind=' || kind, 'version=' || version, 'direct=' || direct, iif(deleted_at, 'deleted', NULL)) FROM chat_room ORDER BY key`,
	}[table]
	if sql == "" {
		s.T.Fatalf("no table %q", table)
	}
	return s.Dump(sql)
}

func number(t testing.TB, s string) uint64 {
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDocs: the tables in docs/CHAT.md are those of the code. -rewrite takes them over.
func TestDocs(t *testing.T) {
	t.Parallel()
	const path = "../../docs/CHAT.md"
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc := raw
	for _, name := range slices.Sorted(maps.Keys(Tables())) {
		begin, end := []byte("<!-- begin "+name+" -->\n"), []byte("<!-- end "+name+" -->\n")
		before, rest, ok := bytes.Cut(doc, begin)
		_, after, ok2 := bytes.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no place for the table %q", path, name)
		}
		doc = slices.Concat(before, begin, []byte("\n"+Tables()[name]+"\n"), end, after)
	}
	scripttest.Compare(t, path, string(raw), string(doc))
}
