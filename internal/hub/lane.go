package hub

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

const (
	// gather is how long changes are collected before they are told, here and to other nodes.
	gather = 20 * time.Millisecond
	// lookEvery is how often what waits for its time is looked at.
	lookEvery = 250 * time.Millisecond
	// askEvery is the least time between two asks of one node about one channel.
	askEvery = 500 * time.Millisecond
	// sumUpEvery is how often a node says what the newest versions of its reports are.
	sumUpEvery = 5 * time.Second
	// unheardAfter: users of a node that sums up without them for so long are asked about.
	unheardAfter = 3 * sumUpEvery
)

// lane is the hub's part in what crosses nodes: what is due, and one goroutine (attend) that does it, so that nobody who subscribes or
// publishes waits for a relay or for a thousand others who come at the same moment.
type lane struct {
	relay atomic.Pointer[Relay]                    // nil: alone
	peers atomic.Pointer[map[petrel.NodeID]uint64] // living nodes and their lives
	wake  chan struct{}                            // one token: something is due

	mu        sync.Mutex // guards what follows
	dirty     []*channel // have something to tell; each once
	asked     map[petrel.Channel]struct{}
	listeners map[Bucket]int // channels in it
	recount   bool           // listeners may not be what is listened to

	// The goroutine's own.
	version uint64 // of the newest report of any channel: it only grows in one life of the node
	later   []*channel
	heard   map[Bucket]func() // buckets that are listened to, and how to stop
	out     map[Bucket][]byte // payloads under way to be published
	sumUp   time.Time
}

func (l *lane) init() {
	l.wake = make(chan struct{}, 1)
	l.peers.Store(&map[petrel.NodeID]uint64{})
	l.asked, l.listeners = map[petrel.Channel]struct{}{}, map[Bucket]int{}
	l.heard, l.out = map[Bucket]func(){}, map[Bucket][]byte{}
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ask notes that somebody wants a full report.
func (l *lane) ask(ch petrel.Channel) {
	l.mu.Lock()
	l.asked[ch] = struct{}{}
	l.mu.Unlock()
	l.poke()
}

func (l *lane) count(b Bucket, by int) {
	l.mu.Lock()
	if l.listeners[b] += by; l.listeners[b] == 0 {
		delete(l.listeners, b)
	}
	l.recount = true
	l.mu.Unlock()
	l.poke()
}

// mark puts a channel on the list of those that have something to tell; the shard's lock is held.
func (h *Hub) mark(c *channel) {
	if c.dirty {
		return
	}
	c.dirty = true
	h.lane.mu.Lock()
	h.lane.dirty = append(h.lane.dirty, c)
	h.lane.mu.Unlock()
	h.lane.poke()
}

// listen counts the channel in its bucket; the shard's lock is held.
func (h *Hub) listen(c *channel) {
	r := h.relayed()
	if r == nil || c.listens {
		return
	}
	c.bucket, c.listens = r.Bucket(c.name), true
	h.lane.count(c.bucket, 1)
}

// attend works until ctx is over.
func (h *Hub) attend(ctx context.Context) {
	l := &h.lane
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer func() {
		for _, stop := range l.heard {
			stop()
		}
	}()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		ticked := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			ticked = true
		case <-l.wake:
			h.listenNow(false)
			pause.Reset(gather)
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
			// What came meanwhile is in this pass. Left for the next select, it would be a pass more, and which of two at
			// once comes first would be chance: a simulation could not repeat it.
			select {
			case <-l.wake:
			default:
			}
			select {
			case <-tick.C:
				ticked = true
			default:
			}
		}
		h.pass(time.Now(), ticked)
	}
}

// listenNow asks the relay for the buckets that have channels here, and with leave ends the others.
func (h *Hub) listenNow(leave bool) {
	l, r := &h.lane, h.relayed()
	if r == nil {
		return
	}
	l.mu.Lock()
	if !l.recount && !leave {
		l.mu.Unlock()
		return
	}
	l.recount = false
	wanted := maps.Clone(l.listeners)
	l.mu.Unlock()
	for _, b := range slices.Sorted(maps.Keys(wanted)) {
		if l.heard[b] != nil {
			continue
		}
		stop, err := r.Listen(b)
		if err != nil { // not started yet, or stopping: the next pass tries again
			h.opt.Logger.Debug("a bucket of the ephemeral lane cannot be heard yet", "bucket", int(b), "error", err)
			l.mu.Lock()
			l.recount = true
			l.mu.Unlock()
			continue
		}
		l.heard[b] = stop
	}
	if !leave {
		return
	}
	for b, stop := range l.heard {
		if wanted[b] == 0 {
			stop()
			delete(l.heard, b)
		}
	}
}

// pass does everything that is due; what waits for its time only when a tick has come.
func (h *Hub) pass(now time.Time, ticked bool) {
	l := &h.lane
	sumUp := now.Sub(l.sumUp) >= sumUpEvery
	if sumUp {
		l.sumUp = now
	}
	h.listenNow(sumUp)
	l.mu.Lock()
	dirty, asked := l.dirty, l.asked
	l.dirty, l.asked = nil, map[petrel.Channel]struct{}{}
	l.mu.Unlock()
	if ticked {
		for _, c := range l.later {
			c.waits = false
		}
		dirty, l.later = append(dirty, l.later...), nil
	}
	slices.SortFunc(dirty, func(a, b *channel) int { return compareChannels(a.name, b.name) }) // an order that a simulation can repeat
	for _, c := range dirty {
		h.tend(c, now)
	}
	if h.relayed() == nil {
		return
	}
	for _, ch := range slices.SortedFunc(maps.Keys(asked), compareChannels) {
		h.answer(ch)
	}
	if sumUp {
		h.sumUp(now)
	}
	for _, b := range slices.Sorted(maps.Keys(l.out)) {
		h.post(b)
	}
}

// tend tells others and the channel's own subscribers what changed, and keeps the channel on the list while it waits for something.
func (h *Hub) tend(c *channel, now time.Time) {
	sh := h.shardOf(c.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.channels[c.name] != c {
		return
	}
	c.dirty = false
	h.report(c)
	waits := false
	if v := c.view; v != nil {
		waits = h.askWhoLacks(c, v, now)
		waits = h.show(c, v, now) || waits
		if v.wanted == 0 && !now.Before(v.until) {
			c.view = nil
		} else if v.wanted == 0 {
			waits = true
		}
	}
	if waits && !c.waits {
		c.waits = true
		h.lane.later = append(h.lane.later, c)
	}
	h.forget(sh, c)
}

// report tells the other nodes who came and went here; the shard's lock is held.
func (h *Hub) report(c *channel) {
	if len(c.was) == 0 {
		return
	}
	var came, left []petrel.UserID
	for user, was := range c.was {
		switch here := c.local[user] > 0; {
		case here && !was:
			came = append(came, user)
		case was && !here:
			left = append(left, user)
		}
	}
	clear(c.was)
	slices.Sort(came)
	slices.Sort(left)
	for len(came)+len(left) > 0 {
		nc := min(len(came), maxUsers)
		nl := min(len(left), maxUsers-nc)
		since := c.version
		if c.reported == 0 {
			since = 0
		}
		h.lane.version++
		c.version = h.lane.version
		c.reported += nc - nl
		h.put(c.bucket, itemChange, func(b []byte) []byte {
			b = appendNumbers(appendChannel(b, c.name), since, c.version)
			return appendUsers(appendUsers(b, came[:nc]), left[:nl])
		})
		came, left = came[nc:], left[nl:]
	}
}

// answer sends a full report of a channel; nobody is an answer too.
func (h *Hub) answer(ch petrel.Channel) {
	sh := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var users []petrel.UserID
	c := sh.channels[ch]
	if c != nil {
		h.report(c) // so that the version is that of who is here now
		users = slices.Sorted(maps.Keys(c.local))
	}
	version, b := h.lane.version, h.relayed().Bucket(ch)
	if len(users) > 0 {
		version = c.version
	}
	for part := uint64(0); ; part++ {
		n := min(len(users), maxUsers)
		last := byte(0)
		if n == len(users) {
			last = 1
		}
		h.put(b, itemFull, func(b []byte) []byte {
			return appendUsers(append(appendNumbers(appendChannel(b, ch), version, part), last), users[:n])
		})
		if users = users[n:]; last == 1 {
			return
		}
	}
}

// sumUp says what the newest report of each channel is, and looks at every view.
func (h *Hub) sumUp(now time.Time) {
	type newest struct {
		ch      petrel.Channel
		bucket  Bucket
		version uint64
	}
	var all []newest
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for _, c := range sh.channels {
			if c.reported > 0 {
				all = append(all, newest{c.name, c.bucket, c.version})
			}
			if c.view == nil {
				continue
			}
			for _, r := range c.view.reports {
				if len(r.users) > 0 && now.Sub(r.heard) > unheardAfter {
					r.behind = true
				}
			}
			h.mark(c)
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b newest) int { return compareChannels(a.ch, b.ch) })
	for _, n := range all {
		h.put(n.bucket, itemSummary, func(b []byte) []byte { return appendNumbers(appendChannel(b, n.ch), n.version) })
	}
}

// askWhoLacks asks living nodes whose report is not known or not whole; the shard's lock is held. It says whether there are any.
func (h *Hub) askWhoLacks(c *channel, v *view, now time.Time) (lacking bool) {
	alive := *h.lane.peers.Load()
	for _, node := range slices.Sorted(maps.Keys(alive)) {
		r := v.of(Peer{node, alive[node]}, now)
		if r.known && !r.behind {
			continue
		}
		lacking = true
		if now.Sub(r.asked) < askEvery {
			continue
		}
		r.asked = now
		h.metrics.asks.Inc()
		h.put(h.relayed().Bucket(askChannel()), itemAsk, func(b []byte) []byte { return appendText(appendChannel(b, c.name), node) })
	}
	return lacking
}

// askChannel names the channel whose bucket every node listens to: who is asked about a channel need not have anybody in it.
func askChannel() petrel.Channel { return petrel.Channel{} }

// put adds an item to what goes out in this pass.
func (h *Hub) put(b Bucket, kind itemKind, fill func([]byte) []byte) {
	if h.relayed() == nil {
		return
	}
	l := &h.lane
	if l.out[b] == nil {
		l.out[b] = []byte{formatItems}
	}
	if l.out[b] = appendItem(l.out[b], kind, fill); len(l.out[b]) > maxPayload {
		h.post(b)
	}
}

// post publishes what was put together for a bucket. What is refused is lost, and asked for after the next summary.
func (h *Hub) post(b Bucket) {
	payload := h.lane.out[b]
	delete(h.lane.out, b)
	h.metrics.relayed(h.relayed().Publish(b, payload))
}

// takeReport takes what another node says about a channel that is watched here. What comes of a node, or a life, that is not known to be alive
// is nothing: it will be asked when it is.
func (h *Hub) takeReport(from Peer, kind itemKind, in *reader) {
	ch := in.channel()
	if !in.ok {
		return
	}
	sh := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	inc, alive := (*h.lane.peers.Load())[from.Node]
	c := sh.channels[ch]
	if !alive || inc != from.Incarnation || c == nil || c.view == nil {
		return
	}
	now := time.Now()
	v, r := c.view, c.view.of(from, now)
	switch kind {
	case itemChange:
		since, version := in.number(), in.number()
		if came, left := in.users(), in.users(); in.ok {
			v.change(r, since, version, came, left, now)
		}
	case itemFull:
		version, part, last := in.number(), in.number(), in.byte() == 1
		if users := in.users(); in.ok {
			v.full(r, version, part, last, users, now)
		}
	case itemSummary:
		version := in.number()
		if in.ok {
			v.summary(r, version, now)
		}
		if !r.behind {
			return
		}
	}
	h.mark(c)
}

func compareChannels(a, b petrel.Channel) int {
	return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}
