package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Network reaches the other members of one group by streams. What lies below (one TLS port
// with ALPN, loopback in tests) is the caller's matter; raftlog only puts a few bytes in front
// of each stream that say what it carries and for whom. Open takes the Network over: Close closes it.
type Network interface {
	// Accept returns the next stream from another member; an error that wraps
	// net.ErrClosed after Close.
	Accept() (net.Conn, error)
	// Dial opens a stream to the member at addr.
	Dial(ctx context.Context, addr string) (net.Conn, error)
	// Addr is what the other members dial to reach this one.
	Addr() string
	Close() error
}

// A stream begins with its kind, and the length (1 byte) and id of the member that it is meant for. Addresses are
// used again: a node whose disk was lost comes back as another member at the same place, and a leader that
// knows only the old one would count its acknowledgements, and a candidate its vote, as those of the member that was
// lost. So a member refuses what is not for it.
const (
	streamRaft    byte = 'r' // raft.NetworkTransport
	streamForward byte = 'f' // forward.go
)

// mux tells the streams of a Network apart and owns the accepting goroutine.
type mux struct {
	net     Network
	self    string         // the member's id
	forward func(net.Conn) // serves one stream; returns when it ends
	raft    *streamLayer
	ctx     context.Context // ends with close
	end     context.CancelFunc

	mu     sync.Mutex            // guards what follows
	conns  map[net.Conn]struct{} // accepted and not yet handed to raft
	closed bool
	wg     sync.WaitGroup
}

func newMux(n Network, self petrel.NodeID, forward func(net.Conn)) *mux {
	m := &mux{net: n, self: string(self), forward: forward, conns: map[net.Conn]struct{}{}}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.raft = &streamLayer{mux: m, in: make(chan net.Conn), closed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	return m
}

// start accepts streams; before, nobody is there to serve them.
func (m *mux) start() { m.wg.Go(m.accept) }

func (m *mux) accept() {
	for {
		c, err := m.net.Accept()
		if err != nil {
			if m.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // no descriptors left, for one: do not spin
			case <-m.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		if m.track(c) {
			m.wg.Go(func() { m.serve(c) })
		}
	}
}

func (m *mux) serve(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	kind, id, err := readPreface(c)
	_ = c.SetReadDeadline(time.Time{})
	if err == nil && id != m.self {
		err = fmt.Errorf("meant for member %q", id)
	}
	if err == nil && kind == streamRaft {
		m.mu.Lock()
		delete(m.conns, c)
		m.mu.Unlock()
		if !m.raft.hand(c) {
			_ = c.Close()
		}
		return
	}
	defer m.untrack(c)
	if err == nil && kind == streamForward {
		m.forward(c)
	}
}

func readPreface(r io.Reader) (kind byte, id string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	b := make([]byte, head[1])
	_, err = io.ReadFull(r, b)
	return head[0], string(b), err
}

func (m *mux) track(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = c.Close()
		return false
	}
	m.conns[c] = struct{}{}
	return true
}

func (m *mux) untrack(c net.Conn) {
	m.mu.Lock()
	delete(m.conns, c)
	m.mu.Unlock()
	_ = c.Close()
}

// close ends every stream and waits for those who served them.
func (m *mux) close() {
	m.mu.Lock()
	m.closed = true
	m.end()
	for c := range m.conns {
		_ = c.Close()
	}
	m.mu.Unlock()
	_ = m.net.Close()
	_ = m.raft.Close()
	m.wg.Wait()
}

// at names a member and where it is, for mux.dial.
func at(id, addr string) string { return id + "@" + addr }

func (m *mux) dial(ctx context.Context, to string, kind byte) (net.Conn, error) {
	i := strings.LastIndexByte(to, '@') // no address has one
	if i < 0 || i > 255 {
		return nil, fmt.Errorf("raftlog: %q does not name a member", to)
	}
	c, err := m.net.Dial(ctx, to[i+1:])
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append([]byte{kind, byte(i)}, to[:i]...)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// streamLayer is what the engine sees. raft's NetworkTransport closes neither its pooled
// nor its accepted connections on Close, so that their goroutines would stay: this does.
type streamLayer struct {
	mux    *mux
	in     chan net.Conn
	closed chan struct{}

	mu    sync.Mutex // guards conns and done
	conns map[net.Conn]struct{}
	done  bool
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func (s *streamLayer) hand(c net.Conn) bool {
	select {
	case s.in <- c:
		return true
	case <-s.closed:
		return false
	}
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.in:
		return s.own(c)
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	defer context.AfterFunc(s.mux.ctx, cancel)()
	c, err := s.mux.dial(ctx, string(addr), streamRaft)
	if err != nil {
		return nil, err
	}
	return s.own(c)
}

func (s *streamLayer) own(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	s.conns[c] = struct{}{}
	return &ownedConn{c, s}, nil
}

// Close implements net.Listener.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil
	}
	s.done = true
	close(s.closed)
	for c := range s.conns {
		_ = c.Close()
	}
	return nil
}

// Addr implements net.Listener.
func (s *streamLayer) Addr() net.Addr { return netAddr(s.mux.net.Addr()) }

type netAddr string

func (netAddr) Network() string  { return "petrel" }
func (a netAddr) String() string { return string(a) }

type ownedConn struct {
	net.Conn
	s *streamLayer
}

func (c *ownedConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.Conn)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// transport is raft's own, with members called by name and address.
type transport struct {
	*raft.NetworkTransport
	patience time.Duration // for handing over leadership
}

var (
	_ raft.Transport   = transport{}
	_ raft.WithPreVote = transport{}
)

func target(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(at(string(id), string(addr)))
}

// AppendEntriesPipeline implements raft.Transport.
func (t transport) AppendEntriesPipeline(id raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, target(id, addr))
}

// AppendEntries implements raft.Transport.
func (t transport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, target(id, addr), q, a)
}

// RequestVote implements raft.Transport. A voter refuses candidates that its own configuration does not name. But one that
// was away while the members changed does not know those who came meanwhile, and without its vote they may never
// elect anybody: so a candidate does not give its name. That the voter's log is not ahead is what makes the vote
// safe, and that it hears of no leader is what keeps members that were removed from disturbing.
func (t transport) RequestVote(id raft.ServerID, addr raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	nameless := *q
	nameless.ID = nil // as from the versions of raft that knew no names
	return t.NetworkTransport.RequestVote(id, target(id, addr), &nameless, a)
}

// RequestPreVote implements raft.WithPreVote. See RequestVote; here a name must be given, and everyone knows his own.
func (t transport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	masked := *q
	masked.ID = []byte(id)
	return t.NetworkTransport.RequestPreVote(id, target(id, addr), &masked, a)
}

// InstallSnapshot implements raft.Transport.
func (t transport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, r io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, target(id, addr), q, a, r)
}

// TimeoutNow implements raft.Transport. A leader that hands over takes no appends until this is answered, also when
// it has long given up: so one that stands still is not waited for.
func (t transport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, q *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	done := make(chan error, 1)
	go func() { done <- t.NetworkTransport.TimeoutNow(id, target(id, addr), q, new(raft.TimeoutNowResponse)) }()
	select {
	case err := <-done:
		return err
	case <-time.After(t.patience):
		return fmt.Errorf("no answer from %s in %v", id, t.patience)
	}
}
