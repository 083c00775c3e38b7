package conn

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A WebSocket over TLS begins in net/http, in a goroutine: the handshakes of TLS and of WebSocket. Then its socket goes to a loop, which runs its tls.Conn by
// hand: what the socket gave is put before the tls.Conn, which is read until it wants more, and what it writes is gathered and sent as any frame is.
//
//   - A tls.Conn is touched by its loop alone once it was adopted, and never waits there: to read where there is nothing is an error that is temporary, which
//     crypto/tls bears (the rest of a record stays where it is), and to write always succeeds.
//   - What is sent was sealed in that order, and nothing is sealed that is not sent before what is sealed after it: a socket that takes no more has at most
//     one piece sealed, as other sockets have one begun, and frames wait unsealed.
//   - What TLS itself has to say to a peer (that keys change, that something is wrong) waits behind such a piece, up to maxOwed bytes; then the socket ends.

// maxOwed is what TLS may have to say to a peer that takes nothing.
const maxOwed = 4 << 10

// veil is the socket that a tls.Conn reads and writes on a loop.
type veil struct {
	net.Conn // nil: nobody asks for the rest
	tls      *tls.Conn
	l        *loop
	in       []byte // was read from the socket; empty but for a call
	owed     int    // bytes, see maxOwed
}

// Read implements net.Conn.
func (v *veil) Read(b []byte) (int, error) {
	if len(v.in) == 0 {
		return 0, os.ErrDeadlineExceeded // temporary, to crypto/tls
	}
	n := copy(b, v.in)
	v.in = v.in[n:]
	return n, nil
}

// Write implements net.Conn.
func (v *veil) Write(b []byte) (int, error) {
	v.l.sealed = append(v.l.sealed, b...)
	return len(b), nil
}

// Close implements net.Conn. The socket is its loop's to close.
func (v *veil) Close() error { return nil }

// SetWriteDeadline implements net.Conn: nothing waits.
func (v *veil) SetWriteDeadline(time.Time) error { return nil }

// adopt moves a WebSocket that came through Server.Rest and then through crypto/tls to a loop. It says whether it did, or else changed nothing.
func (t *Table) adopt(nc net.Conn, early []byte, cfg Config, h Handler) bool {
	secured, ok := nc.(*tls.Conn)
	if !ok {
		return false
	}
	r, ok := secured.NetConn().(*replayed)
	if !ok || r.s.t != t {
		return false
	}
	fd, err := r.leave()
	if err != nil {
		r.s.opt.Failed(err)
		return false
	}
	l := r.s.loops[fd%len(r.s.loops)]
	s := &sock{l: l, fd: fd, veil: &veil{tls: secured, l: l}}
	r.Conn = s.veil
	task := func() { l.adopt(s, t.newConn(WireWebSocket, s, cfg, h), early) }
	if !l.post(task) {
		l.own.Lock() // nobody's any more
		defer l.own.Unlock()
		task() // and the table refuses
	}
	return true
}

// leave takes the socket out of Go's poller, with the place it has: they are the caller's.
func (c *replayed) leave() (fd int, err error) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return 0, ErrNoLoops
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, err
	}
	c.once.Do(func() {})
	_ = tcp.Close() // its descriptor has a twin, which does not block either
	return fd, nil
}

// adopt is Table.adopt on the loop.
func (l *loop) adopt(s *sock, c *Conn, early []byte) {
	if !l.s.t.add(c) { // it has ended
		_ = unix.Close(s.fd)
		s.fd = -1
		l.s.opt.Release()
		return
	}
	s.conn = c
	if l.plain == nil {
		l.plain = make([]byte, scratch/4) // as large as a record
	}
	if !l.place(s) { // what has come meanwhile, and room to write, is told at once
		return
	}
	l.s.t.guarded(c, func() { c.handler.OnOpen(c) })
	l.feed(s, early)
	if s.fd >= 0 {
		l.unveil(s, nil)
	}
}

// unveil gives a connection what records say.
func (l *loop) unveil(s *sock, records []byte) {
	v := s.veil
	v.in = records
	for {
		n, err := v.tls.Read(l.plain)
		switch {
		case n == 0:
		case s.held != nil:
			s.held = append(s.held, l.plain[:n]...) // it was paused amid what was read; no more is, until it goes on
		default:
			l.feed(s, l.plain[:n])
		}
		switch {
		case s.fd < 0:
			l.sealed = l.sealed[:0] // or it would go to the next one
			return
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			v.in = nil
			l.reply(s)
			return
		default: // the peer's goodbye, or what is no TLS, of which it is told
			v.in = nil
			if l.reply(s) {
				l.gone(s, true)
			}
			return
		}
	}
}

// reply sends what TLS has to say by itself. It says whether the socket goes on.
func (l *loop) reply(s *sock) bool {
	b := l.sealed
	l.sealed = b[:0]
	if len(b) == 0 {
		return true
	}
	if s.stuck != nil {
		if s.veil.owed += len(b); s.veil.owed > maxOwed {
			l.end(s)
			return false
		}
		s.stuck.left = append(s.stuck.left, b...)
		return true
	}
	n, ok := l.put(s, b)
	if ok && n < len(b) {
		s.stuck = &stuck{left: append([]byte(nil), b[n:]...)}
	}
	return ok
}

// seal makes records of a piece. They are valid until the next call. nil: there can be no more.
func (l *loop) seal(s *sock, piece []byte) []byte {
	if cap(l.sealed) > 4*scratch {
		l.sealed = nil // a very large frame's
	}
	_, err := s.veil.tls.Write(piece)
	b := l.sealed
	l.sealed = b[:0]
	if err != nil {
		return nil
	}
	return b
}

// bye tells TLS's end of what is sent, if there is room.
func (l *loop) bye(s *sock) {
	if s.veil == nil || s.stuck != nil {
		return
	}
	_ = s.veil.tls.CloseWrite()
	if b := l.sealed; len(b) > 0 {
		l.sealed = b[:0]
		_, _ = rawWrite(s.fd, b)
	}
}
