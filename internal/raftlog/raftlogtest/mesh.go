package raftlogtest

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/petrel-chat/petrel/internal/raftlog"
)

// Mesh connects members of one process over loopback under names of its own, and can cut them off.
type Mesh struct {
	mu    sync.Mutex
	addrs map[string]string
	cut   map[string]bool
	conns map[*meshConn]struct{}
}

// NewMesh returns a mesh without members.
func NewMesh() *Mesh {
	return &Mesh{addrs: map[string]string{}, cut: map[string]bool{}, conns: map[*meshConn]struct{}{}}
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

type meshNet struct {
	raftlog.Network
	m    *Mesh
	name string
}

func (n *meshNet) Addr() string { return n.name }

func (n *meshNet) Dial(ctx context.Context, to string) (net.Conn, error) {
	n.m.mu.Lock()
	addr, ok := n.m.addrs[to]
	bad := !ok || n.m.cut[to] || n.m.cut[n.name]
	n.m.mu.Unlock()
	if bad {
		return nil, fmt.Errorf("mesh: %s cannot reach %s", n.name, to)
	}
	c, err := n.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	mc := &meshConn{Conn: c, m: n.m, from: n.name, to: to}
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
}

func (c *meshConn) Close() error {
	c.m.mu.Lock()
	delete(c.m.conns, c)
	c.m.mu.Unlock()
	return c.Conn.Close()
}
