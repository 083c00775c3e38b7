package bus

import (
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// send empties the outbox into the wire.
func (b *Bus) send() {
	var spare []parcel
	for {
		<-b.outbox.wake
		items, open := b.outbox.take(spare)
		for _, p := range items {
			if err := b.wire.send(p); err != nil {
				b.metrics.dropped(dropWire) // those who listen see the jump
				continue
			}
			b.metrics.sent(p.to)
		}
		if spare = items; !open {
			return
		}
	}
}

// receive takes a frame from the wire. It may be called by several goroutines, but by one at a time for
// each node that sends.
func (b *Bus) receive(data []byte) {
	f, err := decode(data)
	if err != nil {
		where := dropDamaged
		if errors.Is(err, errVersion) {
			where = dropVersion
		}
		b.metrics.dropped(where)
		return
	}
	node := petrel.NodeID(f.node)
	if node == b.opt.Node {
		if f.incarnation != b.opt.Incarnation {
			b.namesake(&f)
		}
		return
	}
	if b.opt.Drop != nil && b.opt.Drop(Frame{Type: typeName(f.typ), Origin: node, Bucket: f.bucket, Seq: f.seq}) {
		return
	}
	d := delivery{typ: f.typ, m: Message{Origin: node, Incarnation: f.incarnation, Bucket: f.bucket}}
	switch f.typ {
	case typeRelay:
		d.m.Seq, d.m.Kind, d.m.Payload = f.seq, f.kind, f.payload
		b.enqueue(d, len(data))
	case typeHeartbeat:
		if wrong := b.peers.heard(&f, time.Now()); wrong != "" {
			b.metrics.dropped(wrong)
			return
		}
		d.heads = f.heads // behind the messages that were sent before it
		b.enqueue(d, len(data))
	case typeRequest:
		if b.running.Load() {
			b.answer(f)
		}
	case typeReply:
		if k := b.calls.take(f.id, f.node, false); k != nil {
			k.reply <- f
		}
	case typeAsk:
		b.repair(f)
	case typeMissing:
		k := b.calls.take(f.id, f.node, true)
		if k == nil {
			return // given up meanwhile
		}
		d.m.Bucket, d.m.Seq, d.m.Incarnation = k.want.bucket, f.id, k.want.incarnation
		if d.records, err = decodeRecords(f.payload); err != nil {
			b.metrics.dropped(dropDamaged)
		}
		b.inbox.put(d, len(data), true) // bounded by maxRepairs
	}
}

// namesakeBeats is how many heartbeats of another incarnation under this node's name make it a living process: a few may
// be the last ones of this node's former life.
const namesakeBeats = 4

// namesakes counts them.
type namesakes struct {
	mu          sync.Mutex // guards what follows
	incarnation uint64
	beats       int
}

// namesake takes a frame that another incarnation of this node sent. None of the others can tell the two from one node that
// restarts again and again: each of them hears of itself, and only they know.
func (b *Bus) namesake(f *frame) {
	b.metrics.dropped(dropNamesake)
	var info Info
	if f.typ != typeHeartbeat || f.flags&flagLeaving != 0 || json.Unmarshal(f.info, &info) != nil {
		return
	}
	b.namesakes.mu.Lock()
	if b.namesakes.incarnation != f.incarnation {
		b.namesakes.incarnation, b.namesakes.beats = f.incarnation, 0
	}
	b.namesakes.beats++
	beats := b.namesakes.beats
	b.namesakes.mu.Unlock()
	if beats == 1 || beats%60 == namesakeBeats {
		b.opt.Logger.Error("a heartbeat under this node's name came from another process, or from its former life",
			"incarnation", f.incarnation, "at", info.Addresses.Peer, "beats", beats)
	}
	if beats >= namesakeBeats {
		b.opt.OnNamesake(f.incarnation, info)
	}
}

func (b *Bus) enqueue(d delivery, size int) {
	if !b.inbox.put(d, size, false) && b.running.Load() {
		b.metrics.dropped(dropInbox)
	}
}

// deliver empties the inbox into the receiver, and wakes it when a gap is due.
func (b *Bus) deliver() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var spare []delivery
	for {
		select {
		case <-b.inbox.wake:
		case <-timer.C:
		}
		items, open := b.inbox.take(spare)
		for _, d := range items {
			b.recv.handle(d, time.Now())
		}
		b.recv.expire(time.Now())
		wait := time.Hour
		if at, ok := b.recv.wake(); ok {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		if spare = items; !open {
			b.recv.finish()
			return
		}
	}
}

// hand gives a message to whoever takes its kind.
func (b *Bus) hand(m Message) {
	if h := b.handlers[m.Kind]; h != nil {
		h(m)
		return
	}
	b.metrics.dropped(dropKind)
}

// watchEvery is how many times per DeadAfter the peers are looked at.
const watchEvery = 20

// watch sends the heartbeats and looks for those of others.
func (b *Bus) watch() {
	period := b.opt.DeadAfter / watchEvery
	look := time.NewTicker(period)
	defer look.Stop()
	pulse := time.NewTicker(b.opt.Heartbeat)
	defer pulse.Stop()
	b.beat(0)
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-pulse.C:
			b.beat(0)
		case <-look.C:
			forgotten := b.peers.sweep(time.Now(), period)
			for _, id := range forgotten {
				b.metrics.forget(id)
			}
			b.inbox.put(delivery{typ: typeEnd, forget: forgotten}, 0, len(forgotten) > 0)
		}
	}
}

// beat puts a heartbeat behind all that was published before it.
func (b *Bus) beat(flags byte) {
	info, err := json.Marshal(b.opt.Info())
	if err != nil {
		panic("bus: encode Info: " + err.Error()) // strings and numbers
	}
	b.sendMu.Lock()
	defer b.sendMu.Unlock()
	b.ring.trim(time.Now())
	f := frame{typ: typeHeartbeat, node: []byte(b.opt.Node), incarnation: b.opt.Incarnation, flags: flags, info: info, heads: b.ring.moved()}
	b.outbox.put(parcel{to: toAll, data: f.append(nil)}, 0, true) // one a second
}
