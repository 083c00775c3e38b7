package chat

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func deep(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}` }

func TestCanonical(t *testing.T) {
	t.Parallel()
	full := `{"k":"` + strings.Repeat("x", MaxCustom-8) + `"}`
	for _, c := range []struct {
		in   string
		want string
		code petrel.Code
	}{
		{"", "", ""},
		{"null", "", ""},
		{" {} ", "", ""},
		{`{"b": 1.0, "a" :[ true , null ]}`, `{"a":[true,null],"b":1.0}`, ""},
		{`{"a":1,"a":2}`, `{"a":2}`, ""},
		{`{"n":123456789012345678901234567890.10e-5}`, `{"n":123456789012345678901234567890.10e-5}`, ""},
		{`{"h":"<b>&amp;</b>\u00e9\u0000"}`, `{"h":"<b>&amp;</b>é\u0000"}`, ""},
		{`{"brackets in text":"[[[[[[[[[[[[[[[[[[[[[[\"{{"}`, `{"brackets in text":"[[[[[[[[[[[[[[[[[[[[[[\"{{"}`, ""},
		{full, full, ""},
		{"  " + full, full, ""},
		{deep(MaxCustomDepth), deep(MaxCustomDepth), ""},
		{deep(MaxCustomDepth + 1), "", petrel.CodeInvalidField},
		{strings.Repeat(`{"a":`, 100_000), "", petrel.CodeInvalidField},
		{`{"k":"` + strings.Repeat("x", MaxCustom-7) + `"}`, "", petrel.CodeTooLarge},
		{`[]`, "", petrel.CodeInvalidField},
		{`"text"`, "", petrel.CodeInvalidField},
		{`{"a":1`, "", petrel.CodeInvalidField},
		{`{"a":1}{}`, "", petrel.CodeInvalidField},
		{`{"a":1} x`, "", petrel.CodeInvalidField},
		{`{a:1}`, "", petrel.CodeInvalidField},
		{"{\"a\":\"\xff\"}", "", petrel.CodeInvalidUTF8},
	} {
		got, err := canonical(json.RawMessage(c.in))
		if string(got) != c.want || petrel.CodeOf(err) != c.code {
			t.Errorf("%.60q: %.60q, %v; want %.60q, %s", c.in, got, err, c.want, c.code)
		}
	}
}

// FuzzCanonical: what is accepted is one fixed form within the limits.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"", "null", "{}", `{"b":1.50,"a":[{"x":"\u2028<"}]}`, deep(17), `{"a":1}{}`, "{\"\xff\":1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := canonical(b)
		if err != nil {
			if petrel.CodeOf(err) == petrel.CodeInternal || got != nil {
				t.Fatalf("%q: %q, %v", b, got, err)
			}
			return
		}
		again, err := canonical(got)
		if err != nil || string(again) != string(got) || len(got) > MaxCustom {
			t.Fatalf("%q: %q, then %q, %v", b, got, again, err)
		}
		if got == nil {
			return
		}
		var object map[string]any
		if err := json.Unmarshal(got, &object); err != nil {
			t.Fatalf("%q is no object: %v", got, err)
		}
		if out := encode(Message{Custom: got}); !strings.Contains(string(out), string(got)) {
			t.Fatalf("%q is sent in another form: %s", got, out)
		}
	})
}

func TestFieldLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := user("ada")
	w.must(ada, "", room(event.RoomOpen, "lobby"))
	w.must(ada, "m0", post("lobby", "hi"))
	users := func(n int) (u []petrel.UserID) {
		for i := range n {
			u = append(u, petrel.UserID(fmt.Sprint("u", i)))
		}
		return u
	}
	members := func(n int) (m []Member) {
		for _, u := range users(n) {
			m = append(m, Member{User: u})
		}
		return m
	}
	for i, c := range []struct {
		cmd  command
		code petrel.Code
	}{
		{post("lobby", strings.Repeat("é", MaxText/2)), ""},
		{post("lobby", "\x03control \t\n characters but NUL"), ""},
		{post("lobby", strings.Repeat("x", MaxText+1)), petrel.CodeTooLarge},
		{post("lobby", ""), petrel.CodeInvalidField},
		{post("lobby", "a\x00b"), petrel.CodeInvalidField},
		{post("lobby", "\xc3\x28"), petrel.CodeInvalidUTF8},
		{PostMessage{Room: "lobby", Text: "x", Custom: json.RawMessage(`[]`)}, petrel.CodeInvalidField},
		{PostMessage{Room: "lobby", Text: "x", Mentions: users(MaxMentions)}, ""},
		{PostMessage{Room: "lobby", Text: "x", Mentions: users(MaxMentions + 1)}, petrel.CodeInvalidField},
		{EditMessage{Room: "lobby", ID: "m0", Text: ptr("")}, petrel.CodeInvalidField},
		{EditMessage{Room: "lobby", ID: "m0", Text: ptr(strings.Repeat("x", MaxText+1))}, petrel.CodeTooLarge},
		{EditMessage{Room: "lobby", ID: "m0", Mentions: users(MaxMentions + 1)}, petrel.CodeInvalidField},
		{EditMessage{Room: "lobby", ID: "m0", Custom: json.RawMessage(`1`)}, petrel.CodeInvalidField},
		{EditMessage{Room: "lobby", ID: "nothing", Text: ptr("x")}, petrel.CodeMessageNotFound},
		{DeleteMessage{Room: "lobby", ID: "nothing"}, petrel.CodeMessageNotFound},
		{UpdateRoom{Room: "lobby", Name: ptr(strings.Repeat("x", MaxRoomName))}, ""},
		{UpdateRoom{Room: "lobby", Name: ptr(strings.Repeat("x", MaxRoomName+1))}, petrel.CodeTooLarge},
		{UpdateRoom{Room: "lobby", Name: ptr("a\nb")}, petrel.CodeInvalidField},
		{UpdateRoom{Room: "lobby", Name: ptr("\xff")}, petrel.CodeInvalidUTF8},
		{UpdateRoom{Room: "lobby", Custom: json.RawMessage(`{`)}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomOpen, Members: members(MaxCreateMembers)}, ""},
		{CreateRoom{Kind: event.RoomOpen, Members: members(MaxCreateMembers + 1)}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomOpen, Members: []Member{{User: "x"}, {User: "x"}}}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomOpen, Members: []Member{{User: "x", Role: 4}}}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomOpen, Name: "a\x7f"}, petrel.CodeInvalidField},
		{CreateRoom{}, petrel.CodeInvalidField},
		{CreateRoom{Kind: 4}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomDirect}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomDirect, Members: []Member{{User: "ada"}}}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomDirect, Members: members(2)}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomDirect, Name: "x", Members: members(1)}, petrel.CodeInvalidField},
		{CreateRoom{Kind: event.RoomDirect, Members: []Member{{User: "x", Role: event.RoleOwner}}}, petrel.CodeInvalidField},
		{PutMember{Room: "lobby", User: "x", Role: 4}, petrel.CodeInvalidField},
		{PutMember{Room: "nowhere", User: "x"}, petrel.CodeRoomNotFound},
	} {
		if c.code != "" {
			w.refuse(c.code, ada, "", c.cmd)
		} else if _, err := w.do(ada, petrel.CommandID(fmt.Sprint("c", i)), c.cmd); err != nil {
			t.Errorf("%d %T: %v", i, c.cmd, err)
		}
	}
	// Posting is for somebody, and rooms are for users and apps.
	w.refuse(petrel.CodeInvalidField, app(), "a", post("lobby", "hi"))
	operator := petrel.Actor{Kind: petrel.ActorOperator, App: "1"}
	w.refuse(petrel.CodeForbidden, operator, "a", post("lobby", "hi"))
	w.refuse(petrel.CodeForbidden, operator, "a", room(event.RoomOpen, "x"))
	w.refuse(petrel.CodeRoomNotFound, operator, "a", DeleteRoom{Room: "lobby"})
	// Another app sees nothing of this one.
	other := petrel.Actor{Kind: petrel.ActorUser, App: "2", User: "ada"}
	w.refuse(petrel.CodeRoomNotFound, other, "m0", post("lobby", "hi"))
	w.must(other, "", room(event.RoomOpen, "lobby"))
	w.must(other, "m0", post("lobby", "hi in another app"))
}

func TestEditsAreBounded(t *testing.T) {
	t.Parallel()
	m := message{Message: Message{ID: "m", Room: "lobby", Seq: 2, User: "ada", Text: "old"}, version: 2, edits: MaxEdits - 1}
	st := scene{room: roomRow{key: 1, id: "lobby", kind: event.RoomOpen, version: 1}, actor: memberRow{user: "ada", key: 1, role: event.RoleMember, version: 1}, who: member}
	after := m.Message
	after.Text = "new"
	s := event.Stamp{Actor: user("ada"), App: "1"}
	if d, err := decideEdit(st, m, after, s, 1); err != nil || len(d.Events) != 1 {
		t.Errorf("edit %d: %v", MaxEdits, err)
	}
	m.edits++
	if _, err := decideEdit(st, m, after, s, 1); petrel.CodeOf(err) != petrel.CodeLimitReached {
		t.Errorf("edit %d: %v, want limit_reached", MaxEdits+1, err)
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	for v, want := range map[Time]string{0: "1970-01-01T00:00:00.000Z", 1_767_225_600_000: "2026-01-01T00:00:00.000Z", 1_767_225_600_120: "2026-01-01T00:00:00.120Z"} {
		if v.String() != want {
			t.Errorf("%d: %s, want %s", v, v, want)
		}
		var back Time
		if err := back.UnmarshalText([]byte(want)); err != nil || back != v {
			t.Errorf("%s: %d, %v", want, back, err)
		}
	}
	var v Time
	if err := v.UnmarshalText([]byte("yesterday")); err == nil {
		t.Error("read yesterday")
	}
	m := Message{ID: "m", Room: "r", Seq: 1, User: "u", Text: "<&>\u2028", CreatedAt: 5, EditedAt: 7, Mentions: []petrel.UserID{"a"}}
	b := encode(m)
	var back Message
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, back); d != "" {
		t.Error(d)
	}
}

func TestFingerprints(t *testing.T) {
	t.Parallel()
	seen := map[uint64]string{}
	for name, p := range map[string]uint64{
		"post":            PostMessage{Room: "r", Text: "t"}.print(),
		"other text":      PostMessage{Room: "r", Text: "u"}.print(),
		"other room":      PostMessage{Room: "s", Text: "t"}.print(),
		"moved border":    PostMessage{Room: "rt", Text: ""}.print(),
		"custom":          PostMessage{Room: "r", Text: "t", Custom: []byte(`{"a":1}`)}.print(),
		"one mention":     PostMessage{Room: "r", Text: "t", Mentions: []petrel.UserID{"ab"}}.print(),
		"two mentions":    PostMessage{Room: "r", Text: "t", Mentions: []petrel.UserID{"a", "b"}}.print(),
		"nil text":        newPrint("k", "r").maybe(nil).sum(),
		"empty text":      newPrint("k", "r").maybe(ptr("")).sum(),
		"room":            room(event.RoomOpen, "r", "a").print(),
		"room of another": room(event.RoomOpen, "r", "b").print(),
		"private room":    room(event.RoomPrivate, "r", "a").print(),
	} {
		if other, ok := seen[p]; ok {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[p] = name
	}
	// Fingerprints are in the log: they must never change.
	if got := (PostMessage{Room: "lobby", Text: "hi"}).print(); got != pinnedPrint {
		t.Errorf("the fingerprint of a post is now %#x", got)
	}
}

const pinnedPrint = 0xc127d68b14c20d4e
