package bus_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// simNode is a node in a bubble, and what it was given.
type simNode struct {
	*bus.Bus
	got []bus.Message
	at  []time.Time
}

func simOpen(t *testing.T, net *bus.Network, o bus.Options) *simNode {
	t.Helper()
	b, err := bus.New(o, net.Join())
	if err != nil {
		t.Fatal(err)
	}
	n := &simNode{Bus: b}
	b.Handle(1, func(m bus.Message) {
		n.got = append(n.got, m)
		n.at = append(n.at, time.Now())
	})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return n
}

func alive(b *bus.Bus) (names []petrel.NodeID) {
	for _, p := range b.Peers() {
		if p.Alive {
			names = append(names, p.Node)
		}
	}
	return names
}

// TestSimRelay publishes over links that lose and delay, with nodes that restart and part, and checks
// what the package promises: order, once, lives in order, and that the counts add up.
func TestSimRelay(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { simRelay(t, seed) })
		})
	}
}

func simRelay(t *testing.T, seed uint64) {
	const buckets = 3
	chance := rand.New(rand.NewPCG(seed, 7))
	net := bus.NewNetwork(seed)
	net.Shape("", "", bus.Link{Loss: 0.05, Delay: time.Millisecond, Jitter: 4 * time.Millisecond})
	names := []petrel.NodeID{"a", "b", "c"}
	nodes := map[petrel.NodeID]*simNode{}
	life := uint64(0)
	open := func(name petrel.NodeID) {
		life++
		n := simOpen(t, net, bus.Options{Node: name, Incarnation: life})
		for k := range bus.Bucket(buckets) {
			if _, err := n.Listen(k); err != nil {
				t.Fatal(err)
			}
		}
		nodes[name] = n
	}
	for _, name := range names {
		open(name)
	}
	time.Sleep(2 * time.Second)
	published := map[[2]uint64]uint64{} // by life and bucket
	check := func(name petrel.NodeID) {
		t.Helper()
		n := nodes[name]
		type key struct {
			life   uint64
			bucket bus.Bucket
		}
		next, lives, received := map[key]uint64{}, map[petrel.NodeID]uint64{}, map[petrel.NodeID]uint64{}
		for _, m := range n.got {
			k := key{m.Incarnation, m.Bucket}
			if m.Origin == name || m.Seq <= next[k] || m.Incarnation < lives[m.Origin] || binary.BigEndian.Uint64(m.Payload) != m.Seq {
				t.Fatalf("%s was given %+v after number %d, life %d", name, m, next[k], lives[m.Origin])
			}
			next[k], lives[m.Origin] = m.Seq, m.Incarnation
			received[m.Origin]++
		}
		for _, l := range n.Loss() {
			if l.Seen != l.Repaired+l.Lost || l.Received != received[l.Origin] {
				t.Errorf("%s: the counts do not add up: %+v, received %d", name, l, received[l.Origin])
			}
		}
	}
	for range 2000 {
		name := names[chance.IntN(len(names))]
		switch n := nodes[name]; chance.IntN(400) {
		case 0: // restarts
			n.Stop()
			check(name)
			open(name)
		case 1: // is parted for a while
			cut := bus.Link{Cut: true}
			net.Shape(name, "", cut)
			net.Shape("", name, cut)
			time.Sleep(time.Duration(chance.IntN(8000)) * time.Millisecond)
			whole := bus.Link{Loss: 0.05, Delay: time.Millisecond}
			net.Shape(name, "", whole)
			net.Shape("", name, whole)
		default:
			k := bus.Bucket(chance.IntN(buckets)) //nolint:gosec // small
			id := [2]uint64{n.Incarnation(), uint64(k)}
			published[id]++
			if err := n.Publish(k, 1, binary.BigEndian.AppendUint64(nil, published[id])); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(chance.IntN(3)) * time.Millisecond)
	}
	net.Shape("", "", bus.Link{})
	for _, name := range names {
		net.Shape(name, "", bus.Link{})
	}
	time.Sleep(4 * time.Second) // heartbeats say what is missing at the ends
	synctest.Wait()
	repaired := uint64(0)
	for _, name := range names {
		check(name)
		for _, l := range nodes[name].Loss() {
			repaired += l.Repaired
		}
	}
	if repaired == 0 {
		t.Error("nothing was repaired")
	}
}

// TestHold: what comes behind a missing message waits for it, and no longer than the hold.
func TestHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		a := simOpen(t, net, bus.Options{Node: "a"})
		var answered bool
		b := simOpen(t, net, bus.Options{Node: "b", Drop: func(f bus.Frame) bool {
			return (f.Type == "relay" && (f.Seq == 3 || f.Seq == 6)) || (f.Type == "missing" && !answered)
		}})
		if _, err := b.Listen(1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		began := time.Now()
		var want []time.Duration
		for i := range 7 {
			if err := a.Publish(1, 1, []byte{byte(i + 1)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		var got []time.Duration
		var seqs []uint64
		for i, m := range b.got {
			seqs = append(seqs, m.Seq)
			got = append(got, b.at[i].Sub(began))
		}
		ms := time.Millisecond
		// 4 was sent at 30 and shows that 3 is missing; 7 was sent at 60 and shows that 6 is.
		want = []time.Duration{0, 10 * ms, 80 * ms, 80 * ms, 110 * ms}
		if diff := cmp.Diff([]uint64{1, 2, 4, 5, 7}, seqs); diff != "" {
			t.Errorf("numbers (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("times (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]bus.Loss{{Origin: "a", Received: 5, Seen: 2, Lost: 2}}, b.Loss()); diff != "" {
			t.Errorf("loss (-want +got):\n%s", diff)
		}
	})
}

// TestDeath: a node is dead after 5 s of silence in one direction, and alive with the first heartbeat.
func TestDeath(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		a, b := simOpen(t, net, bus.Options{Node: "a"}), simOpen(t, net, bus.Options{Node: "b"})
		var calls [][]bus.Peer
		defer a.OnChange(func(p []bus.Peer) { calls = append(calls, p) })()
		time.Sleep(1500 * time.Millisecond) // beats at 0 and 1
		net.Shape("b", "a", bus.Link{Cut: true})
		time.Sleep(4490 * time.Millisecond) // 5.99: silent for 4.99
		if got := alive(a.Bus); len(got) != 1 {
			t.Errorf("alive before 5 s of silence: %v", got)
		}
		time.Sleep(270 * time.Millisecond)
		if got := alive(a.Bus); len(got) != 0 {
			t.Errorf("alive after 5.26 s of silence: %v", got)
		}
		if got := alive(b.Bus); len(got) != 1 {
			t.Errorf("the other direction: %v", got)
		}
		if _, err := a.Request(t.Context(), "b", 1, nil); err == nil {
			t.Error("a dead node was asked")
		}
		net.Shape("b", "a", bus.Link{})
		time.Sleep(time.Second)
		if got := alive(a.Bus); len(got) != 1 {
			t.Errorf("alive after a heartbeat: %v", got)
		}
		synctest.Wait()
		if n := len(calls); n < 3 || len(calls[n-2]) != 1 || calls[n-2][0].Alive || !calls[n-1][0].Alive {
			t.Errorf("OnChange was called with %+v", calls)
		}
		net.Shape("b", "a", bus.Link{Cut: true})
		time.Sleep(11 * time.Minute)
		if p := a.Peers(); len(p) != 0 {
			t.Errorf("not forgotten: %+v", p)
		}
	})
}

// TestSlowHandler: what does not fit into the inbox is dropped, counted, and repaired or counted again.
func TestSlowHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		a := simOpen(t, net, bus.Options{Node: "a"})
		reg := prometheus.NewRegistry()
		b, err := bus.New(bus.Options{Node: "b", QueueBytes: 1000, Registerer: reg}, net.Join())
		if err != nil {
			t.Fatal(err)
		}
		stuck := make(chan struct{})
		var got []uint64
		b.Handle(1, func(m bus.Message) {
			<-stuck
			got = append(got, m.Seq)
		})
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		defer b.Stop()
		if _, err := b.Listen(1); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if err := a.Publish(1, 1, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		dropped := 0.0
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "petrel_bus_dropped_total" && m.GetLabel()[0].GetValue() == "inbox" {
					dropped = m.GetCounter().GetValue()
				}
			}
		}
		if dropped < 50 {
			t.Errorf("%v dropped", dropped)
		}
		close(stuck)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(got) != 100 || got[99] != 100 {
			t.Errorf("%d arrived in the end: %v", len(got), got)
		}
		if l := b.Loss()[0]; l.Lost != 0 || l.Repaired != l.Seen || l.Seen < 50 {
			t.Errorf("%+v", l)
		}
	})
}
