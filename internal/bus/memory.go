package bus

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Network is a wire within one process, for tests and simulations: it loses, delays and parts as it is
// told, by a seed. It works in a synctest bubble.
type Network struct {
	seed  uint64
	mu    sync.Mutex // guards what follows
	nodes map[petrel.NodeID]*memoryWire
	links map[[2]petrel.NodeID]*link
	shape map[[2]petrel.NodeID]Link
}

// Link is how frames go from one node to another. They never overtake each other.
type Link struct {
	Loss   float64       // share of frames that are lost, 0 to 1
	Delay  time.Duration // of every frame
	Jitter time.Duration // up to as much more, by chance
	Cut    bool          // nothing arrives
}

// maxOnLink bounds what is on its way between two nodes; more is lost.
const maxOnLink = 1 << 16

type link struct {
	rand  *rand.Rand // its own, so that chance does not hang on who sends first elsewhere
	order sync.Mutex // one frame arrives at a time; taken before Network.mu
	queue [][]byte
	last  time.Time // when the newest of them arrives
}

// NewNetwork returns a network without nodes.
func NewNetwork(seed uint64) *Network {
	return &Network{
		seed: seed, nodes: map[petrel.NodeID]*memoryWire{},
		links: map[[2]petrel.NodeID]*link{}, shape: map[[2]petrel.NodeID]Link{},
	}
}

// Shape sets how frames go from one node to another, from now on. An empty name is every node that no
// other call names.
func (n *Network) Shape(from, to petrel.NodeID, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shape[[2]petrel.NodeID{from, to}] = l
}

// Join returns a wire. The node's name is that of the Bus over it.
func (n *Network) Join() Wire { return &memoryWire{net: n, begun: make(chan struct{})} }

type memoryWire struct {
	net     *Network
	socket  socket        // of start
	begun   chan struct{} // closed by start or close: what is sent before waits, or chance would decide whether the first heartbeat is lost
	arrived sync.WaitGroup

	listening [Buckets]bool // guarded by Network.mu, as closed
	started   bool
	closed    bool
}

var errNotThere = errors.New("bus: not on the network")

func (w *memoryWire) start(p socket) error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if w.closed {
		return errNotThere
	}
	if w.net.nodes[p.node] != nil {
		return errors.New("bus: a node of this name is on the network")
	}
	w.socket, w.started = p, true
	close(w.begun)
	w.net.nodes[p.node] = w
	return nil
}

func (w *memoryWire) listen(k Bucket, on bool) error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if w.closed {
		return errNotThere
	}
	w.listening[k] = on
	return nil
}

func (w *memoryWire) send(p parcel) error {
	<-w.begun
	n := w.net
	n.mu.Lock()
	if n.nodes[w.socket.node] != w {
		n.mu.Unlock()
		return errNotThere
	}
	var now []petrel.NodeID
	for _, to := range n.names() {
		if to == w.socket.node || (p.to == toNode && to != p.node) || (p.to == toBucket && !n.nodes[to].listening[p.bucket]) {
			continue
		}
		if n.depart(w.socket.node, to, p.data) {
			now = append(now, to)
		}
	}
	n.mu.Unlock()
	for _, to := range now {
		n.arrive(w.socket.node, to)
	}
	return nil
}

// depart puts a frame on its way and says whether it arrives at once.
func (n *Network) depart(from, to petrel.NodeID, data []byte) (now bool) {
	s := n.shapeOf(from, to)
	pair := [2]petrel.NodeID{from, to}
	l := n.links[pair]
	if l == nil {
		h := fnv.New64a()
		_, _ = fmt.Fprintf(h, "%q to %q", from, to)
		l = &link{rand: rand.New(rand.NewPCG(n.seed, h.Sum64()))} //nolint:gosec // chance by a seed
		n.links[pair] = l
	}
	if s.Cut || (s.Loss > 0 && l.rand.Float64() < s.Loss) || len(l.queue) >= maxOnLink {
		return false
	}
	if s.Jitter > 0 {
		s.Delay += time.Duration(l.rand.Int64N(int64(s.Jitter)))
	}
	at := time.Now().Add(s.Delay)
	if at.Before(l.last) {
		at = l.last
	}
	l.last = at
	l.queue = append(l.queue, data)
	wait := time.Until(at)
	if wait <= 0 {
		return true
	}
	time.AfterFunc(wait, func() { n.arrive(from, to) })
	return false
}

// arrive hands in the oldest frame of a link. It is called once for every frame.
func (n *Network) arrive(from, to petrel.NodeID) {
	n.mu.Lock()
	l := n.links[[2]petrel.NodeID{from, to}]
	n.mu.Unlock()
	l.order.Lock()
	defer l.order.Unlock()
	n.mu.Lock()
	if len(l.queue) == 0 {
		n.mu.Unlock()
		return
	}
	data := l.queue[0]
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	w := n.nodes[to]
	if w != nil {
		w.arrived.Add(1)
	}
	n.mu.Unlock()
	if w != nil { // else it left
		defer w.arrived.Done()
		w.socket.receive(data)
	}
}

// names of the nodes that are there, in order.
func (n *Network) names() []petrel.NodeID { return slices.Sorted(maps.Keys(n.nodes)) }

func (n *Network) shapeOf(from, to petrel.NodeID) Link {
	for _, pair := range [][2]petrel.NodeID{{from, to}, {from, ""}, {"", to}, {"", ""}} {
		if s, ok := n.shape[pair]; ok {
			return s
		}
	}
	return Link{}
}

func (w *memoryWire) close() {
	w.net.mu.Lock()
	if !w.started && !w.closed {
		close(w.begun)
	}
	w.closed = true
	if w.net.nodes[w.socket.node] == w {
		delete(w.net.nodes, w.socket.node)
	}
	w.net.mu.Unlock()
	w.arrived.Wait()
}
