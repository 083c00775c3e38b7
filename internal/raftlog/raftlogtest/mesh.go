package raftlogtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/raftlog"
)

// Mesh connects members of one process over loopback under names of its own, and can cut them off or let
// them fall silent. Its streams begin with its own mark: the system gives a port that one mesh has closed to another,
// and members of the same name would hear each other.
type Mesh struct {
	mark [8]byte

	mu     sync.Mutex
	addrs  map[string]string
	cut    map[string]bool
	frozen map[string]bool
	thaw   chan struct{} // closed and replaced at each Thaw
	conns  map[*meshConn]struct{}
}

// NewMesh returns a mesh without members.
func NewMesh() *Mesh {
	m := &Mesh{
		addrs: map[string]string{}, cut: map[string]bool{}, frozen: map[string]bool{}, thaw: make(chan struct{}),
		conns: map[*meshConn]struct{}{},
	}
	_, _ = rand.Read(m.mark[:]) // never fails
	return m
}

// Join returns the Network of the member called name, over plain loopback TCP. After its Close the name may join again.
func (m *Mesh) Join(name string) (raftlog.Network, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return m.JoinOver(name, plain{l}), nil
}

// JoinOver is Join over a Network of the caller's.
func (m *Mesh) JoinOver(name string, below raftlog.Network) raftlog.Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addrs[name] = below.Addr()
	return &meshNet{Network: below, m: m, name: name}
}

type plain struct{ l net.Listener }

func (p plain) Accept() (net.Conn, error) { return p.l.Accept() }
func (p plain) Addr() string              { return p.l.Addr().String() }
func (p plain) Close() error              { return p.l.Close() }

func (plain) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

// Cut ends every stream from and to the member and refuses new ones, until Heal.
func (m *Mesh) Cut(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[name] = true
	for c := range m.conns {
		if c.from == name || c.to == name {
			_ = c.Conn.Close()
		}
	}
}

// Heal undoes Cut.
func (m *Mesh) Heal(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cut, name)
}

// Freeze lets every stream from and to the member stand still, as when its process is stopped or packets are
// lost: nothing is refused and nothing arrives, until Thaw.
func (m *Mesh) Freeze(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.frozen[name] = true
}

// Thaw undoes Freeze.
func (m *Mesh) Thaw(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.frozen, name)
	close(m.thaw)
	m.thaw = make(chan struct{})
}

// still returns nil when nothing between the two stands still, else what to wait for.
func (m *Mesh) still(from, to string) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen[from] || m.frozen[to] {
		return m.thaw
	}
	return nil
}

type meshNet struct {
	raftlog.Network
	m    *Mesh
	name string
}

func (n *meshNet) Addr() string { return n.name }

func (n *meshNet) Accept() (net.Conn, error) {
	c, err := n.Network.Accept()
	if err != nil {
		return nil, err
	}
	return &marked{Conn: c, want: n.m.mark}, nil
}

// marked is an accepted stream whose first bytes are the mesh's mark.
type marked struct {
	net.Conn
	want [8]byte
	seen bool // used by Read, which streams call one at a time
}

func (c *marked) Read(p []byte) (int, error) {
	if !c.seen {
		var got [8]byte
		if _, err := io.ReadFull(c.Conn, got[:]); err != nil {
			return 0, err
		}
		if got != c.want {
			return 0, errors.New("mesh: a stream of another mesh")
		}
		c.seen = true
	}
	return c.Conn.Read(p)
}

func (n *meshNet) Dial(ctx context.Context, to string) (net.Conn, error) {
	n.m.mu.Lock()
	addr, ok := n.m.addrs[to]
	bad := !ok || n.m.cut[to] || n.m.cut[n.name]
	n.m.mu.Unlock()
	if bad {
		return nil, fmt.Errorf("mesh: %s cannot reach %s", n.name, to)
	}
	for thaw := n.m.still(n.name, to); thaw != nil; thaw = n.m.still(n.name, to) {
		select {
		case <-thaw:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c, err := n.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(n.m.mark[:]); err != nil {
		_ = c.Close()
		return nil, err
	}
	mc := &meshConn{Conn: c, m: n.m, from: n.name, to: to, changed: make(chan struct{})}
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if n.m.cut[to] || n.m.cut[n.name] {
		_ = c.Close()
		return nil, fmt.Errorf("mesh: %s cannot reach %s", n.name, to)
	}
	n.m.conns[mc] = struct{}{}
	return mc, nil
}

type meshConn struct {
	net.Conn
	m        *Mesh
	from, to string

	mu          sync.Mutex
	read, write time.Time     // deadlines
	closed      bool          // by this end
	changed     chan struct{} // closed and replaced when one of the above changes
}

func (c *meshConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if e := c.wait(&c.read); e != nil {
		return 0, e
	}
	return n, err
}

func (c *meshConn) Write(p []byte) (int, error) {
	if err := c.wait(&c.write); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// wait returns once nothing stands still, or when the deadline passes or the stream is closed.
func (c *meshConn) wait(deadline *time.Time) error {
	for {
		thaw := c.m.still(c.from, c.to)
		if thaw == nil {
			return nil
		}
		c.mu.Lock()
		at, closed, changed := *deadline, c.closed, c.changed
		c.mu.Unlock()
		if closed {
			return net.ErrClosed
		}
		var late <-chan time.Time
		if !at.IsZero() {
			if time.Until(at) <= 0 {
				return os.ErrDeadlineExceeded
			}
			late = time.After(time.Until(at))
		}
		select {
		case <-thaw:
		case <-changed:
		case <-late:
		}
	}
}

func (c *meshConn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *meshConn) SetDeadline(t time.Time) error {
	c.change(func() { c.read, c.write = t, t })
	return c.Conn.SetDeadline(t)
}

func (c *meshConn) SetReadDeadline(t time.Time) error {
	c.change(func() { c.read = t })
	return c.Conn.SetReadDeadline(t)
}

func (c *meshConn) SetWriteDeadline(t time.Time) error {
	c.change(func() { c.write = t })
	return c.Conn.SetWriteDeadline(t)
}

func (c *meshConn) Close() error {
	c.change(func() { c.closed = true })
	c.m.mu.Lock()
	delete(c.m.conns, c)
	c.m.mu.Unlock()
	return c.Conn.Close()
}
