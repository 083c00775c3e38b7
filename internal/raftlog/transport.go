package raftlog

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Network reaches the other members of one group by streams. What lies below (one TLS port
// with ALPN, loopback in tests) is the caller's matter; raftlog only puts one byte in front
// of each stream that says what it carries. Open takes the Network over: Close closes it.
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

// The first byte of a stream.
const (
	streamRaft    byte = 'r' // raft.NetworkTransport
	streamForward byte = 'f' // forward.go
)

// mux tells the streams of a Network apart and owns the accepting goroutine.
type mux struct {
	net     Network
	forward func(net.Conn) // serves one stream; returns when it ends
	raft    *streamLayer
	ctx     context.Context // ends with close
	end     context.CancelFunc

	mu     sync.Mutex            // guards what follows
	conns  map[net.Conn]struct{} // accepted and not yet handed to raft
	closed bool
	wg     sync.WaitGroup
}

func newMux(n Network, forward func(net.Conn)) *mux {
	m := &mux{net: n, forward: forward, conns: map[net.Conn]struct{}{}}
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
	var kind [1]byte
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Read(kind[:])
	_ = c.SetReadDeadline(time.Time{})
	if err == nil && kind[0] == streamRaft {
		m.mu.Lock()
		delete(m.conns, c)
		m.mu.Unlock()
		if !m.raft.hand(c) {
			_ = c.Close()
		}
		return
	}
	defer m.untrack(c)
	if err == nil && kind[0] == streamForward {
		m.forward(c)
	}
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

func (m *mux) dial(ctx context.Context, addr string, kind byte) (net.Conn, error) {
	c, err := m.net.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{kind}); err != nil {
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
