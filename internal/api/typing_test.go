package api

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// cable is a hub.Relay over a Bus, as node makes one.
type cable struct {
	*bus.Bus
	node petrel.NodeID
}

func (c cable) Node() petrel.NodeID { return c.node }

func (cable) Bucket(ch petrel.Channel) hub.Bucket { return hub.Bucket(bus.BucketOf(ch.App, ch.Name)) }

func (c cable) Publish(b hub.Bucket, p []byte) error { return c.Bus.Publish(bus.Bucket(b), 1, p) }

func (c cable) Listen(b hub.Bucket) (func(), error) { return c.Bus.Listen(bus.Bucket(b)) }

func (c cable) Ask(ctx context.Context, node petrel.NodeID, p []byte) ([]byte, error) {
	return c.Request(ctx, node, 1, p)
}

// newPair starts two stacks whose hubs are joined by a bus in memory. Each has a log of its own: what is durable is made on both.
func newPair(t *testing.T, change func(*Options, *gateway.Options, *conn.Options)) [2]*stack {
	t.Helper()
	net := bus.NewNetwork(1)
	var out [2]*stack
	for i, name := range []petrel.NodeID{"n1", "n2"} {
		s := newStack(t, change)
		b, err := bus.New(bus.Options{Node: name, Heartbeat: 50 * time.Millisecond}, net.Join())
		if err != nil {
			t.Fatal(err)
		}
		b.Handle(1, func(m bus.Message) { s.hub.Receive(m.Origin, m.Incarnation, m.Payload) })
		b.OnChange(func(all []bus.Peer) {
			var alive []hub.Peer
			for _, p := range all {
				if p.Alive {
					alive = append(alive, hub.Peer{Node: p.Node, Incarnation: p.Incarnation})
				}
			}
			s.hub.Peers(alive)
		})
		s.hub.Join(cable{b, name})
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Stop)
		out[i] = s
	}
	for _, s := range out {
		s.room("ann", `{"id":"r","kind":"open"}`)
	}
	return out
}

// follow opens a socket and subscribes to the room.
func (s *stack) follow(user, more string) *peer {
	s.t.Helper()
	p := s.open(user)
	p.write(`{"op":"subscribe","id":1,"room":"r"` + more + `}`)
	if f := p.read(); f.Op != "ok" || f.ID != 1 {
		s.t.Fatalf("subscribe: %+v", f)
	}
	return p
}

// TestTypingCrossesNodes: everybody else in the room hears of it, here and on the other node; the connection that types does not.
func TestTypingCrossesNodes(t *testing.T) {
	t.Parallel()
	pair := newPair(t, nil)
	ann, tab, bob := pair[0].follow("ann", ""), pair[0].follow("ann", ""), pair[1].follow("bob", "")
	// The other node hears a bucket a moment after the first subscription in it: what was announced before is lost, which is no fault.
	heardOf := make(chan heard, 1)
	go func() {
		f, err := bob.tryRead()
		if err != nil {
			f.Op = err.Error()
		}
		heardOf <- f
	}()
	starts := 0
	var first heard
	for first.Op == "" {
		ann.write(`{"op":"typing","id":5,"room":"r"}`)
		ann.write(`{"op":"typing","id":6,"room":"r","active":false}`)
		starts++
		for range 2 {
			if f := ann.read(); f.Op != "ok" && f.Code != string(petrel.CodeRateLimited) {
				t.Fatalf("%+v", f)
			}
		}
		select {
		case first = <-heardOf:
		case <-time.After(200 * time.Millisecond):
		}
	}
	if first.Op != "event" || first.Room != "r" || first.Type != "typing.start" || first.Seq != 0 || string(first.Data) != `{"user":"ann"}` {
		t.Fatalf("bob heard %+v", first)
	}
	if f := bob.read(); f.Type != "typing.stop" {
		t.Fatalf("bob heard %+v", f)
	}
	if f := tab.read(); f.Type != "typing.start" {
		t.Fatalf("another connection of the same user heard %+v", f)
	}
	ann.write(`{"op":"ping","id":9}`)
	if f := ann.read(); f.Op != "pong" {
		t.Fatalf("the one who types heard %+v", f)
	}
}

// TestTypingEndsWithTheConnection, and with the subscription.
func TestTypingEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	bob := s.follow("bob", "")
	for _, end := range []func(p *peer){
		func(p *peer) { _ = p.ws.CloseNow() },
		func(p *peer) { p.write(`{"op":"unsubscribe","room":"r"}`) },
		func(p *peer) { p.write(`{"op":"typing","room":"r","active":false}`) },
	} {
		p := s.follow("ann", "")
		p.write(`{"op":"typing","room":"r"}`)
		if f := bob.read(); f.Type != "typing.start" {
			t.Fatalf("%+v", f)
		}
		end(p)
		if f := bob.read(); f.Type != "typing.stop" || string(f.Data) != `{"user":"ann"}` {
			t.Fatalf("%+v", f)
		}
	}
}

func TestTypingIsLimited(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	p := s.follow("ann", "")
	for i := range 100 {
		p.write(fmt.Sprintf(`{"op":"typing","id":%d,"room":"r"}`, i))
		f := p.read()
		if f.Op == "ok" {
			continue
		}
		if f.Code != string(petrel.CodeRateLimited) || f.RetryAfterMS < 1 {
			t.Fatalf("%+v", f)
		}
		return
	}
	t.Fatal("a hundred frames at once were let through")
}

// TestTypists is their clock: one start for any number of keystrokes, said again now and then, and a stop by itself.
func TestTypists(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		begin := time.Now()
		ts := newTypists(func(p *petrel.Publication, _ hub.Subscriber) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(time.Since(begin).Round(time.Second), " ", p.Type, " ", string(p.Data)))
			return nil
		})
		defer ts.close()
		ann, bob := typist{petrel.RoomChannel("1", "r"), "ann"}, typist{petrel.RoomChannel("1", "r"), "bob"}
		phone, desk := &fakeEar{n: 1}, &fakeEar{n: 2}
		for range 8 { // 0 s to 3.5 s
			ts.start(ann, phone)
			<-time.After(500 * time.Millisecond)
		}
		ts.start(ann, desk) // 4 s
		ts.stop(ann, phone) // the other still types
		ts.start(bob, phone)
		ts.stop(bob, phone)
		ts.stop(bob, phone)
		<-time.After(time.Minute)
		ts.start(ann, phone) // 64 s
		want := []string{
			`0s typing.start {"user":"ann"}`, `3s typing.start {"user":"ann"}`, `4s typing.start {"user":"bob"}`, `4s typing.stop {"user":"bob"}`,
			`10s typing.stop {"user":"ann"}`, `1m4s typing.start {"user":"ann"}`,
		}
		mu.Lock()
		defer mu.Unlock()
		if diff := cmp.Diff(want, told); diff != "" {
			t.Fatal(diff)
		}
	})
}

type fakeEar struct{ n int }

func (*fakeEar) Send([]byte) error            { return nil }
func (*fakeEar) TrySend([]byte) (bool, error) { return true, nil }
func (*fakeEar) NotifyRoom(func())            {}

// TestWhoReadsMayPost: typing asks for a subscription and for nothing else, which is right as long as whoever may read a room may post in it.
func TestWhoReadsMayPost(t *testing.T) {
	t.Parallel()
	rights := map[string]string{} // the page is held against the code by a test of chat
	kinds := 0
	for line := range strings.Lines(between(t, "CHAT.md", "rights")) {
		cells := strings.Split(line, "|")
		if len(cells) < 7 {
			continue
		}
		users := strings.Join(cells[2:6], "|") // without the app itself
		switch strings.TrimSpace(cells[1]) {
		case "read it, its members and its history":
			rights["read"] = users
		case "post":
			kinds++
			if rights["read"] != users {
				t.Errorf("to read: %s; to post: %s", rights["read"], users)
			}
		}
	}
	if kinds != 3 {
		t.Fatalf("%d kinds of room are on the page", kinds)
	}
}
