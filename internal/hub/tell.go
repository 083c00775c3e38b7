package hub

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Topic says what a Tell is about.
type Topic uint8

// Topics are numbered once and for all builds.
const (
	// TopicTerminate: close the connections on which a user is signed in; the payload is the user's id. The answer is empty.
	TopicTerminate Topic = 1
)

// Told is one node's answer to a Tell.
type Told struct {
	Node   petrel.NodeID
	Answer []byte
	Err    error // it did not answer in time, or not at all
}

// OnTell gives what is told about a topic to fn, on this node. Before Start only. fn may wait until ctx is over; what it gives reaches the teller.
func (h *Hub) OnTell(t Topic, fn func(ctx context.Context, app petrel.AppID, payload []byte) ([]byte, error)) {
	_, _ = t, fn
}

// Tell gives a payload (at most 200 kB) to every living node, this one too, and waits for their answers, for a second at most or within another time
// that ctx has. This node's own is the first. The error is the first one of any node.
func (h *Hub) Tell(ctx context.Context, t Topic, app petrel.AppID, payload []byte) ([]Told, error) {
	_, _, _, _ = ctx, t, app, payload
	return nil, nil
}

// Answer serves what another node's hub asks this one's by Relay.Ask.
func (h *Hub) Answer(ctx context.Context, from petrel.NodeID, payload []byte) ([]byte, error) {
	_, _, _ = ctx, from, payload
	return nil, nil
}

// Last returns a channel's last publication as any node has kept it (Options.Last), and how long it is kept yet. Other nodes are asked, for 300 ms at
// most, when this one has none.
func (h *Hub) Last(ctx context.Context, ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool) {
	_, _ = ctx, ch
	return petrel.Publication{}, 0, false
}
