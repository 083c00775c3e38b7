package hub

import (
	"maps"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// MaxListed is how many users a Roster names. Where more are there, single arrivals and departures are not told, only how many are there.
const MaxListed = 1000

const (
	// maxTold is how many arrivals and departures are told one by one; more at once are a new Roster.
	maxTold = 100
	// leaveAfter is how long a user who is nowhere any more is still shown: a move to another node, or a reload, is not told.
	leaveAfter = time.Second
	// rosterWithin is how long a first Roster waits for nodes that have not said yet who is on them.
	rosterWithin = 500 * time.Millisecond
	// countEvery is the least time between two Rosters that only count.
	countEvery = time.Second
	// keepView is how long a list is kept for readers who may ask again.
	keepView = 10 * time.Second
)

// Types of the publications that tell who comes and goes.
const (
	TypeJoin  = "presence.join"
	TypeLeave = "presence.leave"
)

// Roster is who is there: each user once, whatever the number of connections and nodes.
type Roster struct {
	Channel petrel.Channel
	Users   []petrel.UserID // in order, at most MaxListed; nil: only the count is told, or Members has them
	Members []Member        // on an exact channel: all of them, in order
	Count   int             // always that of all
	Partial bool            // a living node has not said yet who is on it
}

// told is what the other nodes were told of a channel. The shard's lock guards it.
type told struct {
	version  uint64                 // of the newest report
	reported int                    // users in it
	was      map[petrel.UserID]bool // users whose presence may have changed since, and whether they were here
	number   int                    // subscriptions in it
	numberAt time.Time              // when it was told
}

// something says whether others believe that somebody is here.
func (t *told) something() bool { return t.reported > 0 || t.number > 0 }

func (t *told) nothing() bool { return !t.something() && len(t.was) == 0 }

// local is a user on this node.
type local struct {
	subs int    // subscriptions
	info string // what the first of them said
}

// changed notes that the others must hear of a user.
func (c *channel) changed(user petrel.UserID, was bool) {
	t := &c.extra().told
	if t.was == nil {
		t.was = map[petrel.UserID]bool{}
	}
	if _, noted := t.was[user]; !noted {
		t.was[user] = was
	}
}

// enter counts a new subscription; the shard's lock is held.
func (h *Hub) enter(c *channel, s *Subscription) {
	s.set(entered, true)
	c.counted++
	h.recount(c)
	user := s.Member()
	if user == "" {
		return
	}
	if c.local == nil {
		c.local = map[petrel.UserID]local{}
	}
	at, there := c.local[user]
	if !there {
		at.info = string(s.detail.member.Info)
	}
	at.subs++
	c.local[user] = at
	if there {
		return
	}
	if c.view != nil {
		c.view.add(user)
		h.mark(c)
	}
	if h.relayed() != nil {
		c.changed(user, false)
		h.mark(c)
	}
}

// leave takes a subscription out of the count; the shard's lock is held.
func (h *Hub) leave(c *channel, s *Subscription) {
	if !s.is(entered) {
		return
	}
	s.set(entered, false)
	c.counted--
	h.recount(c)
	user := s.Member()
	if user == "" {
		return
	}
	at := c.local[user]
	if at.subs--; at.subs > 0 {
		c.local[user] = at
		return
	}
	delete(c.local, user)
	if c.view != nil {
		c.view.remove(user, at.info, time.Now())
		h.mark(c)
	}
	if h.relayed() != nil {
		c.changed(user, true)
		h.mark(c)
	}
}

// follow counts a subscription that asks who, or how many, are there; the shard's lock is held.
func (h *Hub) follow(c *channel, s *Subscription) {
	if s.is(follows | counts) {
		h.watch(c).wanted++
		h.mark(c)
	}
	if s.is(counts) {
		c.view.counters++
	}
}

func (h *Hub) unfollow(c *channel, s *Subscription) {
	if s.is(follows | counts) {
		c.view.wanted--
		h.mark(c)
	}
	if s.is(counts) {
		c.view.counters--
	}
}

// recount notes that the number of subscriptions changed; the shard's lock is held.
func (h *Hub) recount(c *channel) {
	if !exact(c.name) {
		return
	}
	if c.view != nil {
		c.view.touched = true
		h.mark(c)
	} else if h.observer != nil {
		h.mark(c) // it may be of interest; on a node that is alone nothing else asks
	}
	if h.relayed() != nil {
		c.uncount = true
		h.mark(c)
	}
}

// forget drops a channel that nothing needs any more; the shard's lock is held.
func (h *Hub) forget(c *channel) {
	if len(c.subs) > 0 || c.view != nil || c.uncount || (c.more != nil && len(c.more.told.was) > 0) {
		return
	}
	sh, k := h.shardOf(c.name)
	if sh.channels.get(k, c.name) != c {
		return
	}
	sh.channels.drop(k, c)
	if c.listens {
		c.listens = false
		h.lane.count(c.bucket, -1)
	}
}

// watch returns the channel's view, made if need be; the shard's lock is held.
func (h *Hub) watch(c *channel) *view {
	if c.view == nil {
		c.view = newView(c.local, time.Now())
	}
	return c.view
}

// view is who is there as this node shows it: the union of its own users and of what the others reported.
type view struct {
	wanted  int       // subscriptions and readers that ask
	until   time.Time // it stays so long without any
	reports map[petrel.NodeID]*report
	count   map[petrel.UserID]int  // on how many nodes the user is
	held    map[petrel.UserID]held // users on none, who are shown for a moment
	told    map[petrel.UserID]bool // users who may be shown otherwise than was told last, and whether they were
	summed  bool                   // subscribers were last told only how many
	countAt time.Time              // when they may be told the next number
	readers []chan struct{}        // closed once every living node has said

	// Of exact channels.
	born     time.Time
	touched  bool // something changed since the observer was told
	wasWhole bool // as the observer was told
	online   bool // there is a subscription, or was a moment ago
	offAt    time.Time
	number   int  // of subscriptions, as subscribers were last told
	due      bool // somebody was not told yet
	counters int  // subscriptions that want to be
	watchers []*watcher
}

// held is somebody who is on no node any more.
type held struct {
	until time.Time
	info  string
}

func newView(local map[petrel.UserID]local, now time.Time) *view {
	v := &view{
		reports: map[petrel.NodeID]*report{}, count: make(map[petrel.UserID]int, len(local)),
		held: map[petrel.UserID]held{}, told: map[petrel.UserID]bool{}, born: now, touched: true,
	}
	for user := range local {
		v.count[user] = 1
	}
	return v
}

// shown is how many users are shown.
func (v *view) shown() int { return len(v.count) + len(v.held) }

func (v *view) shows(user petrel.UserID) bool {
	_, held := v.held[user]
	return held || v.count[user] > 0
}

// add counts a node for a user.
func (v *view) add(user petrel.UserID) {
	if v.count[user]++; v.count[user] > 1 {
		return
	}
	v.touched = true
	if _, held := v.held[user]; held {
		delete(v.held, user)
		return
	}
	v.note(user, false)
}

// remove takes a node from a user's count. The last one leaves them shown for a moment.
func (v *view) remove(user petrel.UserID, info string, now time.Time) {
	if v.count[user]--; v.count[user] > 0 {
		return
	}
	delete(v.count, user)
	v.held[user] = held{now.Add(leaveAfter), info}
	v.touched = true
}

// expire ends the showing of those who did not come back.
func (v *view) expire(now time.Time) {
	for user, h := range v.held {
		if !now.Before(h.until) {
			v.release(user)
		}
	}
}

// release ends the showing of one who left.
func (v *view) release(user petrel.UserID) {
	delete(v.held, user)
	v.note(user, true)
	v.touched = true
}

func (v *view) note(user petrel.UserID, was bool) {
	if _, noted := v.told[user]; !noted {
		v.told[user] = was
	}
}

// roster lists who is shown.
func (v *view) roster(ch petrel.Channel) *Roster {
	all := v.users()
	return &Roster{Channel: ch, Users: all[:min(len(all), MaxListed)], Count: len(all)}
}

// users are those who are shown, in order.
func (v *view) users() []petrel.UserID {
	all := make([]petrel.UserID, 0, v.shown())
	all = slices.AppendSeq(all, maps.Keys(v.count))
	all = slices.AppendSeq(all, maps.Keys(v.held))
	slices.Sort(all)
	return all
}

// subscriptions is how many there are besides those of this node.
func (v *view) subscriptions() (n int) {
	for _, r := range v.reports {
		n += r.number
	}
	return n
}

// report is what one other node said about a channel, in its present life.
type report struct {
	incarnation uint64
	known       bool // it has said everything at version
	behind      bool // something is missing
	version     uint64
	users       map[petrel.UserID]string // and what is shown of them
	number      int                      // subscriptions
	heard       time.Time                // when it last said, or summed up, what is known
	asked       time.Time
	part        uint64 // of a full report that comes in parts: the next one
	partVersion uint64
	parts       map[petrel.UserID]string
}

// of returns a peer's report; one of a former life is dropped.
func (v *view) of(p Peer, now time.Time) *report {
	r := v.reports[p.Node]
	if r != nil && r.incarnation != p.Incarnation {
		v.drop(p.Node, now)
		r = nil
	}
	if r == nil {
		r = &report{incarnation: p.Incarnation}
		v.reports[p.Node] = r
	}
	return r
}

func (v *view) drop(node petrel.NodeID, now time.Time) {
	for user, info := range v.reports[node].users {
		v.remove(user, info, now)
	}
	delete(v.reports, node)
	v.touched = true
}

// keepOnly drops the reports of nodes that are not alive, or live anew.
func (v *view) keepOnly(alive map[petrel.NodeID]uint64, now time.Time) {
	for node, r := range v.reports {
		if inc, ok := alive[node]; !ok || inc != r.incarnation {
			v.drop(node, now)
		}
	}
}

// whole says whether every living node has said who is on it.
func (v *view) whole(alive map[petrel.NodeID]uint64) bool {
	for node, inc := range alive {
		if r := v.reports[node]; r == nil || r.incarnation != inc || !r.known {
			return false
		}
	}
	return true
}

// change takes one step of a report.
func (v *view) change(r *report, said change, now time.Time) {
	switch {
	case said.version <= r.version && r.known:
		return // heard already
	case said.since == 0: // nobody was there before: it is all there is
		v.replace(r, said.version, pairs(said.came, said.infos), said.number, now)
	case !r.known || r.version != said.since:
		r.behind = true
	default:
		for user, info := range pairs(said.came, said.infos) {
			if _, there := r.users[user]; !there {
				if r.users == nil {
					r.users = map[petrel.UserID]string{}
				}
				r.users[user] = info
				v.add(user)
			}
		}
		for _, user := range said.left {
			if info, there := r.users[user]; there {
				delete(r.users, user)
				v.remove(user, info, now)
			}
		}
		if said.numbered && r.number != said.number {
			r.number, v.touched = said.number, true
		}
		r.version, r.heard = said.version, now
	}
}

// full takes one part of everything. Parts come in order; when one is missing, the whole is asked for again.
func (v *view) full(r *report, said full, now time.Time) {
	if r.known && said.version < r.version {
		return
	}
	if said.part == 0 {
		r.part, r.partVersion, r.parts = 0, said.version, map[petrel.UserID]string{}
	}
	if r.parts == nil || said.part != r.part || said.version != r.partVersion {
		r.parts, r.behind = nil, true
		return
	}
	r.part++
	for user, info := range pairs(said.users, said.infos) {
		r.parts[user] = info
	}
	if said.last {
		v.replace(r, said.version, r.parts, said.number, now)
	}
}

func (v *view) replace(r *report, version uint64, users map[petrel.UserID]string, number int, now time.Time) {
	for user := range users {
		if _, there := r.users[user]; !there {
			v.add(user)
		}
	}
	for user, info := range r.users {
		if _, there := users[user]; !there {
			v.remove(user, info, now)
		}
	}
	v.touched = v.touched || !r.known || r.number != number
	*r = report{incarnation: r.incarnation, known: true, version: version, users: users, number: number, heard: now}
}

// summary takes the version that a node says is its newest.
func (v *view) summary(r *report, version uint64, now time.Time) {
	if !r.known || r.version < version {
		r.behind = true
		return
	}
	r.heard = now
}

// pairs are users and what is shown of them; an older build says nothing of them.
func pairs(users []petrel.UserID, infos []string) map[petrel.UserID]string {
	out := make(map[petrel.UserID]string, len(users))
	for i, user := range users {
		info := ""
		if i < len(infos) {
			info = infos[i]
		}
		out[user] = info
	}
	return out
}
