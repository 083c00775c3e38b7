// Package bustest holds the contract of a bus.Wire, as a test suite that every implementation passes with
// three nodes in one process.
package bustest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// System is one way to carry frames.
type System interface {
	// Wire returns a new node's end. A node that ended may come back under its name.
	Wire(t *testing.T, node petrel.NodeID) bus.Wire
}

// Run runs the whole suite, each case on a System of its own.
func Run(t *testing.T, system func(t *testing.T) System) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, c *cell)
	}{
		{"nodes hear of each other", heartbeats},
		{"a node that stops is gone at once", leaving},
		{"order, once, and not to oneself", order},
		{"listening is counted", counted},
		{"a gap is repaired", repaired},
		{"a gap at the end is repaired", repairedTail},
		{"a long gap is repaired in parts", repairedLong},
		{"what cannot be repaired is counted", lost},
		{"who comes late begins at the head", late},
		{"who listened before an answer hears what is published after it", answered},
		{"a restart is a new life", restart},
		{"requests", requests},
		{"requests are bounded", bounded},
		{"refusals", refusals},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.run(t, &cell{t: t, sys: system(t)})
		})
	}
}

// Kinds of messages and requests in the suite.
const (
	kindTest bus.Kind = iota + 1
	kindWarm
	kindEcho
	kindWait
	kindFail
	kindUnknown
)

// ever is longer than any test may take: what must not matter in a case is set to it.
const ever = time.Hour

type cell struct {
	t   *testing.T
	sys System
}

// node is a Bus, and what arrived at it.
type node struct {
	*bus.Bus
	t    *testing.T
	id   petrel.NodeID
	got  chan bus.Message
	warm chan bus.Message
	drop atomic.Pointer[func(bus.Frame) bool]
	wait chan struct{} // kindWait answers when it is closed
	busy chan struct{} // has a token for every kindWait that began
	// What was missed of each origin until the way was known: a heartbeat can tell of more than the wire brought by then.
	before map[petrel.NodeID]bus.Loss
}

// open starts a node that never thinks another dead and waits long for what is missing, unless o says so.
func (c *cell) open(id petrel.NodeID, o bus.Options) *node {
	c.t.Helper()
	n := &node{
		t: c.t, id: id, got: make(chan bus.Message, 1<<14), warm: make(chan bus.Message, 1<<14),
		wait: make(chan struct{}), busy: make(chan struct{}, 100),
		before: map[petrel.NodeID]bus.Loss{},
	}
	o.Node = id
	if o.Heartbeat == 0 {
		o.Heartbeat = 20 * time.Millisecond
	}
	if o.DeadAfter == 0 {
		o.DeadAfter = ever
	}
	if o.Hold == 0 {
		o.Hold = ever
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = ever
	}
	o.RingAge = ever
	o.Drop = func(f bus.Frame) bool {
		drop := n.drop.Load()
		return drop != nil && (*drop)(f)
	}
	b, err := bus.New(o, c.sys.Wire(c.t, id))
	if err != nil {
		c.t.Fatal(err)
	}
	n.Bus = b
	b.Handle(kindTest, func(m bus.Message) { n.got <- m })
	b.Handle(kindWarm, func(m bus.Message) { n.warm <- m })
	b.Serve(kindEcho, func(_ context.Context, from petrel.NodeID, p []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%s: %s", from, p), nil
	})
	b.Serve(kindFail, func(context.Context, petrel.NodeID, []byte) ([]byte, error) { return nil, errors.New("no tea") })
	b.Serve(kindWait, func(ctx context.Context, _ petrel.NodeID, _ []byte) ([]byte, error) {
		n.busy <- struct{}{}
		select {
		case <-n.wait:
			return []byte("done"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	c.t.Cleanup(b.Stop)
	if err := b.Start(); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// three opens nodes that know each other.
func (c *cell) three(o bus.Options) (a, b, z *node) {
	a, b, z = c.open("a", o), c.open("b", o), c.open("z", o)
	for _, n := range []*node{a, b, z} {
		n.until(func() bool { return n.alive() == 2 })
	}
	return a, b, z
}

func (n *node) alive() (count int) {
	for _, p := range n.Peers() {
		if p.Alive {
			count++
		}
	}
	return count
}

// until waits for a condition.
func (n *node) until(cond func() bool) {
	n.t.Helper()
	for !cond() {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-n.t.Context().Done():
			n.t.Fatal("the test is over")
		}
	}
}

func (n *node) listen(k bus.Bucket) (stop func()) {
	n.t.Helper()
	stop, err := n.Listen(k)
	if err != nil {
		n.t.Fatal(err)
	}
	return stop
}

func (n *node) publish(k bus.Bucket, kind bus.Kind, i int) {
	n.t.Helper()
	if err := n.Publish(k, kind, binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil { //nolint:gosec // small
		n.t.Fatal(err)
	}
}

// reach publishes until the last message arrives at each of the others, and returns how many it took: from
// then on the way is known. What was missed until then is mended or given up, and not counted by loss.
func (n *node) reach(k bus.Bucket, others ...*node) (seq uint64) {
	n.t.Helper()
	had := make([]bus.Loss, len(others))
	for i, o := range others {
		had[i] = o.loss(n.id)
	}
	defer func() {
		for i, o := range others {
			o.until(func() bool { l := o.loss(n.id); return l.Seen == l.Repaired+l.Lost })
			now, b := o.loss(n.id), o.before[n.id]
			b.Seen, b.Repaired, b.Lost = b.Seen+now.Seen-had[i].Seen, b.Repaired+now.Repaired-had[i].Repaired, b.Lost+now.Lost-had[i].Lost
			o.before[n.id] = b
		}
	}()
	for i := 1; ; i++ {
		n.publish(k, kindWarm, i)
		seq++
		arrived := 0
		for _, o := range others {
			if o.arrives(n.id, i) {
				arrived++
			}
		}
		if arrived == len(others) {
			return seq
		}
	}
}

func (n *node) arrives(from petrel.NodeID, i int) bool {
	timeout := time.After(20 * time.Millisecond)
	for {
		select {
		case m := <-n.warm:
			if m.Origin == from && int(binary.BigEndian.Uint32(m.Payload)) == i {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

// expect waits for messages of one origin in one bucket, numbered as they were published.
func (n *node) expect(k bus.Bucket, from petrel.NodeID, numbers ...int) {
	n.t.Helper()
	for _, want := range numbers {
		m := <-n.got
		if got := int(binary.BigEndian.Uint32(m.Payload)); m.Origin != from || m.Bucket != k || got != want {
			n.t.Fatalf("%s got number %d of %s in bucket %d, want %d of %s in %d", n.id, got, m.Origin, m.Bucket, want, from, k)
		}
	}
}

func (n *node) loss(origin petrel.NodeID) bus.Loss {
	for _, l := range n.Loss() {
		if l.Origin == origin {
			b := n.before[origin]
			l.Seen, l.Repaired, l.Lost = l.Seen-b.Seen, l.Repaired-b.Repaired, l.Lost-b.Lost
			l.Received, l.Late = 0, 0
			return l
		}
	}
	return bus.Loss{Origin: origin}
}

func (n *node) wantLoss(want bus.Loss) {
	n.t.Helper()
	if diff := cmp.Diff(want, n.loss(want.Origin)); diff != "" {
		n.t.Errorf("loss at %s (-want +got):\n%s", n.id, diff)
	}
}

// dropping loses frames from now on; nil: none.
func (n *node) dropping(f func(bus.Frame) bool) {
	if f == nil {
		n.drop.Store(nil)
		return
	}
	n.drop.Store(&f)
}

func relayOf(seqs ...uint64) func(bus.Frame) bool {
	lose := map[uint64]bool{}
	for _, s := range seqs {
		lose[s] = true
	}
	return func(f bus.Frame) bool { return f.Type == "relay" && lose[f.Seq] }
}

func upTo(n int) (all []int) {
	for i := 1; i <= n; i++ {
		all = append(all, i)
	}
	return all
}
