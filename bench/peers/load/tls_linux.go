package load

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsConn is TLS over a raw socket. Its handshake is done by a dialer's goroutine on a blocking socket; after that the loop
// owns it and the socket does not block: crypto/tls takes a temporary error of the wire as "not yet" and goes on later.
type tlsConn struct{ conn *tls.Conn }

func (t *tlsConn) read(p []byte) (int, error) {
	n, err := t.conn.Read(p)
	if n > 0 {
		return n, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, errAgain
	}
	return 0, err
}

func (t *tlsConn) write(p []byte) error {
	_, err := t.conn.Write(p)
	return err
}

// wire is the net.Conn under it: reads and writes of the descriptor, and nothing else.
type wire struct {
	fd       int32
	blocking bool // it may take long, so the scheduler is told
}

func (w *wire) Read(p []byte) (int, error) {
	if w.blocking {
		n, err := uninterrupted(func() (int, error) { return unix.Read(int(w.fd), p) })
		if n == 0 && err == nil {
			err = io.EOF
		}
		return max(n, 0), err
	}
	n, err := rawRead(w.fd, p)
	if errors.Is(err, errAgain) {
		return 0, os.ErrDeadlineExceeded // a net.Error that is temporary
	}
	return n, err
}

// uninterrupted calls again what the runtime's signals ended, as they do for a socket with a time limit (man 7 signal).
func uninterrupted(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EALREADY) {
			return n, err
		}
	}
}

func (w *wire) Write(p []byte) (int, error) {
	if err := rawWrite(w.fd, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (*wire) Close() error                     { return nil }
func (*wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*wire) SetDeadline(time.Time) error      { return nil }
func (*wire) SetReadDeadline(time.Time) error  { return nil }
func (*wire) SetWriteDeadline(time.Time) error { return nil }

// dialer makes connections with TLS, a few at a time, each in a goroutine that blocks its thread.
type dialer struct {
	l    *loop
	wake int // eventfd: the poller sees what was dialled
	asks chan call
	wg   sync.WaitGroup

	mu   sync.Mutex // guards done
	done []call
}

type call struct {
	about, index int
	addr         string
	socket       socket
	err          error
}

const dialers = 8

func newDialer(l *loop) (*dialer, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := l.watch(&socket{fd: int32(wake)}, unix.EPOLL_CTL_ADD, unix.EPOLLIN, aboutDialer, 0); err != nil {
		return nil, err
	}
	d := &dialer{l: l, wake: wake, asks: make(chan call, l.job.Subscribers+l.job.Lanes)} // all that may be asked for at once
	for range dialers {
		d.wg.Go(func() {
			for c := range d.asks {
				c.socket, c.err = dialTLS(l.ctx, c.addr)
				d.mu.Lock()
				d.done = append(d.done, c)
				d.mu.Unlock()
				_, _ = unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			}
		})
	}
	return d, nil
}

func (d *dialer) ask(about, index int, addr string) {
	d.asks <- call{about: about, index: index, addr: addr}
}

func (d *dialer) stop() {
	close(d.asks)
	d.wg.Wait()
	for _, c := range d.done {
		d.l.hangUp(&c.socket)
	}
	_ = unix.Close(d.wake)
}

// dialled hands over what the goroutines made. It is called by the loop.
func (d *dialer) dialled() {
	var drain [8]byte
	_, _ = unix.Read(d.wake, drain[:])
	d.mu.Lock()
	done := d.done
	d.done = nil
	d.mu.Unlock()
	for _, c := range done {
		if c.about == aboutLane {
			ln := &d.l.lanes[c.index]
			ln.socket = c.socket
			if c.err == nil {
				c.err = d.l.adopt(&ln.socket, aboutLane, c.index)
			}
			if c.err != nil {
				d.l.laneBroke(ln, c.err)
				continue
			}
			d.l.laneConnected(ln)
			continue
		}
		s := &d.l.subs[c.index]
		s.socket = c.socket
		if c.err == nil {
			c.err = d.l.adopt(&s.socket, aboutSubscriber, c.index)
		}
		if c.err == nil {
			c.err = d.l.upgrade(c.index)
		}
		if c.err != nil {
			d.l.failed(c.index, c.err)
		}
	}
}

// dialTLS believes any certificate: the server is the benchmark's own, on this machine.
func dialTLS(ctx context.Context, addr string) (s socket, err error) {
	sa, err := sockaddr(addr)
	if err != nil {
		return s, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, err
	}
	s = socket{fd: int32(fd), open: true}
	limit := unix.Timeval{Sec: 20}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
	)
	if err != nil {
		return s, err
	}
	_, err = uninterrupted(func() (int, error) { return 0, unix.Connect(fd, sa) })
	if err != nil && !errors.Is(err, unix.EISCONN) { // an interrupted one may be done by the time of the next
		return s, err
	}
	w := &wire{fd: s.fd, blocking: true}
	c := tls.Client(w, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: "localhost"})
	if err := c.HandshakeContext(ctx); err != nil {
		return s, err
	}
	w.blocking = false
	s.tls = &tlsConn{conn: c}
	return s, nil
}
