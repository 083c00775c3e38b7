package conn

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of one wave.
const (
	waveEvents  = 256      // events taken from the kernel at once
	waveAccepts = 64       // sockets accepted at once, so that loops share a storm
	waveReads   = 4        // reads of one socket: then it is the others' turn
	waveServes  = 128      // requests answered before what they publish is written
	scratch     = 64 << 10 // bytes of a loop's buffers, for reading and for gathering what is written
)

// The slots of a loop's table that are no sockets.
const (
	slotListener = iota
	slotWake
	slotFirst
)

// phase is what a loop is at. It leaves asleep by its own doing or by who rouses it; all other steps are its own.
//
//	asleep ──► gathering ──► tending ──► asleep or gathering
//
// A loop that is not asleep looks into its inbox before it is. One that gathers looks, after it has ceased to, also at what was
// left in the inboxes of those asleep (Server.left): so while one gathers, nobody needs to wake another.
type phase = int32

const (
	asleep    phase = iota // waits
	gathering              // takes what is ready
	tending                // writes what is queued
)

// helpMost is how many connections one loop writes to in place of waking another, with its own. A wake-up, and two threads in the kernel's network at
// once, cost more than they bring when there is so little to do; with more, the time to the last subscriber counts.
const helpMost = 128

// loop owns an epoll instance, the sockets in it, and the one goroutine that touches them.
//
// It waits in Go's own poller, in which its epoll descriptor is one among others: no thread is held, and whoever wakes it
// does so by a write to an eventfd, which nobody reads (it is edge-triggered).
type loop struct {
	s    *Server
	epfd int
	file *os.File // epfd
	raw  syscall.RawConn
	wake int // eventfd

	mu    sync.Mutex // guards the inbox
	inbox inbox
	over  bool // nobody looks into the inbox any more
	phase atomic.Int32

	// own is the right to be the loop. Its goroutine has it whenever it does not wait; meanwhile another loop may take it, if it is free, to write
	// what is queued, which makes callbacks too (OnClose); and who adopts a socket too late waits for the loop to end.
	own sync.Mutex

	// The goroutine's own.
	events [waveEvents]unix.EpollEvent
	found  int                // events
	looks  func(uintptr) bool // look, made once
	again  []*sock            // have more to read than fitted into their turn

	// The loop's own.
	taken      inbox   // what was in the inbox, being worked off
	socks      []*sock // by slot
	free       []int32 // slots
	in, out    []byte
	plain      []byte  // of a record; nil before the first one over TLS
	sealed     []byte  // records to be sent
	parse      hearing // for sockets between two frames
	request    requests
	now        int64 // of the wave, Unix nanoseconds
	swept      int64
	accepting  bool
	retryAt    int64 // when to try accepting again; 0: no need
	ending     bool
	generation int32
	served     int     // requests since everything was written last
	spare      []*sock // of flushDirty
	ring       *ring   // nil: each frame is a call
	going      []outgoing
	helped     []*loop // will be written for
	sent       int     // of the wave: frames and writes, added to the metrics at its end
	writes     int
	heard      int
}

// inbox is what others want of a loop.
type inbox struct {
	dirty []*sock // have something to write
	cut   []*sock // are to end
	woken []*sock // are to be read on
	tasks []func()
}

func (b *inbox) empty() bool {
	return len(b.dirty) == 0 && len(b.cut) == 0 && len(b.woken) == 0 && len(b.tasks) == 0
}

func newLoop(s *Server) (_ *loop, err error) {
	l := &loop{s: s, in: make([]byte, scratch), out: make([]byte, 0, scratch), wake: -1, epfd: -1}
	defer func() {
		if err != nil {
			l.release()
		}
	}()
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(l.epfd, true); err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	l.socks = make([]*sock, slotFirst)
	if err := l.add(l.wake, slotWake, unix.EPOLLIN|unix.EPOLLET); err != nil {
		return nil, err
	}
	if err := l.accept(true); err != nil {
		return nil, err
	}
	l.file = os.NewFile(uintptr(l.epfd), "epoll") // pollable, since it does not block
	if l.raw, err = l.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("wait for an epoll instance: %w", err)
	}
	if s.t.opt.IOUring {
		if l.ring, err = newRing(s.opt.ringSize); err != nil {
			s.t.opt.Logger.Warn("The kernel gives no io_uring: every frame is written by a call of its own.", "error", err)
			l.ring, err = nil, nil
		}
	}
	l.looks = l.look
	l.parse.p.limit = s.t.opt.MessageBytes
	l.request.init(l)
	return l, nil
}

// release closes what newLoop opened, after run has returned.
func (l *loop) release() {
	if l.ring != nil {
		l.ring.close()
	}
	if l.wake >= 0 {
		_ = unix.Close(l.wake)
	}
	switch {
	case l.file != nil:
		_ = l.file.Close()
	case l.epfd >= 0:
		_ = unix.Close(l.epfd)
	}
}

func (l *loop) add(fd, slot int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(slot)} //nolint:gosec // as many as descriptors
	if slot >= slotFirst {
		ev.Pad = l.socks[slot].generation
	}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("add a socket to an epoll instance: %w", err)
	}
	return nil
}

// accept begins or ends listening.
func (l *loop) accept(on bool) error {
	if on == l.accepting {
		return nil
	}
	l.accepting = on
	if !on {
		return unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, l.s.fd, nil)
	}
	return l.add(l.s.fd, slotListener, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
}

// post has fn run on the loop. It says whether it will be: not when the loop has ended.
func (l *loop) post(fn func()) bool {
	l.mu.Lock()
	over := l.over
	if !over {
		l.inbox.tasks = append(l.inbox.tasks, fn)
	}
	l.mu.Unlock()
	if !over {
		l.rouse()
	}
	return !over
}

// rouse wakes the loop if it sleeps, after something was put into its inbox.
func (l *loop) rouse() {
	if l.phase.Load() == asleep && l.phase.CompareAndSwap(asleep, gathering) {
		l.s.gathering.Add(1) // not before: who counts on a loop that gathers must find one
		rawRouse(l.wake)
	}
}

// leave is rouse for what is to be written, which a loop that gathers may see to.
func (l *loop) leave() {
	if l.phase.Load() != asleep {
		return
	}
	if !l.s.left.Load() {
		l.s.left.Store(true)
	}
	if l.s.gathering.Load() <= 0 {
		l.rouse()
	}
}

// run works until the server stops.
func (l *loop) run() {
	l.own.Lock()
	defer l.own.Unlock()
	for !l.ending {
		l.own.Unlock()
		n := l.wait()
		l.own.Lock()
		l.now = time.Now().UnixNano()
		for i := range n {
			l.ready(&l.events[i])
			l.relieve()
		}
		l.tend()
		l.served = 0
		if l.now-l.swept >= int64(time.Second)-int64(100*time.Millisecond) {
			l.sweep()
		}
		l.count()
	}
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.empty()
	for _, s := range l.socks {
		if s != nil {
			l.end(s)
		}
	}
}

// wait returns the number of events at hand. It sleeps only when there are none, nothing is to be done again, and the inbox is empty.
func (l *loop) wait() int {
	_ = l.raw.Read(l.looks) // fails only when the file is closed, which comes after run
	return l.found
}

// look is the poll of wait. It says whether there is something to do.
func (l *loop) look(uintptr) bool {
	for {
		n, errno := rawPoll(l.epfd, l.events[:])
		if l.found = max(n, 0); errno != unix.EINTR {
			break
		}
	}
	if l.found == 0 && len(l.again) == 0 && l.phase.Load() != gathering { // or it was roused
		l.phase.CompareAndSwap(tending, asleep)
		l.mu.Lock()
		empty := l.inbox.empty()
		l.mu.Unlock()
		if empty {
			return false
		}
	}
	if l.phase.Swap(gathering) != gathering {
		l.s.gathering.Add(1)
	}
	return true
}

// ready handles one event.
func (l *loop) ready(ev *unix.EpollEvent) {
	switch ev.Fd {
	case slotListener:
		l.takeIn()
		return
	case slotWake:
		return
	}
	s := l.socks[ev.Fd]
	if s == nil || s.generation != ev.Pad {
		return // it ended earlier in this wave
	}
	if ev.Events&unix.EPOLLOUT != 0 && s.stuck != nil {
		l.unstick(s)
	}
	if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hangup = true
	}
	if s.fd >= 0 && ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		l.read(s)
	}
}

// tend does what others asked for, and writes what is queued.
func (l *loop) tend() {
	again := l.again
	l.again = nil
	for _, s := range again {
		if s.fd >= 0 {
			l.read(s)
		}
	}
	l.phase.Store(tending)
	l.s.gathering.Add(-1)
	l.share()
	l.empty()
	l.help()
}

// share sees to what was left for loops that sleep: it wakes them, or notes them for help.
func (l *loop) share() {
	if !l.s.left.Load() || !l.s.left.Swap(false) {
		return
	}
	mine := l.dirty()
	for _, o := range l.s.loops {
		if o == l || o.phase.Load() != asleep {
			continue
		}
		switch n := o.dirty(); {
		case n == 0:
		case n+mine <= helpMost:
			l.helped = append(l.helped, o)
		default:
			o.rouse()
		}
	}
}

// dirty is how many connections have something to be written.
func (l *loop) dirty() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.inbox.dirty)
}

// help writes for loops that sleep.
func (l *loop) help() {
	for i, o := range l.helped {
		l.helped[i] = nil
		if !o.own.TryLock() {
			o.rouse() // it is waking up, or a third one writes for it and may be past what was left since
			continue
		}
		o.now = l.now
		o.flushDirty()
		o.count()
		o.own.Unlock()
	}
	l.helped = l.helped[:0]
}

// empty works the inbox off until nothing is in it.
func (l *loop) empty() {
	for {
		l.mu.Lock()
		if l.inbox.empty() {
			l.mu.Unlock()
			return
		}
		l.taken, l.inbox = l.inbox, l.taken
		l.mu.Unlock()
		t := &l.taken
		for _, fn := range t.tasks {
			fn()
		}
		for _, s := range t.woken {
			if s.fd >= 0 {
				l.resume(s)
			}
		}
		l.flushAll(t.dirty)
		for _, s := range t.cut {
			if s.fd >= 0 {
				l.end(s)
			}
		}
		clear(t.tasks)
		clear(t.woken)
		clear(t.dirty)
		clear(t.cut)
		*t = inbox{keep(t.dirty), keep(t.cut), keep(t.woken), keep(t.tasks)}
	}
}

// relieve writes what is queued before the wave's end, when the wave has served so many requests that what they publish could
// overrun the queues of those who listen.
func (l *loop) relieve() {
	if l.served < waveServes {
		return
	}
	l.served = 0
	l.share()
	l.flushDirty()
	l.help()
}

// flushDirty writes what is queued now.
func (l *loop) flushDirty() {
	l.mu.Lock()
	dirty := l.inbox.dirty
	l.inbox.dirty, l.spare = l.spare, nil
	l.mu.Unlock()
	l.flushAll(dirty)
	clear(dirty)
	l.spare = keep(dirty)
}

// keep empties a slice for its next use, unless it has grown very large.
func keep[T any](s []T) []T {
	if cap(s) > 1<<16 {
		return nil
	}
	return s[:0]
}

// takeIn accepts.
func (l *loop) takeIn() {
	for range waveAccepts {
		fd, _, err := unix.Accept4(l.s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			l.welcome(fd)
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			l.s.opt.Failed(err)
			_ = l.accept(false) // or it would be told over and over
			l.retryAt = l.now + int64(100*time.Millisecond)
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPROTO):
		default:
			l.s.opt.Failed(err)
			return
		}
	}
}

// welcome gives a new socket a place.
func (l *loop) welcome(fd int) {
	if !l.s.opt.Take() {
		_, _ = unix.Write(fd, l.s.opt.Full) // an empty send buffer takes it at once
		_ = unix.Close(fd)
		return
	}
	s := &sock{l: l, fd: int32(fd), since: l.now} //nolint:gosec // a descriptor
	if l.place(s) {
		l.read(s) // the request is there already more often than not
	}
}

// place takes a socket into the table. It says whether it could, or else ended it.
func (l *loop) place(s *sock) bool {
	if n := len(l.free); n > 0 {
		s.slot = l.free[n-1]
		l.free = l.free[:n-1]
		l.socks[s.slot] = s
	} else {
		s.slot = int32(len(l.socks)) //nolint:gosec // as many as descriptors
		l.socks = append(l.socks, s)
	}
	l.generation++
	s.generation = l.generation
	if err := l.add(int(s.fd), int(s.slot), unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		l.s.opt.Failed(err)
		l.end(s)
		return false
	}
	return true
}

// end closes a socket and forgets it. For a connection it is the end.
func (l *loop) end(s *sock) {
	if s.fd < 0 {
		return
	}
	if s.stuck != nil || (s.conn != nil && s.conn.unheard()) { // who did not take it in all this time will not: the kernel kept megabytes for minutes
		_ = unix.SetsockoptLinger(int(s.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	} else {
		l.bye(s)
	}
	_ = unix.Close(int(s.fd))
	l.forget(s)
	l.s.opt.Release()
	if s.supply != nil {
		l.unsupply(s)
	}
	if c := s.conn; c != nil {
		c.finish(true)
		l.s.t.running.Done()
	}
}

// forget takes a socket out of the table; its descriptor is closed or given away.
func (l *loop) forget(s *sock) {
	s.fd = -1
	l.socks[s.slot] = nil
	l.free = append(l.free, s.slot)
}

// sweep ends sockets that are too slow with a request, or silent for too long between two, and tries again to accept.
func (l *loop) sweep() {
	l.swept = l.now
	if l.retryAt != 0 && l.now >= l.retryAt && !l.s.draining() {
		l.retryAt = 0
		_ = l.accept(true)
	}
	for _, s := range l.socks {
		if s != nil && s.conn == nil && !s.away && l.now-s.since > int64(l.patience(s)) {
			l.end(s)
		}
	}
}

func (l *loop) patience(s *sock) time.Duration {
	if s.between {
		return l.s.opt.IdleTimeout
	}
	return l.s.opt.ReadTimeout
}

// drain is Server.Drain on the loop.
func (l *loop) drain() {
	_ = l.accept(false)
	if l.s.listening.Add(-1) == 0 {
		_ = unix.Close(l.s.fd)
	}
	for _, s := range l.socks {
		if s != nil && s.conn == nil && s.between {
			l.end(s)
		}
	}
}

func (l *loop) count() {
	m := l.s.t.metrics
	if l.writes > 0 {
		m.framesSent.Add(float64(l.sent))
		m.writes.Add(float64(l.writes))
		l.sent, l.writes = 0, 0
	}
	if l.heard > 0 {
		m.received.Add(float64(l.heard))
		l.heard = 0
	}
}
