package petrel

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

func TestParseIDs(t *testing.T) {
	t.Parallel()
	const all = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:@="
	ids := map[string]struct {
		parse func(string) (string, error)
		max   int
	}{
		"room":    {func(s string) (string, error) { v, err := ParseRoomID(s); return string(v), err }, 64},
		"message": {func(s string) (string, error) { v, err := ParseMessageID(s); return string(v), err }, 64},
		"command": {func(s string) (string, error) { v, err := ParseCommandID(s); return string(v), err }, 64},
		"app":     {func(s string) (string, error) { v, err := ParseAppID(s); return string(v), err }, 64},
		"user":    {func(s string) (string, error) { v, err := ParseUserID(s); return string(v), err }, 128},
	}
	for name, id := range ids {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := []string{"a", "0", "_", "-", "...", "..a", ".b", "@", "=", ":", all[:34], all[34:], strings.Repeat("x", id.max), NewName()}
			for _, s := range good {
				if got, err := id.parse(s); err != nil || got != s {
					t.Errorf("%q: %q, %v; want it back", s, got, err)
				}
			}
			bad := []string{"", ".", "..", " ", "a b", "a/b", "a\x00", "é", "\xff", "a\n", "a,b", "a+b", "%41", "a#", strings.Repeat("x", id.max+1)}
			for _, s := range bad {
				got, err := id.parse(s)
				if CodeOf(err) != CodeInvalidID || got != "" {
					t.Errorf("%q: %q, %v; want invalid_id", s, got, err)
				}
				if err != nil && !utf8.ValidString(err.Error()) {
					t.Errorf("%q: the sentence is not UTF-8", s)
				}
			}
			for c := range 256 {
				_, err := id.parse(string([]byte{byte(c)}))
				if ok := strings.IndexByte(all, byte(c)) >= 0 && c != '.'; ok != (err == nil) {
					t.Errorf("byte %#x: %v", c, err)
				}
			}
		})
	}
}

func TestNewIDsAreValidAndDiffer(t *testing.T) {
	t.Parallel()
	a, b := NewName(), NewName()
	if _, err := ParseRoomID(a); err != nil || a == b {
		t.Errorf("%q, %q: %v", a, b, err)
	}
	if a > b {
		t.Errorf("%q is later than %q: names must sort by time", a, b)
	}
	x, y := NewEntryID(), NewEntryID()
	if x == y {
		t.Error("two equal entry ids")
	}
	if u, err := uuid.Parse(x.String()); err != nil || u.Version() != 7 {
		t.Errorf("%s: %v", x, err)
	}
	if e := NewEpoch(); len(e) != 16 || e == NewEpoch() {
		t.Errorf("epoch %q", e)
	}
}

func TestPosition(t *testing.T) {
	t.Parallel()
	for _, p := range []Position{
		{Epoch: "e"},
		{Shard: 1, Epoch: "0123456789abcdef", Index: 1},
		{Shard: 1<<32 - 1, Epoch: "0123456789abcdef", Index: 1<<64 - 1},
	} {
		got, err := ParsePosition(p.String())
		if err != nil || got != p {
			t.Errorf("%+v: %+v, %v", p, got, err)
		}
	}
	good := Position{Shard: 1, Epoch: "0123456789abcdef", Index: 300}.String()
	for name, s := range map[string]string{
		"empty": "", "cut": good[:3], "alphabet": "****", "padded": good + "=", "space": " " + good,
		"long":             strings.Repeat("A", 97),
		"no epoch":         Position{Shard: 1, Index: 1}.String(),
		"shard over 32bit": "gICAgBABZQ", // uvarint 1<<32, index 1, epoch "e"
		"overlong number":  "gAABZQ",     // 0 in two bytes
	} {
		if got, err := ParsePosition(s); CodeOf(err) != CodeInvalidPosition || got != (Position{}) {
			t.Errorf("%s %q: %+v, %v; want invalid_position", name, s, got, err)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("secret cause")
	base := Errorf(CodeBusy, "Come back in %d s.", 2)
	err := base.Because(cause).After(2 * time.Second)
	if base.Unwrap() != nil || base.RetryAfter != 0 {
		t.Error("Because and After changed their receiver")
	}
	if !errors.Is(err, cause) || err.RetryAfter != 2*time.Second || err.Detail != "Come back in 2 s." {
		t.Errorf("%+v", err)
	}
	if got := err.Error(); got != "busy: Come back in 2 s.: secret cause" {
		t.Errorf("%q", got)
	}
	for _, c := range []struct {
		err  error
		want Code
	}{{nil, ""}, {cause, CodeInternal}, {base, CodeBusy}, {fmt.Errorf("wrapped: %w", err), CodeBusy}} {
		if got := CodeOf(c.err); got != c.want {
			t.Errorf("CodeOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestActorKinds(t *testing.T) {
	t.Parallel()
	for k, want := range map[ActorKind]string{ActorUser: "user", ActorApp: "app", ActorOperator: "operator", ActorSystem: "system", 9: "actor(9)"} {
		if got := k.String(); got != want {
			t.Errorf("%d: %q, want %q", k, got, want)
		}
	}
}

func TestRoomChannelIsAKey(t *testing.T) {
	t.Parallel()
	m := map[Channel]bool{RoomChannel("1", "lobby"): true}
	if !m[RoomChannel("1", "lobby")] || m[RoomChannel("2", "lobby")] || m[RoomChannel("1", "Lobby")] {
		t.Error("channels of one room must be equal, of others not")
	}
}

// FuzzIDs: every id is accepted or refused with a code, and only the alphabet is accepted.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"", ".", "..", "lobby", "a b", "é", "\xff", "ada@example.org", strings.Repeat("x", 65), strings.Repeat("x", 129)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUserID(s)
		if err != nil {
			if CodeOf(err) != CodeInvalidID || u != "" {
				t.Fatalf("%q: %q, %v", s, u, err)
			}
			return
		}
		if string(u) != s || len(s) == 0 || s == "." || s == ".." || len(s) > MaxUserLen || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:@=") != "" {
			t.Fatalf("accepted %q as %q", s, u)
		}
		if _, err := ParseRoomID(s); (err == nil) != (len(s) <= MaxNameLen) {
			t.Fatalf("room and user ids share an alphabet: %q, %v", s, err)
		}
	})
}

// FuzzPosition: a position that parses is one that String wrote.
func FuzzPosition(f *testing.F) {
	f.Add(Position{Shard: 1, Epoch: "0123456789abcdef", Index: 300}.String())
	f.Add("")
	f.Add("gAABZQ")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePosition(s)
		if err != nil {
			if CodeOf(err) != CodeInvalidPosition {
				t.Fatal(err)
			}
			return
		}
		if p.String() != s || p.Epoch == "" {
			t.Fatalf("%q parsed as %+v, which is %q", s, p, p.String())
		}
	})
}
