package hub

import (
	"context"
	"maps"
	"slices"
)

// A node that begins to listen to a bucket hears what others publish in it a little later. So that nobody is told that they subscribed before that
// is so, every living node is asked something afterwards: what it says went the way that the request to listen went before.

// isReady says whether the other nodes know that this one listens to the bucket.
func (l *lane) isReady(b Bucket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready[b]
}

// startAsking begins what takes a way to other nodes and back: one round of each sort at a time. It is called by the lane's goroutine.
func (h *Hub) startAsking(ctx context.Context) {
	h.startLasts(ctx)
	h.startClaims(ctx)
	l := &h.lane
	if len(l.soon) == 0 && !h.someoneWaits() {
		return
	}
	var fresh []Bucket
	l.mu.Lock()
	if !l.asking {
		for _, b := range slices.Sorted(maps.Keys(l.heard)) {
			if !l.ready[b] {
				fresh = append(fresh, b)
			}
		}
	}
	l.asking = l.asking || len(fresh) > 0
	l.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	h.queue.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, rosterWithin)
		defer cancel()
		h.askAll(ctx, []byte{formatAsk, askHello}, nil)
		l.mu.Lock()
		for _, b := range fresh { // also for those who did not answer: a node that is out of reach is waited for once
			l.ready[b] = true
		}
		l.asking = false
		l.mu.Unlock()
		l.poke()
	})
}

// someoneWaits says whether subscriptions came that wait to be admitted, and were not looked at yet.
func (h *Hub) someoneWaits() bool {
	l := &h.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.dirty, func(c *channel) bool { return exact(c.name) })
}
