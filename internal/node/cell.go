package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// cell is what a node has to do with other nodes: the port between them, the bus, and whom it knows.
//
// In this order: open (the port listens), admit (the log is open; other nodes take this one in), startBus, serve
// (others may ask), close.
type cell struct {
	data   string
	cfg    *Config
	self   membership
	secret string
	port   *bus.Port
	id     bus.Identity
	logger *slog.Logger
	reg    prometheus.Registerer

	log   atomic.Pointer[raftlog.Log] // once it is open
	bus   atomic.Pointer[bus.Bus]     // once it is started
	busTo string                      // where routes of others arrive; "" with --nats
	// Set by wire, as busTo is; nil with --nats.
	embedded *bus.Embedded
	public   atomic.Pointer[string] // address of the public listener, once people are let in
	began    time.Time
	admin    string
	load     func() bus.Load
	drain    func() // this node leaves, without waiting for it
	leaving  func() bool
	rest     func(ctx context.Context) // no job begins, and those that run end or are given back; nil: there are none
	resume   func()
	fail     func(error)
	removed  func() // the cell says that this node is no member of it any more

	readable atomic.Int32 // the feature level that every member can read

	handing chan struct{} // of one; full while leadership is handed over

	relocated bool // the log knows this node at another address

	mu    sync.Mutex // guards known and moved
	known map[petrel.NodeID]knownNode
	moved map[petrel.NodeID]relocation
	bg    sync.WaitGroup
	ctx   context.Context //nolint:containedctx // the lifetime of the service
	stop  context.CancelFunc
}

// openCell opens the port between nodes. Nobody is served yet: streams that come are refused and dialled again.
func openCell(ctx context.Context, cfg *Config, self membership, logger *slog.Logger, reg prometheus.Registerer) (c *cell, err error) {
	c = &cell{data: cfg.Data, cfg: cfg, self: self, logger: logger, reg: reg, began: time.Now(), known: map[petrel.NodeID]knownNode{}, moved: map[petrel.NodeID]relocation{}, handing: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.readable.Store(1) // until it was looked at
	if c.secret, err = loadCellSecret(cfg.Data, cfg.CellSecretFile, self.Origin == joined); err != nil {
		return nil, err
	}
	if cfg.PeerCert != "" {
		c.id, err = bus.LoadIdentity(cfg.PeerCert, cfg.PeerKey, cfg.PeerCA)
	} else {
		c.id, err = bus.IdentityFromSecret(c.secret, petrel.NodeID(cfg.Name))
	}
	if err != nil {
		return nil, err
	}
	for _, k := range loadKnown(cfg.Data) {
		if k.Member != self.Member {
			c.known[k.Member] = k
		}
	}
	c.port, err = bus.ListenPort(ctx, bus.PortOptions{Listen: cfg.Peer, Identity: c.id, Logger: logger, Advertise: advertised(cfg.Peer)})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// advertised is what others are told of an address in the settings: itself, unless its port is chosen by the kernel.
func advertised(addr string) string {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "0" {
		return ""
	}
	return addr
}

// network is the part of the port that the shard's group uses.
func (c *cell) network() raftlog.Network { return movable{c.port.Group(0), c} }

// startBus joins the bus of the cell. The nodes known by now are where its routes begin; others find this one.
func (c *cell) startBus() error {
	o := bus.Options{Node: c.self.Member, Info: c.info, OnNamesake: c.namesake, Logger: c.logger, Registerer: c.reg}
	wire, err := c.wire()
	if err != nil {
		return err
	}
	b, err := bus.New(o, wire)
	if err != nil {
		return err
	}
	c.bus.Store(b)
	return nil
}

func (c *cell) wire() (bus.Wire, error) {
	sum := sha256.Sum256([]byte("petrel cell name\x00" + c.secret))
	name := hex.EncodeToString(sum[:4])
	if c.cfg.NATS != "" {
		return bus.Dial(bus.DialOptions{URL: c.cfg.NATS, Cell: name, Logger: c.logger})
	}
	var routes []string
	for _, k := range c.knownNodes() {
		if k.Bus != "" {
			routes = append(routes, k.Bus)
		}
	}
	addr := c.cfg.busAddr()
	e, err := bus.Embed(bus.EmbedOptions{
		Node: c.self.Member, Cell: name, Listen: addr, Advertise: advertised(addr), Routes: routes,
		TLS: c.id.Routes(), Secret: c.secret, Logger: c.logger,
	})
	if err != nil {
		return nil, err
	}
	c.embedded, c.busTo = e, e.Addr()
	if a := advertised(addr); a != "" {
		c.busTo = a
	}
	return e, nil
}

// namesake is called when another living process goes by this member's id: two processes run on copies of one folder. The
// younger one gives way.
func (c *cell) namesake(incarnation uint64, says bus.Info) {
	ours := int64(time.Since(c.began).Seconds())
	if ours > says.Up || ours == says.Up && c.bus.Load().Incarnation() > incarnation {
		return
	}
	c.fail(fmt.Errorf("%wthis node stops: %s", quiet{ErrFatal}, twinSentence(c.self.Member, says.Addresses.Peer)))
}

// info is what this node says about itself with every heartbeat.
func (c *cell) info() bus.Info {
	i := bus.Info{Addresses: bus.Addresses{Peer: c.port.Addr(), Bus: c.busTo, Admin: c.admin}, Feature: FeatureLevel, Up: int64(time.Since(c.began).Seconds())}
	if p := c.public.Load(); p != nil {
		i.Addresses.Public, i.Addresses.URL = *p, c.cfg.publicURL(*p)
	}
	if c.leaving != nil {
		i.Draining = c.leaving()
	}
	if c.load != nil {
		i.Load = c.load()
	}
	return i
}

// announce tells the others at once what has changed about this node.
func (c *cell) announce() {
	if b := c.bus.Load(); b != nil {
		b.Announce()
	}
}

// status is the log's, zero before it is open.
func (c *cell) status() raftlog.Status {
	if l := c.log.Load(); l != nil {
		return (*l).Status()
	}
	return raftlog.Status{}
}

// serve answers other nodes from now on, and remembers where they are.
func (c *cell) serve() error {
	b := c.bus.Load()
	b.OnChange(func(peers []bus.Peer) { c.remember(peers) })
	if err := b.Start(); err != nil {
		return err
	}
	c.port.Handle(cellProtocol, func(conn net.Conn, from petrel.NodeID) { c.answer(conn, from) })
	if c.relocated {
		c.bg.Go(c.relocate)
	}
	return nil
}

// peers are the other nodes as the bus sees them.
func (c *cell) peers() []bus.Peer {
	if b := c.bus.Load(); b != nil {
		return b.Peers()
	}
	return nil
}

// successors are where clients of this node had better go when it leaves: nodes that stay, those first that have
// just been started, so that in a rolling restart nobody is sent to a node whose turn is yet to come.
func (c *cell) successors() (urls []string) {
	peers := slices.DeleteFunc(c.staying(), func(p bus.Peer) bool { return p.Info.Addresses.URL == "" })
	slices.SortStableFunc(peers, func(a, b bus.Peer) int { return cmp.Compare(a.Info.Up, b.Info.Up) })
	for _, p := range peers {
		urls = append(urls, p.Info.Addresses.URL)
	}
	return urls
}

// staying are the other nodes that take people.
func (c *cell) staying() []bus.Peer {
	members := c.status().Members
	return slices.DeleteFunc(c.peers(), func(p bus.Peer) bool { return !p.Alive || p.Info.Draining || !isMember(members, p.Node) })
}

func (c *cell) alive(m petrel.NodeID) bool {
	if m == c.self.Member {
		return true
	}
	return slices.ContainsFunc(c.peers(), func(p bus.Peer) bool { return p.Node == m && p.Alive })
}

// remember keeps what is known of the members' addresses for the next start.
func (c *cell) remember(peers []bus.Peer) {
	members := c.status().Members
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.known)
	changed := false
	for _, p := range peers {
		k := knownNode{Member: p.Node, Peer: p.Info.Addresses.Peer, Bus: p.Info.Addresses.Bus, Feature: p.Info.Feature}
		if p.Alive && k.Peer != "" && isMember(members, p.Node) && c.known[p.Node] != k {
			c.known[p.Node], changed = k, true
		}
	}
	if len(members) > 0 {
		for m := range c.known {
			if !isMember(members, m) {
				delete(c.known, m)
			}
		}
	}
	if !changed && len(c.known) == before {
		return
	}
	c.saveLocked()
}

func (c *cell) learn(nodes []knownNode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range nodes {
		if k.Member != c.self.Member && k.Peer != "" {
			c.known[k.Member] = k
		}
	}
	c.saveLocked()
}

func (c *cell) saveLocked() {
	known := make([]knownNode, 0, len(c.known)+1)
	known = append(known, c.here())
	for _, k := range c.known {
		known = append(known, k)
	}
	slices.SortFunc(known[1:], func(a, b knownNode) int {
		if a.Member < b.Member {
			return -1
		}
		return 1
	})
	if err := saveKnown(c.data, known); err != nil { // asked for again at the next change; a start may need --join without it
		c.logger.Warn("could not remember where the other nodes are", "path", filepath.Join(c.data, cellFile), "error", err)
	}
}

// knownNodes are the other nodes that were ever seen, by name.
func (c *cell) knownNodes() []knownNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]knownNode, 0, len(c.known))
	for _, k := range c.known {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b knownNode) int {
		if a.Member < b.Member {
			return -1
		}
		return 1
	})
	return out
}

func isMember(members []raftlog.Member, id petrel.NodeID) bool {
	return slices.ContainsFunc(members, func(m raftlog.Member) bool { return m.ID == id })
}

// admit sees to it that this node is a member of the log's group, under its present address: one that founded it is;
// one that joins asks until it is taken in. The log is open, so that the leader can reach it at once.
func (c *cell) admit(ctx context.Context, log raftlog.Log) error {
	c.log.Store(&log)
	st := log.Status()
	i := slices.IndexFunc(st.Members, func(m raftlog.Member) bool { return m.ID == c.self.Member })
	switch {
	case i >= 0 && (st.Members[i].Addr == c.port.Addr() || len(st.Members) == 1):
		return nil
	case i >= 0 && c.answersAs(ctx, st.Members[i].Addr, c.self.Member):
		return errors.New(twinSentence(c.self.Member, st.Members[i].Addr))
	case i >= 0: // the leader looks for this node where it was; it may itself wait for this node's vote
		c.relocated = true
		return nil
	case c.self.Origin == founded && len(st.Members) == 0:
		return nil
	case len(st.Members) > 0 && c.cfg.Join == "":
		return errRemoved(c.self.Member)
	}
	return c.askIn(ctx)
}

func errRemoved(m petrel.NodeID) error {
	return fmt.Errorf("%wthis node (%s) was removed from its cell: it stops. To have it taken in again, start it with --join, or begin with an empty folder", quiet{ErrFatal}, m)
}

// askIn asks every node that is known, again and again, until the leader has entered this one.
func (c *cell) askIn(ctx context.Context) error {
	targets := c.cfg.joins()
	for _, k := range c.knownNodes() {
		targets = append(targets, k.Peer)
	}
	targets = slices.DeleteFunc(targets, func(addr string) bool { return addr == c.port.Addr() })
	switch {
	case len(targets) == 0 && c.cfg.Join != "":
		return fmt.Errorf("--join names this node itself (%s); name another node of the cell", c.port.Addr())
	case len(targets) == 0:
		return errors.New("this node belongs to a cell and knows none of its nodes; name one with --join")
	}
	ask := cellRequest{Op: opJoin, Member: c.self.Member, Peer: c.port.Addr(), Bus: c.busTo, Feature: FeatureLevel}
	ask.Moved = c.cfg.Join == "" && isMember(c.status().Members, c.self.Member)
	var said time.Time
	for rounds := 1; ; rounds++ {
		var last error
		hopeless := rounds > hopelessRounds
		for _, addr := range targets {
			var reply cellReply
			if reply, last = c.askAround(ctx, addr, ask); last == nil {
				c.learn(reply.Nodes)
				c.logger.Info("taken into the cell", "member", c.self.Member, "leader", reply.Leader, "nodes", len(reply.Nodes))
				return nil
			}
			if permanent(last) {
				return fmt.Errorf("the cell does not take this node in: %w", last)
			}
			c.meet(ctx, addr)
			if why := c.whyHopeless(addr, last); why != "" {
				last = errors.New(why)
			} else {
				hopeless = false
			}
		}
		if hopeless {
			return last
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			c.logger.Warn("no node of the cell has taken this one in yet; trying again", "asked", targets, "error", last)
		}
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("join the cell: %w (last: %w)", ctx.Err(), last)
		case <-t.C:
		}
	}
}

// hopelessRounds is after how many rounds of nothing but refusals that waiting does not change a join is given up.
const hopelessRounds = 25

// whyHopeless says in plain words what is wrong with what answers at an address, and what to do; "" when it may yet do better.
func (c *cell) whyHopeless(addr string, err error) string {
	switch {
	case errors.Is(err, bus.ErrOtherCell) && c.cfg.PeerCert != "":
		return fmt.Sprintf("the certificate of the node at %s is signed by none of the roots in %s", addr, c.cfg.PeerCA)
	case errors.Is(err, bus.ErrOtherCell):
		return fmt.Sprintf("the node at %s is of another cell than this node's secret: copy DATA/cell-secret of that node, name it with --cell-secret-file, and start with an empty data folder", addr)
	case errors.Is(err, bus.ErrOtherPort):
		return fmt.Sprintf("what answers at %s is not the port between nodes: --join wants the --peer address of a node of the cell", addr)
	}
	return ""
}

// stopServing ends answering other nodes; the group's streams go on until the log is closed.
func (c *cell) stopServing() {
	c.stop()
	c.port.Handle(cellProtocol, nil)
	if b := c.bus.Load(); b != nil {
		b.Stop()
	}
	c.bg.Wait()
}

// close ends the port; the log is closed.
func (c *cell) close() error { return c.port.Close() }
