package hub

import (
	"context"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Here is who and what is on a channel, over all nodes, as this one knows it.
type Here struct {
	Count  int             // subscriptions
	Online bool            // Count is not 0, or was not less than a second ago
	Users  []petrel.UserID // members, in order; who left less than a second ago is among them
	Whole  bool            // every living node has said what it has
}

// watcher is a callback that follows a channel's being online.
type watcher struct {
	fn     func(Here)
	since  time.Time
	told   bool // it was told what was found
	online bool // as it was told last
}

// Watch calls fn once with what is found (at once on a node that is alone, else within half a second), and then whenever Online changed: the
// channel's first subscription came, or its last one has been gone for a second. Calls come one at a time, from one goroutine of the hub and without
// its locks; fn must not block. It costs no connection. One call may still be under way when stop returns.
func (h *Hub) Watch(ch petrel.Channel, fn func(now Here)) (stop func()) {
	w := &watcher{fn: fn, since: time.Now()}
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := h.channelOf(sh, k, ch)
	h.listen(c)
	v := h.watch(c)
	v.wanted++
	v.watchers = append(v.watchers, w)
	h.mark(c)
	return func() {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		i := slices.Index(v.watchers, w)
		if i < 0 {
			return
		}
		v.watchers = slices.Delete(v.watchers, i, i+1)
		v.wanted--
		h.mark(c)
	}
}

// tellWatchers follows whether anybody is there, and tells those who want to know; the shard's lock is held. It says whether something waits for its time.
func (h *Hub) tellWatchers(c *channel, v *view, total int, whole bool, now time.Time) (waits bool) {
	switch {
	case total > 0:
		v.online, v.offAt = true, time.Time{}
	case v.online && v.offAt.IsZero():
		v.offAt, waits = now.Add(leaveAfter), true
	case v.online && now.Before(v.offAt):
		waits = true
	case v.online:
		v.online, v.touched = false, true
	}
	for _, w := range v.watchers {
		if !w.told && !whole && now.Sub(w.since) < rosterWithin {
			waits = true
			continue
		}
		if w.told && w.online == v.online {
			continue
		}
		w.told, w.online = true, v.online
		here := c.here(whole)
		h.lane.after = append(h.lane.after, func() { w.fn(here) })
	}
	return waits
}

// here is the state of a channel that has a view.
func (c *channel) here(whole bool) Here {
	return Here{Count: int(c.counted) + c.view.subscriptions(), Online: c.view.online, Users: c.view.users(), Whole: whole}
}

// Observer is who must know of channels that nobody on this node listens to: whoever sends webhooks about them.
type Observer interface {
	// Owns says whether channels of a bucket may be of interest. It must not block, and not call the hub. On a node that is alone all channels are in
	// bucket 0.
	Owns(b Bucket) bool
	// Wants says whether one channel is of interest; it is asked for those in buckets that are owned. It must not block, and not call the hub.
	Wants(ch petrel.Channel) bool
	// Changed says that Here of a channel that is wanted may have changed. It comes from one goroutine of the hub, without its locks, and must not block.
	// Changes of 20 ms are one call. A channel that is empty is known for ten seconds more; later, Look at it.
	Changed(ch petrel.Channel)
}

// Observe keeps the merged state of every exact channel that o wants, whoever listens to it. It may be called once, before Start.
func (h *Hub) Observe(o Observer) { h.observer = o }

// Reconsider asks the Observer and Options.Reported anew about everything: an app's settings, or who owns what, have changed. Which channels there are
// in buckets that are newly owned is asked of the other nodes, and told by Changed, as is every channel that is known and wanted.
func (h *Hub) Reconsider() {
	l := &h.lane
	l.mu.Lock()
	l.recount, l.anew = true, true
	l.mu.Unlock()
	l.poke()
}

// wants says whether the observer wants a channel.
func (h *Hub) wants(ch petrel.Channel, b Bucket) bool {
	return h.observer != nil && exact(ch) && h.observer.Owns(b) && h.observer.Wants(ch)
}

// observe begins or ends to keep a channel's state for the observer; the shard's lock is held.
func (h *Hub) observe(c *channel) {
	if h.observer == nil || !exact(c.name) {
		return
	}
	wanted := h.wants(c.name, c.bucket)
	switch {
	case wanted && !c.observed && c.view != nil:
		c.view.touched = true // else it would not be told of what is there
	case wanted && c.view == nil && c.counted > 0:
		h.watch(c)
	}
	c.observed = wanted && c.view != nil
}

// populated says whether there may be somebody in a channel that is observed.
func (h *Hub) populated(c *channel) bool {
	return c.counted > 0 || c.view.shown() > 0 || c.view.subscriptions() > 0 || !c.view.whole(*h.lane.peers.Load())
}

// Here reads what this node knows of a channel, and does not wait. What is Whole may be believed: that is so for channels that somebody here follows or
// watches, or the Observer wants, and for all on a node that is alone.
func (h *Hub) Here(ch petrel.Channel) Here {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	alive := *h.lane.peers.Load()
	c := sh.channels.get(k, ch)
	switch {
	case c == nil:
		return Here{Whole: len(alive) == 0}
	case c.view == nil:
		v := newView(c.local, time.Time{})
		return Here{Count: int(c.counted), Online: c.counted > 0, Users: v.users(), Whole: len(alive) == 0}
	}
	out := c.here(c.view.whole(alive))
	out.Online = out.Online || out.Count > 0
	return out
}

// Look is Here of any channel: the other nodes are asked, and waited for half a second at most.
func (h *Hub) Look(ctx context.Context, ch petrel.Channel) (out Here) {
	out.Whole = true
	h.look(ctx, ch, func(c *channel, _ *view, whole bool) {
		out = c.here(whole)
		out.Online = out.Online || out.Count > 0
	})
	return out
}

// Bucket says in which bucket a channel lies; 0 for all on a node that is alone.
func (h *Hub) Bucket(ch petrel.Channel) Bucket {
	if r := h.relayed(); r != nil {
		return r.Bucket(ch)
	}
	return 0
}
