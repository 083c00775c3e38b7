package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// crowd is who is in room r, as the frames of one connection tell it.
type crowd struct {
	*peer
	here   map[string]bool
	listed bool
}

func (p *peer) crowd() *crowd { return &crowd{peer: p, here: map[string]bool{}} }

// until reads frames until the list has exactly those users. Events that have a seq are passed over.
func (c *crowd) until(users ...string) {
	c.t.Helper()
	for !c.is(users) {
		f := c.read()
		switch {
		case f.Op == "presence" && f.Room == "r" && f.Count == len(f.Users):
			clear(c.here)
			for _, u := range f.Users {
				c.here[string(u.User)] = true
			}
			c.listed = true
		case f.Op == "event" && f.Seq > 0:
		case f.Op == "event" && f.Room == "r" && (f.Type == "presence.join" || f.Type == "presence.leave"):
			var who struct{ User string }
			if err := json.Unmarshal(f.Data, &who); err != nil || !c.listed || c.here[who.User] == (f.Type == "presence.join") {
				c.t.Fatalf("%s %s %v with %v", f.Type, f.Data, err, c.here)
			}
			if c.here[who.User] = true; f.Type == "presence.leave" {
				delete(c.here, who.User)
			}
		default:
			c.t.Fatalf("%+v", f)
		}
	}
}

func (c *crowd) is(users []string) bool {
	same := c.listed && len(c.here) == len(users)
	for _, user := range users {
		same = same && c.here[user]
	}
	return same
}

// TestPresenceCrossesNodes: who asks is told who is there, whatever the node, and who comes and goes.
func TestPresenceCrossesNodes(t *testing.T) {
	t.Parallel()
	pair := newPair(t, nil)
	bob := pair[1].follow("bob", "")
	ann := pair[0].follow("ann", `,"presence":true`).crowd()
	ann.until("ann", "bob")
	stream := pair[1].listen(t, "rooms=r&presence=1", pair[1].as("cat"))
	if e := stream(); e.event != "hello" {
		t.Fatalf("%+v", e)
	}
	ann.until("ann", "bob", "cat")
	if e := stream(); e.event != "presence" || e.id != "" || !strings.HasPrefix(e.data, `{"room":"r","users":[{"user":`) {
		t.Fatalf("%+v", e)
	}
	for i, s := range pair {
		r := s.ask("GET", "/v1/rooms/r/presence", "", s.as("dan"))
		if want := `{"users":[{"user":"ann"},{"user":"bob"},{"user":"cat"}],"count":3}`; r.StatusCode != http.StatusOK || strings.TrimSpace(r.body) != want {
			t.Fatalf("node %d: %d %s", i, r.StatusCode, r.body)
		}
	}
	_ = bob.ws.CloseNow()
	ann.until("ann", "cat")
	pair[1].room("ann", `{"id":"den","kind":"private"}`)
	if status, code := pair[1].ask("GET", "/v1/rooms/den/presence", "", pair[1].as("bob")).problem(t); status != 404 || code != petrel.CodeRoomNotFound {
		t.Fatalf("a room that one may not know of: %d %s", status, code)
	}
}

// TestPresenceEndsWithTheRight: who is removed is there no more, and hears nothing more of it.
func TestPresenceEndsWithTheRight(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"private","members":["bob","cat"]}`)
	bob := s.follow("bob", `,"presence":true`).crowd()
	ann := s.follow("ann", `,"presence":true`).crowd()
	ann.until("ann", "bob")
	bob.until("ann", "bob")
	s.ask("DELETE", "/v1/rooms/r/members/bob", "", s.as("ann"))
	for f := (heard{}); f.Op != "unsubscribed"; {
		f = bob.read()
	}
	s.follow("cat", "")
	ann.until("ann", "cat")
	bob.write(`{"op":"ping","id":2}`)
	if f := bob.read(); f.Op != "pong" {
		t.Fatalf("bob hears on: %+v", f)
	}
}
