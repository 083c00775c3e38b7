package bus

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Info is what a node says about itself with every heartbeat. Unknown fields of newer builds are skipped.
type Info struct {
	Addresses Addresses `json:"addresses"`
	// Feature is the level of what this build can read from the log; the cell's is the lowest.
	Feature int `json:"feature"`
	// Draining: it is leaving, and sends its connections away.
	Draining bool `json:"draining,omitempty"`
	// Up is for how many seconds it has run: who has to move had better go to a node that was restarted already.
	Up   int64 `json:"up"`
	Load Load  `json:"load"`
}

// Addresses of a node, each HOST:PORT or empty.
type Addresses struct {
	Peer   string `json:"peer,omitempty"`   // node to node, raft
	Bus    string `json:"bus,omitempty"`    // embedded NATS
	Public string `json:"public,omitempty"` // clients
	URL    string `json:"url,omitempty"`    // clients, as they write it; when it is known
	Admin  string `json:"admin,omitempty"`
}

// Load is how much a node carries. A change of it is no change for OnChange, nor is one of Info.Up.
type Load struct {
	Connections int64 `json:"connections"`
	MemoryBytes int64 `json:"memory_bytes"`
}

// Peer is another node as it is seen from here.
type Peer struct {
	Node        petrel.NodeID
	Incarnation uint64 // of its present or last life
	Info        Info   // as it last said
	Alive       bool
	Silent      time.Duration // since its last heartbeat arrived
}

// lives tells the present life of a node from its former ones, which have no order of their own.
type lives struct {
	current uint64
	former  []uint64
}

// maxFormer is how many former lives are remembered. A frame of an older one than that would pass for a
// new life; it would have to be on its way for as many restarts.
const maxFormer = 8

// see says whether inc is a new life (and makes it the present one) or a former one.
func (l *lives) see(inc uint64) (begun, over bool) {
	switch {
	case inc == l.current:
		return false, false
	case slices.Contains(l.former, inc):
		return false, true
	}
	l.end()
	l.current = inc
	return true, false
}

func (l *lives) end() {
	if l.current != 0 {
		l.former = append(l.former, l.current)
		if len(l.former) > maxFormer {
			l.former = l.former[1:]
		}
	}
	l.current = 0
}

// peers is the table of other nodes.
type peers struct {
	self              petrel.NodeID
	incarnation       uint64
	deadAfter, forget time.Duration
	log               *slog.Logger
	changed           chan struct{} // one token: callbacks are due
	done              chan struct{}

	mu        sync.Mutex // guards what follows
	all       map[petrel.NodeID]*peer
	swept     time.Time
	nextID    int
	callbacks map[int]func([]Peer)
}

type peer struct {
	Peer
	lives lives
	last  time.Time
}

func newPeers(o Options) *peers {
	return &peers{
		self: o.Node, incarnation: o.Incarnation, deadAfter: o.DeadAfter, forget: o.Forget, log: o.Logger,
		changed: make(chan struct{}, 1), done: make(chan struct{}),
		all: map[petrel.NodeID]*peer{}, callbacks: map[int]func([]Peer){},
	}
}

// heard takes a heartbeat. It returns the counter of what is wrong with it, or "".
func (p *peers) heard(f *frame, now time.Time) (wrong string) {
	var info Info
	if err := json.Unmarshal(f.info, &info); err != nil {
		return dropDamaged
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.all[petrel.NodeID(f.node)]
	if n == nil {
		if len(p.all) >= maxPeers {
			return dropPeers
		}
		n = &peer{Peer: Peer{Node: petrel.NodeID(f.node)}}
		p.all[n.Node] = n
	}
	begun, over := n.lives.see(f.incarnation)
	if over {
		return dropFormer
	}
	changed := begun || !n.Alive || n.Info.Addresses != info.Addresses || n.Info.Feature != info.Feature || n.Info.Draining != info.Draining
	n.Incarnation, n.Info, n.Alive, n.last = f.incarnation, info, true, now
	if f.flags&flagLeaving != 0 {
		n.Alive = false
		n.lives.end()
		p.log.Info("a node left", "node", n.Node)
	} else if changed {
		p.log.Info("a node is alive", "node", n.Node, "incarnation", n.Incarnation, "began", begun)
	}
	if changed || !n.Alive {
		p.signal()
	}
	return ""
}

// sweep looks for nodes that fell silent, every period, and returns those that are forgotten now. When
// sweep itself comes late, this process stood still (it was stopped, or starved), and what others
// sent meanwhile may be unread: the time is not held against them.
func (p *peers) sweep(now time.Time, period time.Duration) (forgotten []petrel.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if late := now.Sub(p.swept) - period; !p.swept.IsZero() && late > p.deadAfter/4 {
		for _, n := range p.all {
			n.last = n.last.Add(late)
			if n.last.After(now) {
				n.last = now
			}
		}
		p.log.Warn("this process stood still", "seconds", late.Seconds())
	}
	p.swept = now
	for id, n := range p.all {
		silent := now.Sub(n.last)
		if n.Alive && silent > p.deadAfter {
			n.Alive = false
			p.log.Warn("a node is silent", "node", id, "seconds", silent.Seconds())
			p.signal()
		}
		if !n.Alive && silent > p.forget {
			delete(p.all, id)
			forgotten = append(forgotten, id)
			p.signal()
		}
	}
	return forgotten
}

func (p *peers) alive(id petrel.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.all[id]
	return n != nil && n.Alive
}

func (p *peers) list(now time.Time) []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Peer, 0, len(p.all))
	for _, n := range p.all {
		n.Silent = max(0, now.Sub(n.last))
		all = append(all, n.Peer)
	}
	slices.SortFunc(all, func(a, b Peer) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

func (p *peers) onChange(f func([]Peer)) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.nextID
	p.nextID++
	p.callbacks[id] = f
	p.signal() // it hears of those that came before it
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.callbacks, id)
	}
}

func (p *peers) signal() {
	select {
	case p.changed <- struct{}{}:
	default: // the one that is due will see this change too
	}
}

// notify calls the callbacks until close.
func (p *peers) notify() {
	for {
		select {
		case <-p.done:
			return
		case <-p.changed:
		}
		p.mu.Lock()
		var due []func([]Peer)
		for id := range p.nextID {
			if f := p.callbacks[id]; f != nil {
				due = append(due, f)
			}
		}
		p.mu.Unlock()
		for _, f := range due {
			f(p.list(time.Now()))
		}
	}
}

func (p *peers) close() { close(p.done) }
