package conn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Server accepts sockets on epoll loops, one goroutine each, and keeps those that become connections: an idle one has no goroutine, no
// buffer and no timer. A loop reads heads itself, lets Handler answer what is hot, and hands every other socket to Rest, with the
// bytes that were read of it. One of those comes back: a WebSocket over TLS, which shakes hands there (Table.Open; tls_linux.go).
//
// A loop works in waves. It takes everything that is ready, one socket after the other; what is queued for connections meanwhile, by
// this wave or by other goroutines, is written at its end: one write per connection, whatever the number of frames. A loop that is at work
// writes for the others too, as long as they sleep and there is little to write: a publication to a few does not wake every processor.
type Server struct {
	t     *Table
	opt   ServerOptions
	loops []*loop
	addr  net.Addr
	fd    int // listens

	rest      chan net.Conn
	running   sync.WaitGroup
	drained   chan struct{} // closed by Drain
	listening atomic.Int32  // loops that accept: the last one to cease closes fd
	drainOnce sync.Once
	stopOnce  sync.Once
	stopped   chan struct{}

	gathering atomic.Int32 // loops that do, or a little less while they begin to
	left      atomic.Bool  // something may be in the inbox of a loop that sleeps, and nobody woke it
}

// NewServer takes the listener over and begins to serve.
func (t *Table) NewServer(ln net.Listener, o ServerOptions) (*Server, error) {
	o.defaults()
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, ErrNoLoops
	}
	fd, err := listening(tcp)
	if err != nil {
		return nil, err
	}
	s := &Server{t: t, opt: o, addr: ln.Addr(), fd: fd, rest: make(chan net.Conn), drained: make(chan struct{}), stopped: make(chan struct{})}
	for range o.Loops {
		l, err := newLoop(s)
		if err != nil {
			for _, l := range s.loops {
				l.release()
			}
			return nil, errors.Join(err, unix.Close(fd))
		}
		s.loops = append(s.loops, l)
	}
	s.listening.Store(int32(len(s.loops))) //nolint:gosec // as many as processors
	_ = tcp.Close()                        // its descriptor has a twin
	for _, l := range s.loops {
		s.running.Go(l.run)
	}
	s.running.Go(s.tick)
	return s, nil
}

// tick wakes the loops so that they sweep.
func (s *Server) tick() {
	t := time.NewTicker(s.opt.sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stopped:
			return
		case <-t.C:
			for _, l := range s.loops {
				l.rouse()
			}
		}
	}
}

// listening returns a descriptor of the listener that Go's own poller does not know. What is set here, accepted sockets inherit.
func listening(ln *net.TCPListener) (fd int, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("reach the listener: %w", err)
	}
	cerr := raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("reach the listener: %w", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return 0, errors.Join(fmt.Errorf("set up the listener: %w", err), unix.Close(fd))
		}
	}
	return fd, nil
}

// Rest is where every connection comes out that is not for the loops: serve it with net/http, as it is or behind crypto/tls. With a tls.Conn right above
// what Accept returned, a WebSocket goes on to a loop.
func (s *Server) Rest() net.Listener { return rest{s} }

type rest struct{ s *Server }

func (r rest) Accept() (net.Conn, error) {
	select {
	case nc := <-r.s.rest:
		return nc, nil
	case <-r.s.drained:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: nothing new is accepted.
func (r rest) Close() error { r.s.Drain(); return nil }

func (r rest) Addr() net.Addr { return r.s.addr }

// Drain stops accepting, and ends connections between two requests. Those that became WebSockets are the table's to drain.
func (s *Server) Drain() {
	s.drainOnce.Do(func() {
		close(s.drained)
		var done sync.WaitGroup
		for _, l := range s.loops {
			done.Add(1)
			l.post(func() { defer done.Done(); l.drain() })
		}
		done.Wait() // or one who comes now would still be let in
	})
}

// draining says that nothing new is taken in.
func (s *Server) draining() bool {
	select {
	case <-s.drained:
		return true
	default:
		return false
	}
}

// Stop ends the loops and every socket that did not become a connection of the table; stop that first. Safe to call twice.
func (s *Server) Stop() {
	s.Drain()
	s.stopOnce.Do(func() {
		close(s.stopped)
		for _, l := range s.loops {
			l.post(func() { l.ending = true })
		}
		s.running.Wait()
		for _, l := range s.loops {
			l.release()
		}
	})
}

// handOver gives a socket away to net/http. early is what was read of it already.
func (s *Server) handOver(fd int, early []byte) {
	f := os.NewFile(uintptr(fd), "")
	nc, err := net.FileConn(f) // with a descriptor of its own
	_ = f.Close()
	if err != nil {
		s.opt.Failed(err)
		s.opt.Release()
		return
	}
	c := &replayed{Conn: nc, early: append([]byte(nil), early...), s: s}
	s.running.Go(func() {
		select {
		case s.rest <- c:
		case <-s.drained:
			_ = c.Close()
		}
	})
}

// replayed is a connection some bytes of which were read before.
type replayed struct {
	net.Conn
	early []byte
	s     *Server
	once  sync.Once // for the place that it gives back
}

func (c *replayed) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *replayed) Close() error {
	c.once.Do(c.s.opt.Release)
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer so that a peer that is still sending can read it.
func (c *replayed) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}
