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

// presence is the part of a channel that says who is there. The shard's lock guards it.
type presence struct {
	local map[petrel.UserID]int // subscriptions on this node
	view  *view                 // nil: nobody on this node asks
	dirty bool                  // it is on the lane's list of what is due
	waits bool                  // it is on the list of what waits for its time; the lane's own

	// What the other nodes were told of local.
	version  uint64                 // of the newest report
	reported int                    // users in it
	was      map[petrel.UserID]bool // users whose presence may have changed since, and whether they were here
	bucket   Bucket
	listens  bool // the bucket is counted
}

// changed notes that the others must hear of a user.
func (p *presence) changed(user petrel.UserID, was bool) {
	if p.was == nil {
		p.was = map[petrel.UserID]bool{}
	}
	if _, noted := p.was[user]; !noted {
		p.was[user] = was
	}
}

// enter counts a new subscription; the shard's lock is held.
func (h *Hub) enter(c *channel, s *Subscription) {
	h.listen(c)
	if s.to.Presence {
		h.watch(c).wanted++
		s.unlisted = s.from
		h.mark(c)
	}
	if s.to.Member == nil {
		return
	}
	user := s.to.Member.ID
	if c.local == nil {
		c.local = map[petrel.UserID]int{}
	}
	if c.local[user]++; c.local[user] > 1 {
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
	if s.to.Presence {
		c.view.wanted--
		h.mark(c)
	}
	if s.to.Member == nil {
		return
	}
	user := s.to.Member.ID
	if c.local[user]--; c.local[user] > 0 {
		return
	}
	delete(c.local, user)
	if c.view != nil {
		c.view.remove(user, time.Now())
		h.mark(c)
	}
	if h.relayed() != nil {
		c.changed(user, true)
		h.mark(c)
	}
}

// forget drops a channel that nothing needs any more; the shard's lock is held.
func (h *Hub) forget(sh *shard, c *channel) {
	if len(c.subs) > 0 || c.view != nil || len(c.was) > 0 || sh.channels[c.name] != c {
		return
	}
	delete(sh.channels, c.name)
	if c.listens {
		c.listens = false
		h.lane.count(c.bucket, -1)
	}
}

// watch returns the channel's view, made if need be; the shard's lock is held.
func (h *Hub) watch(c *channel) *view {
	if c.view == nil {
		c.view = newView(c.local)
	}
	return c.view
}

// view is who is there as this node shows it: the union of its own users and of what the others reported.
type view struct {
	wanted  int       // subscriptions and readers that ask
	until   time.Time // it stays so long without any
	reports map[petrel.NodeID]*report
	count   map[petrel.UserID]int       // on how many nodes the user is
	held    map[petrel.UserID]time.Time // users on none, who are shown until then
	told    map[petrel.UserID]bool      // users who may be shown otherwise than was told last, and whether they were
	summed  bool                        // subscribers were last told only how many
	countAt time.Time                   // when they may be told the next number
	readers []chan struct{}             // closed once every living node has said
}

func newView(local map[petrel.UserID]int) *view {
	v := &view{
		reports: map[petrel.NodeID]*report{}, count: make(map[petrel.UserID]int, len(local)),
		held: map[petrel.UserID]time.Time{}, told: map[petrel.UserID]bool{},
	}
	for user := range local {
		v.count[user] = 1
	}
	return v
}

// shown is how many are shown.
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
	if _, held := v.held[user]; held {
		delete(v.held, user)
		return
	}
	v.note(user, false)
}

// remove takes a node from a user's count. The last one leaves them shown for a moment.
func (v *view) remove(user petrel.UserID, now time.Time) {
	if v.count[user]--; v.count[user] > 0 {
		return
	}
	delete(v.count, user)
	v.held[user] = now.Add(leaveAfter)
}

// expire ends the showing of those who did not come back.
func (v *view) expire(now time.Time) {
	for user, until := range v.held {
		if !now.Before(until) {
			delete(v.held, user)
			v.note(user, true)
		}
	}
}

func (v *view) note(user petrel.UserID, was bool) {
	if _, noted := v.told[user]; !noted {
		v.told[user] = was
	}
}

// roster lists who is shown.
func (v *view) roster(ch petrel.Channel) *Roster {
	all := make([]petrel.UserID, 0, v.shown())
	all = slices.AppendSeq(all, maps.Keys(v.count))
	all = slices.AppendSeq(all, maps.Keys(v.held))
	slices.Sort(all)
	return &Roster{Channel: ch, Users: all[:min(len(all), MaxListed)], Count: len(all)}
}

// report is what one other node said about a channel, in its present life.
type report struct {
	incarnation uint64
	known       bool // it has said everything at version
	behind      bool // something is missing
	version     uint64
	users       map[petrel.UserID]struct{}
	heard       time.Time // when it last said, or summed up, what is known
	asked       time.Time
	part        uint64 // of a full report that comes in parts: the next one
	partVersion uint64
	parts       map[petrel.UserID]struct{}
}

// of returns a peer's report; one of a former life is dropped.
func (v *view) of(p Peer, now time.Time) *report {
	r := v.reports[p.Node]
	if r != nil && r.incarnation != p.Incarnation {
		v.drop(p.Node, now)
		r = nil
	}
	if r == nil {
		r = &report{incarnation: p.Incarnation, users: map[petrel.UserID]struct{}{}}
		v.reports[p.Node] = r
	}
	return r
}

func (v *view) drop(node petrel.NodeID, now time.Time) {
	for user := range v.reports[node].users {
		v.remove(user, now)
	}
	delete(v.reports, node)
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
func (v *view) change(r *report, since, version uint64, came, left []petrel.UserID, now time.Time) {
	switch {
	case version <= r.version && r.known:
		return // heard already
	case since == 0: // nobody was there before: it is all there is
		v.replace(r, version, set(came), now)
	case !r.known || r.version != since:
		r.behind = true
	default:
		for _, user := range came {
			if _, there := r.users[user]; !there {
				r.users[user] = struct{}{}
				v.add(user)
			}
		}
		for _, user := range left {
			if _, there := r.users[user]; there {
				delete(r.users, user)
				v.remove(user, now)
			}
		}
		r.version, r.heard = version, now
	}
}

// full takes one part of everything. Parts come in order; when one is missing, the whole is asked for again.
func (v *view) full(r *report, version, part uint64, last bool, users []petrel.UserID, now time.Time) {
	if r.known && version < r.version {
		return
	}
	if part == 0 {
		r.part, r.partVersion, r.parts = 0, version, map[petrel.UserID]struct{}{}
	}
	if r.parts == nil || part != r.part || version != r.partVersion {
		r.parts, r.behind = nil, true
		return
	}
	r.part++
	for _, user := range users {
		r.parts[user] = struct{}{}
	}
	if last {
		v.replace(r, version, r.parts, now)
	}
}

func (v *view) replace(r *report, version uint64, users map[petrel.UserID]struct{}, now time.Time) {
	for user := range users {
		if _, there := r.users[user]; !there {
			v.add(user)
		}
	}
	for user := range r.users {
		if _, there := users[user]; !there {
			v.remove(user, now)
		}
	}
	*r = report{incarnation: r.incarnation, known: true, version: version, users: users, heard: now}
}

// summary takes the version that a node says is its newest.
func (v *view) summary(r *report, version uint64, now time.Time) {
	if !r.known || r.version < version {
		r.behind = true
		return
	}
	r.heard = now
}

func set(users []petrel.UserID) map[petrel.UserID]struct{} {
	out := make(map[petrel.UserID]struct{}, len(users))
	for _, user := range users {
		out[user] = struct{}{}
	}
	return out
}
