package node

import (
	"context"
	"net"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// A member's address is an entry of the log, so it takes a leader to change it. When a majority moves at once there is none, and
// nobody could find the others to elect one. So a node that moved tells the nodes that --join names where it is, and they it;
// each remembers it beside the log, and dials there, until a leader has entered it.

// relocation is where a member is that the log knows somewhere else.
type relocation struct{ from, to string }

// movable is the group's network with members found where they are now.
type movable struct {
	raftlog.Network
	cell *cell
}

// Dial implements raftlog.Network.
func (m movable) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if to := m.cell.movedTo(addr); to != addr {
		if c, err := m.Network.Dial(ctx, to); err == nil {
			return c, nil
		}
	}
	return m.Network.Dial(ctx, addr) // it may have come back
}

// movedTo is where the member is that the log knows at addr.
func (c *cell) movedTo(addr string) string {
	c.mu.Lock()
	some := len(c.moved) > 0
	c.mu.Unlock()
	if !some {
		return addr
	}
	members := c.status().Members
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		switch r, ok := c.moved[m.ID]; {
		case ok && r.from != m.Addr: // a leader has entered another one
			delete(c.moved, m.ID)
		case ok && m.Addr == addr:
			return r.to
		}
	}
	return addr
}

// relocate has this node's new address entered.
func (c *cell) relocate() {
	switch err := c.askIn(c.ctx); {
	case err == nil || c.ctx.Err() != nil:
	case petrel.CodeOf(err) == petrel.CodeNotFound:
		c.removed()
	default:
		c.logger.Error("the cell does not take this node's new address", "error", err)
	}
}

// met is called with where a member says that it is. When the log knows it somewhere else, where it does not answer any
// more, it is dialled there from now on.
func (c *cell) met(ctx context.Context, k knownNode) {
	if k.Member == c.self.Member || k.Peer == "" {
		return
	}
	for _, m := range c.status().Members {
		if m.ID != k.Member || m.Addr == k.Peer {
			continue
		}
		c.mu.Lock()
		known := c.moved[k.Member] == relocation{m.Addr, k.Peer}
		c.mu.Unlock()
		if !known {
			if !c.answersAs(ctx, k.Peer, k.Member) || c.answersAs(ctx, m.Addr, k.Member) {
				return // the one that is there already is the right one: see twinSentence
			}
			c.logger.Info("a node has moved; it is looked for there until a leader has entered it", "member", k.Member, "was", m.Addr, "is", k.Peer)
			c.mu.Lock()
			c.moved[k.Member] = relocation{m.Addr, k.Peer}
			c.mu.Unlock()
			c.learn([]knownNode{k})
		}
		if c.embedded != nil && k.Bus != "" && !c.alive(k.Member) {
			if err := c.embedded.AddRoutes(k.Bus); err != nil {
				c.logger.Warn("the bus does not look for a node that has moved", "member", k.Member, "bus", k.Bus, "error", err)
			}
		}
	}
}

// meet asks who is at an address, and remembers it.
func (c *cell) meet(ctx context.Context, addr string) {
	if len(c.status().Members) == 0 {
		return // it has joined nothing yet
	}
	r, err := c.ask(ctx, addr, cellRequest{Op: opWho})
	if err != nil {
		return
	}
	for _, k := range r.Nodes {
		c.met(ctx, k)
	}
}

// here is where this node is.
func (c *cell) here() knownNode {
	return knownNode{Member: c.self.Member, Peer: c.port.Addr(), Bus: c.busTo, Feature: FeatureLevel}
}
