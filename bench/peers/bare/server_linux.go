package bare

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	wave    = 512 // events taken from the kernel at a time
	maxBody = 1 << 16
)

// server is the bare Go loop. Everything belongs to the one goroutine that runs it.
type server struct {
	ep, listener int
	coalesce     bool
	conns        []*conn // by file descriptor
	channels     map[string]*channel
	dirty        []*channel // with pending, in this wave
	published    []*conn    // answered after the wave
	buf, frame   []byte
}

type channel struct {
	subs    []*conn
	pending []byte // frames of this wave
}

type conn struct {
	fd        int32
	index     int32    // in channel.subs
	channel   *channel // of a subscriber
	in, out   []byte   // an incomplete request or frame; what the socket did not take
	publishes bool     // waits for the answer to its publication
}

// Serve listens on the port and serves until something fails that cannot be gone on with. With coalesce,
// publications that one wave brings leave in one write per subscriber.
func Serve(port int, coalesce bool) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = errors.Join(
		unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(l, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(l, 4096),
	)
	if err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	s := &server{ep: ep, listener: l, coalesce: coalesce, channels: map[string]*channel{}, buf: make([]byte, 1<<16), frame: make([]byte, 0, maxBody+4)}
	if err := s.watch(l, unix.EPOLL_CTL_ADD, unix.EPOLLIN); err != nil {
		return err
	}
	return s.run()
}

func (s *server) run() error {
	events := make([]unix.EpollEvent, wave)
	for {
		n, err := s.wait(events)
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			if int(e.Fd) == s.listener {
				if err := s.accept(); err != nil {
					return err
				}
				continue
			}
			c := s.conns[e.Fd]
			if e.Events&unix.EPOLLOUT != 0 {
				if err := s.putRest(c); err != nil {
					return err
				}
			}
			if e.Events&^unix.EPOLLOUT != 0 {
				if err := s.take(c); err != nil {
					return err
				}
			}
		}
		if err := s.endWave(); err != nil {
			return err
		}
	}
}

// wait blocks through the scheduler only after a millisecond without an event: told of every wait, it would look for work every 20 us.
func (s *server) wait(events []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.ep), uintptr(unsafe.Pointer(&events[0])), wave, 1, 0, 0)
	if errno == 0 && n > 0 {
		return int(n), nil
	}
	m, err := unix.EpollWait(s.ep, events, -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("epoll_wait: %w", err)
	}
	return max(m, 0), nil
}

func (s *server) watch(fd, op int, events uint32) error {
	return unix.EpollCtl(s.ep, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (s *server) accept() error {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return nil // no more of them, or no room: the poller says when there is
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		for len(s.conns) <= fd {
			s.conns = append(s.conns, nil)
		}
		s.conns[fd] = &conn{fd: int32(fd)}
		if err := s.watch(fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN); err != nil {
			return err
		}
	}
}

func (s *server) hangUp(c *conn) {
	if ch := c.channel; ch != nil {
		last := ch.subs[len(ch.subs)-1]
		ch.subs[c.index], last.index = last, c.index
		ch.subs = ch.subs[:len(ch.subs)-1]
	}
	s.conns[c.fd] = nil
	_ = unix.Close(int(c.fd))
}

// put writes without waiting and without telling the scheduler. A broken socket is found by the next read.
func (s *server) put(c *conn, p []byte) error {
	if c.out == nil {
		n, errno := rawWrite(c.fd, p)
		if n == len(p) || errno != 0 && errno != unix.EAGAIN {
			return nil
		}
		p = p[n:]
		if err := s.watch(int(c.fd), unix.EPOLL_CTL_MOD, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
			return err
		}
	}
	c.out = append(c.out, p...)
	return nil
}

func (s *server) putRest(c *conn) error {
	if len(c.out) == 0 {
		return nil
	}
	n, _ := rawWrite(c.fd, c.out)
	if c.out = c.out[n:]; len(c.out) > 0 {
		return nil
	}
	c.out = nil
	return s.watch(int(c.fd), unix.EPOLL_CTL_MOD, unix.EPOLLIN)
}

func (s *server) fanOut(ch *channel, p []byte) error {
	for _, c := range ch.subs {
		if err := s.put(c, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) answer(c *conn) error {
	return s.put(c, []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
}

func (s *server) publish(c *conn, ch *channel, body []byte) error {
	f := append(s.frame[:0], 0x81)
	if len(body) < 126 {
		f = append(f, byte(len(body)))
	} else {
		f = append(f, 126, byte(len(body)>>8), byte(len(body)))
	}
	f = append(f, body...)
	if !s.coalesce {
		if err := s.fanOut(ch, f); err != nil {
			return err
		}
		return s.answer(c)
	}
	if len(ch.pending) == 0 {
		s.dirty = append(s.dirty, ch)
	}
	ch.pending = append(ch.pending, f...)
	if !c.publishes {
		c.publishes = true
		s.published = append(s.published, c)
	}
	return nil
}

func (s *server) endWave() error {
	for _, ch := range s.dirty {
		if err := s.fanOut(ch, ch.pending); err != nil {
			return err
		}
		ch.pending = ch.pending[:0]
	}
	for _, c := range s.published {
		c.publishes = false
		if s.conns[c.fd] != c {
			continue // hung up meanwhile
		}
		if err := s.answer(c); err != nil {
			return err
		}
	}
	s.dirty, s.published = s.dirty[:0], s.published[:0]
	return nil
}

// take reads once and handles what is complete.
func (s *server) take(c *conn) error {
	n, errno := rawRead(c.fd, s.buf)
	if errno == unix.EAGAIN {
		return nil
	}
	if n == 0 {
		s.hangUp(c)
		return nil
	}
	p := s.buf[:n]
	if c.in != nil {
		p = append(c.in, p...)
		c.in = nil
	}
	for len(p) > 0 {
		var used int
		var err error
		if c.channel != nil {
			used, err = s.clientFrame(c, p)
		} else {
			used, err = s.request(c, p)
		}
		if errors.Is(err, errBad) {
			s.hangUp(c)
			return nil
		}
		if err != nil {
			return err
		}
		if used == 0 {
			c.in = bytes.Clone(p)
			return nil
		}
		p = p[used:]
	}
	return nil
}

// errBad says that a peer is to be hung up on.
var errBad = errors.New("not of this protocol")

// request handles one request and returns its length, 0 when it is incomplete.
func (s *server) request(c *conn, p []byte) (int, error) {
	end := bytes.Index(p, []byte("\r\n\r\n"))
	if end < 0 {
		if len(p) > 8192 {
			return 0, errBad
		}
		return 0, nil
	}
	head := p[:end+2]
	name, isPub := bytes.CutPrefix(head, []byte("POST /pub/"))
	if !isPub {
		var isSub bool
		if name, isSub = bytes.CutPrefix(head, []byte("GET /sub/")); !isSub {
			return 0, errBad
		}
	}
	name, _, _ = bytes.Cut(name, []byte(" "))
	ch := s.channels[string(name)]
	if ch == nil {
		ch = &channel{}
		s.channels[string(name)] = ch
	}
	if isPub {
		size, err := strconv.Atoi(string(header(head, "\r\nContent-Length: ")))
		if err != nil || size < 0 || size > maxBody {
			return 0, errBad
		}
		if len(p) < end+4+size {
			return 0, nil
		}
		return end + 4 + size, s.publish(c, ch, p[end+4:end+4+size])
	}
	key := header(head, "\r\nSec-WebSocket-Key: ")
	if len(key) != 24 {
		return 0, errBad
	}
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	reply := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n"
	c.channel, c.index = ch, int32(len(ch.subs))
	ch.subs = append(ch.subs, c)
	return end + 4, s.put(c, []byte(reply))
}

// header returns a header's value. It knows only the spelling that its one client uses.
func header(head []byte, name string) []byte {
	_, v, ok := bytes.Cut(head, []byte(name))
	if !ok {
		return nil
	}
	v, _, _ = bytes.Cut(v, []byte("\r"))
	return v
}

// clientFrame handles one frame and returns its length: a ping is answered, a close ends it, the rest is passed over.
func (s *server) clientFrame(c *conn, p []byte) (int, error) {
	if len(p) < 6 {
		return 0, nil
	}
	size := int(p[1] & 127)
	if size > 125 || p[1]&128 == 0 || p[0]&15 == 8 {
		return 0, errBad
	}
	if len(p) < 6+size {
		return 0, nil
	}
	if p[0]&15 == 9 {
		pong := []byte{0x8a, byte(size)}
		for i := range size {
			pong = append(pong, p[6+i]^p[2+i%4])
		}
		if err := s.put(c, pong); err != nil {
			return 0, err
		}
	}
	return 6 + size, nil
}

func rawWrite(fd int32, p []byte) (int, unix.Errno) {
	return raw(unix.SYS_WRITE, fd, p)
}

func rawRead(fd int32, p []byte) (int, unix.Errno) {
	return raw(unix.SYS_READ, fd, p)
}

// raw is a system call on a socket that never blocks: the scheduler need not know.
func raw(call uintptr, fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
