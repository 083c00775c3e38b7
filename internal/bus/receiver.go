package bus

import (
	"maps"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// receiver puts what comes in from the relay back into order. It belongs to one goroutine, reads no
// clock, and does not know what carries the frames.
type receiver struct {
	hold       time.Duration
	maxBytes   int                        // of all messages held
	generation func(Bucket) uint64        // of those who listen to the bucket now; 0: nobody
	now        func() uint64              // the newest generation of any bucket
	deliver    func(Message)              // does not wait
	ask        func(want missing) uint64  // asks the origin; 0: it could not
	unask      func(id uint64)            // the answer is no longer wanted
	counts     func(petrel.NodeID) *count // where the origin's share is counted
	refused    func()                     // counts a frame of one node too many

	origins   map[petrel.NodeID]*origin
	heldBytes int
	due       []due // wake-ups for gaps, earliest first: all are held equally long
}

// missing names messages that a node was heard to have sent.
type missing struct {
	origin      petrel.NodeID
	incarnation uint64
	bucket      Bucket
	from, to    uint64
}

type due struct {
	s     *stream
	until time.Time
}

// origin is a node that sends.
type origin struct {
	node    petrel.NodeID
	lives   lives
	reborn  bool   // it had another life before, as we know
	bornAt  uint64 // generation at which this life was noticed
	streams map[Bucket]*stream
	count   *count
}

// stream is what one origin sends into one bucket.
type stream struct {
	o          *origin
	bucket     Bucket
	generation uint64
	next       uint64 // the number to deliver next
	top        uint64 // the highest number known to be given
	held       map[uint64]Message
	gaps       []gap // ascending; all from next up; empty when next is top+1
}

// gap is a range of which some are missing.
type gap struct {
	from, to, missing uint64
	until             time.Time
	ask               uint64
}

// delivery is what the goroutine that delivers is told.
type delivery struct {
	typ     byte // typeRelay, typeHeartbeat, typeMissing; typeEnd: sweep
	m       Message
	heads   []head
	records []record
	forget  []petrel.NodeID
}

func (r *receiver) handle(d delivery, now time.Time) {
	r.expire(now)
	if d.typ == typeEnd {
		r.sweep(d.forget)
		return
	}
	o := r.origin(d.m.Origin, d.m.Incarnation)
	if o == nil {
		return
	}
	switch d.typ {
	case typeRelay:
		if s := r.stream(o, d.m.Bucket, d.m.Seq-1); s != nil {
			r.message(s, d.m, now)
		}
	case typeHeartbeat:
		for _, h := range d.heads {
			if s := r.stream(o, h.bucket, h.seq); s != nil && h.seq > s.top {
				r.open(s, h.seq, now)
				s.top = h.seq
			}
		}
	case typeMissing:
		if s := o.streams[d.m.Bucket]; s != nil && s.generation == r.generation(s.bucket) {
			r.repaired(s, d, now)
		}
	}
}

// origin returns the node's present life, which inc may have begun; nil when inc is over.
func (r *receiver) origin(node petrel.NodeID, inc uint64) *origin {
	o := r.origins[node]
	if o == nil {
		if len(r.origins) >= maxPeers {
			r.refused()
			return nil
		}
		o = &origin{node: node, streams: map[Bucket]*stream{}, count: r.counts(node)}
		r.origins[node] = o
	}
	known := o.lives.current != 0
	begun, over := o.lives.see(inc)
	if over {
		o.count.former.Add(1)
		return nil
	}
	if begun && known {
		for _, k := range slices.Sorted(maps.Keys(o.streams)) {
			r.goOn(o.streams[k]) // what its former life still owed is not to be had
		}
		o.streams = map[Bucket]*stream{}
	}
	if begun {
		o.reborn, o.bornAt = known, r.now()
	}
	return o
}

// stream returns the state of a bucket, nil when nobody listens. Where it begins: at 1 if somebody
// listened before this life of the origin began, as far as we know; else behind head, as whoever comes late.
func (r *receiver) stream(o *origin, k Bucket, head uint64) *stream {
	gen := r.generation(k)
	s := o.streams[k]
	if s != nil && s.generation == gen {
		return s
	}
	if s != nil {
		r.drop(s)
	}
	if gen == 0 {
		return nil
	}
	if o.reborn && gen <= o.bornAt {
		head = 0
	}
	s = &stream{o: o, bucket: k, generation: gen, next: head + 1, top: head, held: map[uint64]Message{}}
	o.streams[k] = s
	return s
}

func (r *receiver) message(s *stream, m Message, now time.Time) {
	if m.Seq > s.top {
		if m.Seq > s.top+1 {
			r.open(s, m.Seq-1, now)
		}
		s.top = m.Seq
		if len(s.gaps) == 0 {
			s.next++
			r.out(s, m)
			return
		}
		r.keep(s, m)
		return
	}
	i := slices.IndexFunc(s.gaps, func(g gap) bool { return g.from <= m.Seq && m.Seq <= g.to })
	if _, twice := s.held[m.Seq]; m.Seq < s.next || i < 0 || twice {
		s.o.count.late.Add(1)
		return
	}
	s.gaps[i].missing--
	s.o.count.repaired.Add(1)
	r.keep(s, m)
	r.advance(s)
}

// open notes that everything above top up to to is missing, and asks for it.
func (r *receiver) open(s *stream, to uint64, now time.Time) {
	g := gap{from: s.top + 1, to: to, missing: to - s.top, until: now.Add(r.hold)}
	s.o.count.seen.Add(g.missing)
	g.ask = r.ask(missing{s.o.node, s.o.lives.current, s.bucket, g.from, g.to})
	s.gaps = append(s.gaps, g)
	r.due = append(r.due, due{s, g.until})
}

// keep holds a message behind a gap; when too much is held, the oldest gaps are given up.
func (r *receiver) keep(s *stream, m Message) {
	s.held[m.Seq] = m
	r.heldBytes += len(m.Payload) + recordOverhead
	for len(s.gaps) > 0 && (len(s.held) > maxHeld || r.heldBytes > r.maxBytes) {
		r.giveUp(s)
	}
}

// repaired takes the answer to an ask. What it lacks is gone at the origin, unless it was cut short.
func (r *receiver) repaired(s *stream, d delivery, now time.Time) {
	for _, rec := range d.records {
		m := d.m
		m.Seq, m.Kind, m.Payload = rec.seq, rec.kind, rec.payload
		if m.Seq <= s.top { // and nothing that was not asked for
			r.message(s, m, now)
		}
	}
	i := slices.IndexFunc(s.gaps, func(g gap) bool { return g.ask == d.m.Seq })
	if i < 0 {
		return
	}
	g := &s.gaps[i]
	g.ask = 0
	if n := len(d.records); n > 0 && d.records[n-1].seq < g.to {
		g.ask = r.ask(missing{s.o.node, s.o.lives.current, s.bucket, d.records[n-1].seq + 1, g.to})
		return
	}
	g.until = now
	r.settle(s, now)
}

// advance delivers what has nothing missing before it.
func (r *receiver) advance(s *stream) {
	for {
		m, ok := s.held[s.next]
		if !ok {
			break
		}
		s.next++
		r.release(s, m)
	}
	for len(s.gaps) > 0 && s.gaps[0].to < s.next {
		r.close(s)
	}
}

// giveUp counts what is missing of the first gap as lost, and goes on behind it.
func (r *receiver) giveUp(s *stream) {
	g := s.gaps[0]
	s.o.count.lost.Add(g.missing)
	var found []uint64
	for seq := range s.held {
		if seq <= g.to {
			found = append(found, seq)
		}
	}
	slices.Sort(found)
	for _, seq := range found {
		r.release(s, s.held[seq])
	}
	s.next = g.to + 1
	r.close(s)
	r.advance(s)
}

// close takes the first gap out.
func (r *receiver) close(s *stream) {
	if id := s.gaps[0].ask; id != 0 {
		r.unask(id)
	}
	if s.gaps = s.gaps[1:]; len(s.gaps) == 0 {
		s.gaps = nil
	}
}

// goOn gives all gaps up.
func (r *receiver) goOn(s *stream) {
	for len(s.gaps) > 0 {
		r.giveUp(s)
	}
}

// settle gives up the gaps whose time is over.
func (r *receiver) settle(s *stream, now time.Time) {
	for len(s.gaps) > 0 && !s.gaps[0].until.After(now) {
		r.giveUp(s)
	}
}

// expire settles every stream that is due.
func (r *receiver) expire(now time.Time) {
	for len(r.due) > 0 && !r.due[0].until.After(now) {
		s := r.due[0].s
		r.due[0] = due{}
		if r.due = r.due[1:]; len(r.due) == 0 {
			r.due = nil
		}
		if s.o.streams[s.bucket] == s {
			r.settle(s, now)
		}
	}
}

// wake returns when expire has something to do; false: never.
func (r *receiver) wake() (time.Time, bool) {
	if len(r.due) == 0 {
		return time.Time{}, false
	}
	return r.due[0].until, true
}

// sweep lets go of buckets that nobody listens to and of nodes that are forgotten.
func (r *receiver) sweep(forget []petrel.NodeID) {
	for _, id := range forget {
		if o := r.origins[id]; o != nil {
			for _, k := range slices.Sorted(maps.Keys(o.streams)) {
				r.goOn(o.streams[k])
			}
			delete(r.origins, id)
		}
	}
	for _, o := range r.origins {
		for k, s := range o.streams {
			if s.generation != r.generation(k) {
				r.drop(s)
			}
		}
	}
}

// finish delivers what is held, so that the counts add up.
func (r *receiver) finish() {
	for _, id := range slices.Sorted(maps.Keys(r.origins)) {
		o := r.origins[id]
		for _, k := range slices.Sorted(maps.Keys(o.streams)) {
			r.goOn(o.streams[k])
		}
	}
}

// drop forgets a stream that nobody listens to; what it holds is for nobody.
func (r *receiver) drop(s *stream) {
	for _, m := range s.held {
		r.heldBytes -= len(m.Payload) + recordOverhead
	}
	for len(s.gaps) > 0 {
		r.close(s)
	}
	delete(s.o.streams, s.bucket)
}

// release delivers a message that was held.
func (r *receiver) release(s *stream, m Message) {
	delete(s.held, m.Seq)
	r.heldBytes -= len(m.Payload) + recordOverhead
	r.out(s, m)
}

func (r *receiver) out(s *stream, m Message) {
	s.o.count.received.Add(1)
	r.deliver(m)
}
