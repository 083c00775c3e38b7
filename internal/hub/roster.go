package hub

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Present lists who is in a channel, also when nobody here subscribes to it: the other nodes are asked, and waited for a moment.
func (h *Hub) Present(ctx context.Context, ch petrel.Channel) (out Roster) {
	out = Roster{Channel: ch, Users: []petrel.UserID{}}
	h.look(ctx, ch, func(_ *channel, v *view, whole bool) {
		out = *v.roster(ch)
		out.Partial = !whole
	})
	return out
}

// look calls fn with a channel's view once every living node has said what it has, or was given time to. fn runs under the shard's lock; it is not
// called for a channel that nobody knows on a node that is alone.
func (h *Hub) look(ctx context.Context, ch petrel.Channel, fn func(c *channel, v *view, whole bool)) {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	alive := *h.lane.peers.Load()
	if sh.channels.get(k, ch) == nil && len(alive) == 0 {
		return
	}
	c := h.channelOf(sh, k, ch)
	h.listen(c)
	v := h.watch(c)
	v.wanted++
	h.mark(c)
	if !v.whole(alive) {
		said := make(chan struct{})
		v.readers = append(v.readers, said)
		sh.mu.Unlock()
		late := time.NewTimer(rosterWithin)
		select {
		case <-said:
		case <-late.C:
		case <-ctx.Done():
		}
		late.Stop()
		sh.mu.Lock()
	}
	v.wanted--
	v.until = time.Now().Add(keepView)
	h.mark(c)
	fn(c, v, v.whole(*h.lane.peers.Load()))
}

// channelOf returns a channel, made if need be; the shard's lock is held.
func (h *Hub) channelOf(sh *shard, k key, ch petrel.Channel) *channel {
	c := sh.channels.get(k, ch)
	if c == nil {
		c = &channel{name: ch, shard: sh}
		sh.channels.put(k, c)
	}
	return c
}

// show tells subscribers who came and went; the shard's lock is held. It says whether something waits for its time.
func (h *Hub) show(c *channel, v *view, now time.Time) (waits bool) {
	v.expire(now)
	whole := v.whole(*h.lane.peers.Load())
	if whole {
		for _, said := range v.readers {
			close(said)
		}
		v.readers = nil
	}
	waits = len(v.held) > 0
	if exact(c.name) {
		return h.showExact(c, v, whole, now) || waits
	}
	if len(v.told) > 0 {
		waits = h.tell(c, v, now) || waits
	}
	var frames rosterFrames
	for _, s := range c.subs {
		if s.detail.unlisted.IsZero() || s.mode == over {
			continue
		}
		if (!whole && now.Sub(s.detail.unlisted) < rosterWithin) || !h.list(s, v.roster, &frames) {
			waits = true
		}
	}
	return waits
}

// tell says who came and went to those who have a list already, or, where that would be too much, gives them a new list or a number.
func (h *Hub) tell(c *channel, v *view, now time.Time) (waits bool) {
	n := v.shown()
	switch {
	case n > MaxListed:
		if now.Before(v.countAt) {
			return true
		}
		v.summed, v.countAt = true, now.Add(countEvery)
		h.relist(c, func(ch petrel.Channel) *Roster { return &Roster{Channel: ch, Count: n} })
	case v.summed || len(v.told) > maxTold:
		v.summed = false
		h.relist(c, v.roster)
	default:
		for _, user := range slices.Sorted(maps.Keys(v.told)) {
			if is := v.shows(user); is != v.told[user] {
				h.tellOne(c, user, is, now)
			}
		}
	}
	clear(v.told)
	return false
}

// tellOne says that one user came or went. Who has no room for it gets a new list later.
func (h *Hub) tellOne(c *channel, user petrel.UserID, here bool, now time.Time) {
	p := petrel.Publication{Channel: c.name, Type: TypeLeave, At: now.UTC().Truncate(time.Millisecond), Data: []byte(`{"user":"` + string(user) + `"}`)}
	if here {
		p.Type = TypeJoin
	}
	var frames [MaxWires][]byte
	for _, s := range c.subs {
		if !s.is(follows) || !s.detail.unlisted.IsZero() || s.mode == over {
			continue
		}
		if frames[s.wire] == nil {
			frames[s.wire] = h.opt.Encoders[s.wire](&p)
		}
		if !h.tellApart(s, frames[s.wire]) {
			s.detail.unlisted = now
			h.mark(c)
		}
	}
}

// rosterFrames are the encodings of one list.
type rosterFrames [MaxWires][]byte

// relist gives everybody who has a list a new one.
func (h *Hub) relist(c *channel, roster func(petrel.Channel) *Roster) {
	var frames rosterFrames
	for _, s := range c.subs {
		if s.is(follows) && s.detail.unlisted.IsZero() && s.mode != over && !h.list(s, roster, &frames) {
			s.detail.unlisted = time.Now()
			h.mark(c)
		}
	}
}

// list offers one subscription a list, which is made and encoded for the first that wants it.
func (h *Hub) list(s *Subscription, roster func(petrel.Channel) *Roster, frames *rosterFrames) bool {
	f := frames[s.wire]
	if f == nil {
		f = h.opt.Rosters[s.wire](roster(s.ch.name))
		frames[s.wire] = f
	}
	if !h.tellApart(s, f) {
		return false
	}
	s.detail.unlisted = time.Time{}
	return true
}
