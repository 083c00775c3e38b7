// Package hub knows which local connection listens to which channel. Publications that
// apply hands on are offered to every subscriber at once; a subscription that starts in the past,
// or fell out of step, reads history until it meets the live edge and then joins it.
//
// A subscription is *live* or *catching up*. Live ones are served by Publish, under the lock of
// their channel's shard. Catching up is done by a small pool, a page at a time and in turn, so that one long
// resume does not hold up the others; a page is only offered as far as the subscriber's queue has room, and the
// rest waits without a goroutine until the queue has drained. The hand-over happens under the shard's lock: when
// history has been read to its end and nothing newer was published on the channel meanwhile, the
// subscription becomes live; else it reads on.
//
// The ephemeral lane meets the durable one here: Announce offers a publication without a seq to whoever listens, on this node
// and, by way of a Relay, on the others of the cell. The hub also says who is there (presence.go): each node reports the users
// of its own subscriptions, channel by channel, and whoever asks is shown the union. Without a Relay the node is alone, and
// everything works alike.
//
// There are two sorts of channel. A *room*'s is what the above is about: it has history, and a subscriber who is too slow for what is ephemeral misses
// some of it. An *exact* one (exact.go), of Pusher's clients or of a user's connections, has none: its subscriptions are live at once, and
// hear everything or are closed. What is on it over all nodes can be followed without a connection (here.go: Watch, Observe, Look), counted at one
// moment (census.go), and its last publication kept for who comes later (last.go). Tell (tell.go) reaches every node, with an answer.
//
// # Invariants
//
//   - A durable subscription is offered every event after its starting point exactly once and in order of seq, or its
//     subscriber is told Resync (or Ended) and the subscription is over. There is never a silent gap: a live publication
//     whose seq is not the next one sends the subscription back to history instead of being offered.
//   - Publish never waits: it takes a shard's lock, offers, and goes. It must be called with a channel's publications in
//     order, each after the transaction that made it visible to History was committed.
//   - A live publication is encoded at most once per wire, whatever the number of subscribers, and not at all for wires without one.
//   - What a subscriber may read is asked anew, by History, for every page; a publication that is Final or names the subscriber
//     as Revoked sends a live subscription through there. After the publication that ended a right, nothing is offered.
//   - Once Close has returned, nothing is offered any more.
//   - No lock of the hub is held while History or a callback other than Send and TrySend runs.
//   - An ephemeral publication is offered at most once to a subscription, those of one node on one channel in order. One
//     that finds no room is dropped and counted; it never closes a slow subscriber, as a durable one does.
//   - A subscription to an exact channel is offered everything that is published on the channel, on whatever node, after it was admitted, as far as links
//     carry it; one that wants to know who is there is given one list, with itself on it, and from then on each arrival and departure of another
//     once and in an order that fits. A move between nodes within a second is neither.
//   - Who wants a channel's last publication is offered the newest that any node which answers has kept, and then what is published after it, each once.
//   - An exact channel never has more members than it may have, over all nodes, while every node can ask every other (places.go).
//   - Who is there: once links and nodes are well again, every node shows for every channel exactly the users that have a subscription
//     on some living node (plus, for a second, those that just left). A node that is not alive counts for nothing, whatever of it still arrives.
//
// What fails: History failing is tried again with growing pauses; the subscription waits, it is never skipped over. A report of
// presence that is lost is noticed by its version, or by the next summary, and asked for. A node that does not answer delays a subscription to an exact
// channel by half a second, and no more; what it had is told when it is heard.
package hub

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// MaxWires bounds how many wire protocols share a hub.
const MaxWires = 6

// Subscriber is a connection as the hub sees it; *conn.Conn is most of one. Its methods must not block and
// must be safe under any lock: they must not call back into the hub, except from a goroutine of their own.
type Subscriber interface {
	// Send queues a live frame. Any error means that nothing more will be taken: the subscription is left alone until it is closed.
	Send(frame []byte) error
	// TrySend queues a frame of history if there is room for it.
	TrySend(frame []byte) (queued bool, err error)
	// NotifyRoom calls fn once there is room again, or the subscriber is gone.
	NotifyRoom(fn func())
}

// Apart is what a Subscriber also implements that numbers the frames it is sent: ephemeral ones go here, and take no number.
type Apart interface {
	TrySendApart(frame []byte) (queued bool, err error)
}

// Sampled is what a Subscriber also implements that measures how long a frame took. One subscriber of each publication is asked to.
type Sampled interface {
	// SendSampled is Send of something that was committed at since.
	SendSampled(frame []byte, since time.Time) error
}

// Named is what a Subscriber also implements that is a connection with a name in the cell: what has it in Publication.Except is not offered to it.
type Named interface {
	ID() petrel.ConnID
}

// Page is what History read in one consistent view.
type Page struct {
	Publications []petrel.Publication // dense, ascending, the first one After+1
	Head         uint64               // newest seq of the channel in that view
}

// ErrEnded is what History wraps when the subscription may not go on; its Error (if it holds a *petrel.Error) is told to Ended.
var ErrEnded = errors.New("hub: subscription ended")

// Want is one read of history.
type Want struct {
	Channel petrel.Channel
	Actor   petrel.Actor // whose right to read is checked in the same view
	After   uint64
	Limit   int
}

// Options of a Hub.
type Options struct {
	// Encoders turn a publication into a frame, one per wire; the index is what Subscription.Wire names. Required, at most MaxWires.
	Encoders []func(p *petrel.Publication) []byte
	// Replays are the encoders of history, by wire, where they are others: history is encoded for one subscription alone. nil: those of Encoders.
	Replays map[int]func(p *petrel.Publication) []byte
	// Rosters turn a list of who is there into a frame, one per wire. Needed for wires whose subscriptions ask for it.
	Rosters []func(r *Roster) []byte
	// Deltas turn one arrival or departure on an exact channel into a frame, one per wire. Needed where its members are followed.
	Deltas []func(d *Delta) []byte
	// Last keeps the last publication of channels that have one for who comes later. It is called under locks: it must not block. nil: nothing is kept.
	Last Keeper
	// Reported says whether the other nodes are told how many subscriptions this one has on a Pusher channel: where somebody on any node wants to
	// know as it changes (Request.Counts, an Observer). It must not block. nil: always. After it changed, call Reconsider.
	Reported func(ch petrel.Channel) bool
	// History reads one page. Required.
	History func(ctx context.Context, w Want) (Page, error)

	Readers    int // pages read at once; default 4
	PageSize   int // publications per page; default 256
	MaxWaiting int // subscriptions that may be catching up before new ones are refused with CodeOverloaded; default 10,000

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *Options) defaults() {
	if o.Readers <= 0 {
		o.Readers = 4
	}
	if o.PageSize <= 0 {
		o.PageSize = 256
	}
	if o.MaxWaiting <= 0 {
		o.MaxWaiting = 10_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Encoders) == 0 || len(o.Encoders) > MaxWires || o.History == nil {
		panic("hub: 1 to 4 encoders and a History are required") // a mistake of whoever assembles the node
	}
}

// shardCount: Publish takes one shard's lock, so subscribing to other channels goes on meanwhile.
const shardCount = 64

// Hub is the local fan-out table. All methods are safe for concurrent use.
type Hub struct {
	opt     Options
	metrics *metrics
	seed    maphash.Seed // of the hash of a channel's name
	shards  [shardCount]shard
	queue   catchups
	lane    lane
	// Written before Start.
	observer Observer
	tells    map[Topic]func(ctx context.Context, app petrel.AppID, payload []byte) ([]byte, error)
	debug    bool // the logger wants a line for every publication
	// lives counts replacements of the projection. A page read in one life never makes a subscription live in the next.
	lives atomic.Uint64
}

// shard is a part of the channels. mu guards the table, the channels in it, and of every subscription to them the fields marked so.
// Order of locks: a shard's before the catch-up queue's, the lane's and the relay's; a subscriber's own locks after all of them.
type shard struct {
	hub      *Hub
	mu       sync.Mutex
	channels byName
}

// channel exists while it has a subscription, somebody reads who is there, or others must yet be told who left. There may be one for each
// connection: what few channels need lies behind pointers. The shard's lock guards all but its name.
type channel struct {
	name  petrel.Channel
	shard *shard
	next  *channel // in the shard's table
	subs  []*Subscription
	head  uint64                  // newest seq offered live, or known from a hand-over
	local map[petrel.UserID]local // who is here
	view  *view                   // nil: nobody on this node asks who is there
	more  *more                   // nil: there is nothing of it

	counted  int32 // subscriptions on this node that are admitted
	bucket   Bucket
	listens  bool // the bucket is counted
	uncount  bool // the other nodes may have to be told counted
	synced   bool // head is the live edge: whatever is newer will come through Publish
	observed bool // the view stays as long as the observer wants it and there is somebody
	dirty    bool // it is on the lane's list of what is due
	waits    bool // it is on the list of what waits for its time; the lane's own
}

// more is what few channels have.
type more struct {
	waiting []waiter // in the order in which they came
	told    told
	last    last
	places  *places // nil: nobody wanted to be among a limited number yet
}

// waiter is a subscription that is pending, or was.
type waiter struct {
	*Subscription
	since time.Time
}

// extra is more, made if need be.
func (c *channel) extra() *more {
	if c.more == nil {
		c.more = &more{}
	}
	return c.more
}

// slim lets go of what is as if it had never been.
func (c *channel) slim() {
	if m := c.more; m != nil && len(m.waiting) == 0 && m.places == nil && m.told.nothing() && m.last.nothing() {
		c.more = nil
	}
}

type mode uint8

const (
	catching mode = iota // the pool owns next
	live                 // Publish owns next
	over                 // closed, ended, or the subscriber takes nothing more
	pending              // on an exact channel: not admitted yet
)

// Subscription is one subscriber on one channel. Most have nothing but this: 64 bytes.
type Subscription struct {
	ch     *channel
	to     Subscriber
	owner  Owner
	detail *detail // nil: none is needed

	next  uint64 // the seq to be offered next; owned by the pool while catching, guarded by shard.mu while live
	index int32  // in channel.subs; < 0: in none. Guarded by shard.mu
	wire  uint8
	mode  mode  // guarded by shard.mu
	flags flags // those that may change are guarded by shard.mu
}

// flags of a subscription.
type flags uint8

const (
	durable flags = 1 << iota // as in the Request
	follows                   // Presence
	counts
	wantsLast
	entered // it is counted. This and what follows may change
	listed  // it was given a list of an exact channel's members
	lacking // it waits for the channel's last publication from other nodes
)

// detail is what a subscription needs to a room, or where who is there matters.
type detail struct {
	actor    petrel.Actor
	member   Member    // ID "": nobody is there by it
	most     int       // Request.MaxMembers
	from     time.Time // since when it is catching up
	unlisted time.Time // since when it waits for a list of who is there; zero: it has one, or wants none. Guarded by shard.mu
	fails    int       // pages that failed in a row; the pool's own
}

// Owner is told what becomes of subscriptions; one may own many. Its methods must not block.
type Owner interface {
	// Admitted: nothing can refuse the subscription any more, and its first frame is not queued yet: the place to queue
	// what must come first. It runs under a lock. On an exact channel that may be after Subscribe returned, else it is before.
	Admitted(s *Subscription)
	// Missed: Last was asked for, and no node has any: at most once, before any publication is offered. It runs under a lock.
	Missed(s *Subscription)
	// Resync: the position cannot be served; the subscription is over.
	Resync(s *Subscription, reason string, head uint64)
	// Ended: the right to read is gone, or the subscription is refused after Subscribe returned; it is over.
	Ended(s *Subscription, err error)
}

// Unconcerned is an Owner that does nothing: to be embedded by those who want to hear of less.
type Unconcerned struct{}

var _ Owner = Unconcerned{}

// Admitted implements Owner.
func (Unconcerned) Admitted(*Subscription) {}

// Missed implements Owner.
func (Unconcerned) Missed(*Subscription) {}

// Resync implements Owner.
func (Unconcerned) Resync(*Subscription, string, uint64) {}

// Ended implements Owner.
func (Unconcerned) Ended(*Subscription, error) {}

// Request says what to subscribe to.
type Request struct {
	Channel    petrel.Channel
	Subscriber Subscriber
	Owner      Owner        // who is told what becomes of it; nil: nobody
	Actor      petrel.Actor // whose right to read is checked. Rooms only
	Wire       int          // index of Options.Encoders
	Member     *Member      // who is there by this subscription; nil: nobody
	After      uint64       // the last seq the subscriber has. Rooms only
	Durable    bool         // only what has a seq is wanted
	Presence   bool         // who is there is wanted: a Roster first, then who comes and goes
	// MaxMembers is how many users may be in the channel, over all nodes, for a new one to be let in; 0: any number (places.go). Exact channels only.
	MaxMembers int
	Counts     bool // changes of the number of subscriptions are wanted, as publications of TypeCount. Exact channels only
	// Last asks for the channel's last publication (Options.Last), right after Admitted and the Roster, and before any newer one. Exact channels only.
	Last bool
}

// subscription is what a request asks for, on no channel yet.
func (r *Request) subscription() *Subscription {
	s := &Subscription{to: r.Subscriber, owner: r.Owner, next: r.After + 1, wire: uint8(r.Wire), index: -1} //nolint:gosec // below MaxWires
	if s.owner == nil {
		s.owner = Unconcerned{}
	}
	s.set(durable, r.Durable)
	s.set(follows, r.Presence)
	s.set(counts, r.Counts)
	s.set(wantsLast, r.Last)
	if !exact(r.Channel) || r.Member != nil || r.Presence {
		s.detail = &detail{actor: r.Actor, most: r.MaxMembers, from: time.Now()}
		if r.Member != nil {
			s.detail.member = *r.Member
		}
	}
	return s
}

// New returns a hub. Start makes it catch up; Publish and Subscribe work before.
func New(o Options) *Hub {
	o.defaults()
	h := &Hub{opt: o, seed: maphash.MakeSeed(), debug: o.Logger.Enabled(context.Background(), slog.LevelDebug)}
	for i := range h.shards {
		h.shards[i].hub = h
		h.shards[i].channels = byName{}
	}
	h.queue.wake = sync.NewCond(&h.queue.mu)
	h.lane.init()
	h.tells = map[Topic]func(ctx context.Context, app petrel.AppID, payload []byte) ([]byte, error){}
	h.metrics = newMetrics(o.Registerer, h)
	return h
}

// shardOf is where a channel is, and its key there.
func (h *Hub) shardOf(ch petrel.Channel) (*shard, key) {
	k := maphash.Comparable(h.seed, ch)
	return &h.shards[k%shardCount], key(k)
}

// Channel is what s listens to.
func (s *Subscription) Channel() petrel.Channel { return s.ch.name }

// Member is who is there by s, "" if nobody.
func (s *Subscription) Member() petrel.UserID {
	if s.detail == nil {
		return ""
	}
	return s.detail.member.ID
}

func (s *Subscription) is(f flags) bool { return s.flags&f != 0 }

func (s *Subscription) set(f flags, on bool) {
	if s.flags &^= f; on {
		s.flags |= f
	}
}

// Subscribe offers every event after r.After to r.Subscriber, from a goroutine of the hub or of whoever publishes, until Close.
// It does not wait for history. The first frame may be queued before Subscribe returns.
// It returns CodeOverloaded when too many are catching up already.
func (h *Hub) Subscribe(r Request) (*Subscription, error) {
	if m := r.Member; m != nil && (m.ID == "" || len(m.ID) > maxID || len(m.Info) > MaxInfo) {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "A member has an id of 1 to %d bytes, and at most %d bytes of information.", maxID, MaxInfo)
	}
	s := r.subscription()
	sh, k := h.shardOf(r.Channel)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if exact(r.Channel) {
		return h.subscribeExact(h.channelOf(sh, k, r.Channel), s)
	}
	c, isNew := sh.channels.get(k, r.Channel), false
	if c == nil {
		c, isNew = &channel{name: r.Channel, shard: sh}, true
	}
	s.ch = c
	// At the live edge there is nothing to read: a thousand who come back at once after a blip cost nothing.
	// Their right to read was just checked by whoever subscribes them, and what might have changed it since is published on this channel.
	if c.synced && c.head == r.After {
		s.mode = live
	} else if !h.queue.admit(s, h.opt.MaxWaiting) {
		h.metrics.refused.Inc()
		return nil, petrel.Errorf(petrel.CodeOverloaded, "Too many subscriptions are catching up right now. Come back in a moment.").After(time.Second)
	}
	s.owner.Admitted(s)
	if isNew {
		sh.channels.put(k, c)
	}
	h.add(c, s)
	h.listen(c)
	if r.Presence {
		s.detail.unlisted = s.detail.from
	}
	h.follow(c, s)
	h.enter(c, s)
	return s, nil
}

// add puts s into its channel's list; the shard's lock is held.
func (h *Hub) add(c *channel, s *Subscription) {
	s.index = int32(len(c.subs)) //nolint:gosec // as many as connections
	c.subs = append(c.subs, s)
}

// Close ends the subscription: nothing is offered once it has returned. It may be called twice.
func (s *Subscription) Close() {
	s.ch.shard.mu.Lock()
	s.remove()
	s.ch.shard.mu.Unlock()
}

// remove takes s out of its channel; the shard's lock is held.
func (s *Subscription) remove() {
	if s.index < 0 {
		return
	}
	s.mode = over
	c, h := s.ch, s.ch.shard.hub
	last := len(c.subs) - 1
	c.subs[s.index] = c.subs[last]
	c.subs[s.index].index = s.index
	c.subs[last] = nil
	c.subs = c.subs[:last]
	s.index = -1
	c.unclaim(s)
	h.unfollow(c, s)
	h.leave(c, s)
	h.forget(c)
}

// Publish offers publications to whoever listens. It never waits.
func (h *Hub) Publish(pubs []petrel.Publication) {
	for i := range pubs {
		h.publish(&pubs[i])
	}
}

func (h *Hub) publish(p *petrel.Publication) {
	if p.Seq == 0 {
		_ = h.announce(p, nil, nil) // without a relay it cannot fail
		return
	}
	sh, k := h.shardOf(p.Channel)
	sh.mu.Lock()
	c := sh.channels.get(k, p.Channel)
	if c == nil {
		sh.mu.Unlock()
		return
	}
	if p.Seq > c.head {
		c.head = p.Seq
	}
	var frames [MaxWires][]byte
	offered := 0
	sample := int(p.Seq % uint64(max(1, len(c.subs)))) //nolint:gosec // less than a length
	for i, s := range c.subs {
		if s.mode != live {
			continue
		}
		if p.Seq != s.next {
			if p.Seq > s.next { // never a gap: what is missing is in history
				h.metrics.gaps.Inc()
				h.demote(s)
			}
			continue
		}
		f := frames[s.wire]
		if f == nil {
			f = h.opt.Encoders[s.wire](p)
			frames[s.wire] = f
		}
		if err := s.send(f, p.Applied, i == sample); err != nil {
			s.mode = over // it is closing; Close will take it out
			continue
		}
		offered++
		s.next++
		if p.Final || (p.Revoked != "" && s.detail.actor.User == p.Revoked) {
			h.demote(s) // history decides whether it may go on
		}
	}
	if p.Final {
		c.synced = false // nobody joins at the edge unchecked
	}
	sh.mu.Unlock()
	h.metrics.offered.Add(float64(offered))
	if h.debug {
		h.opt.Logger.Debug("queued for subscribers", "request", p.Request, "channel", p.Channel.Name, "seq", p.Seq, "type", p.Type, "subscribers", offered)
	}
	if !p.Applied.IsZero() {
		h.metrics.offer.Observe(time.Since(p.Applied).Seconds())
	}
}

// send offers a live frame. How long it took since it was committed is measured for the one that is the sample, where that can be.
func (s *Subscription) send(f []byte, committed time.Time, sample bool) error {
	if sample && !committed.IsZero() {
		if m, ok := s.to.(Sampled); ok {
			return m.SendSampled(f, committed)
		}
	}
	return s.to.Send(f)
}

// demote sends a live subscription through history; the shard's lock is held.
func (h *Hub) demote(s *Subscription) {
	s.mode, s.detail.from = catching, time.Now()
	h.queue.push(s)
}

// OnRestore sends every subscription through history: the projection was replaced, and what lies between was never published here.
func (h *Hub) OnRestore() {
	h.lives.Add(1) // before the locks: a hand-over either sees it or is undone below
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			c.synced = false
			for _, s := range c.subs {
				if s.mode == live && !exact(c.name) {
					h.demote(s)
				}
			}
		}
		sh.mu.Unlock()
	}
}

// Counts says how many channels have subscribers, and how many subscriptions there are.
func (h *Hub) Counts() (channels, subscriptions int) {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if len(c.subs) > 0 {
				channels++
			}
			subscriptions += len(c.subs)
		}
		sh.mu.Unlock()
	}
	return channels, subscriptions
}
