package conn

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// fan is n connections on two loops, a frame for all of them, and what each of them read of it.
type fan struct {
	conns   []*Conn
	clients []net.Conn
	frame   []byte
	buf     []byte
}

func newFan(tb testing.TB, n int, ring bool) *fan {
	f := &fan{frame: TextFrame(bytes.Repeat([]byte("a"), 128))}
	f.buf = make([]byte, len(f.frame))
	var mu sync.Mutex
	opened := make(chan struct{}, n)
	s := serveLoops(tb, NewTable(Options{IOUring: ring}), Config{}, func() Handler {
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { mu.Lock(); f.conns = append(f.conns, c); mu.Unlock(); opened <- struct{}{} }
		return rec
	}, noHot, nil)
	for range n {
		f.clients = append(f.clients, s.raw(tb))
		<-opened
	}
	return f
}

// wave sends the frame to all and waits until all have it.
func (f *fan) wave(tb testing.TB) {
	for _, c := range f.conns {
		if err := c.Send(f.frame); err != nil {
			tb.Fatal(err)
		}
	}
	for _, nc := range f.clients {
		if _, err := io.ReadFull(nc, f.buf); err != nil || !bytes.Equal(f.buf, f.frame) {
			tb.Fatalf("%x, %v", f.buf, err)
		}
	}
}

// BenchmarkFanOut is one frame to many connections of two loops, there and read.
func BenchmarkFanOut(b *testing.B) {
	for i, n := range []int{10, 10, 100, 100, 1_000, 1_000} {
		b.Run(fmt.Sprintf("%d ring %v", n, i%2 == 1), func(b *testing.B) {
			f := newFan(b, n, i%2 == 1)
			f.wave(b)
			b.ReportAllocs()
			for b.Loop() {
				f.wave(b)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/delivery")
		})
	}
}

// TestFanOutAllocatesNothing: from Send to the socket, a frame that is there already costs no memory. It does not run beside others, whose allocations
// would be counted too.
func TestFanOutAllocatesNothing(t *testing.T) {
	for _, ring := range []bool{false, true} {
		f := newFan(t, 100, ring)
		for range 20 { // until every queue has the room that it needs
			f.wave(t)
		}
		if n := testing.AllocsPerRun(100, func() { f.wave(t) }); n > 0 {
			t.Errorf("a frame to %d connections allocates %v times; with an io_uring: %v", len(f.conns), n, ring)
		}
	}
}
