package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is one raw connection of the run. Its system calls never block, so the scheduler is not told of them.
type socket struct {
	fd   int32
	open bool
	tls  *tlsConn // nil: plain
}

// edges are told once: a socket that was read is not looked at again until something came, which saves the kernel half of its
// work. So whoever reads goes on until a read brings less than there was room for.
const edges = unix.EPOLLIN | unix.EPOLLET

var errAgain = unix.EAGAIN

func sockaddr(addr string) (*unix.SockaddrInet4, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().Is4() || !a.Addr().IsLoopback() {
		return nil, fmt.Errorf("%q is no address of this machine, like 127.0.0.1:8080", addr) // a load is put on nobody else
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
}

// dial begins to connect; the poller says when that is done.
func (l *loop) dial(s *socket, addr string, about, index int) error {
	sa, err := sockaddr(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	*s = socket{fd: int32(fd), open: true}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	return l.watch(s, unix.EPOLL_CTL_ADD, unix.EPOLLOUT, about, index)
}

func (l *loop) watch(s *socket, op int, events uint32, about, index int) error {
	return unix.EpollCtl(l.ep, op, int(s.fd), &unix.EpollEvent{Events: events, Fd: int32(index), Pad: int32(about)})
}

// connected ends a dial: from now on the poller says when there is something to read.
func (l *loop) connected(s *socket, about, index int) error {
	code, err := unix.GetsockoptInt(int(s.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("connect: %w", unix.Errno(code))
	}
	return l.watch(s, unix.EPOLL_CTL_MOD, edges, about, index)
}

// hangUp resets a connection: so it leaves no port in TIME_WAIT.
func (l *loop) hangUp(s *socket) {
	if !s.open {
		return
	}
	_ = unix.SetsockoptLinger(int(s.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(int(s.fd))
	*s = socket{}
}

// read returns errAgain when there is nothing, io.EOF at the end.
func (s *socket) read(p []byte) (int, error) {
	if s.tls != nil {
		return s.tls.read(p)
	}
	return rawRead(s.fd, p)
}

// write takes everything or fails: what is written here is small, and one request at a time.
func (s *socket) write(p []byte) error {
	if s.tls != nil {
		return s.tls.write(p)
	}
	return rawWrite(s.fd, p)
}

// rawRead is recv, which has less to ask than read.
func rawRead(fd int32, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	switch {
	case errno == unix.EAGAIN:
		return 0, errAgain
	case errno != 0:
		return 0, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

func rawWrite(fd int32, p []byte) error {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	switch {
	case errno == unix.EINTR: // nothing was taken
		return rawWrite(fd, p)
	case errno != 0:
		return fmt.Errorf("write: %w", errno)
	case int(n) < len(p):
		return fmt.Errorf("write: the socket took %d of %d bytes", n, len(p))
	}
	return nil
}

// clientFrame is one masked frame.
func clientFrame(dst []byte, op byte, payload []byte) []byte {
	dst = append(dst, 0x80|op)
	if len(payload) < 126 {
		dst = append(dst, 0x80|byte(len(payload)))
	} else {
		dst = append(dst, 0x80|126, byte(len(payload)>>8), byte(len(payload)))
	}
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	dst = append(dst, mask[:]...)
	for i, b := range payload {
		dst = append(dst, b^mask[i&3])
	}
	return dst
}

// serverFrame cuts one frame off: n is 0 when it is incomplete.
func serverFrame(p []byte) (op byte, payload []byte, n int) {
	if len(p) < 2 {
		return 0, nil, 0
	}
	head, size := 2, int(p[1]&127)
	switch {
	case size == 126 && len(p) >= 4:
		head, size = 4, int(p[2])<<8|int(p[3])
	case size == 127 && len(p) >= 10:
		head, size = 10, 0
		for _, b := range p[6:10] { // nobody here sends 4 GiB
			size = size<<8 | int(b)
		}
	case size > 125:
		return 0, nil, 0
	}
	if len(p) < head+size {
		return 0, nil, 0
	}
	return p[0] & 15, p[head : head+size], head + size
}
