package node

import (
	"context"
	"errors"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// relay is the bus as the hub sees it: the ephemeral lane between nodes.
type relay struct {
	self petrel.NodeID
	bus  *bus.Bus
}

var (
	_ hub.Relay             = (*relay)(nil)
	_ [hub.Buckets]struct{} = [bus.Buckets]struct{}{} // the hub counts the same buckets
)

// newRelay makes the relay of a node; self is the name that its bus goes by.
func newRelay(self petrel.NodeID, b *bus.Bus) *relay { return &relay{self, b} }

// attach joins a hub to those of the other nodes. Call it before the bus is started.
func (r *relay) attach(h *hub.Hub) {
	r.bus.Handle(kindEphemeral, func(m bus.Message) { h.Receive(m.Origin, m.Incarnation, m.Payload) })
	r.bus.Serve(kindHub, h.Answer)
	r.bus.OnChange(func(all []bus.Peer) {
		alive := make([]hub.Peer, 0, len(all))
		for _, p := range all {
			if p.Alive {
				alive = append(alive, hub.Peer{Node: p.Node, Incarnation: p.Incarnation})
			}
		}
		h.Peers(alive)
	})
	h.Join(r)
}

// Node implements hub.Relay.
func (r *relay) Node() petrel.NodeID { return r.self }

// Bucket implements hub.Relay. A channel's kind is not part of it: it only spreads load.
func (r *relay) Bucket(ch petrel.Channel) hub.Bucket {
	return hub.Bucket(bus.BucketOf(ch.App, ch.Name))
}

// Publish implements hub.Relay.
func (r *relay) Publish(b hub.Bucket, payload []byte) error {
	return r.bus.Publish(bus.Bucket(b), kindEphemeral, payload)
}

// askAgain is how long a question waits when there are too many at once, here or there: nothing was done then.
const askAgain = 20 * time.Millisecond

// Ask implements hub.Relay.
func (r *relay) Ask(ctx context.Context, node petrel.NodeID, payload []byte) ([]byte, error) {
	for {
		answer, err := r.bus.Request(ctx, node, kindHub, payload)
		if !errors.Is(err, bus.ErrBusy) {
			return answer, err
		}
		pause := time.NewTimer(askAgain)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, err
		}
	}
}

// Listen implements hub.Relay.
func (r *relay) Listen(b hub.Bucket) (stop func(), err error) { return r.bus.Listen(bus.Bucket(b)) }
