package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// calls are the questions of this node that are open: requests, and asks for missing messages.
type calls struct {
	maxRequests int
	serving     chan struct{} // one token per request of others that is being answered

	mu       sync.Mutex // guards what follows
	last     uint64     // begins at the incarnation, so that a former life's answers fit nothing
	open     map[uint64]*call
	requests int
	repairs  int
}

type call struct {
	node  petrel.NodeID
	reply chan frame // nil: an ask
	want  missing
}

func newCalls(o Options) *calls {
	return &calls{
		maxRequests: o.MaxRequests, serving: make(chan struct{}, o.MaxServing),
		last: o.Incarnation, open: map[uint64]*call{},
	}
}

// add opens a call and gives it an id; 0 when there are too many of its sort.
func (c *calls) add(k *call) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case k.reply != nil && c.requests < c.maxRequests:
		c.requests++
	case k.reply == nil && c.repairs < maxRepairs:
		c.repairs++
	default:
		return 0
	}
	if c.last++; c.last == 0 {
		c.last++
	}
	c.open[c.last] = k
	return c.last
}

// take closes the call that node answers; nil when it is not open, or another node's.
func (c *calls) take(id uint64, node []byte, ask bool) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.open[id]
	if k == nil || k.node != petrel.NodeID(node) || (k.reply == nil) != ask {
		return nil
	}
	c.remove(id, k)
	return k
}

// forget closes a call whose answer is no longer wanted.
func (c *calls) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.open[id]; k != nil {
		c.remove(id, k)
	}
}

func (c *calls) remove(id uint64, k *call) {
	delete(c.open, id)
	if k.reply != nil {
		c.requests--
	} else {
		c.repairs--
	}
}

// Request asks one node and waits for its answer: until ctx is over, or RequestTimeout. The other node
// is told how long that is. ErrBusy and ErrNoPeer mean that nothing was done there; after any other error
// it may have been.
func (b *Bus) Request(ctx context.Context, to petrel.NodeID, kind Kind, payload []byte) (answer []byte, err error) {
	began := time.Now()
	defer func() { b.metrics.requested(err, time.Since(began)) }()
	switch {
	case len(payload) > MaxPayload:
		return nil, ErrTooLarge
	case !b.running.Load():
		return nil, ErrStopped
	case !b.peers.alive(to):
		return nil, fmt.Errorf("%w: %s", ErrNoPeer, to)
	}
	ctx, cancel := context.WithTimeout(ctx, b.opt.RequestTimeout)
	defer cancel()
	k := &call{node: to, reply: make(chan frame, 1)}
	id := b.calls.add(k)
	if id == 0 {
		return nil, ErrBusy
	}
	defer b.calls.forget(id)
	deadline, _ := ctx.Deadline()
	left := max(1, time.Until(deadline).Milliseconds())
	f := frame{typ: typeRequest, id: id, left: uint64(left), kind: kind, payload: payload} //nolint:gosec // at least 1
	if !b.tell(to, f, false) {
		return nil, ErrBusy
	}
	select {
	case r := <-k.reply:
		switch r.status {
		case statusOK:
			return r.payload, nil
		case statusBusy:
			return nil, ErrBusy
		case statusNobody:
			return nil, ErrNoAnswer
		}
		return nil, fmt.Errorf("%w: %s", ErrRemote, r.payload)
	case <-ctx.Done():
		return nil, fmt.Errorf("bus: ask %s: %w", to, ctx.Err())
	case <-b.ctx.Done():
		return nil, ErrStopped
	}
}

// tell sends a frame to one node.
func (b *Bus) tell(to petrel.NodeID, f frame, always bool) bool {
	f.node, f.incarnation = []byte(b.opt.Node), b.opt.Incarnation
	data := f.append(make([]byte, 0, 128+len(f.payload)))
	if !b.outbox.put(parcel{to: toNode, node: to, data: data}, len(data), always) {
		b.metrics.dropped(dropOutbox)
		return false
	}
	return true
}

// answer serves one request in a goroutine of its own, of which there are at most MaxServing.
func (b *Bus) answer(f frame) {
	from := petrel.NodeID(f.node)
	reply := frame{typ: typeReply, id: f.id}
	a := b.answers[f.kind]
	if a == nil {
		reply.status = statusNobody
		b.tell(from, reply, false)
		return
	}
	select {
	case b.calls.serving <- struct{}{}:
	default:
		b.metrics.dropped(dropServing)
		reply.status = statusBusy
		b.tell(from, reply, false)
		return
	}
	b.workers.Go(func() {
		defer func() { <-b.calls.serving }()
		left := min(time.Duration(min(f.left, 1<<32))*time.Millisecond, b.opt.RequestTimeout) //nolint:gosec // bounded just here
		ctx, cancel := context.WithTimeout(b.ctx, left)
		defer cancel()
		payload, err := a(ctx, from, f.payload)
		if err == nil && len(payload) > MaxPayload {
			err = ErrTooLarge
		}
		if reply.payload = payload; err != nil {
			reply.status, reply.payload = statusError, []byte(err.Error())
			if errors.Is(err, ErrBusy) {
				reply.status, reply.payload = statusBusy, nil
			}
		}
		if ctx.Err() == nil { // else nobody waits for it
			b.tell(from, reply, false)
		}
	})
}

// repairBytes bounds one answer to an ask; whoever lacks more asks again.
const repairBytes = 512 << 10

// ask is the receiver's: it asks the origin for messages.
func (b *Bus) ask(want missing) uint64 {
	id := b.calls.add(&call{node: want.origin, want: want})
	if id == 0 {
		b.metrics.dropped(dropRepair)
		return 0
	}
	f := frame{typ: typeAsk, id: id, target: want.incarnation, bucket: want.bucket, from: want.from, to: want.to}
	if !b.tell(want.origin, f, false) {
		b.calls.forget(id)
		return 0
	}
	return id
}

// repair answers an ask, from memory and at once.
func (b *Bus) repair(f frame) {
	reply := frame{typ: typeMissing, id: f.id}
	if f.target == b.opt.Incarnation {
		b.sendMu.Lock()
		reply.payload = b.ring.find(f.bucket, f.from, f.to, repairBytes, time.Now())
		b.sendMu.Unlock()
	}
	b.tell(petrel.NodeID(f.node), reply, false)
}
