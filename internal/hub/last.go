package hub

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Keeper keeps the last publication of each channel that has one for who comes later (channel.Cache). Its methods must not block.
type Keeper interface {
	// Keep notes a publication that this node heard, in the order in which it is offered here.
	Keep(p *petrel.Publication)
	// Kept returns a channel's last publication as far as this node has heard, and how long it is kept yet.
	Kept(ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool)
}

// lastWithin is how long other nodes are asked for a last publication; maxLasts for how many channels at once.
const (
	lastWithin = 300 * time.Millisecond
	maxLasts   = 500
)

// last is the part of a channel that is about its last publication. The shard's lock guards it.
type last struct {
	// known: what is kept here is all there is. Others have been asked since this node listens, and everything newer is heard: until one comes that was not.
	known   bool
	asked   bool // others are being asked
	newer   bool // something was heard since
	lacking []*Subscription
	frames  [MaxWires][]byte // of the one that is kept; nil: not encoded yet
}

func (l *last) nothing() bool {
	return !l.known && !l.asked && len(l.lacking) == 0 && !slices.ContainsFunc(l.frames[:], func(f []byte) bool { return f != nil })
}

// superseded: there is a newer one, which those who still wait are offered instead.
func (c *channel) superseded() {
	if c.more == nil {
		return
	}
	l := &c.more.last
	l.newer = true
	for _, s := range l.lacking {
		s.set(lacking, false)
	}
	l.lacking, l.frames = nil, [MaxWires][]byte{}
}

// giveLast offers s the channel's last publication, or says that there is none, or has the other nodes asked: what is kept here may be from before this
// node listened. The shard's lock is held.
func (h *Hub) giveLast(c *channel, s *Subscription) {
	if h.knowsLast(c) {
		if !h.offerLast(c, s) {
			s.owner.Missed(s)
		}
		return
	}
	s.set(lacking, true)
	last := &c.extra().last
	last.lacking = append(last.lacking, s)
	if last.asked {
		return
	}
	last.asked, last.newer = true, false
	l := &h.lane
	l.mu.Lock()
	l.lasts = append(l.lasts, c.name)
	l.mu.Unlock()
	l.poke()
}

// knowsLast says whether what is kept here, or that nothing is, is all there is; the shard's lock is held. c may be nil.
func (h *Hub) knowsLast(c *channel) bool {
	return h.opt.Last == nil || len(*h.lane.peers.Load()) == 0 || (c != nil && c.more != nil && c.more.last.known)
}

// offerLast offers s what is kept here.
func (h *Hub) offerLast(c *channel, s *Subscription) bool {
	p, _, ok := h.kept(c.name)
	if !ok {
		return false
	}
	frames := &c.extra().last.frames
	if frames[s.wire] == nil {
		frames[s.wire] = h.opt.Encoders[s.wire](&p)
	}
	h.tellApart(s, frames[s.wire])
	return true
}

// startLasts asks the other nodes for what is lacking here: one round at a time, and as many channels as came meanwhile. It is called by the lane's goroutine.
func (h *Hub) startLasts(ctx context.Context) {
	l := &h.lane
	l.mu.Lock()
	n := min(len(l.lasts), maxLasts)
	if n == 0 || len(l.lasting) > 0 {
		l.mu.Unlock()
		return
	}
	channels := l.lasts[:n:n]
	l.lasts, l.lasting = slices.Clone(l.lasts[n:]), channels
	l.mu.Unlock()
	h.queue.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, lastWithin)
		defer cancel()
		alive := l.peers.Load()
		newest, whole := h.askLasts(ctx, channels, true)
		if !whole {
			alive = nil
		}
		for _, ch := range channels {
			h.tookLast(ch, newest[ch], alive)
		}
		l.mu.Lock()
		l.lasting = nil
		l.mu.Unlock()
		l.poke()
	})
}

// askLasts asks every other node for the last publications of channels that it has kept: of several the newest counts. With marks it returns when what
// was published of those channels before the answers has also come by the relay, to a node that listens: then nobody hears twice of what was under way.
// Both end with ctx; an answer counts though its marks are late.
func (h *Hub) askLasts(ctx context.Context, channels []petrel.Channel, marks bool) (newest map[petrel.Channel]*petrel.Publication, whole bool) {
	newest = map[petrel.Channel]*petrel.Publication{}
	var mu sync.Mutex
	missing := h.eachPeer(func(node petrel.NodeID) error {
		nonce, came, forget := h.lane.expectMarks(len(channels), marks)
		defer forget()
		sent, err := h.lastsOf(ctx, node, channels, nonce, func(found []*petrel.Publication) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range found {
				if was := newest[p.Channel]; was == nil || was.At.Before(p.At) {
					newest[p.Channel] = p
				}
			}
		})
		awaitMarks(ctx, came, sent) // after the last question: the time is for questions first
		return err
	})
	return newest, len(missing) == 0
}

// lastsOf asks one node, as often as its answers take to speak of all channels, and says how many marks it has sent for them.
func (h *Hub) lastsOf(
	ctx context.Context, node petrel.NodeID, channels []petrel.Channel, nonce uint64, take func([]*petrel.Publication),
) (marks uint64, err error) {
	for len(channels) > 0 {
		question := appendChannels([]byte{formatAsk, askLasts}, channels)
		if nonce != 0 {
			question = appendNumbers(appendText(question, h.relayed().Node()), nonce)
		}
		in, err := h.askOne(ctx, node, question)
		if err != nil {
			return marks, err
		}
		done, found, sent := in.lasts()
		if !in.ok || done == 0 || done > uint64(len(channels)) || sent > uint64(len(found)) {
			return marks, errAnswer
		}
		take(found)
		marks, channels = marks+sent, channels[done:]
	}
	return marks, nil
}

// A mark goes the way of publications, behind those that were published before it. Who asks for last publications, and gives its questions a number, gets
// one with that number in each bucket of what is found, and is told in the answer how many were sent: an older build sends none, and says nothing of them.

// expectMarks prepares for up to n marks, if any are wanted: else nonce is 0, and came nil. What came holds one for each.
func (l *lane) expectMarks(n int, wanted bool) (nonce uint64, came <-chan struct{}, forget func()) {
	if !wanted {
		return 0, nil, func() {}
	}
	ch := make(chan struct{}, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nonce++
	nonce = l.nonce
	l.marks[nonce] = ch
	return nonce, ch, func() {
		l.mu.Lock()
		delete(l.marks, nonce)
		l.mu.Unlock()
	}
}

// marked takes a mark that has come.
func (l *lane) marked(nonce uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.marks[nonce] <- struct{}{}: // a nil channel is never ready
	default:
	}
}

// awaitMarks waits for n marks until ctx is over: one may be lost. came may be nil.
func awaitMarks(ctx context.Context, came <-chan struct{}, n uint64) {
	for ; came != nil && n > 0; n-- {
		select {
		case <-came:
		case <-ctx.Done():
			return
		}
	}
}

// appendLasts is the answer: for how many of the channels it speaks, the publications that are kept of those; how many marks were sent. What is kept was
// published before, or was heard from another node, which is asked itself: a mark that is sent now is behind it.
func (h *Hub) appendLasts(b []byte, channels []petrel.Channel, asker petrel.NodeID, nonce uint64) []byte {
	var bodies [][]byte
	var found []petrel.Channel
	size, done := 0, 0
	for _, ch := range channels {
		if p, _, ok := h.kept(ch); ok {
			body := appendPublication(nil, &p)
			if size += len(body); size > maxAnswer && done > 0 {
				break
			}
			bodies, found = append(bodies, body), append(found, ch)
		}
		done++
	}
	b = appendNumbers(b, uint64(done), uint64(len(bodies))) //nolint:gosec // not negative
	for _, body := range bodies {
		b = appendText(b, body)
	}
	return appendNumbers(b, h.sendMarks(found, asker, nonce))
}

// sendMarks sends the node that asks one mark in each bucket of these channels, if it wants any, and says how many went out.
func (h *Hub) sendMarks(channels []petrel.Channel, asker petrel.NodeID, nonce uint64) (sent uint64) {
	r := h.relayed()
	if r == nil || nonce == 0 {
		return 0
	}
	buckets := make([]Bucket, 0, len(channels))
	for _, ch := range channels {
		buckets = append(buckets, r.Bucket(ch))
	}
	slices.Sort(buckets)
	mark := appendItem([]byte{formatItems}, itemMark, func(b []byte) []byte { return appendNumbers(appendText(b, asker), nonce) })
	for _, bucket := range slices.Compact(buckets) {
		err := r.Publish(bucket, mark)
		h.metrics.relayed(err)
		if err == nil { // else it is not waited for
			sent++
		}
	}
	return sent
}

// lasts reads an answer. What stands behind the publications came later.
func (r *reader) lasts() (done uint64, found []*petrel.Publication, marks uint64) {
	done = r.number()
	for n := r.number(); n > 0 && r.ok; n-- {
		body := &reader{b: r.bytes(), ok: r.ok}
		if p := body.publication(); body.ok {
			found = append(found, &p)
		} else {
			r.fail()
		}
	}
	if r.more() {
		marks = r.number()
	}
	return done, found, marks
}

// kept is what is kept here.
func (h *Hub) kept(ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool) {
	if h.opt.Last == nil {
		return petrel.Publication{}, 0, false
	}
	return h.opt.Last.Kept(ch)
}

// tookLast gives those who wait what the other nodes had. alive are the nodes that have answered, if they were all that there are.
func (h *Hub) tookLast(ch petrel.Channel, p *petrel.Publication, alive *map[petrel.NodeID]uint64) {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.channels.get(k, ch)
	if c == nil {
		return
	}
	last := &c.extra().last
	last.asked, last.known = false, alive == h.lane.peers.Load() // who came meanwhile was not asked
	if p != nil && !last.newer {
		h.keepNewer(c, p)
	}
	waiting := last.lacking
	last.lacking = nil
	for _, s := range waiting {
		if s.is(lacking) && s.mode == live && !h.offerLast(c, s) {
			s.owner.Missed(s)
		}
		s.set(lacking, false)
	}
}

// keepNewer keeps what another node has kept, unless this one has something newer; the shard's lock is held. c may be nil.
func (h *Hub) keepNewer(c *channel, p *petrel.Publication) {
	if was, _, kept := h.opt.Last.Kept(p.Channel); kept && !was.At.Before(p.At) {
		return
	}
	h.opt.Last.Keep(p)
	if c != nil && c.more != nil {
		c.more.last.frames = [MaxWires][]byte{}
	}
}

// Last returns a channel's last publication as any node has kept it (Options.Last), and how long it is kept yet. Other nodes are asked, for 300 ms at
// most, when this one does not know.
func (h *Hub) Last(ctx context.Context, ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool) {
	if h.opt.Last == nil {
		return petrel.Publication{}, 0, false
	}
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	knows := h.knowsLast(sh.channels.get(k, ch))
	sh.mu.Unlock()
	if knows {
		return h.opt.Last.Kept(ch)
	}
	ctx, cancel := context.WithTimeout(ctx, lastWithin)
	defer cancel()
	newest, _ := h.askLasts(ctx, []petrel.Channel{ch}, false)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.channels.get(k, ch); newest[ch] != nil && !h.knowsLast(c) {
		h.keepNewer(c, newest[ch])
	}
	return h.opt.Last.Kept(ch)
}
