package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// leaderless is a Desk in a minority.
type leaderless struct{}

func (leaderless) Do(context.Context, petrel.Actor, command.Meta, command.Command) (command.Result, error) {
	return command.Result{}, petrel.Errorf(petrel.CodeNoLeader, "No leader could be reached in time; nothing was written.").After(1500 * time.Millisecond)
}

// TestMinority: reads and sockets go on, marked; writes and what must be newer than this node is are told when to come back.
func TestMinority(t *testing.T) {
	t.Parallel()
	var stale atomic.Int64
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.Stale = func() time.Duration { return time.Duration(stale.Load()) }
		o.PositionWait = 50 * time.Millisecond
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	if r := s.ask("GET", "/v1/rooms/r", "", s.as("ann")); r.Header.Get("Petrel-Stale") != "" {
		t.Fatalf("in touch, and marked %q", r.Header.Get("Petrel-Stale"))
	}
	p := s.follow("ann", "")
	stream := s.listen(t, "rooms=r", s.as("ann"))
	stream()
	stale.Store(int64(400 * time.Millisecond)) // an election, perhaps
	for _, path := range []string{"/v1/rooms/r", "/v1/rooms", "/v1/rooms/r/messages", "/v1/rooms/r/events", "/v1/rooms/r/presence", "/v1/rooms/r/members"} {
		if r := s.ask("GET", path, "", s.as("ann")); r.StatusCode != http.StatusOK || r.Header.Get("Petrel-Stale") != "1" {
			t.Errorf("%s: %d, marked %q", path, r.StatusCode, r.Header.Get("Petrel-Stale"))
		}
	}
	stale.Store(int64(7800 * time.Millisecond))
	if r := s.ask("GET", "/v1/rooms/r", "", s.as("ann")); r.Header.Get("Petrel-Stale") != "7" {
		t.Errorf("marked %q", r.Header.Get("Petrel-Stale"))
	}
	if f := p.read(); f.Op != "stale" || f.ForMS == nil || *f.ForMS != 7800 {
		t.Fatalf("%+v", f)
	}
	if e := stream(); e.event != "stale" || e.data != `{"for_ms":7800}` {
		t.Fatalf("%+v", e)
	}
	late, err := s.dial("?token="+s.token("bob"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f := late.read(); f.Op != "hello" || f.StaleMS == nil || *f.StaleMS != 7800 {
		t.Fatalf("%+v", f)
	}
	r := s.ask("GET", "/v1/rooms/r", "", s.as("ann"), "Petrel-Position: "+s.next(1))
	if status, code := r.problem(t); status != 503 || code != petrel.CodeTimeout || r.Header.Get("Retry-After") == "" {
		t.Fatalf("a read of what is not here: %d %s", status, code)
	}
	epoch := string(s.store.Applied().Epoch)
	late.write(`{"op":"subscribe","id":1,"room":"r","after":9,"epoch":"` + epoch + `"}`)
	if f := late.read(); f.Code != string(petrel.CodeTimeout) || f.RetryAfterMS < 1 {
		t.Fatalf("what may well be on another node is not ahead: %+v", f)
	}
	stale.Store(0)
	if f := p.read(); f.Op != "stale" || *f.ForMS != 0 {
		t.Fatalf("%+v", f)
	}
	if e := stream(); e.event != "stale" || e.data != `{"for_ms":0}` {
		t.Fatalf("%+v", e)
	}
	if f := late.read(); f.Op != "stale" || *f.ForMS != 0 {
		t.Fatalf("%+v", f)
	}
	s.post("ann", "r", "m", "x")
	if f := p.read(); f.Op != "event" { // and nothing else was told
		t.Fatalf("%+v", f)
	}
}

// TestNoLeader: a write in a minority is told when to come back, over HTTP and on a socket.
func TestNoLeader(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) { o.Desk = leaderless{} })
	r := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("ann"))
	if status, code := r.problem(t); status != 503 || code != petrel.CodeNoLeader || r.Header.Get("Retry-After") != "2" {
		t.Fatalf("%d %s, Retry-After %q", status, code, r.Header.Get("Retry-After"))
	}
	p := s.open("ann")
	p.write(`{"op":"send","id":1,"room":"r","message":{"text":"x"}}`)
	if f := p.read(); f.Code != string(petrel.CodeNoLeader) || f.ID != 1 || f.RetryAfterMS != 1500 {
		t.Fatalf("%+v", f)
	}
}
