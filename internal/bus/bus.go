// Package bus joins the nodes of a cell over NATS core: it says who is alive (heartbeats), carries the
// ephemeral lane (the relay), and asks questions of one node (requests). Nothing on it is durable: what
// must not be lost goes through the log, whose events reach every node by that node's own apply.
//
// A Bus works over a Wire: an embedded NATS server (Embed), a NATS cluster that is there already (Dial),
// or a Network in memory, which tests and simulations shape with loss, delay and partitions. All of them
// pass bustest.
//
// # Invariants
//
//   - Messages of one (origin, bucket) are handed on in the order in which they were published, each at
//     most once, and none of an older life of a node after one of its newer life. Between two buckets, or
//     two origins, nothing is ordered.
//   - What is missing is counted: every jump in a sequence is Seen; each message of it is then either
//     Repaired or Lost, unless the bucket was left meanwhile. Only what was published before this node
//     first heard of an (origin, bucket) is not missed: a listener that comes late begins at the head.
//   - No message waits longer than Options.Hold for one that is missing before it.
//   - A node's own messages are never delivered back to it: its hub has them already.
//   - Publish and the frames that come in never wait. Every queue is bounded in items and bytes. What
//     does not fit is refused while it has no number yet (Publish: ErrBusy), and counted everywhere:
//     a relay message dropped on the way in is a jump, and repaired or lost like any other.
//   - Liveness is measured with this process's monotonic clock alone; no time of day crosses the wire, so
//     that clocks may differ or jump. A process that stood still does not hold its own silence against others.
//
// Order of locks: Bus.sendMu before queue.mu; no other two are held together. Handlers and callbacks are
// called with none held.
//
// # What a caller may rely on
//
// A Handler is called on the one goroutine that delivers; while it waits, the inbox fills and then drops,
// counted. A node that is silent for DeadAfter is reported dead within a quarter of a second; one that
// stops says so, and is gone at once. A node that comes back under its name with another incarnation is a
// new life: its sequences begin at 1. Listen takes effect at another node at the latest when that node has answered a Request that
// was made after Listen returned.
//
// Tried and left out: JetStream (it writes to disk, and is slower than the log), a subject per channel
// (interest would grow with channels instead of staying at 1,024), NATS' own request/reply (its inboxes
// would be a second path with an order of its own).
package bus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits that are the same on every node of a cell.
const (
	Buckets    = 1024      // shares of the ephemeral lane's channels
	MaxPayload = 256 << 10 // bytes of one message, request or answer
	maxPeers   = 1024      // nodes that are remembered, dead ones too; more are ignored and counted
	maxRepairs = 32        // questions for missing messages that are open at once
	maxHeld    = 4096      // messages of one (origin, bucket) that wait for a missing one
	maxQueued  = 1 << 14   // items in the inbox, and in the outbox
)

// Errors of Publish and Request. All of them leave the Bus usable, except ErrStopped.
var (
	ErrBusy     = errors.New("bus: too much is waiting")      // a bounded queue is full, here or there; nothing was done
	ErrNoPeer   = errors.New("bus: no such node is alive")    // nothing was sent
	ErrNoAnswer = errors.New("bus: nobody answers this kind") // the other node does not know the kind (an older build)
	ErrRemote   = errors.New("bus: the other node refused")   // wraps the text of its error
	ErrTooLarge = errors.New("bus: payload too large")        // over MaxPayload
	ErrBucket   = errors.New("bus: no such bucket")           // not in 0 to Buckets-1
	ErrStopped  = errors.New("bus: stopped")                  // not started yet, or stopped
)

// Bucket is a share of the ephemeral lane, 0 to Buckets-1.
type Bucket uint16

// BucketOf returns the bucket of a channel, the same in every build for ever: FNV-1a, 64 bits.
func BucketOf(app petrel.AppID, channel string) Bucket {
	h := uint64(14695981039346656037)
	add := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	add(string(app))
	add("\x00")
	add(channel)
	return Bucket(h % Buckets)
}

// Kind says what a payload is, so that several users share the Bus. Whoever assembles the node numbers them.
type Kind uint8

// Message is one relay message as its origin published it. Payload is the receiver's to keep.
type Message struct {
	Origin      petrel.NodeID
	Incarnation uint64 // the origin's life
	Bucket      Bucket
	Seq         uint64 // dense from 1 in (origin, incarnation, bucket)
	Kind        Kind
	Payload     []byte
}

// Handler takes messages of one kind. It does not wait.
type Handler func(Message)

// Answer serves requests of one kind; ctx ends when the asker has given up. Its error reaches the asker
// as ErrRemote with the error's text.
type Answer func(ctx context.Context, from petrel.NodeID, payload []byte) ([]byte, error)

// Frame is what a fault in a test sees of a frame that comes in.
type Frame struct {
	Type   string // relay, heartbeat, request, reply, ask, missing
	Origin petrel.NodeID
	Bucket Bucket // relay, ask
	Seq    uint64 // relay
}

// Options of New.
type Options struct {
	// Node is this node's name in the cell. Required.
	Node petrel.NodeID
	// Incarnation is the name of this life of the node. Default: random; simulations hand in their own.
	Incarnation uint64
	// Info is asked at every heartbeat what to say about this node. Default: nothing. Does not wait.
	Info func() Info
	// Heartbeat is the time between two heartbeats. Default 1 s.
	Heartbeat time.Duration
	// DeadAfter is the silence after which a node is dead. Default 5 s: what follows from a death (its
	// members leave) has 10 s in all.
	DeadAfter time.Duration
	// Forget is how long a dead node is remembered, and its sequences with it. Default 10 min.
	Forget time.Duration
	// Hold is how long messages wait for a missing one before them. Default 50 ms.
	Hold time.Duration
	// RingBytes is what is kept of sent messages for repair, over all buckets, and also what may be held
	// behind missing ones. Default 8 MiB.
	RingBytes int
	// RingAge is how long a sent message may still be repaired: what is ephemeral is better lost than
	// late. Default 10 s.
	RingAge time.Duration
	// QueueBytes bounds the inbox, and the outbox. Default 8 MiB each.
	QueueBytes int
	// MaxServing is how many requests of others are answered at once; more are ErrBusy there. Default 64.
	MaxServing int
	// MaxRequests is how many requests of this node may be open. Default 256.
	MaxRequests int
	// RequestTimeout bounds a Request whose context has no earlier deadline. Default 5 s.
	RequestTimeout time.Duration
	// OnNamesake is called when another living process goes by this node's name: heartbeats of the same other incarnation
	// keep coming. In a goroutine of the wire's; it does not wait. Default: only the log for people says so.
	OnNamesake func(incarnation uint64, says Info)
	// Logger: nil discards.
	Logger *slog.Logger
	// Registerer: nil keeps the metrics unregistered.
	Registerer prometheus.Registerer
	// Drop is a fault for tests: incoming frames for which it is true are lost. Default nil.
	Drop func(Frame) bool
}

func (o *Options) validate() error {
	if o.Node == "" || len(o.Node) > petrel.MaxNameLen {
		return fmt.Errorf("bus: a node's name has 1 to %d bytes, not %d", petrel.MaxNameLen, len(o.Node))
	}
	for o.Incarnation == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24)
		o.Incarnation = binary.BigEndian.Uint64(b[:])
	}
	if o.Info == nil {
		o.Info = func() Info { return Info{} }
	}
	for _, d := range []struct {
		is  *time.Duration
		def time.Duration
	}{
		{&o.Heartbeat, time.Second},
		{&o.DeadAfter, 5 * time.Second},
		{&o.Forget, 10 * time.Minute},
		{&o.Hold, 50 * time.Millisecond},
		{&o.RingAge, 10 * time.Second},
		{&o.RequestTimeout, 5 * time.Second},
	} {
		if *d.is <= 0 {
			*d.is = d.def
		}
	}
	for _, n := range []struct {
		is  *int
		def int
	}{{&o.RingBytes, 8 << 20}, {&o.QueueBytes, 8 << 20}, {&o.MaxServing, 64}, {&o.MaxRequests, 256}} {
		if *n.is <= 0 {
			*n.is = n.def
		}
	}
	if o.DeadAfter <= o.Heartbeat {
		return fmt.Errorf("bus: a node cannot be dead after %v with a heartbeat every %v", o.DeadAfter, o.Heartbeat)
	}
	if o.OnNamesake == nil {
		o.OnNamesake = func(uint64, Info) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Bus is one node's place in the cell.
type Bus struct {
	opt     Options
	wire    Wire
	metrics *metrics
	peers   *peers
	recv    *receiver // of the goroutine deliver
	calls   *calls

	handlers map[Kind]Handler // written before Start
	answers  map[Kind]Answer

	// sendMu guards numbering: whoever holds it puts messages into the outbox in the order of their numbers.
	sendMu sync.Mutex
	ring   *ring

	// listenMu guards the counts; generations are read without it. A bucket nobody listens to has generation 0.
	listenMu    sync.Mutex
	listeners   [Buckets]int
	generation  uint64
	generations [Buckets]atomic.Uint64

	outbox *queue[parcel]
	inbox  *queue[delivery]

	namesakes namesakes

	startOnce, stopOnce sync.Once
	startErr            error
	running             atomic.Bool
	ctx                 context.Context //nolint:containedctx // the lifetime of the service
	cancel              context.CancelFunc
	sender, workers     sync.WaitGroup
}

// New returns a Bus over w, which belongs to it from now on: Stop closes it.
func New(o Options, w Wire) (*Bus, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Bus{
		opt: o, wire: w, ctx: ctx, cancel: cancel,
		handlers: map[Kind]Handler{}, answers: map[Kind]Answer{},
		ring:   newRing(o.RingBytes, o.RingAge),
		outbox: newQueue[parcel](maxQueued, o.QueueBytes),
		inbox:  newQueue[delivery](maxQueued, o.QueueBytes),
		peers:  newPeers(o),
		calls:  newCalls(o),
	}
	b.metrics = newMetrics(b)
	b.recv = &receiver{
		hold: o.Hold, maxBytes: o.RingBytes, origins: map[petrel.NodeID]*origin{},
		generation: func(k Bucket) uint64 { return b.generations[k].Load() },
		now:        b.lastGeneration, deliver: b.hand, ask: b.ask, unask: b.calls.forget, counts: b.metrics.origin,
		refused: func() { b.metrics.dropped(dropPeers) },
	}
	return b, nil
}

// Handle gives messages of a kind to h. Before Start only.
func (b *Bus) Handle(k Kind, h Handler) { b.handlers[k] = h }

// Serve answers requests of a kind with a. Before Start only.
func (b *Bus) Serve(k Kind, a Answer) { b.answers[k] = a }

// Incarnation returns the name of this life of the node.
func (b *Bus) Incarnation() uint64 { return b.opt.Incarnation }

// Start begins to send and to receive. It does not wait for other nodes.
func (b *Bus) Start() error {
	b.startOnce.Do(func() {
		if b.ctx.Err() != nil {
			b.startErr = ErrStopped
			return
		}
		b.metrics.register(b.opt.Registerer)
		b.running.Store(true)
		b.workers.Go(b.deliver)
		b.workers.Go(b.peers.notify)
		if err := b.wire.start(socket{node: b.opt.Node, receive: b.receive, dropped: b.metrics.dropped}); err != nil {
			b.startErr = fmt.Errorf("bus: start the wire: %w", err)
		}
		b.sender.Go(b.send) // not before there is a wire: the first heartbeat would be lost
		b.workers.Go(b.watch)
	})
	return b.startErr
}

// leaveWithin bounds how long Stop waits for what is still in the outbox.
const leaveWithin = time.Second

// Stop tells the others that this node leaves, sends what is queued, and ends everything. It waits for
// handlers and answers that are at work.
func (b *Bus) Stop() {
	b.startOnce.Do(func() { b.startErr = ErrStopped })
	b.stopOnce.Do(func() {
		if b.running.Swap(false) {
			b.beat(flagLeaving)
		}
		b.outbox.close()
		sent := make(chan struct{})
		go func() {
			b.sender.Wait()
			close(sent)
		}()
		late := time.NewTimer(leaveWithin)
		defer late.Stop()
		select {
		case <-sent:
		case <-late.C: // a wire that stands still: closing it ends the sender
		}
		b.wire.close()
		<-sent
		b.cancel()
		b.inbox.close()
		b.peers.close()
		b.workers.Wait()
		b.metrics.unregister()
	})
}

// Announce sends a heartbeat now, because Info has something to say that should not wait for the next.
func (b *Bus) Announce() {
	if b.running.Load() {
		b.beat(0)
	}
}

// Publish sends a message to every node that listens to the bucket. It never waits: a full outbox is
// ErrBusy, and nothing was sent. No error means that it was handed on, not that anybody got it. The
// payload is copied.
func (b *Bus) Publish(k Bucket, kind Kind, payload []byte) error {
	switch {
	case k >= Buckets:
		return ErrBucket
	case len(payload) > MaxPayload:
		return ErrTooLarge
	case !b.running.Load():
		return ErrStopped
	}
	now := time.Now()
	b.sendMu.Lock()
	defer b.sendMu.Unlock()
	if b.outbox.full(len(payload)) {
		b.metrics.dropped(dropOutbox)
		return ErrBusy
	}
	seq := b.ring.next(k)
	f := frame{typ: typeRelay, node: []byte(b.opt.Node), incarnation: b.opt.Incarnation, bucket: k, seq: seq, kind: kind, payload: payload}
	data := f.append(make([]byte, 0, 96+len(payload)))
	b.ring.add(k, record{seq: seq, kind: kind, payload: data[len(data)-len(payload):], at: now})
	b.outbox.put(parcel{bucket: k, to: toBucket, data: data}, len(data), true)
	return nil
}

// Listen asks for the messages of a bucket until stop is called. It is counted: the bucket is left with
// the last stop. It does not wait, and takes effect at other nodes after about one way to them.
func (b *Bus) Listen(k Bucket) (stop func(), err error) {
	if k >= Buckets {
		return nil, ErrBucket
	}
	if !b.running.Load() {
		return nil, ErrStopped
	}
	b.listenMu.Lock()
	defer b.listenMu.Unlock()
	if b.listeners[k] == 0 {
		b.generation++
		b.generations[k].Store(b.generation)
		if err := b.wire.listen(k, true); err != nil {
			b.generations[k].Store(0)
			return nil, fmt.Errorf("bus: listen to bucket %d: %w", k, err)
		}
	}
	b.listeners[k]++
	var once sync.Once
	return func() { once.Do(func() { b.unlisten(k) }) }, nil
}

func (b *Bus) unlisten(k Bucket) {
	b.listenMu.Lock()
	defer b.listenMu.Unlock()
	if b.listeners[k]--; b.listeners[k] > 0 {
		return
	}
	b.generations[k].Store(0)
	if err := b.wire.listen(k, false); err != nil && b.running.Load() {
		// Frames of the bucket go on coming in, and are thrown away.
		b.opt.Logger.Warn("a bucket could not be left", "bucket", int(k), "error", err)
	}
}

// lastGeneration numbers the present: a bucket with a generation up to it is listened to already.
func (b *Bus) lastGeneration() uint64 {
	b.listenMu.Lock()
	defer b.listenMu.Unlock()
	return b.generation
}

// Peers returns the other nodes that are known, dead ones too, by name.
func (b *Bus) Peers() []Peer { return b.peers.list(time.Now()) }

// OnChange calls f when a node came, left, began a new life or said something new about itself, with all
// nodes as Peers returns them. Changes that come while f is at work are one call. One call of any f at a time.
func (b *Bus) OnChange(f func([]Peer)) (stop func()) { return b.peers.onChange(f) }

// Loss returns what was received from each origin, and what was missing, by name.
func (b *Bus) Loss() []Loss { return b.metrics.loss() }
