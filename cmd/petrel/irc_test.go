package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestParseIRC(t *testing.T) {
	t.Parallel()
	const text = `[23:58] <|QuaD-> totem xine
=== L0sT [~waa3@raptor.ukc.ac.uk]  has joined #ubuntu
=== s3[mn] rain [n=rain@138.49.158.54]  has left #ubuntu ["Leaving"]
=== sid77 is now known as sid77_
=== mode/#ubuntu [+o tritium]  by ChanServ
=== djpirate was kicked off #ubuntu by apokryphos (annoying)
=== JanC has done this once
[00:01]  * erUSUL is wrong
[00:01] <citrix>
[00:02] <odd> 	tab <b> and ` + "\b" + `back
what is this
[99:99] <a> b
`
	got, err := parseIRC("/x/2004-12-25.train-c.raw.txt", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	at := func(day, h, m int) time.Time { return time.Date(2004, 12, day, h, m, 0, 0, time.UTC) }
	want := &ircLog{
		Name: "2004-12-25.train-c.raw.txt", Date: "2004-12-25", Notes: 5, Blank: 1, Broken: 2,
		Lines: []ircLine{
			{Number: 0, Nick: "|QuaD-", Text: "totem xine", Clock: "23:58", At: at(25, 23, 58)},
			{Number: 6, Nick: "JanC", Text: "has done this once", Action: true, Clock: "23:58", At: at(25, 23, 58)},
			{Number: 7, Nick: "erUSUL", Text: "is wrong", Action: true, Clock: "00:01", At: at(26, 0, 1)},
			{Number: 9, Nick: "odd", Text: "\ttab <b> and back", Clock: "00:02", At: at(26, 0, 2)},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestUserOfNick(t *testing.T) {
	t.Parallel()
	for nick, want := range map[string]string{
		"crimsun": "crimsun", "|QuaD-": "=7CQuaD-", "s3[mn] rain": "s3=5Bmn=5D=20rain", "a=b": "a=3Db", "`a^{}\\": "=60a=5E=7B=7D=5C",
		".": "=2E", "..": "=2E=2E", "...": "...", "a.b": "a.b",
	} {
		if got := userOfNick(nick); got != want {
			t.Errorf("userOfNick(%q) = %q, want %q", nick, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.StringN(1, 30, 42).Draw(t, "a")
		b := rapid.StringN(1, 30, 42).Draw(t, "b")
		if _, err := petrel.ParseUserID(userOfNick(a)); err != nil {
			t.Errorf("%q makes %q: %v", a, userOfNick(a), err)
		}
		if (a == b) != (userOfNick(a) == userOfNick(b)) {
			t.Errorf("%q and %q make %q and %q", a, b, userOfNick(a), userOfNick(b))
		}
	})
}

func TestMessageID(t *testing.T) {
	t.Parallel()
	l := ircLine{Number: 3, Nick: "a", Text: "b"}
	id := l.messageID("f", "lobby")
	if _, err := petrel.ParseMessageID(id); err != nil {
		t.Error(err)
	}
	if l.messageID("f", "lobby") != id || l.messageID("f", "help") == id || l.messageID("g", "lobby") == id {
		t.Errorf("the id %q must depend on room and file and on nothing else", id)
	}
}
