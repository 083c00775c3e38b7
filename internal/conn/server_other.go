//go:build !linux

package conn

import "net"

// Server would serve connections on loops; here there is none.
type Server struct{}

// NewServer returns ErrNoLoops.
func (t *Table) NewServer(net.Listener, ServerOptions) (*Server, error) { return nil, ErrNoLoops }

// adopt finds no loop to move a connection to.
func (t *Table) adopt(net.Conn, []byte, Config, Handler) bool { return false }

// Rest is not called without a server.
func (s *Server) Rest() net.Listener { return nil }

// Drain is not called without a server.
func (s *Server) Drain() {}

// Stop is not called without a server.
func (s *Server) Stop() {}
