package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// cellProtocol is the application protocol (ALPN) of requests between nodes: one JSON line there, one back, per stream.
// Who can open a stream is of the cell: the port's handshake has seen to that.
const cellProtocol = "petrel-cell/1"

// Bounds of a request between nodes.
const (
	cellMaxLine = 256 << 10
	cellTimeout = 15 * time.Second
)

// cellOp is what a node may ask of another. All but opDrain and opWho are carried out by the leader; others say who leads.
type cellOp string

const (
	opJoin     cellOp = "join"     // take Member in, without a vote at first
	opRemove   cellOp = "remove"   // forget Member
	opTransfer cellOp = "transfer" // hand leadership to Member, "" for any voter
	opMember   cellOp = "member"   // is Member one? not_found if it was removed
	opWho      cellOp = "who"      // which member the node asked is
	opDrain    cellOp = "drain"    // the node asked leaves: its connections move, its leadership too
)

type cellRequest struct {
	Op      cellOp        `json:"op"`
	Member  petrel.NodeID `json:"member,omitempty"`
	Peer    string        `json:"peer,omitempty"`
	Bus     string        `json:"bus,omitempty"`
	Feature int           `json:"feature,omitempty"`
	Force   bool          `json:"force,omitempty"`
	Moved   bool          `json:"moved,omitempty"` // of opJoin: it is a member and has another address now; not_found if it was removed
}

type cellReply struct {
	Error    *cellError    `json:"error,omitempty"`
	Redirect string        `json:"redirect,omitempty"` // the leader's peer port: ask there
	Leader   petrel.NodeID `json:"leader,omitempty"`
	Member   petrel.NodeID `json:"member,omitempty"` // of opWho
	Nodes    []knownNode   `json:"nodes,omitempty"`
}

// cellError is a refusal that crosses nodes.
type cellError struct {
	Code   petrel.Code `json:"code"`
	Detail string      `json:"detail"`
}

// permanent tells a refusal that asking again does not change: another state of the cell does not help, only another
// build, name or request.
func permanent(err error) bool {
	var e *petrel.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case petrel.CodeConflict, petrel.CodeInvalidField, petrel.CodeNotFound:
		return true
	}
	return false
}

// ask sends one request to the node at addr.
func (c *cell) ask(ctx context.Context, addr string, q cellRequest) (r cellReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, cellTimeout)
	defer cancel()
	conn, err := c.port.Dial(ctx, addr, cellProtocol)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return r, fmt.Errorf("ask the node at %s: %w", addr, err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, cellMaxLine)).Decode(&r); err != nil {
		return r, fmt.Errorf("the answer of the node at %s: %w", addr, err)
	}
	if r.Error != nil {
		return r, petrel.Errorf(r.Error.Code, "%s", r.Error.Detail)
	}
	return r, nil
}

// askAround asks the node at addr and follows it to the leader.
func (c *cell) askAround(ctx context.Context, addr string, q cellRequest) (r cellReply, err error) {
	for range 3 {
		if r, err = c.ask(ctx, addr, q); err != nil || r.Redirect == "" {
			return r, err
		}
		addr = r.Redirect
	}
	return r, errNoLeader()
}

// answersAs asks whether a member's process still runs at an address.
func (c *cell) answersAs(ctx context.Context, addr string, m petrel.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := c.ask(ctx, addr, cellRequest{Op: opWho})
	return err == nil && r.Member == m
}

// twinSentence says that two processes have one member's folder.
func twinSentence(m petrel.NodeID, addr string) string {
	return fmt.Sprintf("another process is %s already, at %s: one of the two data folders is a copy, and two processes with one vote could lose messages. "+
		"Stop that one first if this is the right one; to add a node, start with an empty folder and --join", m, addr)
}

func errNoLeader() *petrel.Error {
	return petrel.Errorf(petrel.CodeNoLeader, "The cell has no leader at the moment: too few of its nodes are up, or an election is under way. Try again in a moment.").After(time.Second)
}

// answer serves one request of another node.
func (c *cell) answer(conn net.Conn, from petrel.NodeID) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.ctx, cellTimeout)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(cellTimeout))
	line, err := bufio.NewReader(io.LimitReader(conn, cellMaxLine)).ReadBytes('\n')
	var q cellRequest
	if err != nil || json.Unmarshal(line, &q) != nil {
		c.logger.Warn("another node asked for what cannot be read", "from", from, "error", err)
		return
	}
	r, err := c.carryOut(ctx, q)
	if err != nil {
		c.logger.Info("a request of another node was refused", "op", q.Op, "from", from, "member", q.Member, "error", err)
		r = cellReply{Error: &cellError{petrel.CodeInternal, err.Error()}}
		var refusal *petrel.Error
		if errors.As(err, &refusal) {
			r.Error = &cellError{refusal.Code, refusal.Detail}
		}
	}
	b, err := json.Marshal(r)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	if err != nil {
		c.logger.Debug("another node did not take its answer", "from", from, "error", err)
	}
}

// carryOut does what was asked, or says who leads.
func (c *cell) carryOut(ctx context.Context, q cellRequest) (cellReply, error) {
	switch q.Op {
	case opDrain:
		c.drain()
		return cellReply{}, nil
	case opWho:
		return cellReply{Member: c.self.Member, Nodes: []knownNode{c.here()}}, nil
	}
	log := c.log.Load()
	if log == nil {
		return cellReply{}, errNoLeader()
	}
	st := (*log).Status()
	if !st.IsLeader {
		if q.Op == opJoin {
			c.met(ctx, knownNode{Member: q.Member, Peer: q.Peer, Bus: q.Bus, Feature: q.Feature})
		}
		for _, m := range st.Members {
			if m.ID == st.Leader && m.Addr != "" {
				return cellReply{Redirect: c.movedTo(m.Addr)}, nil
			}
		}
		return cellReply{}, errNoLeader()
	}
	var err error
	switch q.Op {
	case opJoin:
		err = c.takeIn(ctx, *log, st, q)
	case opRemove:
		err = c.remove(ctx, *log, st, q)
	case opMember:
		if !isMember(st.Members, q.Member) {
			err = petrel.Errorf(petrel.CodeNotFound, "%s is not a member of the cell.", q.Member)
		}
	case opTransfer:
		err = c.transfer(ctx, *log, st, q.Member)
	default:
		err = petrel.Errorf(petrel.CodeNotFound, "This node does not know the request %q: it is of an older build.", q.Op)
	}
	if err != nil {
		if errors.Is(err, petrel.ErrNotAppended) || errors.Is(err, petrel.ErrUnknownOutcome) {
			err = errNoLeader().Because(err)
		}
		return cellReply{}, err
	}
	nodes := append([]knownNode{c.here()}, c.knownNodes()...)
	for _, m := range st.Members { // also those that were never seen on the bus
		if !hasNode(nodes, m.ID) {
			nodes = append(nodes, knownNode{Member: m.ID, Peer: m.Addr})
		}
	}
	return cellReply{Leader: c.self.Member, Nodes: nodes}, nil
}

func hasNode(nodes []knownNode, id petrel.NodeID) bool {
	for _, k := range nodes {
		if k.Member == id {
			return true
		}
	}
	return false
}

// lead carries out a request that only the leader can, wherever that is.
func (c *cell) lead(ctx context.Context, q cellRequest) error {
	r, err := c.carryOut(ctx, q)
	if err == nil && r.Redirect != "" {
		if _, err = c.askAround(ctx, r.Redirect, q); err != nil && petrel.CodeOf(err) == petrel.CodeInternal {
			err = errNoLeader().Because(err) // it does not answer where it was last
		}
	}
	if why := c.waits().String(); why != "" && petrel.CodeOf(err) == petrel.CodeNoLeader {
		return petrel.Errorf(petrel.CodeNoLeader, "The cell has no leader at the moment: %s. Try again in a moment.", why).After(time.Second).Because(err)
	}
	return err
}
