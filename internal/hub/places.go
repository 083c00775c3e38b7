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

// The limit of members of an exact channel holds over all nodes. Each has a share of it, an N-th part of N living nodes, and what it does is one of three things:
//
//   - It lets in by itself, as long as it is *checked* and stays within its share: an ordinary channel costs nothing.
//   - It *probes*, where it is not checked: it asks every living node how many are there. When all are within their shares and nobody claims, it is checked
//     from then on, until another node asks it about claims, or the nodes that live are others.
//   - It *claims* places where neither will do: the claims are noted, then every living node is asked who is there and who claims, and is not checked any
//     more; only who fits beside all of those is let in. Who does not fit beside those who claimed before is refused; who fits beside those, and not
//     beside all, asks again until the others are settled.
//
// Why never one too many is let in, whatever the order of messages. Of any claims the one that was noted last finds all others, claimed or let in, and who
// was let in unasked before its question; after that nobody is, on the node that was asked, until that one has probed again and found the claim settled. And
// a node that is checked knows that all others are within their shares: one that goes beyond must have asked it first. A probe that crosses such a question
// does not count (places.asks).
//
// An owner of the channel who reserves places was the other way. It would cost one question instead of N-1, and need leases, and a truth that
// moves whenever a node comes or goes; this has no state but the claims themselves.
//
// The limit may be passed where nodes do not agree who is alive: one just came, or links are cut. Of a node that does not answer within half a
// second counts what it reported last (petrel_hub_places_unsure_total): a presence channel is not closed because one node is ill.

const (
	// claimFor is how long a claim may be contested before it is refused.
	claimFor = 2 * time.Second
	// maxClaims is about how many channels others are asked at once.
	maxClaims = 500
)

// places is what is known of who wants to be in a channel whose members are limited. The shard's lock guards it.
type places struct {
	checked *map[petrel.NodeID]uint64 // the living nodes when all others were found to be within their shares; nil: they were not
	limit   int                       // that their shares were of
	asks    uint64                    // how often others asked about claims of theirs
	crowded bool                      // a probe found that it must claim
	claims  map[*Subscription]*claim
}

// claim is somebody who waits for a place.
type claim struct {
	at    uint64 // when it was noted, in ns: their order; 0: the others do not count it yet
	asked bool   // others are being asked since
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

// letIn says whether a member may be admitted now; if not, and without an error, the others are asked. The shard's lock is held.
func (h *Hub) letIn(c *channel, s *Subscription) (bool, error) {
	user, limit := s.newcomer()
	if limit == 0 {
		return true, nil
	}
	if _, here := c.local[user]; here {
		return true, nil
	}
	alive := h.lane.peers.Load()
	if len(*alive) == 0 {
		if v := c.view; v != nil && len(v.count) >= limit && v.count[user] == 0 {
			return false, h.full(limit)
		}
		return true, nil
	}
	if c.places() == nil {
		c.extra().places = &places{claims: map[*Subscription]*claim{}}
	}
	p := c.places()
	if p.claims[s] != nil {
		return false, nil
	}
	if c.free(limit, alive) {
		return true, nil
	}
	if c.wanted(user) > limit { // who cannot fit beside those here need not ask
		return false, h.full(limit)
	}
	p.claims[s] = &claim{}
	h.mark(c)
	l := &h.lane
	l.mu.Lock()
	l.claims[c.name] = struct{}{}
	l.mu.Unlock()
	l.poke()
	return false, nil
}

// free says whether one more may be let in unasked.
func (c *channel) free(limit int, alive *map[petrel.NodeID]uint64) bool {
	p := c.places()
	return p.checked == alive && p.limit <= limit && len(c.local)+1 <= share(limit, alive)
}

// share is how many members a node may let in by itself.
func share(limit int, alive *map[petrel.NodeID]uint64) int { return limit / (len(*alive) + 1) }

// wanted is how many users are here or wait for a place here, and these.
func (c *channel) wanted(more ...petrel.UserID) int {
	all := make(map[petrel.UserID]struct{}, len(c.local)+len(c.places().claims)+len(more))
	for user := range c.local {
		all[user] = struct{}{}
	}
	for s := range c.places().claims {
		all[s.Member()] = struct{}{}
	}
	for _, user := range more {
		all[user] = struct{}{}
	}
	return len(all)
}

func (h *Hub) full(limit int) error {
	h.metrics.full.Inc()
	return petrel.Errorf(petrel.CodeLimitReached, "The channel has as many members as it may have, which is %d.", limit)
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

// places is what is known of who wants to be in the channel; nil: nothing.
func (c *channel) places() *places {
	if c.more == nil {
		return nil
	}
	return c.more.places
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
	if p := c.places(); p != nil {
		delete(p.claims, s)
	}
}

// round is what the others are asked about one channel.
type round struct {
	ch      petrel.Channel
	limit   int
	probe   bool
	alive   *map[petrel.NodeID]uint64
	places  *places // as it was then, like asks
	asks    uint64
	said    map[petrel.NodeID]*occupied
	missing []petrel.NodeID
}

// occupied is who is on a channel of another node, and who claims a place there.
type occupied struct {
	number int
	users  []petrel.UserID // nil in the answer to a probe
	claims []claimant
}

// startClaims asks the other nodes about those who wait for places: one round at a time, about as many channels as came meanwhile. It is called by the lane's
// goroutine.
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
	l.mu.Unlock()
	var all []*round
	for _, ch := range channels {
		if x := h.beginRound(ch); x != nil {
			all = append(all, x)
		}
	}
	if l.poke(); len(all) == 0 { // who waited has left
		return
	}
	h.metrics.claims.Inc()
	l.mu.Lock()
	l.claiming = true
	l.mu.Unlock()
	h.queue.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, rosterWithin)
		defer cancel()
		h.askPlaces(ctx, all)
		var again []petrel.Channel
		for _, x := range all {
			if h.settle(x) {
				again = append(again, x.ch)
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

// beginRound decides what is asked, and notes the claims before anybody is.
func (h *Hub) beginRound(ch petrel.Channel) *round {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.channels.get(k, ch)
	if c == nil || c.places() == nil || len(c.places().claims) == 0 {
		return nil
	}
	p := c.places()
	x := &round{ch: ch, limit: p.lowest(), alive: h.lane.peers.Load(), places: p, asks: p.asks, said: map[petrel.NodeID]*occupied{}}
	x.probe = !p.crowded && !(p.checked == x.alive && p.limit <= x.limit) && c.wanted() <= share(x.limit, x.alive)
	now := uint64(time.Now().UnixNano()) //nolint:gosec // after 1970
	for _, y := range p.claims {
		if y.asked = true; !x.probe && y.at == 0 {
			y.at = now
		}
	}
	return x
}

// lowest is the limit of those who wait. All have the same but for a moment after the app's settings were changed.
func (p *places) lowest() int {
	limit := 0
	for s := range p.claims {
		if limit == 0 || s.detail.most < limit {
			limit = s.detail.most
		}
	}
	return limit
}

// askPlaces asks every other node. Whoever does not answer about a channel is missing there.
func (h *Hub) askPlaces(ctx context.Context, all []*round) {
	var mu sync.Mutex
	answered := map[petrel.NodeID]int{}
	for _, failed := range h.eachPeer(func(node petrel.NodeID) error {
		for rest := all; len(rest) > 0; {
			in, err := h.askOne(ctx, node, appendRounds([]byte{formatAsk, askPlaces}, rest))
			if err != nil {
				return err
			}
			said := in.places(node)
			if !in.ok || len(said) == 0 || len(said) > len(rest) {
				return errAnswer
			}
			mu.Lock()
			for i, o := range said {
				rest[i].said[node] = o
			}
			answered[node] += len(said)
			mu.Unlock()
			rest = rest[len(said):]
		}
		return nil
	}) {
		h.metrics.unsure.Inc()
		h.opt.Logger.Warn("a node does not say who is on channels whose members are limited: what it reported last counts",
			"node", failed.Node, "channels", len(all)-answered[failed.Node], "error", failed.Err)
		for _, x := range all[answered[failed.Node]:] {
			x.missing = append(x.missing, failed.Node)
		}
	}
}

func appendRounds(b []byte, all []*round) []byte {
	b = appendNumbers(b, uint64(len(all)))
	for _, x := range all {
		probe := byte(0)
		if x.probe {
			probe = 1
		}
		b = append(appendChannel(b, x.ch), probe)
	}
	return b
}

// appendPlaces is the answer: as many of the channels as there is room for.
func (h *Hub) appendPlaces(b []byte, in *reader) ([]byte, error) {
	var body []byte
	done := uint64(0)
	for n := in.number(); n > 0 && in.ok; n-- {
		ch, probe := in.channel(), in.byte() == 1
		if in.ok && len(body) < maxAnswer/2 {
			body = h.appendPlace(body, ch, probe)
			done++
		}
	}
	if !in.ok {
		return nil, errAsk
	}
	return append(appendNumbers(b, done), body...), nil
}

func (h *Hub) appendPlace(b []byte, ch petrel.Channel, probe bool) []byte {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.channels.get(k, ch)
	if c == nil {
		return appendNumbers(b, 0, 0, 0)
	}
	var claims []*Subscription
	if p := c.places(); p != nil {
		claims = p.inOrder(func(x *claim) bool { return x.at > 0 })
		if !probe {
			p.checked = nil
			p.asks++
		}
	}
	b = appendNumbers(b, uint64(len(c.local)))
	if probe {
		b = appendUsers(b, nil)
	} else {
		b = appendUsers(b, slices.Sorted(maps.Keys(c.local)))
	}
	b = appendNumbers(b, uint64(len(claims)))
	for _, s := range claims {
		b = appendText(appendNumbers(b, c.places().claims[s].at), s.Member())
	}
	return b
}

func (r *reader) places(node petrel.NodeID) (out []*occupied) {
	for n := r.number(); n > 0 && r.ok; n-- {
		o := &occupied{number: int(min(r.number(), 1<<30)), users: r.users()} //nolint:gosec // bounded
		for m := r.number(); m > 0 && r.ok; m-- {
			o.claims = append(o.claims, claimant{r.number(), node, petrel.UserID(r.text())})
		}
		out = append(out, o)
	}
	return out
}

// settle decides about those who waited when the others were asked. It says whether some must ask again.
func (h *Hub) settle(x *round) (again bool) {
	sh, k := h.shardOf(x.ch)
	sh.mu.Lock()
	c := sh.channels.get(k, x.ch)
	if c == nil || c.places() == nil {
		sh.mu.Unlock()
		return false
	}
	p := c.places()
	var refused []func()
	if p == x.places {
		clean := x.asks == p.asks && x.alive == h.lane.peers.Load() && c.clean(x)
		if clean {
			p.checked, p.limit = x.alive, x.limit
		}
		if x.probe {
			p.crowded = !clean
			h.settleFree(c, x)
		} else {
			refused = h.settleClaims(c, x)
		}
	}
	again = len(p.claims) > 0
	p.crowded = p.crowded && again
	h.mark(c)
	sh.mu.Unlock()
	for _, fn := range refused {
		fn()
	}
	return again
}

// clean says whether all others are within their shares, and nobody there claims a place.
func (c *channel) clean(x *round) bool {
	limit := share(x.limit, x.alive)
	for _, o := range x.said {
		if o.number > limit || len(o.claims) > 0 {
			return false
		}
	}
	for _, node := range x.missing {
		if c.view != nil && c.view.reports[node] != nil && len(c.view.reports[node].users) > limit {
			return false
		}
	}
	return true
}

// settleFree admits those who need not claim after all.
func (h *Hub) settleFree(c *channel, x *round) {
	p := c.places()
	for _, s := range p.inOrder(func(y *claim) bool { return y.asked }) {
		p.claims[s].asked = false
		_, here := c.local[s.Member()]
		if here || c.free(s.detail.most, x.alive) {
			h.admit(c, s, time.Now())
		}
	}
}

// settleClaims admits and refuses those who claimed.
func (h *Hub) settleClaims(c *channel, x *round) (refused []func()) {
	p, now := c.places(), time.Now()
	t := h.tableOf(c, x)
	for _, s := range p.inOrder(func(y *claim) bool { return y.asked }) {
		y := p.claims[s]
		switch verdict := t.judge(s.detail.most, claimant{y.at, h.nodeName(), s.Member()}); {
		case verdict == fits:
			h.admit(c, s, now)
		case verdict == mustWait && now.UnixNano()-int64(y.at) < int64(claimFor): //nolint:gosec // after 1970
			y.asked = false
		default:
			s.remove()
			err := h.full(s.detail.most)
			refused = append(refused, func() { s.owner.Ended(s, err) })
		}
	}
	return refused
}

func (h *Hub) nodeName() petrel.NodeID {
	if r := h.relayed(); r != nil {
		return r.Node()
	}
	return ""
}

// inOrder are those who wait, as far as they are wanted.
func (p *places) inOrder(wanted func(x *claim) bool) []*Subscription {
	var all []*Subscription
	for s, x := range p.claims {
		if wanted(x) {
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

func (h *Hub) tableOf(c *channel, x *round) *table {
	t := &table{users: map[petrel.UserID]bool{}, claims: map[petrel.UserID]claimant{}}
	for user := range c.local {
		t.users[user] = true
	}
	for _, o := range x.said {
		for _, user := range o.users {
			t.users[user] = true
		}
		for _, y := range o.claims {
			t.claim(y)
		}
	}
	for _, node := range x.missing {
		if c.view != nil && c.view.reports[node] != nil {
			for user := range c.view.reports[node].users {
				t.users[user] = true
			}
		}
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
