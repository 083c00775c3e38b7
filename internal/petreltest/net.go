package petreltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"
)

// Net is an IP network between hosts, each a network namespace of its own, that the test process carries
// itself: every packet comes out of one host's TUN device, meets the Link to where it goes, and is written
// to the other's. So packets can be lost, delayed or doubled in one direction without the kernel's help, and
// nothing of it outlives the process: namespaces without a name go with the last process in them.
//
// A host reaches itself over its loopback, which no link touches: clients that Dial inside a host get through
// whatever is cut.
//
// A thread that entered a host's namespace never comes back: it ends. So no other test of the process can find
// itself on one, and nobody needs to know the way home.
type Net struct {
	hosts []*Host

	mu   sync.Mutex // guards rng and of every way what is marked so
	rng  *rand.Rand
	ways [][]*way        // by sender and receiver
	ctx  context.Context // ends when the network goes down
	end  context.CancelFunc
	down sync.Once
	busy sync.WaitGroup // who carries packets
}

// way is one direction between two hosts, with the packets that are under way in it.
type way struct {
	link  Link      // guarded by Net.mu
	last  time.Time // when the last packet is due: a way keeps its order; guarded by Net.mu
	count LinkCount // guarded by Net.mu
	queue chan parcel
}

type parcel struct {
	due    time.Time
	packet []byte
	copies int
}

// underWay is how many packets a way holds; more are lost, as in any router.
const underWay = 1000

// Link is one direction between two hosts.
type Link struct {
	Cut    bool          // nothing gets through
	Loss   float64       // share of packets that are lost
	Double float64       // share of packets that arrive twice
	Delay  time.Duration // each packet's way
	Jitter time.Duration // more of it, at random; packets keep their order
}

// LinkCount says what became of one direction's packets.
type LinkCount struct{ Passed, Lost, Doubled int }

// Host is one machine of a Net, with file systems of its own.
type Host struct {
	Addr string // its address on the Net

	net   *Net
	index int
	space int // descriptor of its network namespace
	tid   int // of its thread
	tun   *os.File
	http  *http.Client // of Client; guarded by Net.mu
	work  chan func()  // run on a thread that lives in the namespace
	ended chan struct{}
}

// mtu is that of ethernet with jumbo frames: fewer packets for the two cores to carry.
const mtu = 9000

// NeedNet skips a test where no Net can be made; with REQUIRE_NETNS=1, or in a torture that was asked for, it fails.
func NeedNet(tb testing.TB) {
	tb.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "not root"
	} else if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		why = err.Error()
	} else {
		_ = f.Close()
	}
	if why != "" {
		noNet(tb, why)
	}
}

func noNet(tb testing.TB, why string) {
	tb.Helper()
	if os.Getenv("REQUIRE_NETNS") == "1" || os.Getenv("PETREL_TORTURE")+os.Getenv("PETREL_JOB_TORTURE") != "" {
		tb.Fatalf("faults between nodes need network namespaces with TUN devices: %s", why)
	}
	tb.Skipf("NOT TESTED: faults between nodes need network namespaces with TUN devices: %s", why)
}

// NewNet makes a network of n hosts with the addresses 10.77.0.1 and up. What is random in it follows from seed.
func NewNet(tb testing.TB, n int, seed uint64) *Net {
	tb.Helper()
	NeedNet(tb)
	nw := &Net{rng: rand.New(rand.NewPCG(seed, 2))}
	nw.ctx, nw.end = context.WithCancel(context.Background())
	tb.Cleanup(nw.Close)
	for i := range n {
		h, err := nw.newHost(i)
		if err != nil {
			noNet(tb, err.Error()) // root without the right to: a container, mostly
		}
		nw.hosts = append(nw.hosts, h)
		nw.ways = append(nw.ways, make([]*way, n))
	}
	for from, h := range nw.hosts {
		for to, other := range nw.hosts {
			w := &way{queue: make(chan parcel, underWay)}
			nw.ways[from][to] = w
			nw.busy.Go(func() { w.deliver(other.tun, nw.ctx.Done()) })
		}
		nw.busy.Go(h.carry)
	}
	return nw
}

// Host returns host i, from 0.
func (nw *Net) Host(i int) *Host { return nw.hosts[i] }

// Set puts a link from one host to another.
func (nw *Net) Set(from, to int, l Link) {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	nw.ways[from][to].link = l
}

// SetAll puts the same link between all hosts, in both directions.
func (nw *Net) SetAll(l Link) {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	for _, row := range nw.ways {
		for _, w := range row {
			w.link = l
		}
	}
}

// Heal makes every link a good one.
func (nw *Net) Heal() { nw.SetAll(Link{}) }

// Split cuts every link between a host of one side and a host of another. Hosts that are named nowhere are alone.
func (nw *Net) Split(sides ...[]int) {
	side := map[int]int{}
	for n, hosts := range sides {
		for _, h := range hosts {
			side[h] = n + 1
		}
	}
	for a := range nw.hosts {
		for b := range nw.hosts {
			if a != b && (side[a] != side[b] || side[a] == 0) {
				nw.Set(a, b, Link{Cut: true})
			}
		}
	}
}

// Count says what became of the packets from one host to another.
func (nw *Net) Count(from, to int) LinkCount {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	return nw.ways[from][to].count
}

// Close takes the network down. Processes that still run in its hosts are cut off, or killed.
func (nw *Net) Close() {
	nw.down.Do(func() {
		nw.end()
		for _, h := range nw.hosts {
			_ = h.tun.Close()
		}
		nw.busy.Wait()
		for _, h := range nw.hosts {
			if h.http != nil {
				h.http.CloseIdleConnections()
			}
			close(h.work)
			<-h.ended
			h.leave()
		}
	})
}

// newHost makes a namespace with a TUN device and a thread that lives in it.
func (nw *Net) newHost(i int) (*Host, error) {
	h := &Host{Addr: fmt.Sprintf("10.77.0.%d", i+1), net: nw, index: i, work: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	onThread(func() {
		defer close(h.ended)
		err := h.setUp()
		made <- err
		if err != nil {
			return
		}
		for fn := range h.work {
			fn()
		}
	})
	return h, <-made
}

// carry takes the host's packets out and sends them on their way.
func (h *Host) carry() {
	buf := make([]byte, mtu+64)
	for {
		n, err := h.tun.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n < 20 || buf[0]>>4 != 4 || buf[16] != 10 || buf[17] != 77 || buf[18] != 0 {
			continue // not IPv4, or to nobody here
		}
		to := int(buf[19]) - 1
		if to < 0 || to >= len(h.net.hosts) || to == h.index {
			continue
		}
		h.net.send(h.index, to, buf[:n])
	}
}

// send decides what becomes of a packet; the buffer is the caller's.
func (nw *Net) send(from, to int, packet []byte) {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	w, now := nw.ways[from][to], time.Now()
	l := w.link
	if l.Cut || (l.Loss > 0 && nw.rng.Float64() < l.Loss) {
		w.count.Lost++
		return
	}
	p := parcel{due: now.Add(l.Delay), packet: append([]byte(nil), packet...), copies: 1}
	if l.Jitter > 0 {
		p.due = p.due.Add(time.Duration(nw.rng.Int64N(int64(l.Jitter))))
	}
	if p.due.Before(w.last) {
		p.due = w.last
	}
	if l.Double > 0 && nw.rng.Float64() < l.Double {
		p.copies = 2
	}
	select {
	case w.queue <- p:
		w.last = p.due
		w.count.Passed++
		w.count.Doubled += p.copies - 1
	default:
		w.count.Lost++
	}
}

// deliver hands each packet over when it is due.
func (w *way) deliver(tun *os.File, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case p := <-w.queue:
			if wait := time.Until(p.due); wait > 0 {
				t := time.NewTimer(wait)
				select {
				case <-ended:
					t.Stop()
					return
				case <-t.C:
				}
			}
			for range p.copies {
				_, _ = tun.Write(p.packet) // a host that is gone hears nothing
			}
		}
	}
}

// DialContext opens a connection from inside the host: what a client beside the node would do.
// It is given up when the network is closed.
func (h *Host) DialContext(ctx context.Context, network, addr string) (c net.Conn, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.net.ctx, cancel)()
	inErr := h.inside(func() { c, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
	return c, errors.Join(inErr, err)
}

// Listen listens inside the host.
func (h *Host) Listen(ctx context.Context, network, addr string) (l net.Listener, err error) {
	inErr := h.inside(func() { l, err = (&net.ListenConfig{}).Listen(ctx, network, addr) })
	return l, errors.Join(inErr, err)
}

// inside runs fn on a thread that is in the host's namespace: a socket stays where it was made.
func (h *Host) inside(fn func()) error {
	done := make(chan error, 1)
	onThread(func() {
		err := h.enter()
		if err == nil {
			fn()
		}
		done <- err
	})
	return <-done
}

// Client returns an HTTP client that speaks from inside the host; it is closed with the network.
func (h *Host) Client() *http.Client {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.http == nil {
		h.http = &http.Client{Transport: &http.Transport{DialContext: h.DialContext, MaxIdleConnsPerHost: 64}}
	}
	return h.http
}

// Path is where the test process finds what the host has at path.
func (h *Host) Path(path string) string { return fmt.Sprintf("/proc/self/task/%d/root%s", h.tid, path) }

// do runs fn on the host's own thread.
func (h *Host) do(fn func()) {
	done := make(chan struct{})
	h.work <- func() {
		defer close(done)
		fn()
	}
	<-done
}
