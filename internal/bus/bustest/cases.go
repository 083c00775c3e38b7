package bustest

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/petrel-chat/petrel/internal/bus"
)

func heartbeats(t *testing.T, c *cell) {
	var feature atomic.Int64
	info := func() bus.Info {
		return bus.Info{
			Addresses: bus.Addresses{Peer: "peer:1", Public: "public:2"}, Feature: int(feature.Load()),
			Load: bus.Load{Connections: 3, MemoryBytes: 4},
		}
	}
	a := c.open("a", bus.Options{Incarnation: 11, Info: info})
	b := c.open("b", bus.Options{Incarnation: 22, Info: info})
	z := c.open("z", bus.Options{})
	changes := make(chan []bus.Peer, 1000)
	defer z.OnChange(func(p []bus.Peer) { changes <- p })()
	seen := func(want ...bus.Peer) {
		t.Helper()
		for got := range changes {
			if cmp.Equal(want, got, cmpopts.IgnoreFields(bus.Peer{}, "Silent")) {
				return
			}
		}
	}
	seen(bus.Peer{Node: "a", Incarnation: 11, Info: info(), Alive: true}, bus.Peer{Node: "b", Incarnation: 22, Info: info(), Alive: true})
	for _, n := range []*node{a, b} {
		n.until(func() bool { return n.alive() == 2 })
	}
	feature.Store(7)
	seen(bus.Peer{Node: "a", Incarnation: 11, Info: info(), Alive: true}, bus.Peer{Node: "b", Incarnation: 22, Info: info(), Alive: true})
}

func leaving(_ *testing.T, c *cell) {
	a, b, z := c.three(bus.Options{}) // for whom silence is no death
	a.Stop()
	a.Stop()
	for _, n := range []*node{b, z} {
		n.until(func() bool { return n.alive() == 1 && !n.Peers()[0].Alive })
	}
}

func order(t *testing.T, c *cell) {
	const messages = 500
	a, b, z := c.three(bus.Options{})
	nodes := []*node{a, b, z}
	for _, k := range []bus.Bucket{0, 1023} {
		for _, n := range nodes {
			defer n.listen(k)()
		}
		a.reach(k, b, z)
		b.reach(k, a, z)
		z.reach(k, a, b)
	}
	for i := 1; i <= messages; i++ {
		for _, n := range nodes {
			n.publish(0, kindTest, i)
			n.publish(1023, kindTest, i)
		}
	}
	type stream struct {
		from string
		k    bus.Bucket
	}
	for _, n := range nodes {
		next := map[stream]int{}
		for range 4 * messages {
			m := <-n.got
			s := stream{string(m.Origin), m.Bucket}
			next[s]++
			if got := int(binary.BigEndian.Uint32(m.Payload)); got != next[s] || m.Origin == n.id {
				t.Fatalf("%s got number %d of %v, want %d", n.id, got, s, next[s])
			}
		}
		for _, l := range n.Loss() {
			n.wantLoss(bus.Loss{Origin: l.Origin})
		}
	}
}

func counted(t *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{})
	first, second := b.listen(5), b.listen(5)
	defer b.listen(6)()
	a.reach(5, b)
	a.reach(6, b)
	first()
	first() // counts once
	a.publish(5, kindTest, 1)
	b.expect(5, "a", 1)
	second()
	a.publish(5, kindTest, 2)
	a.publish(6, kindTest, 3)
	b.expect(6, "a", 3)
	defer b.listen(5)() // again, and what was missed meanwhile is not missing
	a.reach(5, b)
	a.publish(5, kindTest, 4)
	b.expect(5, "a", 4)
	b.wantLoss(bus.Loss{Origin: "a"})
	if len(b.got) > 0 {
		t.Error("more arrived than was listened to")
	}
}

// answered: a request goes the way that the wish to listen went, and not before it. What the other node publishes once it has answered is heard,
// without a first message that shows the way.
func answered(t *testing.T, c *cell) {
	a, b, z := c.three(bus.Options{})
	for i := range 200 {
		k := bus.Bucket(100 + i) //nolint:gosec // small
		stop := a.listen(k)
		for _, n := range []*node{b, z} {
			if _, err := a.Request(t.Context(), n.id, kindEcho, nil); err != nil {
				t.Fatal(err)
			}
			n.publish(k, kindTest, i)
			a.expect(k, n.id, i)
		}
		stop()
	}
}

func repaired(_ *testing.T, c *cell) {
	a, b, z := c.three(bus.Options{})
	defer b.listen(9)()
	defer z.listen(9)()
	w := a.reach(9, b, z)
	b.dropping(relayOf(w+2, w+3, w+6))
	for _, i := range upTo(10) {
		a.publish(9, kindTest, i)
	}
	b.expect(9, "a", upTo(10)...)
	z.expect(9, "a", upTo(10)...)
	b.wantLoss(bus.Loss{Origin: "a", Seen: 3, Repaired: 3})
	z.wantLoss(bus.Loss{Origin: "a"})
}

func repairedTail(_ *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{})
	defer b.listen(9)()
	w := a.reach(9, b)
	b.dropping(relayOf(w+2, w+3))
	for _, i := range upTo(3) {
		a.publish(9, kindTest, i)
	}
	b.expect(9, "a", upTo(3)...) // a heartbeat says that there is more
	b.wantLoss(bus.Loss{Origin: "a", Seen: 2, Repaired: 2})
}

func repairedLong(t *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{})
	defer b.listen(9)()
	w := a.reach(9, b)
	var all []uint64
	for i := range uint64(8) {
		all = append(all, w+1+i)
	}
	b.dropping(relayOf(all...))
	for i := range byte(9) {
		if err := a.Publish(9, kindTest, append(make([]byte, 200<<10), i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range byte(9) {
		if m := <-b.got; len(m.Payload) != 200<<10+1 || m.Payload[200<<10] != i {
			t.Fatalf("message %d is not what was sent", i)
		}
	}
	b.wantLoss(bus.Loss{Origin: "a", Seen: 8, Repaired: 8})
}

func lost(_ *testing.T, c *cell) {
	a := c.open("a", bus.Options{})
	b := c.open("b", bus.Options{Hold: time.Millisecond})
	b.until(func() bool { return b.alive() == 1 })
	defer b.listen(9)()
	w := a.reach(9, b)
	before := b.loss("a") // with so short a hold there may have been something
	few := relayOf(w+2, w+3, w+5)
	b.dropping(func(f bus.Frame) bool { return few(f) || f.Type == "missing" })
	for _, i := range upTo(6) {
		a.publish(9, kindTest, i)
	}
	b.expect(9, "a", 1, 4, 6)
	b.wantLoss(bus.Loss{Origin: "a", Seen: before.Seen + 3, Repaired: before.Repaired, Lost: before.Lost + 3})
	// What the origin no longer has is given up without waiting for the hold.
	small := c.open("s", bus.Options{RingBytes: 1})
	z := c.open("z", bus.Options{})
	z.until(func() bool { return z.alive() == 3 })
	defer z.listen(10)()
	w = small.reach(10, z)
	z.dropping(relayOf(w + 1))
	small.publish(10, kindTest, 1)
	small.publish(10, kindTest, 2)
	z.expect(10, "s", 2)
	z.wantLoss(bus.Loss{Origin: "s", Seen: 1, Lost: 1})
}

func late(_ *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{})
	for _, i := range upTo(20) {
		a.publish(9, kindTest, i)
	}
	defer b.listen(8)()
	a.reach(8, b) // what was published before is on its way no more
	defer b.listen(9)()
	sent := a.reach(9, b)
	a.publish(9, kindTest, 21)
	b.expect(9, "a", 21)
	b.wantLoss(bus.Loss{Origin: "a"})
	if seen := b.before["a"].Seen; seen > sent {
		b.t.Errorf("%d are missing of %d that were sent since it listens", seen, sent)
	}
}

func restart(t *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{})
	defer b.listen(9)()
	a.reach(9, b)
	a.publish(9, kindTest, 1)
	b.expect(9, "a", 1)
	first := a.Incarnation()
	a.Stop()
	if err := a.Publish(9, kindTest, nil); !errors.Is(err, bus.ErrStopped) {
		t.Errorf("Publish after Stop: %v", err)
	}
	a = c.open("a", bus.Options{})
	a.reach(9, b)
	a.publish(9, kindTest, 2)
	b.expect(9, "a", 2)
	b.until(func() bool { p := b.Peers()[0]; return p.Alive && p.Incarnation == a.Incarnation() })
	if first == a.Incarnation() {
		t.Error("the restarted node has its former life's name")
	}
	if l := b.loss("a"); l.Seen != l.Repaired || l.Lost != 0 {
		t.Errorf("loss over the restart: %+v", l)
	}
}

func requests(t *testing.T, c *cell) {
	a, b, z := c.three(bus.Options{})
	for _, tc := range []struct {
		from, to *node
		kind     bus.Kind
		want     string
		err      error
	}{
		{a, b, kindEcho, "a: hi", nil},
		{z, b, kindEcho, "z: hi", nil},
		{b, a, kindEcho, "b: hi", nil},
		{a, b, kindUnknown, "", bus.ErrNoAnswer},
		{a, b, kindFail, "", bus.ErrRemote},
	} {
		got, err := tc.from.Request(t.Context(), tc.to.id, tc.kind, []byte("hi"))
		if !errors.Is(err, tc.err) || string(got) != tc.want {
			t.Errorf("request %d from %s to %s: %q, %v", tc.kind, tc.from.id, tc.to.id, got, err)
		}
		if tc.err == bus.ErrRemote && !strings.Contains(err.Error(), "no tea") {
			t.Errorf("the text of the error is gone: %v", err)
		}
	}
	if _, err := a.Request(t.Context(), "nobody", kindEcho, nil); !errors.Is(err, bus.ErrNoPeer) {
		t.Errorf("request to nobody: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Request(ctx, "b", kindWait, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("request that takes too long: %v", err)
	}
	b.dropping(func(f bus.Frame) bool { return f.Type == "request" })
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.Request(ctx, "b", kindEcho, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("request that is lost: %v", err)
	}
}

func bounded(t *testing.T, c *cell) {
	a, b, _ := c.three(bus.Options{MaxServing: 2, MaxRequests: 3})
	done := make(chan error, 10)
	ask := func(to *node, kind bus.Kind) {
		go func() {
			_, err := a.Request(t.Context(), to.id, kind, nil)
			done <- err
		}()
	}
	ask(b, kindWait)
	ask(b, kindWait)
	<-b.busy
	<-b.busy
	if _, err := a.Request(t.Context(), "b", kindEcho, nil); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("a third request while two are served: %v", err)
	}
	if _, err := a.Request(t.Context(), "z", kindEcho, nil); err != nil {
		t.Errorf("another node is not busy: %v", err)
	}
	close(b.wait)
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("a request that was served: %v", err)
		}
	}
	b.until(func() bool { // its places are free again
		_, err := a.Request(t.Context(), "b", kindEcho, nil)
		return err == nil
	})
}

func refusals(t *testing.T, c *cell) {
	a := c.open("a", bus.Options{})
	big := make([]byte, bus.MaxPayload+1)
	if err := a.Publish(0, kindTest, big); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("Publish of too much: %v", err)
	}
	if err := a.Publish(bus.Buckets, kindTest, nil); !errors.Is(err, bus.ErrBucket) {
		t.Errorf("Publish nowhere: %v", err)
	}
	if _, err := a.Listen(bus.Buckets); !errors.Is(err, bus.ErrBucket) {
		t.Errorf("Listen nowhere: %v", err)
	}
	if _, err := a.Request(t.Context(), "b", kindTest, big); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("Request of too much: %v", err)
	}
	a.Stop()
	if _, err := a.Listen(0); !errors.Is(err, bus.ErrStopped) {
		t.Errorf("Listen after Stop: %v", err)
	}
	if _, err := a.Request(t.Context(), "b", kindTest, nil); !errors.Is(err, bus.ErrStopped) {
		t.Errorf("Request after Stop: %v", err)
	}
	if err := a.Start(); err != nil {
		t.Errorf("a second Start: %v", err)
	}
}
