package hub

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// The limit of members of an exact channel holds over all nodes. A node lets in up to its share of the limit (an N-th part, of N living nodes) by itself, so that
// an ordinary channel costs nothing. Beyond it, and as long as another node is, whoever is new *claims* a place: first the claim is noted here, then every living
// node is asked who is there and who claims, and only who fits with all of those is let in. Of two claims at one moment at least one sees
// the other, so that the one that was noted last counts all the others: never is one too many let in, whatever the order of messages. Who cannot fit beside
// those who claimed before is refused; who fits beside those, and not beside all, asks again until the others are settled. A node that is asked lets nobody in
// unasked for a while (strictFor): what the asking node then has is known from its reports.
//
// Reserving places at an owner of the channel was the other way. It costs one question instead of N-1, and needs leases, and a truth that
// moves whenever a node comes or goes: this has no state but the claims themselves.
//
// The limit may be passed for a moment where nodes do not agree who is alive: one just came, or links are cut. Of a node that does not answer within half a
// second counts what it reported last (petrel_hub_places_unsure_total): a presence channel is not closed because one node is ill.

const (
	// strictFor is how long a node that was asked asks too. After that it would have noticed that a report is missing.
	strictFor = unheardAfter
	// claimFor is how long a claim may be contested before it is refused.
	claimFor = 2 * time.Second
	// maxClaims is for how many channels others are asked at once.
	maxClaims = 200
)

// places is what is known of who wants to be in a channel. It is there while somebody claims, or the node is not to let in unasked.
type places struct {
	strict time.Time // until then
	claims map[*Subscription]*claim
}

// claim is somebody who waits for a place.
type claim struct {
	at    uint64 // when it was noted, in ns: their order
	asked bool   // others are being asked since it was noted
}

// claimant is a claim as all nodes know it.
type claimant struct {
	at   uint64
	node petrel.NodeID
	user petrel.UserID
}

func (x claimant) compare(y claimant) int {
	return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.node, y.node), cmp.Compare(x.user, y.user))
}

// letIn says whether a member may be admitted now; if not, and without an error, there is a claim. The shard's lock is held.
func (h *Hub) letIn(c *channel, s *Subscription, now time.Time) (bool, error) {
	user, limit := s.newcomer()
	if limit == 0 {
		return true, nil
	}
	if _, here := c.local[user]; here {
		return true, nil
	}
	if c.more != nil && c.more.places != nil && c.more.places.claims[s] != nil {
		return false, nil // it is being asked about
	}
	if v := c.view; v != nil && len(v.count) >= limit && v.count[user] == 0 {
		return false, h.full(limit)
	}
	alive := *h.lane.peers.Load()
	if len(alive) == 0 || c.free(limit, alive, now) {
		return true, nil
	}
	p := c.placesOf()
	taken := map[petrel.UserID]bool{user: true} // who cannot fit beside those here need not ask
	for here := range c.local {
		taken[here] = true
	}
	for before := range p.claims {
		taken[before.Member()] = true
	}
	if len(taken) > limit {
		return false, h.full(limit)
	}
	p.claims[s] = &claim{at: uint64(now.UnixNano())} //nolint:gosec // after 1970
	h.mark(c)
	l := &h.lane
	l.mu.Lock()
	l.claims[c.name] = struct{}{}
	l.mu.Unlock()
	l.poke()
	return false, nil
}

func (h *Hub) full(limit int) error {
	h.metrics.full.Inc()
	return petrel.Errorf(petrel.CodeLimitReached, "The channel has as many members as it may have, which is %d.", limit)
}

// free says whether one more may be let in without asking: the node stays within its share, and so do all the others.
func (c *channel) free(limit int, alive map[petrel.NodeID]uint64, now time.Time) bool {
	n := len(alive) + 1
	if (c.more != nil && c.more.places != nil && now.Before(c.more.places.strict)) || c.view == nil || !c.view.whole(alive) || (len(c.local)+1)*n > limit {
		return false
	}
	for _, r := range c.view.reports {
		if len(r.users)*n > limit {
			return false
		}
	}
	return true
}

// makeRoom ends the showing of those who left a moment ago where one more would be one too many.
func (c *channel) makeRoom(s *Subscription) {
	user, limit := s.newcomer()
	if v := c.view; limit > 0 && v != nil && v.shown() >= limit && !v.shows(user) {
		for user := range v.held {
			v.release(user)
		}
	}
}

func (c *channel) placesOf() *places {
	m := c.extra()
	if m.places == nil {
		m.places = &places{claims: map[*Subscription]*claim{}}
	}
	return m.places
}

// newcomer is who wants to be there by s, and how many may be; 0: nobody, or any number.
func (s *Subscription) newcomer() (user petrel.UserID, limit int) {
	if d := s.detail; d != nil && d.member.ID != "" && d.most > 0 {
		return d.member.ID, d.most
	}
	return "", 0
}

// unclaim forgets the claim of one who is settled, or leaves.
func (c *channel) unclaim(s *Subscription) {
	if c.more != nil && c.more.places != nil {
		delete(c.more.places.claims, s)
	}
}

// tendPlaces drops what is not needed any more; the shard's lock is held. It says whether something waits for its time.
func (c *channel) tendPlaces(now time.Time) (waits bool) {
	if c.more == nil || c.more.places == nil {
		return false
	}
	if p := c.more.places; len(p.claims) == 0 && !now.Before(p.strict) {
		c.more.places = nil
	}
	return c.more.places != nil
}

// startClaims asks the other nodes about those who claim places: one round at a time, about as many channels as came meanwhile. It is called by the lane's goroutine.
func (h *Hub) startClaims(ctx context.Context) {
	l := &h.lane
	l.mu.Lock()
	if len(l.claims) == 0 || l.claiming {
		l.mu.Unlock()
		return
	}
	channels := slices.SortedFunc(maps.Keys(l.claims), compareChannels)
	channels = channels[:min(len(channels), maxClaims)]
	for _, ch := range channels {
		delete(l.claims, ch)
	}
	l.claiming = true
	l.mu.Unlock()
	for _, ch := range channels {
		h.claimsOf(ch, func(_ *channel, p *places) {
			for _, x := range p.claims {
				x.asked = true // it was noted before anybody is asked
			}
		})
	}
	h.metrics.claims.Inc()
	h.queue.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, rosterWithin)
		defer cancel()
		said, missing := h.askPlaces(ctx, channels)
		var again []petrel.Channel
		for _, ch := range channels {
			if h.settle(ch, said[ch], missing) {
				again = append(again, ch)
			}
		}
		l.mu.Lock()
		for _, ch := range again {
			l.claims[ch] = struct{}{}
		}
		l.claiming = false
		l.mu.Unlock()
		l.poke()
	})
}

// claimsOf calls fn with a channel that somebody claims a place in, under its shard's lock.
func (h *Hub) claimsOf(ch petrel.Channel, fn func(c *channel, p *places)) {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.channels.get(k, ch); c != nil && c.more != nil && c.more.places != nil {
		fn(c, c.more.places)
	}
}

// occupied is who is on a channel of other nodes, and who claims a place there.
type occupied struct {
	users  []petrel.UserID
	claims []claimant
}

// askPlaces asks every other node. Whoever does not answer about all of the channels is missing.
func (h *Hub) askPlaces(ctx context.Context, channels []petrel.Channel) (said map[petrel.Channel]*occupied, missing []petrel.NodeID) {
	said = map[petrel.Channel]*occupied{}
	for _, ch := range channels {
		said[ch] = &occupied{}
	}
	var mu sync.Mutex
	for _, x := range h.eachPeer(func(node petrel.NodeID) error {
		for rest := channels; len(rest) > 0; {
			in, err := h.askOne(ctx, node, appendChannels([]byte{formatAsk, askPlaces}, rest))
			if err != nil {
				return err
			}
			all := in.places(node)
			if !in.ok || len(all) == 0 || len(all) > len(rest) {
				return errAnswer
			}
			mu.Lock()
			for i, x := range all {
				o := said[rest[i]]
				o.users, o.claims = append(o.users, x.users...), append(o.claims, x.claims...)
			}
			mu.Unlock()
			rest = rest[len(all):]
		}
		return nil
	}) {
		h.metrics.unsure.Inc()
		h.opt.Logger.Warn("a node does not say who is on channels that are almost full: what it reported last counts", "node", x.Node, "channels", len(channels), "error", x.Err)
		missing = append(missing, x.Node)
	}
	return said, missing
}

// appendPlaces is the answer: users and claims of the channels, of as many as there is room for. From now on nobody is let in to them unasked.
func (h *Hub) appendPlaces(b []byte, channels []petrel.Channel) []byte {
	var body []byte
	done := 0
	for _, ch := range channels {
		if len(body) > maxAnswer/2 {
			break
		}
		body = h.appendPlace(body, ch)
		done++
	}
	return append(appendNumbers(b, uint64(done)), body...) //nolint:gosec // not negative
}

func (h *Hub) appendPlace(b []byte, ch petrel.Channel) []byte {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := h.channelOf(sh, k, ch) // it remembers that it was asked, also when nobody is there
	p := c.placesOf()
	p.strict = time.Now().Add(strictFor)
	h.mark(c)
	b = appendUsers(b, slices.Sorted(maps.Keys(c.local)))
	b = appendNumbers(b, uint64(len(p.claims)))
	for _, s := range p.inOrder(false) {
		b = appendText(appendNumbers(b, p.claims[s].at), s.Member())
	}
	return b
}

func (r *reader) places(node petrel.NodeID) (out []occupied) {
	for n := r.number(); n > 0 && r.ok; n-- {
		o := occupied{users: r.users()}
		for m := r.number(); m > 0 && r.ok; m-- {
			o.claims = append(o.claims, claimant{r.number(), node, petrel.UserID(r.text())})
		}
		out = append(out, o)
	}
	return out
}

// settle decides about those who claimed a place before the others were asked. It says whether some must ask again.
func (h *Hub) settle(ch petrel.Channel, said *occupied, missing []petrel.NodeID) (again bool) {
	var refused []func()
	h.claimsOf(ch, func(c *channel, p *places) {
		now := time.Now()
		t := h.tableOf(c, said, missing)
		for _, s := range p.inOrder(true) {
			x := p.claims[s]
			verdict := t.judge(s.detail.most, claimant{x.at, h.nodeName(), s.Member()})
			switch {
			case verdict == fits:
				h.admit(c, s, now)
			case verdict == mustWait && now.UnixNano()-int64(x.at) < int64(claimFor): //nolint:gosec // after 1970
				x.asked, again = false, true
			default:
				s.remove()
				err := h.full(s.detail.most)
				refused = append(refused, func() { s.owner.Ended(s, err) })
			}
		}
		again = again || len(p.claims) > 0
		h.mark(c)
	})
	for _, fn := range refused {
		fn()
	}
	return again
}

func (h *Hub) nodeName() petrel.NodeID {
	if r := h.relayed(); r != nil {
		return r.Node()
	}
	return ""
}

// inOrder are those who claim, or of them who were asked about.
func (p *places) inOrder(asked bool) []*Subscription {
	all := make([]*Subscription, 0, len(p.claims))
	for s, x := range p.claims {
		if x.asked || !asked {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *Subscription) int {
		return cmp.Or(cmp.Compare(p.claims[a].at, p.claims[b].at), cmp.Compare(a.Member(), b.Member()))
	})
	return all
}

// table is who is on a channel over all nodes, and who claims a place there and is not settled.
type table struct {
	users  map[petrel.UserID]bool
	claims map[petrel.UserID]claimant // of a user's the first
}

func (h *Hub) tableOf(c *channel, said *occupied, missing []petrel.NodeID) *table {
	t := &table{users: map[petrel.UserID]bool{}, claims: map[petrel.UserID]claimant{}}
	for user := range c.local {
		t.users[user] = true
	}
	for _, user := range said.users {
		t.users[user] = true
	}
	for _, node := range missing {
		if c.view != nil && c.view.reports[node] != nil {
			for user := range c.view.reports[node].users {
				t.users[user] = true
			}
		}
	}
	for _, x := range said.claims {
		t.claim(x)
	}
	return t
}

func (t *table) claim(x claimant) {
	if was, there := t.claims[x.user]; !there || x.compare(was) < 0 {
		t.claims[x.user] = x
	}
}

type verdict uint8

const (
	fits verdict = iota
	mustWait
	noPlace
)

// judge says whether one who claims a place fits; who does is counted, and who must wait too.
func (t *table) judge(limit int, x claimant) verdict {
	there := t.users[x.user]
	all, before := len(t.users), len(t.users)
	if !there {
		all, before = all+1, before+1
	}
	for user, other := range t.claims {
		if user == x.user || t.users[user] {
			continue
		}
		all++
		if other.compare(x) < 0 {
			before++
		}
	}
	switch {
	case all <= limit, there && all == len(t.users): // one who is there already takes no place, even where there are too many
		t.users[x.user] = true
		return fits
	case there || before <= limit:
		t.claim(x)
		return mustWait
	}
	return noPlace
}
