package hub

import (
	"cmp"
	"context"
	"encoding/binary"
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
	called    map[Bucket]struct{}         // somebody wants to know what is in it
	listeners map[Bucket]int              // channels in it
	recount   bool                        // listeners may not be what is listened to
	anew      bool                        // everything is looked at again
	ready     map[Bucket]bool             // it is listened to, and the other nodes know
	asking    bool                        // they are being asked whether they do
	lasts     []petrel.Channel            // whose last publication other nodes are to be asked for
	lasting   []petrel.Channel            // of which they are being asked
	nonce     uint64                      // of the newest question with marks
	marks     map[uint64]chan struct{}    // that are waited for, by the nonce of their question
	claims    map[petrel.Channel]struct{} // somebody claims a place in them
	claiming  bool                        // the other nodes are being asked

	// The goroutine's own.
	version uint64 // of the newest report of any channel: it only grows in one life of the node
	later   []*channel
	soon    []*channel        // have subscriptions that wait to be admitted
	heard   map[Bucket]func() // buckets that are listened to, and how to stop
	owned   map[Bucket]bool   // buckets that the observer owns
	after   []func()          // callbacks, for when the shard's lock is free
	out     map[Bucket][]byte // payloads under way to be published
	sumUp   time.Time
}

func (l *lane) init() {
	l.wake = make(chan struct{}, 1)
	l.peers.Store(&map[petrel.NodeID]uint64{})
	l.asked, l.called, l.listeners = map[petrel.Channel]struct{}{}, map[Bucket]struct{}{}, map[Bucket]int{}
	l.ready, l.owned = map[Bucket]bool{}, map[Bucket]bool{}
	l.claims, l.marks = map[petrel.Channel]struct{}{}, map[uint64]chan struct{}{}
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

// call notes that somebody wants to know what is in these buckets.
func (l *lane) call(all []Bucket) {
	l.mu.Lock()
	for _, b := range all {
		l.called[b] = struct{}{}
	}
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
		ticks := tick.C
		if h.relayed() == nil && len(l.later)+len(l.soon) == 0 {
			ticks = nil // nothing comes with time: a node alone that is idle sleeps
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			ticked = true
		case <-l.wake:
			h.listenNow(false)
			h.startAsking(ctx)
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
		h.startAsking(ctx)
	}
}

// listenNow asks the relay for the buckets that have channels here, or are the observer's, and with leave ends the others.
func (h *Hub) listenNow(leave bool) {
	l, r := &h.lane, h.relayed()
	if r == nil {
		return
	}
	l.mu.Lock()
	leave = leave && !l.asking // what they are asked about stays
	if !l.recount && !leave {
		l.mu.Unlock()
		return
	}
	l.recount = false
	wanted := maps.Clone(l.listeners)
	asked := slices.Concat(l.lasting, l.lasts)
	l.mu.Unlock()
	h.own(wanted)
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
	for _, ch := range asked {
		wanted[r.Bucket(ch)]++ // marks come there
	}
	for b, stop := range l.heard {
		if wanted[b] == 0 {
			stop()
			delete(l.heard, b)
			l.mu.Lock()
			delete(l.ready, b)
			l.mu.Unlock()
		}
	}
}

// own adds the observer's buckets to those that are wanted, and calls for what is in the new ones.
func (h *Hub) own(wanted map[Bucket]int) {
	o, l := h.observer, &h.lane
	if o == nil {
		return
	}
	var came []Bucket
	for b := range Bucket(Buckets) {
		if !o.Owns(b) {
			delete(l.owned, b)
			continue
		}
		wanted[b]++
		if !l.owned[b] {
			l.owned[b] = true
			came = append(came, b)
		}
	}
	if len(came) > 0 {
		h.put(h.relayed().Bucket(askChannel()), itemCall, func(b []byte) []byte {
			b = binary.AppendUvarint(appendText(b, h.relayed().Node()), uint64(len(came)))
			for _, x := range came {
				b = binary.AppendUvarint(b, uint64(x))
			}
			return b
		})
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
	dirty, asked, called, anew := l.dirty, l.asked, l.called, l.anew
	l.dirty, l.asked, l.called, l.anew = nil, map[petrel.Channel]struct{}{}, map[Bucket]struct{}{}, false
	l.mu.Unlock()
	if anew {
		dirty = append(dirty, h.everyExact()...)
	}
	dirty = append(dirty, l.soon...)
	l.soon = nil
	if ticked {
		for _, c := range l.later {
			c.waits = false
		}
		dirty, l.later = append(dirty, l.later...), nil
	}
	slices.SortFunc(dirty, func(a, b *channel) int { return compareChannels(a.name, b.name) }) // an order that a simulation can repeat
	for _, c := range slices.Compact(dirty) {
		h.tend(c, now)
		for _, fn := range l.after {
			fn()
		}
		clear(l.after)
		l.after = l.after[:0]
	}
	if h.relayed() == nil {
		return
	}
	for _, ch := range slices.SortedFunc(maps.Keys(asked), compareChannels) {
		h.answer(ch)
	}
	if sumUp {
		h.lookAtViews(now)
	}
	if sumUp || len(called) > 0 {
		h.sumUp(called, sumUp)
	}
	for _, b := range slices.Sorted(maps.Keys(l.out)) {
		h.post(b)
	}
}

// everyExact lists the channels whose reports and observation depend on settings.
func (h *Hub) everyExact() (all []*channel) {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if exact(c.name) {
				c.uncount = h.relayed() != nil
				c.observed = false // the observer is told of it again: it may have forgotten it, if only for a moment
				all = append(all, c)
			}
		}
		sh.mu.Unlock()
	}
	return all
}

// tend tells others and the channel's own subscribers what changed, and keeps the channel on the list while it waits for something.
func (h *Hub) tend(c *channel, now time.Time) {
	sh, k := h.shardOf(c.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.channels.get(k, c.name) != c {
		return
	}
	c.dirty = false
	h.observe(c)
	h.admitWaiting(c, now)
	waits := h.report(c, now, false)
	if v := c.view; v != nil {
		waits = h.askWhoLacks(c, v, now) || waits
		waits = h.show(c, v, now) || waits
		if v.wanted == 0 && !(c.observed && h.populated(c)) {
			if now.Before(v.until) {
				waits = true
			} else {
				c.view = nil
			}
		}
	}
	if waits && !c.waits {
		c.waits = true
		h.lane.later = append(h.lane.later, c)
	}
	if c.more != nil && len(c.more.waiting) > 0 {
		h.lane.soon = append(h.lane.soon, c)
	}
	c.slim()
	h.forget(c)
}

// report tells the other nodes who came and went here, and how many subscriptions there are; the shard's lock is held. It says whether something
// waits for its time, unless it is to be told now.
func (h *Hub) report(c *channel, now time.Time, all bool) (waits bool) {
	if !c.uncount && (c.more == nil || len(c.more.told.was) == 0) {
		return false
	}
	t, counted := &c.extra().told, int(c.counted)
	var came, left []petrel.UserID
	for user, was := range t.was {
		switch _, here := c.local[user]; {
		case here && !was:
			came = append(came, user)
		case was && !here:
			left = append(left, user)
		}
	}
	clear(t.was)
	slices.Sort(came)
	slices.Sort(left)
	numbered := c.uncount && counted != t.number && (all || h.reported(c.name))
	if numbered && !all && min(counted, t.number) > manySubs && now.Sub(t.numberAt) < countEvery {
		numbered, waits = false, true // among so many, one more or less can wait
	}
	if !waits {
		c.uncount = false
	}
	if numbered {
		t.numberAt = now
	}
	for numbered || len(came)+len(left) > 0 {
		nc, infos := c.take(came)
		nl := min(len(left), maxUsers-nc)
		said := change{since: t.version, came: came[:nc], left: left[:nl], numbered: numbered, number: counted, infos: infos}
		if !t.something() {
			said.since = 0
		}
		if numbered {
			t.number, numbered = counted, false
		}
		h.lane.version++
		t.version = h.lane.version
		said.version = t.version
		t.reported += nc - nl
		h.put(c.bucket, itemChange, func(b []byte) []byte { return said.append(appendChannel(b, c.name)) })
		came, left = came[nc:], left[nl:]
	}
	return waits
}

// take says how many of these users go into one item, and what is shown of them.
func (c *channel) take(users []petrel.UserID) (n int, infos []string) {
	bytes := 0
	for n < len(users) && n < maxUsers && bytes < maxItem {
		info := c.local[users[n]].info
		bytes += len(users[n]) + len(info)
		infos = append(infos, info)
		n++
	}
	return n, infos
}

// answer sends a full report of a channel; nobody is an answer too.
func (h *Hub) answer(ch petrel.Channel) {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.channels.get(k, ch)
	version, b := h.lane.version, h.relayed().Bucket(ch)
	if c == nil {
		h.put(b, itemFull, func(b []byte) []byte { return full{version: version, last: true}.append(appendChannel(b, ch)) })
		return
	}
	if exact(ch) {
		c.uncount = true
	}
	h.report(c, time.Now(), true) // so that the version is that of who is here now
	defer c.slim()
	t := &c.extra().told
	users := slices.Sorted(maps.Keys(c.local))
	if version = h.lane.version; t.something() {
		version = t.version
	}
	for part := uint64(0); ; part++ {
		n, infos := c.take(users)
		said := full{version: version, part: part, last: n == len(users), users: users[:n], number: t.number, infos: infos}
		h.put(b, itemFull, func(b []byte) []byte { return said.append(appendChannel(b, ch)) })
		if users = users[n:]; said.last {
			return
		}
	}
}

// lookAtViews notes whose word is too old to be believed, and looks at every view.
func (h *Hub) lookAtViews(now time.Time) {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if c.view == nil {
				continue
			}
			for _, r := range c.view.reports {
				if (len(r.users) > 0 || r.number > 0) && now.Sub(r.heard) > unheardAfter {
					r.behind = true
				}
			}
			h.mark(c)
		}
		sh.mu.Unlock()
	}
}

// sumUp says what the newest report of each channel is: of all of them, or of those in the buckets that somebody called for.
func (h *Hub) sumUp(called map[Bucket]struct{}, all bool) {
	type newest struct {
		ch      petrel.Channel
		bucket  Bucket
		version uint64
	}
	var list []newest
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if _, is := called[c.bucket]; (all || is) && c.more != nil && c.more.told.something() {
				list = append(list, newest{c.name, c.bucket, c.more.told.version})
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b newest) int { return compareChannels(a.ch, b.ch) })
	for _, n := range list {
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
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	inc, alive := (*h.lane.peers.Load())[from.Node]
	if !alive || inc != from.Incarnation {
		return
	}
	c := sh.channels.get(k, ch)
	if (c == nil || c.view == nil) && h.wants(ch, h.relayed().Bucket(ch)) {
		c = h.channelOf(sh, k, ch)
		h.listen(c)
		h.watch(c)
		c.observed = true
	}
	if c == nil || c.view == nil {
		return
	}
	now := time.Now()
	v, r := c.view, c.view.of(from, now)
	switch kind {
	case itemChange:
		if said := in.change(); in.ok {
			v.change(r, said, now)
		}
	case itemFull:
		if said := in.full(); in.ok {
			v.full(r, said, now)
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
