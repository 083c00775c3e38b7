package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// heardFrames is a subscriber that keeps what it gets.
type heardFrames struct {
	mu     sync.Mutex
	frames []string
}

func (e *heardFrames) Send(f []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frames = append(e.frames, string(f))
	return nil
}

func (e *heardFrames) TrySend(f []byte) (bool, error) { return true, e.Send(f) }

func (e *heardFrames) NotifyRoom(fn func()) { fn() }

// TestRelay: two hubs over two buses are one ephemeral lane, and a node that leaves takes its users along.
func TestRelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		room := petrel.RoomChannel("1", "r")
		ends := map[petrel.NodeID]func(){}
		open := func(name petrel.NodeID) *hub.Hub {
			h := hub.New(hub.Options{
				Encoders: []func(*petrel.Publication) []byte{func(p *petrel.Publication) []byte { return []byte(p.Type) }},
				History:  func(context.Context, hub.Want) (hub.Page, error) { return hub.Page{}, nil },
			})
			b, err := bus.New(bus.Options{Node: name}, net.Join())
			if err != nil {
				t.Fatal(err)
			}
			newRelay(name, b).attach(h)
			h.Start()
			if err := b.Start(); err != nil {
				t.Fatal(err)
			}
			ends[name] = func() { h.Stop(); b.Stop() }
			t.Cleanup(ends[name])
			return h
		}
		one, two := open("n1.aaaaaa"), open("n2.bbbbbb")
		e := &heardFrames{}
		if _, err := one.Subscribe(hub.Request{Channel: room, Subscriber: e, Member: &hub.Member{ID: "ann"}}); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Second)
		if err := two.Announce(&petrel.Publication{Channel: room, Type: "typing.start"}, nil); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		if got := e.frames; !slices.Equal(got, []string{"typing.start"}) {
			t.Fatalf("heard %v", got)
		}
		if r := two.Present(t.Context(), room); r.Count != 1 || r.Partial {
			t.Fatalf("on the other node there are %+v", r)
		}
		ends["n1.aaaaaa"]()
		<-time.After(3 * time.Second)
		if r := two.Present(t.Context(), room); r.Count != 0 || r.Partial {
			t.Fatalf("after it left there are %+v", r)
		}
	})
}
