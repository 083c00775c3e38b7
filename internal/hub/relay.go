package hub

import (
	"context"
	"errors"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Bucket is a share of the ephemeral lane's channels: what a node listens to.
type Bucket uint16

// Buckets is how many there are: 0 to Buckets-1.
const Buckets = 1024

// Relay carries payloads between the hubs of a cell. None of its methods waits, and all are safe under locks of the hub: it does not call
// back into the hub from within them.
type Relay interface {
	// Node names this node. Nothing of its own comes back to it.
	Node() petrel.NodeID
	// Bucket says in which bucket a channel lies: the same on every node.
	Bucket(ch petrel.Channel) Bucket
	// Publish hands a payload on to the nodes that listen to the bucket. What one node publishes in one bucket arrives in that order, each at
	// most once. An error means that nothing was handed on.
	Publish(b Bucket, payload []byte) error
	// Listen asks for a bucket's payloads until stop is called. They come to Receive.
	Listen(b Bucket) (stop func(), err error)
	// Ask puts a question to one node's hub (Answer) and waits for what it says, until ctx is over. Unlike the others it waits, and is
	// called without locks.
	Ask(ctx context.Context, node petrel.NodeID, payload []byte) ([]byte, error)
}

// Peer is another node in the life that it has now.
type Peer struct {
	Node        petrel.NodeID
	Incarnation uint64
}

// MaxEphemeral is the largest Data of an ephemeral publication, in bytes: what fits into one message of a bus (256 KiB) with everything around it.
const MaxEphemeral = 240 << 10

// ErrTooLarge is what Announce returns for data above MaxEphemeral.
var ErrTooLarge = errors.New("hub: ephemeral publication too large")

// Join makes the hub one of a cell's. It may be called once, at any time; from then on Receive and Peers are called.
func (h *Hub) Join(r Relay) {
	h.lane.relay.Store(&r)
	h.lane.count(r.Bucket(askChannel()), 1)
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			h.listen(c)
			c.uncount = exact(c.name)
			for user := range c.local {
				c.changed(user, false)
			}
			h.mark(c)
		}
		sh.mu.Unlock()
	}
}

// relayed is the relay, nil for a node that is alone.
func (h *Hub) relayed() Relay {
	if r := h.lane.relay.Load(); r != nil {
		return *r
	}
	return nil
}

// Announce offers an ephemeral publication (Seq 0) to whoever listens, on this node and the others, but not to the subscriber named. It never
// waits. An error means that the other nodes were not told; those here were.
func (h *Hub) Announce(p *petrel.Publication, except Subscriber) error {
	if len(p.Data) > MaxEphemeral {
		return ErrTooLarge
	}
	return h.announce(p, except, h.relayed())
}

// announce offers p here, and to others by r. Both happen under the lock of the channel's shard, so that everybody gets one
// channel's publications in the same order.
func (h *Hub) announce(p *petrel.Publication, except Subscriber, r Relay) (err error) {
	sh, k := h.shardOf(p.Channel)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if r != nil {
		err = r.Publish(r.Bucket(p.Channel), appendItem([]byte{formatItems}, itemPublication, func(b []byte) []byte { return appendPublication(b, p) }))
		h.metrics.relayed(err)
	}
	if h.opt.Last != nil && exact(p.Channel) {
		h.opt.Last.Keep(p)
	}
	c := sh.channels.get(k, p.Channel)
	if c == nil {
		return err
	}
	strict := exact(p.Channel)
	if strict && !p.Client {
		c.superseded()
	}
	var frames [MaxWires][]byte
	queued, dropped := 0, 0
	for _, s := range c.subs {
		if s.mode == over || s.mode == pending || s.is(durable) || (except != nil && s.to == except) || (p.Except != "" && s.isOf(p.Except)) {
			continue
		}
		f := frames[s.wire]
		if f == nil {
			f = h.opt.Encoders[s.wire](p)
			frames[s.wire] = f
		}
		if h.sendApart(s, f, strict) {
			queued++
		} else if s.mode != over {
			dropped++
		}
	}
	h.metrics.whispered.Add(float64(queued))
	h.metrics.dropped.Add(float64(dropped))
	return err
}

// sendApart offers a frame of the ephemeral lane. On an exact channel nothing is dropped: who has no room is closed by it.
func (h *Hub) sendApart(s *Subscription, f []byte, strict bool) (queued bool) {
	var err error
	if strict {
		err = s.to.Send(f)
		queued = err == nil
	} else {
		queued, err = s.trySendApart(f)
	}
	if err != nil {
		s.mode = over // it is closing; Close will take it out
	}
	return queued && err == nil
}

// trySendApart offers a frame that takes no number.
func (s *Subscription) trySendApart(f []byte) (queued bool, err error) {
	if a, ok := s.to.(Apart); ok {
		return a.TrySendApart(f)
	}
	return s.to.TrySend(f)
}

// isOf says whether s is of the connection of that name in the cell.
func (s *Subscription) isOf(id petrel.ConnID) bool {
	n, ok := s.to.(Named)
	return ok && n.ID() == id
}

// tellApart offers one subscription a frame about who is there, and counts it.
func (h *Hub) tellApart(s *Subscription, f []byte) bool {
	if !h.sendApart(s, f, exact(s.ch.name)) {
		if s.mode != over {
			h.metrics.dropped.Inc()
		}
		return false
	}
	h.metrics.whispered.Inc()
	return true
}

// Receive takes what another node published in a bucket that is listened to. It must be called with the payloads of one bucket in their order.
// It does not wait.
func (h *Hub) Receive(from petrel.NodeID, incarnation uint64, payload []byte) {
	ok := readItems(payload, func(kind itemKind, in *reader) {
		switch kind {
		case itemPublication:
			if p := in.publication(); in.ok {
				h.metrics.received.Inc()
				_ = h.announce(&p, nil, nil) // without a relay it cannot fail
			}
		case itemChange, itemFull, itemSummary:
			h.takeReport(Peer{from, incarnation}, kind, in)
		case itemCall:
			if node, all := petrel.NodeID(in.text()), in.buckets(); in.ok && node != h.relayed().Node() {
				h.lane.call(all)
			}
		case itemAsk:
			if ch, target := in.channel(), petrel.NodeID(in.text()); in.ok && target == h.relayed().Node() {
				h.lane.ask(ch)
			}
		case itemMark:
			if target, nonce := petrel.NodeID(in.text()), in.number(); in.ok && target == h.relayed().Node() {
				h.lane.marked(nonce)
			}
		}
	})
	if !ok {
		h.metrics.damaged.Inc()
	}
}

// Peers tells which other nodes are alive. What those said that are not named is forgotten, and who came is asked.
func (h *Hub) Peers(alive []Peer) {
	now := map[petrel.NodeID]uint64{}
	for _, p := range alive {
		now[p.Node] = p.Incarnation
	}
	// First the table, then what hangs on it: a report that comes in between is checked under the shard's lock, and either finds the new
	// table or is swept here.
	was := *h.lane.peers.Swap(&now)
	came := false
	for node, life := range now {
		before, known := was[node]
		came = came || !known || before != life
	}
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if came && c.more != nil {
				c.more.last.known = false // it may have something newer that was not heard here
			}
			if c.view != nil {
				c.view.keepOnly(now, time.Now())
				h.mark(c)
			}
		}
		sh.mu.Unlock()
	}
}
