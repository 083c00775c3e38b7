package hub

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// An exact channel is one of Pusher's clients, or of a user's connections. It has no history, so that subscriptions to it are live from the moment
// in which they are admitted; and there is no second list that would mend a lost arrival, so that nothing is dropped: a subscriber that has no room is
// closed as slow, and comes back to a new list.
//
// A subscription is *pending* until it is admitted: until the other nodes know that this one listens, so that what anybody publishes after
// Admitted is heard; and, where it wants to know who is there, until every living node has said who is on it. Neither takes more than
// rosterWithin. Where that is known already, and on a node that is alone, it is admitted before Subscribe returns.
func exact(ch petrel.Channel) bool { return ch.Kind != petrel.ChannelRoom }

// Member is who is there by a subscription.
type Member struct {
	ID   petrel.UserID
	Info []byte // what the others are shown of them, at most MaxInfo bytes; nil: nothing. Immutable
}

// MaxInfo is the largest Member.Info, in bytes. Whoever subscribes has smaller limits for people.
const MaxInfo = 16 << 10

// maxID is the longest Member.ID, in bytes.
const maxID = 512

// Delta is one arrival or departure on an exact channel.
type Delta struct {
	Channel petrel.Channel
	Member  Member // of one who left only the ID
	Here    bool   // came; else left
}

// TypeCount is the type of the publications that tell how many subscriptions a channel has; their data is {"subscription_count":N}.
const TypeCount = "subscription.count"

const (
	// manySubs: as long as a channel has no more subscriptions, every change of their number is told, else one every manyEvery.
	manySubs  = 100
	manyEvery = 5 * time.Second
)

// subscribeExact is Subscribe on an exact channel; the shard's lock is held.
func (h *Hub) subscribeExact(c *channel, s *Subscription) (*Subscription, error) {
	s.ch, s.mode = c, pending
	h.add(c, s)
	h.listen(c)
	h.follow(c, s)
	now := time.Now()
	if h.admissible(c, s, now, now) {
		switch in, err := h.letIn(c, s); {
		case err != nil:
			s.remove()
			return nil, err
		case in:
			h.admit(c, s, now)
			return s, nil
		}
	}
	c.extra().waiting = append(c.more.waiting, waiter{s, now})
	h.mark(c)
	return s, nil
}

// admissible says whether s need not wait any more.
func (h *Hub) admissible(c *channel, s *Subscription, since, now time.Time) bool {
	alive := *h.lane.peers.Load()
	if len(alive) == 0 || now.Sub(since) >= rosterWithin {
		return true
	}
	if s.is(follows) { // who has said something about the channel knows that it is heard
		return c.view.whole(alive)
	}
	return h.lane.isReady(c.bucket)
}

// admitWaiting admits who has waited long enough; the shard's lock is held.
func (h *Hub) admitWaiting(c *channel, now time.Time) {
	if c.more == nil || len(c.more.waiting) == 0 {
		return
	}
	waiting := c.more.waiting
	c.more.waiting = nil
	for _, w := range waiting {
		s := w.Subscription
		if s.mode != pending {
			continue
		}
		in, err := false, error(nil)
		if h.admissible(c, s, w.since, now) {
			in, err = h.letIn(c, s)
		}
		switch {
		case in:
			h.admit(c, s, now)
		case err == nil:
			c.more.waiting = append(c.more.waiting, w)
		default:
			s.remove()
			h.lane.after = append(h.lane.after, func() { s.owner.Ended(s, err) })
		}
	}
}

// admit makes s live: what it must hear first is queued before anything else; the shard's lock is held.
func (h *Hub) admit(c *channel, s *Subscription, now time.Time) {
	c.unclaim(s)
	c.makeRoom(s)
	s.mode = live
	h.enter(c, s)
	s.owner.Admitted(s)
	if s.is(follows) {
		// The others hear of it at once, and of everything before: whoever has a list has the same one, and s begins with it.
		h.tellExact(c, now)
		s.set(listed, true)
		h.tellApart(s, h.opt.Rosters[s.wire](h.exactRoster(c)))
	}
	if s.is(counts) {
		c.view.due = true
	}
	if s.is(wantsLast) {
		h.giveLast(c, s)
	}
}

// showExact tells the channel's subscribers, watchers and observer what changed; the shard's lock is held. It says whether something waits for its time.
func (h *Hub) showExact(c *channel, v *view, whole bool, now time.Time) (waits bool) {
	h.tellExact(c, now)
	total := int(c.counted) + v.subscriptions()
	waits = h.tellCount(c, v, total, whole, now)
	waits = h.tellWatchers(c, v, total, whole, now) || waits
	if c.observed && (v.touched || whole != v.wasWhole) {
		v.until = now.Add(keepView)
		ch := c.name
		h.lane.after = append(h.lane.after, func() { h.observer.Changed(ch) })
	}
	v.touched, v.wasWhole = false, whole
	return waits
}

// tellExact tells everybody who has a list who came and went since; the shard's lock is held.
func (h *Hub) tellExact(c *channel, now time.Time) {
	v := c.view
	v.expire(now)
	if len(v.told) == 0 {
		return
	}
	deltas := make([]Delta, 0, len(v.told))
	for user, was := range v.told {
		if is := v.shows(user); is != was {
			deltas = append(deltas, Delta{Channel: c.name, Member: Member{ID: user}, Here: is})
		}
	}
	clear(v.told)
	slices.SortFunc(deltas, func(a, b Delta) int { // who leaves makes room
		if a.Here != b.Here {
			if b.Here {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Member.ID, b.Member.ID)
	})
	for i := range deltas {
		d := &deltas[i]
		var frames [MaxWires][]byte
		for _, s := range c.subs {
			if !s.is(listed) || s.mode != live {
				continue
			}
			if frames[s.wire] == nil {
				if d.Here {
					d.Member = h.member(c, d.Member.ID)
				}
				frames[s.wire] = h.opt.Deltas[s.wire](d)
			}
			h.tellApart(s, frames[s.wire])
		}
	}
}

// exactRoster lists who is in an exact channel, with what is shown of them.
func (h *Hub) exactRoster(c *channel) *Roster {
	users := c.view.users()
	r := &Roster{Channel: c.name, Members: make([]Member, 0, len(users)), Count: len(users), Partial: !c.view.whole(*h.lane.peers.Load())}
	for _, user := range users {
		r.Members = append(r.Members, h.member(c, user))
	}
	return r
}

// member is what is shown of a user who is shown: of several nodes the first one's word, by name, so that all nodes show the same.
func (h *Hub) member(c *channel, user petrel.UserID) Member {
	info, from := c.view.held[user].info, petrel.NodeID("")
	if at, here := c.local[user]; here {
		info = at.info
		if r := h.relayed(); r != nil {
			from = r.Node()
		}
	}
	for node, r := range c.view.reports {
		if said, there := r.users[user]; there && (from == "" || node < from) {
			info, from = said, node
		}
	}
	m := Member{ID: user}
	if info != "" {
		m.Info = []byte(info)
	}
	return m
}

// tellCount tells how many subscriptions there are, if somebody wants to know and it is time.
func (h *Hub) tellCount(c *channel, v *view, total int, whole bool, now time.Time) (waits bool) {
	if v.counters == 0 || (total == v.number && !v.due) {
		return false
	}
	if !whole && now.Sub(v.born) < rosterWithin {
		return true
	}
	if total > manySubs && now.Before(v.countAt) {
		return true
	}
	v.number, v.due, v.countAt = total, false, now.Add(manyEvery)
	data := append(strconv.AppendInt([]byte(`{"subscription_count":`), int64(total), 10), '}')
	p := petrel.Publication{Channel: c.name, Type: TypeCount, At: now.UTC().Truncate(time.Millisecond), Data: data}
	var frames [MaxWires][]byte
	for _, s := range c.subs {
		if !s.is(counts) || s.mode != live {
			continue
		}
		if frames[s.wire] == nil {
			frames[s.wire] = h.opt.Encoders[s.wire](&p)
		}
		h.tellApart(s, frames[s.wire])
	}
	return false
}

// reported says whether other nodes are told how many subscriptions a channel has here.
func (h *Hub) reported(ch petrel.Channel) bool {
	return ch.Kind != petrel.ChannelPusher || h.opt.Reported == nil || h.opt.Reported(ch)
}
