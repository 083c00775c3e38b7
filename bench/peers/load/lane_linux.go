package load

import (
	"errors"
	"io"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Phases of a lane.
const (
	laneClosed = iota // it is opened again for the next publication
	laneConnecting
	laneOpening // what a protocol wants before the first publication
	laneIdle
	laneWaiting // for an answer
)

// lane is a connection that publishes, one publication at a time. A single channel has a number of its own on every lane;
// of several channels each belongs to one lane: so the order of a number is the order of its publications.
type lane struct {
	socket
	index   int
	phase   uint8
	queue   []publication // that are due
	current publication
	out     []byte // the request under way
	in      []byte // an answer that is not whole
	until   string // opening: what is still to be heard
	seqs    []uint32
	turn    int // closed loop: of which channel the next one is
}

type publication struct {
	due     int64
	channel int
}

// maxQueued is how many publications may wait for lanes: a server so far behind does not do the rate, and memory is bounded.
const maxQueued = 100_000

func (ln *lane) prepare(l *loop, i int) {
	ln.index = i
	if l.job.Channels == 1 {
		ln.seqs = make([]uint32, 1)
	} else {
		ln.seqs = make([]uint32, (l.job.Channels-i+l.job.Lanes-1)/l.job.Lanes)
	}
	l.openLane(ln)
}

func (l *loop) lanesOpen() bool {
	for i := range l.lanes {
		if l.lanes[i].phase < laneIdle {
			return false
		}
	}
	return true
}

func (l *loop) lanesBusy() bool {
	for i := range l.lanes {
		if l.lanes[i].phase == laneWaiting {
			return true
		}
	}
	return false
}

func (l *loop) publishAddr() string {
	if l.job.Target.Publish != "" {
		return l.job.Target.Publish
	}
	return l.job.Target.Addr
}

func (l *loop) openLane(ln *lane) {
	ln.phase, ln.in = laneConnecting, ln.in[:0]
	if l.dialer != nil {
		l.dialer.ask(aboutLane, ln.index, l.publishAddr())
		return
	}
	if err := l.dial(&ln.socket, l.publishAddr(), aboutLane, ln.index); err != nil {
		l.laneBroke(ln, err)
	}
}

// laneBroke counts the publication under way as an error: whether it was taken is not known.
func (l *loop) laneBroke(ln *lane, err error) {
	busy := len(ln.out) > 0
	l.hangUp(&ln.socket)
	ln.phase, ln.out, ln.in = laneClosed, ln.out[:0], ln.in[:0]
	if !busy {
		if errors.Is(err, io.EOF) {
			return // a server may close what is idle
		}
		l.fatal = err
		return
	}
	l.res.PublishErrors++
	l.note(err)
	if l.res.PublishErrors > 1000 {
		l.fatal = err
	}
}

func (l *loop) onLane(ln *lane, _ uint32) {
	if !ln.open {
		return
	}
	if ln.phase == laneConnecting {
		if err := l.connected(&ln.socket, aboutLane, ln.index); err != nil {
			l.laneBroke(ln, err)
			return
		}
		l.laneConnected(ln)
		return
	}
	for ln.open {
		n, err := ln.read(l.buf)
		if errors.Is(err, errAgain) {
			return
		}
		if err != nil {
			l.laneBroke(ln, err)
			l.publishNext(ln, l.now())
			return
		}
		ln.in = append(ln.in, l.buf[:n]...)
		if l.laneHeard(ln); ln.tls == nil && n < len(l.buf) {
			return
		}
	}
}

func (l *loop) laneConnected(ln *lane) {
	send, until := l.dialect.open()
	ln.until = until
	if until != "" {
		ln.phase = laneOpening
		if err := ln.write([]byte(send)); err != nil {
			l.laneBroke(ln, err)
		}
		return
	}
	l.laneReady(ln)
}

// laneReady sends what waited for the connection.
func (l *loop) laneReady(ln *lane) {
	ln.phase = laneIdle
	if len(ln.out) > 0 {
		ln.phase = laneWaiting
		if err := ln.write(ln.out); err != nil {
			l.laneBroke(ln, err)
		}
	}
}

func (l *loop) laneHeard(ln *lane) {
	if ln.phase == laneOpening {
		if len(ln.in) < len(ln.until) || string(ln.in[len(ln.in)-len(ln.until):]) != ln.until {
			return
		}
		ln.in = ln.in[:0]
		l.laneReady(ln)
		return
	}
	n, closes, err := l.dialect.done(ln.in)
	if errors.Is(err, errMore) {
		return
	}
	now := l.now()
	ln.in = append(ln.in[:0], ln.in[n:]...)
	ln.out = ln.out[:0]
	ln.phase = laneIdle
	if err != nil {
		l.res.PublishErrors++
		l.note(err)
		if l.res.PublishErrors > 1000 {
			l.fatal = err
		}
	} else {
		l.expected += int(l.listeners[ln.current.channel])
		if l.window {
			l.res.Published++
		}
		if ln.current.due >= l.windowFrom && ln.current.due < l.windowTo {
			l.request.add((now - ln.current.due) / 1000)
		}
	}
	if closes {
		l.hangUp(&ln.socket)
		ln.phase = laneClosed
	}
	l.publishNext(ln, now)
}

// publishDue hands what is due to its lane.
func (l *loop) publishDue(now int64) (next int64) {
	queued := 0
	for {
		at := l.from + int64(float64(l.due)*1e9/l.job.Rate)
		if at > now {
			next = at
			break
		}
		p := publication{due: at, channel: l.due % l.job.Channels}
		ln := &l.lanes[l.due%len(l.lanes)]
		if l.job.Channels > 1 {
			ln = &l.lanes[p.channel%len(l.lanes)]
		}
		l.due++
		ln.queue = append(ln.queue, p)
		if ln.phase == laneIdle || ln.phase == laneClosed {
			l.publishNext(ln, now)
		}
		queued = max(queued, len(ln.queue))
	}
	if queued*len(l.lanes) > maxQueued {
		l.fatal = errors.New("the server does not take publications at this rate")
	}
	return next
}

// publishNext lets a lane that is free publish what is due, or in a closed loop at once.
func (l *loop) publishNext(ln *lane, now int64) {
	if !l.publishing || ln.phase != laneIdle && ln.phase != laneClosed {
		return
	}
	switch {
	case l.job.Rate == 0:
		ln.current = publication{due: now}
		if l.job.Channels > 1 {
			ln.current.channel = ln.index + ln.turn*len(l.lanes)
			ln.turn = (ln.turn + 1) % len(ln.seqs)
		}
	case len(ln.queue) > 0:
		ln.current = ln.queue[0]
		if ln.queue = ln.queue[1:]; len(ln.queue) == 0 {
			ln.queue = nil
		}
		if l.window && now-ln.current.due > int64(10*time.Millisecond) {
			l.res.Late++
		}
	default:
		return
	}
	l.publish(ln)
}

func (l *loop) publish(ln *lane) {
	seq := &ln.seqs[ln.current.channel/len(l.lanes)]
	*seq++
	m := message{seq: *seq, due: ln.current.due}
	if l.job.Channels == 1 {
		m.lane = uint32(ln.index)
	}
	m.write(l.msg)
	ln.out = l.dialect.publication(ln.out[:0], ln.current.channel, l.msg)
	if *seq == math.MaxUint32 {
		l.fatal = errors.New("a lane has no more numbers")
	}
	if ln.phase == laneClosed {
		l.openLane(ln)
		return
	}
	ln.phase = laneWaiting
	if err := ln.write(ln.out); err != nil {
		l.laneBroke(ln, err)
	}
}

// adopt takes over a connection that a dialer made.
func (l *loop) adopt(s *socket, about, index int) error {
	if err := unix.SetNonblock(int(s.fd), true); err != nil {
		return err
	}
	return l.watch(s, unix.EPOLL_CTL_ADD, edges, about, index)
}
