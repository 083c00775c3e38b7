package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What an event of the poller is about; it is handed back by the kernel with an index.
const (
	aboutSubscriber = iota
	aboutLane
	aboutDialer
)

const (
	wave    = 512     // events taken from the kernel at a time
	readMax = 1 << 18 // bytes taken from a socket at a time
)

// loop is one run. Everything in it belongs to the thread of Run.
type loop struct {
	ctx       context.Context //nolint:containedctx // the run ends with it
	job       Job
	dialect   dialect
	measuring func()
	meter     *meter
	dialer    *dialer // nil without TLS
	res       Result
	start     time.Time // all times of a run count from here
	end       int64     // of everything
	fatal     error

	ep     int
	events []unix.EpollEvent
	buf    []byte

	subs       []subscriber
	last       []uint32 // of each subscriber and each lane that it hears: the last number
	stride     int      // lanes that a subscriber hears
	listeners  []int32  // of each channel
	hint       int      // where in a frame the last message was
	next       int      // subscriber to connect
	underWay   int      // handshakes
	again      []retry
	ready      int
	backAt     []int64 // when each came back, in the order of their coming
	connecting bool
	beats      int64 // when clients began to send heartbeats; 0: not yet
	beatNext   int   // who sends the next one
	beaten     int   // how many crossed, whoever began

	lanes      []lane
	msg        []byte
	publishing bool
	from       int64 // when the first publication was due
	due        int   // publications that have been due
	expected   int   // deliveries, from what was accepted
	received   int

	window     bool // measuring
	windowFrom int64
	windowTo   int64
	delivery   histogram
	request    histogram
}

// Run does a job, and says when its window begins. It keeps a processor of GOMAXPROCS to itself.
func Run(ctx context.Context, job Job, measuring func()) (*Result, error) {
	if err := job.Validate(); err != nil {
		return nil, err
	}
	runtime.LockOSThread() // which is not unlocked: the thread ends with its goroutine
	d, err := newDialect(job.Target)
	if err != nil {
		return nil, err
	}
	l := &loop{
		ctx: ctx, job: job, dialect: d, measuring: measuring, start: time.Now(), end: int64(job.Limit), events: make([]unix.EpollEvent, wave), buf: make([]byte, readMax),
		subs: make([]subscriber, job.Subscribers), listeners: make([]int32, job.Channels), lanes: make([]lane, job.Lanes), stride: 1,
		msg: make([]byte, job.Payload),
	}
	if job.Channels == 1 {
		l.stride = max(job.Lanes, 1)
	}
	l.last = make([]uint32, job.Subscribers*l.stride)
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	defer l.close()
	if job.Target.TLS {
		if l.dialer, err = newDialer(l); err != nil {
			return nil, err
		}
	}
	if err := l.run(); err != nil {
		return nil, err
	}
	return &l.res, nil
}

func (l *loop) close() {
	for i := range l.subs {
		l.hangUp(&l.subs[i].socket)
	}
	for i := range l.lanes {
		l.hangUp(&l.lanes[i].socket)
	}
	if l.dialer != nil {
		l.dialer.stop()
	}
	_ = unix.Close(l.ep)
}

// now is the time of the run in nanoseconds.
func (l *loop) now() int64 { return int64(time.Since(l.start)) }

func (l *loop) run() (err error) {
	if l.meter, err = newMeter(l.job.Target.PID); err != nil {
		return err
	}
	if l.res.Base, err = l.meter.memory(); err != nil {
		return err
	}
	if err := l.arrive(); err != nil {
		return err
	}
	l.beats = l.now()
	if err := l.wait(l.job.Settle, nil); err != nil {
		return err
	}
	if l.res.Loaded, err = l.meter.memory(); err != nil {
		return err
	}
	switch l.job.Kind {
	case FanOut:
		err = l.fanOut()
	case Idle:
		err = l.measure(l.job.Measure)
	case Storm:
		err = l.storm()
	}
	if err != nil {
		return err
	}
	l.res.After, err = l.meter.memory()
	return err
}

// arrive connects everybody.
func (l *loop) arrive() error {
	before, err := l.meter.cpu()
	if err != nil {
		return err
	}
	from := l.now()
	l.connecting = true
	err = l.wait(l.job.Limit, func() bool { return l.ready == len(l.subs) })
	l.connecting = false
	if err != nil {
		return err
	}
	if l.ready < len(l.subs) {
		return fmt.Errorf("%d of %d subscribers came in: %d attempts failed, first: %s", l.ready, len(l.subs), l.res.Connect.Errors, l.res.Connect.FirstErr)
	}
	after, err := l.meter.cpu()
	if err != nil {
		return err
	}
	c := &l.res.Connect
	c.Count, c.Seconds, c.ServerCPU = l.ready, float64(l.now()-from)/1e9, micros(after-before)
	return nil
}

// fanOut publishes, and waits for what is still under way.
func (l *loop) fanOut() error {
	for c := range l.job.Channels {
		l.listeners[c] = int32((l.job.Subscribers - c + l.job.Channels - 1) / l.job.Channels)
	}
	for i := range l.lanes {
		l.lanes[i].prepare(l, i)
	}
	if err := l.wait(20*time.Second, l.lanesOpen); err != nil {
		return err
	}
	if !l.lanesOpen() {
		return errors.New("the publishers did not get in")
	}
	l.publishing, l.from = true, l.now()
	if l.job.Rate == 0 {
		for i := range l.lanes {
			l.publishNext(&l.lanes[i], l.now())
		}
	}
	if err := l.wait(l.job.Warmup, nil); err != nil {
		return err
	}
	if err := l.measure(l.job.Measure); err != nil {
		return err
	}
	l.publishing = false
	// What was accepted arrives, or does not within so many seconds without anything arriving.
	for seen := -1; l.received < l.expected || l.lanesBusy(); {
		if seen == l.received {
			break
		}
		seen = l.received
		if err := l.wait(10*time.Second, func() bool { return l.received >= l.expected && !l.lanesBusy() }); err != nil {
			return err
		}
	}
	l.res.Lost = max(0, l.expected-l.received)
	l.res.Delivery, l.res.Request = l.delivery.times(), l.request.times()
	return nil
}

// measure is the window.
func (l *loop) measure(d time.Duration) error {
	l.measuring()
	before, err := l.meter.read()
	if err != nil {
		return err
	}
	l.window, l.windowFrom, l.windowTo = true, l.now(), math.MaxInt64
	beaten := l.beaten
	if err := l.wait(d, nil); err != nil {
		return err
	}
	l.window, l.windowTo = false, l.now()
	after, err := l.meter.read()
	if err != nil {
		return err
	}
	after.since(before, &l.res)
	l.res.Heartbeats = l.beaten - beaten
	return nil
}

// storm resets every connection at once, as a middle box that restarts does, and brings all back.
func (l *loop) storm() error {
	before, err := l.meter.read()
	if err != nil {
		return err
	}
	from := l.now()
	l.window, l.windowFrom, l.beats = true, from, 0
	for i := range l.subs {
		l.hangUp(&l.subs[i].socket)
		l.subs[i] = subscriber{}
	}
	l.ready, l.next, l.backAt, l.connecting = 0, 0, make([]int64, 0, len(l.subs)), true
	connect := l.res.Connect
	l.res.Connect.Errors, l.res.Connect.FirstErr = 0, ""
	// The end is kept for the clocks, so that a server which does not let everybody back is a result and no error.
	err = l.wait(time.Duration(l.end-l.now())-l.job.Settle-time.Second, func() bool { return l.ready == len(l.subs) })
	l.connecting = false
	if err != nil {
		return err
	}
	r := &Return{NotBack: len(l.subs) - l.ready, Errors: l.res.Connect.Errors, FirstErr: l.res.Connect.FirstErr}
	l.res.Connect = connect
	at := func(share float64) float64 {
		i := int(math.Ceil(share*float64(len(l.subs)))) - 1
		if i >= len(l.backAt) {
			return 0
		}
		return float64(l.backAt[i]-from) / 1e9
	}
	r.Half, r.Most, r.All = at(0.5), at(0.99), at(1)
	l.res.Storm = r
	if err := l.wait(l.job.Settle, nil); err != nil { // what the server still does about those who left is part of it
		return err
	}
	l.window = false
	after, err := l.meter.read()
	if err != nil {
		return err
	}
	after.since(before, &l.res)
	return nil
}

// wait handles events for a time, or until a condition holds, which is asked after each wave.
func (l *loop) wait(d time.Duration, until func() bool) error {
	deadline := l.now() + int64(d)
	for {
		now := l.now()
		if now >= deadline || until != nil && until() {
			return nil
		}
		if now >= l.end {
			return fmt.Errorf("the run did not come to its end within %s", l.job.Limit)
		}
		if err := l.ctx.Err(); err != nil {
			return err
		}
		next := min(deadline, l.end, now+int64(100*time.Millisecond), l.work(now))
		if err := l.poll(next - l.now()); err != nil {
			return err
		}
		if l.fatal != nil {
			return l.fatal
		}
	}
}

// work does what is due, and says when there is more.
func (l *loop) work(now int64) (next int64) {
	next = math.MaxInt64
	if l.connecting {
		next = l.connect(now)
	}
	if l.beats > 0 {
		next = min(next, l.beat(now))
	}
	if l.publishing && l.job.Rate > 0 {
		next = min(next, l.publishDue(now))
	}
	return next
}

// poll waits for events, at most so many nanoseconds, and handles them. epoll_pwait2 (Linux 5.11) waits by the
// nanosecond, where epoll_wait would make every publication up to a millisecond late. The scheduler is not told: it would
// take the processor away each time and look for work every 20 us, at a tenth of all that this costs. It still may stop the
// world, by a signal.
func (l *loop) poll(timeout int64) error {
	ts := unix.NsecToTimespec(max(timeout, 0))
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), wave, uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno == unix.EINTR {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("epoll_pwait2: %w", errno)
	}
	for _, e := range l.events[:n] {
		switch e.Pad {
		case aboutSubscriber:
			l.onSubscriber(int(e.Fd), e.Events)
		case aboutLane:
			l.onLane(&l.lanes[e.Fd], e.Events)
		case aboutDialer:
			l.dialer.dialled()
		}
	}
	return nil
}
