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
const MaxWires = 4

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
	seed    maphash.Seed
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

// shard is a part of the channels. mu guards the table, and of every subscription in it the fields marked so.
// Order of locks: a shard's before the catch-up queue's, the lane's and the relay's; a subscriber's own locks after all of them.
type shard struct {
	mu       sync.Mutex
	channels map[petrel.Channel]*channel
}

// channel exists while it has a subscription, somebody reads who is there, or others must yet be told who left.
type channel struct {
	name petrel.Channel
	presence
	subs    []*Subscription
	waiting []*Subscription // pending, or not any more; in the order in which they came
	last    last
	places  *places // nil: nobody claims one
	// observed: the view stays as long as the observer wants it and there is somebody.
	observed bool
	head     uint64 // newest seq offered live, or known from a hand-over
	// synced: head is the live edge. Whatever is newer will come through Publish.
	synced bool
}

type mode uint8

const (
	catching mode = iota // the pool owns next
	live                 // Publish owns next
	over                 // closed, ended, or the subscriber takes nothing more
	pending              // on an exact channel: not admitted yet
)

// Subscription is one subscriber on one channel.
type Subscription struct {
	hub   *Hub
	shard *shard
	to    Request

	mode  mode      // guarded by shard.mu
	index int       // in channel.subs; guarded by shard.mu
	next  uint64    // the seq to be offered next; owned by the pool while catching, guarded by shard.mu while live
	fails int       // pages that failed in a row; the pool's own
	from  time.Time // since when it is catching up

	listed   bool      // it was given a list of an exact channel's members; guarded by shard.mu
	entered  bool      // it is counted; guarded by shard.mu
	lacking  bool      // it waits for the channel's last publication from other nodes; guarded by shard.mu
	unlisted time.Time // since when it waits for a list of who is there; zero: it has one, or wants none. Guarded by shard.mu
	apart    func(frame []byte) (bool, error)
	sampled  func(frame []byte, since time.Time) error // nil: cannot be measured
}

// Request says what to subscribe to.
type Request struct {
	Channel    petrel.Channel
	Subscriber Subscriber
	Actor      petrel.Actor
	Wire       int           // index of Options.Encoders
	Conn       petrel.ConnID // the connection's name in the cell, for Publication.Except; empty: it has none
	Member     *Member       // who is there by this subscription; nil: nobody
	After      uint64        // the last seq the subscriber has. Rooms only
	Durable    bool          // only what has a seq is wanted
	Presence   bool          // who is there is wanted: a Roster first, then who comes and goes
	// MaxMembers is how many users may be in the channel, over all nodes, for a new one to be let in; 0: any number (places.go). Exact channels only.
	MaxMembers int
	Counts     bool // changes of the number of subscriptions are wanted, as publications of TypeCount. Exact channels only
	// Last asks for the channel's last publication (Options.Last), right after Admitted and the Roster, and before any newer one. Exact channels only.
	Last bool
	// Missed is called when Last is asked for and no node has any: at most once, before any publication is offered. It must not block, and runs under a lock.
	Missed func()
	// Admitted is called once nothing can refuse the subscription any more, before its first frame is queued: the place to queue
	// what must come first. It runs under a lock: like Send it must not block. nil: nothing must. On an exact channel that may be after
	// Subscribe returned.
	Admitted func()
	// Resync is called when the position cannot be served; the subscription is over. It must not block.
	Resync func(s *Subscription, reason string, head uint64)
	// Ended is called when the right to read is gone, or when the subscription is refused after Subscribe returned; it is over. It must not block.
	Ended func(s *Subscription, err error)
}

// New returns a hub. Start makes it catch up; Publish and Subscribe work before.
func New(o Options) *Hub {
	o.defaults()
	h := &Hub{opt: o, seed: maphash.MakeSeed(), debug: o.Logger.Enabled(context.Background(), slog.LevelDebug)}
	for i := range h.shards {
		h.shards[i].channels = make(map[petrel.Channel]*channel)
	}
	h.queue.wake = sync.NewCond(&h.queue.mu)
	h.lane.init()
	h.tells = map[Topic]func(ctx context.Context, app petrel.AppID, payload []byte) ([]byte, error){}
	h.metrics = newMetrics(o.Registerer, h)
	return h
}

func (h *Hub) shardOf(ch petrel.Channel) *shard {
	return &h.shards[maphash.Comparable(h.seed, ch)%shardCount]
}

// Channel is what s listens to.
func (s *Subscription) Channel() petrel.Channel { return s.to.Channel }

// Subscribe offers every event after r.After to r.Subscriber, from a goroutine of the hub or of whoever publishes, until Close.
// It does not wait for history. The first frame may be queued before Subscribe returns.
// It returns CodeOverloaded when too many are catching up already.
func (h *Hub) Subscribe(r Request) (*Subscription, error) {
	s := &Subscription{hub: h, shard: h.shardOf(r.Channel), to: r, next: r.After + 1, from: time.Now(), apart: r.Subscriber.TrySend}
	if a, ok := r.Subscriber.(Apart); ok {
		s.apart = a.TrySendApart
	}
	if m, ok := r.Subscriber.(Sampled); ok {
		s.sampled = m.SendSampled
	}
	if m := r.Member; m != nil && (m.ID == "" || len(m.ID) > maxID || len(m.Info) > MaxInfo) {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "A member has an id of 1 to %d bytes, and at most %d bytes of information.", maxID, MaxInfo)
	}
	sh := s.shard
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if exact(r.Channel) {
		return h.subscribeExact(s)
	}
	c := sh.channels[r.Channel]
	if c == nil {
		c = &channel{name: r.Channel}
	}
	// At the live edge there is nothing to read: a thousand who come back at once after a blip cost nothing.
	// Their right to read was just checked by whoever subscribes them, and what might have changed it since is published on this channel.
	if c.synced && c.head == r.After {
		s.mode = live
	} else if !h.queue.admit(s, h.opt.MaxWaiting) {
		h.metrics.refused.Inc()
		return nil, petrel.Errorf(petrel.CodeOverloaded, "Too many subscriptions are catching up right now. Come back in a moment.").After(time.Second)
	}
	if r.Admitted != nil {
		r.Admitted()
	}
	sh.channels[r.Channel] = c
	h.add(c, s)
	h.listen(c)
	if r.Presence {
		s.unlisted = s.from
	}
	h.follow(c, s)
	h.enter(c, s)
	return s, nil
}

// add puts s into its channel; the shard's lock is held.
func (h *Hub) add(c *channel, s *Subscription) {
	s.index = len(c.subs)
	c.subs = append(c.subs, s)
}

// Close ends the subscription: nothing is offered once it has returned. It may be called twice.
func (s *Subscription) Close() {
	s.shard.mu.Lock()
	s.remove()
	s.shard.mu.Unlock()
}

// remove takes s out of its channel; the shard's lock is held.
func (s *Subscription) remove() {
	if s.index < 0 {
		return
	}
	s.mode = over
	c := s.shard.channels[s.to.Channel]
	last := len(c.subs) - 1
	c.subs[s.index] = c.subs[last]
	c.subs[s.index].index = s.index
	c.subs[last] = nil
	c.subs = c.subs[:last]
	s.index = -1
	if c.places != nil {
		delete(c.places.claims, s)
	}
	s.hub.unfollow(c, s)
	s.hub.leave(c, s)
	s.hub.forget(s.shard, c)
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
	sh := h.shardOf(p.Channel)
	sh.mu.Lock()
	c := sh.channels[p.Channel]
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
		f := frames[s.to.Wire]
		if f == nil {
			f = h.opt.Encoders[s.to.Wire](p)
			frames[s.to.Wire] = f
		}
		var err error
		if i == sample && s.sampled != nil && !p.Applied.IsZero() {
			err = s.sampled(f, p.Applied)
		} else {
			err = s.to.Subscriber.Send(f)
		}
		if err != nil {
			s.mode = over // it is closing; Close will take it out
			continue
		}
		offered++
		s.next++
		if p.Final || (p.Revoked != "" && s.to.Actor.User == p.Revoked) {
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

// demote sends a live subscription through history; the shard's lock is held.
func (h *Hub) demote(s *Subscription) {
	s.mode, s.from = catching, time.Now()
	h.queue.push(s)
}

// OnRestore sends every subscription through history: the projection was replaced, and what lies between was never published here.
func (h *Hub) OnRestore() {
	h.lives.Add(1) // before the locks: a hand-over either sees it or is undone below
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for _, c := range sh.channels {
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
		for _, c := range sh.channels {
			if len(c.subs) > 0 {
				channels++
			}
			subscriptions += len(c.subs)
		}
		sh.mu.Unlock()
	}
	return channels, subscriptions
}
