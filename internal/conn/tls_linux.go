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
//   - Once it was adopted, a tls.Conn is touched under its loop's own alone (by the loop, by one that helps it, and after its end by who came too late), and
//     never waits there: to read where there is nothing is an error that is temporary, which crypto/tls bears (the rest of a record stays where it is), and
//     to write always succeeds.
//   - What is sent was sealed in that order, and nothing is sealed that is not sent before what is sealed after it: a socket that takes no more has at most
//     one piece sealed, which is many small frames or one of any size, as other sockets have one begun; the frames behind it wait as they are.
//   - What TLS itself has to say to a peer (that keys change, that something is wrong) waits behind such a piece. Where more than maxOwed bytes of it wait, or
//     come of one read, the socket ends.
//   - Frames of it never go out by an io_uring: they would not be sealed.

// maxOwed is what TLS may have to say to a peer that takes nothing, or at once: 150 answers to new keys, for which nobody asks more than once in gigabytes.
const maxOwed = 4 << 10

// layer is TLS between a socket of a loop and its connection, and to crypto/tls the socket itself.
type layer struct {
	conn *tls.Conn
	l    *loop
	in   []byte // was read from the socket; empty but for a call
	owed int32  // bytes of its own in what is stuck, see maxOwed
	over bool   // the peer has ended it, while the connection was paused
}

var _ net.Conn = (*layer)(nil)

// Read implements net.Conn.
func (y *layer) Read(b []byte) (int, error) {
	if len(y.in) == 0 {
		return 0, os.ErrDeadlineExceeded // temporary, to crypto/tls
	}
	n := copy(b, y.in)
	y.in = y.in[n:]
	return n, nil
}

// Write implements net.Conn.
func (y *layer) Write(b []byte) (int, error) {
	y.l.sealed = append(y.l.sealed, b...)
	return len(b), nil
}

// Close implements net.Conn. The socket is its loop's to close.
func (y *layer) Close() error { return nil }

// SetDeadline implements net.Conn: nothing waits.
func (y *layer) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn: nothing waits.
func (y *layer) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn: nothing waits.
func (y *layer) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr implements net.Conn.
func (y *layer) LocalAddr() net.Addr { return y.l.s.addr }

// RemoteAddr implements net.Conn: the peer's address is not kept.
func (y *layer) RemoteAddr() net.Addr { return &net.TCPAddr{} }

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
		t.opt.Logger.Warn("A WebSocket over TLS stays in a goroutine, which costs more memory: its socket could not be given to a loop.", "error", err)
		return false
	}
	l := r.s.loops[fd%len(r.s.loops)]
	s := &sock{l: l, fd: int32(fd), tls: &layer{conn: secured, l: l}} //nolint:gosec // a descriptor
	r.Conn = s.tls
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
		_ = unix.Close(int(s.fd))
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
		l.unseal(s, nil)
	}
}

// unseal gives a connection what records say.
func (l *loop) unseal(s *sock, records []byte) {
	y := s.tls
	y.in = records
	for {
		n, err := y.conn.Read(l.plain)
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
		case len(l.sealed) > maxOwed: // crypto/tls bears any number of new keys, as long as a byte comes after a few
			l.sealed = l.sealed[:0]
			l.end(s)
			return
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			y.in = nil
			l.reply(s)
			return
		default: // the peer's goodbye, or what is no TLS, of which it is told
			y.in = nil
			if y.over = l.reply(s); y.over {
				l.ended(s)
			}
			return
		}
	}
}

// ended ends a socket whose TLS the peer has ended, once the connection has heard everything that was said before. It says whether it did.
func (l *loop) ended(s *sock) bool {
	if s.fd < 0 || s.tls == nil || !s.tls.over || s.held != nil {
		return false
	}
	l.gone(s, true)
	return true
}

// reply sends what TLS has to say by itself. It says whether the socket goes on.
func (l *loop) reply(s *sock) bool {
	b := l.sealed
	l.sealed = b[:0]
	if len(b) == 0 {
		return true
	}
	if s.stuck == nil {
		n, ok := l.put(s, b)
		if b = b[n:]; !ok || len(b) == 0 {
			return ok
		}
		s.stuck = &stuck{}
		s.conn.writing.Store(l.now)
	}
	if s.tls.owed += int32(len(b)); s.tls.owed > maxOwed { //nolint:gosec // twice maxOwed at most
		l.end(s)
		return false
	}
	s.stuck.left = append(s.stuck.left, b...)
	return true
}

// seal makes records of a piece; they are valid until the next call. It says whether it could: when not, there can be no more.
func (l *loop) seal(s *sock, piece []byte) (records []byte, ok bool) {
	if cap(l.sealed) > 4*scratch {
		l.sealed = nil // a very large frame's
	}
	_, err := s.tls.conn.Write(piece)
	records = l.sealed
	l.sealed = records[:0]
	return records, err == nil
}

// bye tells TLS's end of what is sent, if there is room.
func (l *loop) bye(s *sock) {
	if s.tls == nil || s.stuck != nil {
		return
	}
	_ = s.tls.conn.CloseWrite()
	if b := l.sealed; len(b) > 0 {
		l.sealed = b[:0]
		_, _ = rawWrite(s.fd, b)
	}
}
