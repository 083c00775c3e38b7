package conn

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is an io_uring: many writes to sockets in one call. As the sockets do not block, each has ended when the call returns: there is
// never one under way between two calls, and nothing that the kernel reads may change meanwhile.
type ring struct {
	fd     int
	memory []byte // of both queues
	slots  []byte // of what is submitted

	head, tail     *uint32 // of what is submitted; the kernel moves head
	doneAt, doneTo *uint32 // of what has ended; the kernel moves doneTo
	mask, doneMask uint32
	entries        []ringEntry
	done           []ringDone
}

// ringEntry is struct io_uring_sqe.
type ringEntry struct {
	op     uint8
	_      [3]uint8
	fd     int32
	_      uint64
	addr   uint64
	size   uint32
	flags  uint32
	number uint64
	_      [3]uint64
}

// ringDone is struct io_uring_cqe.
type ringDone struct {
	number uint64
	res    int32
	_      uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	entries, doneEntries, flags, cpu, idle, features, workers uint32
	_                                                         [3]uint32
	sq                                                        struct {
		head, tail, mask, size, flags, dropped, array, _ uint32
		_                                                uint64
	}
	cq struct {
		head, tail, mask, size, overflow, entries, flags, _ uint32
		_                                                   uint64
	}
}

const (
	ringOpSend     = 26         // IORING_OP_SEND
	ringGetEvents  = 1          // IORING_ENTER_GETEVENTS
	ringSingleMap  = 1          // IORING_FEAT_SINGLE_MMAP
	ringSlotOffset = 0x10000000 // IORING_OFF_SQES
)

// newRing fails where the kernel is too old or does not allow it, as containers often do not.
func newRing(entries int) (*ring, error) {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0) //nolint:gosec // a struct of the kernel's
	if errno != 0 {
		return nil, fmt.Errorf("make an io_uring: %w", errno)
	}
	r := &ring{fd: int(fd)} //nolint:gosec // a descriptor
	if p.features&ringSingleMap == 0 {
		r.close()
		return nil, fmt.Errorf("make an io_uring: %w", errors.ErrUnsupported)
	}
	var err error
	size := max(int(p.sq.array+p.entries*4), int(p.cq.entries)+int(p.doneEntries)*int(unsafe.Sizeof(ringDone{})))
	if r.memory, err = unix.Mmap(r.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err == nil {
		r.slots, err = unix.Mmap(r.fd, ringSlotOffset, int(p.entries)*int(unsafe.Sizeof(ringEntry{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("map an io_uring: %w", err)
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.memory[offset])) } //nolint:gosec // aligned by the kernel
	r.head, r.tail, r.mask = at(p.sq.head), at(p.sq.tail), *at(p.sq.mask)
	r.doneAt, r.doneTo, r.doneMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	r.entries = unsafe.Slice((*ringEntry)(unsafe.Pointer(&r.slots[0])), p.entries)             //nolint:gosec // as mapped
	r.done = unsafe.Slice((*ringDone)(unsafe.Pointer(&r.memory[p.cq.entries])), p.doneEntries) //nolint:gosec // as mapped
	for i, slots := 0, unsafe.Slice(at(p.sq.array), p.entries); i < len(slots); i++ {
		slots[i] = uint32(i) //nolint:gosec // each its own
	}
	return r, nil
}

func (r *ring) close() {
	if r.memory != nil {
		_ = unix.Munmap(r.memory)
	}
	if r.slots != nil {
		_ = unix.Munmap(r.slots)
	}
	_ = unix.Close(r.fd)
}

// outgoing is a frame on its way to a socket.
type outgoing struct {
	s                *sock
	batch            [][]byte // one frame
	since, committed int64
	res              int32 // bytes, or an errno below 0
}

// send writes each frame; there are not more than the ring was made for. An error says that the ring is of no use any more; what was not written then has EAGAIN.
func (r *ring) send(out []outgoing) error {
	tail := *r.tail // nobody else moves it
	for i := range out {
		b := out[i].batch[0]
		r.entries[(tail+uint32(i))&r.mask] = ringEntry{ //nolint:gosec // not more than the ring has
			op: ringOpSend, fd: out[i].s.fd, addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), size: uint32(len(b)), //nolint:gosec // read before the call returns; bounded
			flags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL, number: uint64(i), //nolint:gosec // not negative
		}
		out[i].res = -int32(unix.EAGAIN)
	}
	tail += uint32(len(out)) //nolint:gosec // not more than the ring has
	atomic.StoreUint32(r.tail, tail)
	for ended := 0; ended < len(out); {
		left := uintptr(tail - atomic.LoadUint32(r.head))
		_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), left, uintptr(len(out)-ended), ringGetEvents, 0, 0)
		at := *r.doneAt
		for to := atomic.LoadUint32(r.doneTo); at != to; at++ {
			d := &r.done[at&r.doneMask]
			out[d.number].res = d.res
			ended++
		}
		atomic.StoreUint32(r.doneAt, at)
		if errno != 0 && errno != syscall.EINTR && errno != syscall.EAGAIN && errno != syscall.EBUSY {
			return fmt.Errorf("write by an io_uring: %w", errno)
		}
	}
	return nil
}

// flushAll is flush for many. With a ring, what is one frame, as nearly all are, goes out by it; not over TLS, as it is not sealed yet.
func (l *loop) flushAll(dirty []*sock) {
	for i, s := range dirty {
		switch {
		case s.fd < 0:
		case l.ring == nil || len(dirty)-i+len(l.going) < l.s.opt.ringLeast || s.stuck != nil || s.tls != nil:
			l.flush(s)
		default:
			batch, since, committed := s.conn.take(l.now)
			if len(batch) == 1 {
				if l.going = append(l.going, outgoing{s: s, batch: batch, since: since, committed: committed}); len(l.going) == l.s.opt.ringSize {
					l.sendAll()
				}
			} else if batch != nil && l.write(s, batch, 0, since, committed) {
				l.flush(s)
			}
		}
	}
	l.sendAll()
}

// sendAll writes what is in going.
func (l *loop) sendAll() {
	if len(l.going) == 0 {
		return
	}
	if err := l.ring.send(l.going); err != nil {
		l.s.t.opt.Logger.Error("Writing by an io_uring failed: from now on every frame is written by a call of its own.", "error", err)
		l.ring.close()
		l.ring = nil
	}
	for i := range l.going {
		o := &l.going[i]
		s, frame := o.s, o.batch[0]
		switch n := int(o.res); {
		case s.fd < 0: // cannot be: nothing but its own write ends a socket here
		case n == len(frame):
			if l.wrote(s, o.batch, o.since, o.committed) {
				l.flush(s)
			}
		case n >= 0:
			s.stuck = &stuck{frame[n:], o.batch, 1, o.since, o.committed}
		case n == -int(unix.EAGAIN), n == -int(unix.EINTR): // or not tried: once more, as if for the first time
			if l.write(s, o.batch, 0, o.since, o.committed) {
				l.flush(s)
			}
		default:
			l.end(s)
		}
	}
	clear(l.going)
	l.going = l.going[:0]
}
