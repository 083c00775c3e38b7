package hub

import (
	"fmt"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// listeners of one channel, past its history.
func listeners(tb testing.TB, ch petrel.Channel, n int) (*Hub, []sink) {
	tb.Helper()
	h := New(Options{Encoders: []func(*petrel.Publication) []byte{words}, History: (&tale{}).page, MaxWaiting: 1 << 20})
	sinks := make([]sink, n)
	for i := range sinks {
		if _, err := h.Subscribe(Request{Channel: ch, Subscriber: &sinks[i]}); err != nil {
			tb.Fatal(err)
		}
	}
	for s := h.queue.pop(false); s != nil; s = h.queue.pop(false) {
		h.turn(tb.Context(), s)
	}
	return h, sinks
}

// BenchmarkSubscribe is a subscription that comes and goes, on a channel of its own and on one with others.
func BenchmarkSubscribe(b *testing.B) {
	for _, others := range []int{0, 1_000} {
		b.Run(fmt.Sprintf("beside %d", others), func(b *testing.B) {
			h, _ := listeners(b, channelOf(0), others)
			to := &sink{}
			b.ReportAllocs()
			for b.Loop() {
				s, err := h.Subscribe(Request{Channel: channelOf(0), Subscriber: to})
				if err != nil {
					b.Fatal(err)
				}
				if s := h.queue.pop(false); s != nil {
					h.turn(b.Context(), s)
				}
				s.Close()
			}
		})
	}
}

// TestFanOutAllocatesPerPublication: what a publication costs the memory does not depend on who hears it. It does not run beside
// others, whose allocations would be counted too.
func TestFanOutAllocatesPerPublication(t *testing.T) {
	allocs := map[int]float64{}
	for _, n := range []int{1, 1_000} {
		h, sinks := listeners(t, channelOf(0), n)
		one := pubs(1)
		allocs[n] = testing.AllocsPerRun(100, func() {
			h.Publish(one)
			one[0].Seq++
		})
		for i := range sinks {
			if sinks[i].n != 101 { // one to warm up
				t.Fatalf("subscriber %d of %d heard %d of 101", i, n, sinks[i].n)
			}
		}
	}
	if allocs[1_000] > allocs[1] {
		t.Errorf("a publication allocates %v times for one subscriber, %v times for a thousand", allocs[1], allocs[1_000])
	}
}

// TestAnnounceAllocatesPerPublication is the same of what is ephemeral, on an exact channel.
func TestAnnounceAllocatesPerPublication(t *testing.T) {
	allocs := map[int]float64{}
	for _, n := range []int{1, 1_000} {
		h, sinks := listeners(t, pusherChannel(0), n)
		p := tick(pusherChannel(0), "x")
		p.Except = "nobody"
		allocs[n] = testing.AllocsPerRun(100, func() { _ = h.Announce(p, nil) })
		for i := range sinks {
			if sinks[i].n != 101 { // one to warm up
				t.Fatalf("subscriber %d of %d heard %d of 101", i, n, sinks[i].n)
			}
		}
	}
	if allocs[1_000] > allocs[1] {
		t.Errorf("a publication allocates %v times for one subscriber, %v times for a thousand", allocs[1], allocs[1_000])
	}
}

// TestSubscribeAllocatesItself: on a channel that is there a subscription is one piece of memory, and on a new one there are two more: the channel and
// its list.
func TestSubscribeAllocatesItself(t *testing.T) {
	for others, want := range map[int]float64{0: 3, 1: 1} {
		h, _ := listeners(t, pusherChannel(0), others)
		to, ch := &sink{}, pusherChannel(0)
		if got := testing.AllocsPerRun(100, func() {
			s, err := h.Subscribe(Request{Channel: ch, Subscriber: to})
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}); got > want {
			t.Errorf("beside %d others a subscription allocates %v times, not %v", others, got, want)
		}
	}
}
