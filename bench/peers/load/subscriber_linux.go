package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Phases of a subscriber.
const (
	absent = iota
	connecting
	upgrading
	greeting
	listening
)

type subscriber struct {
	socket
	phase uint8
	rest  []byte // of a frame that was not whole
}

// retry is an attempt to come.
type retry struct {
	index int
	at    int64
}

const retryAfter = 200 * time.Millisecond

// connect keeps as many handshakes under way as the job wants.
func (l *loop) connect(now int64) (next int64) {
	for l.underWay < l.job.Window {
		var i int
		switch {
		case len(l.again) > 0 && l.again[0].at <= now:
			i = l.again[0].index
			l.again = l.again[1:]
		case l.next < len(l.subs):
			i = l.next
			l.next++
		case len(l.again) > 0:
			return l.again[0].at
		default:
			return math.MaxInt64
		}
		l.underWay++
		s := &l.subs[i]
		s.phase = connecting
		if l.dialer != nil {
			l.dialer.ask(aboutSubscriber, i, l.job.Target.Addr)
			continue
		}
		if err := l.dial(&s.socket, l.job.Target.Addr, aboutSubscriber, i); err != nil {
			if errors.Is(err, unix.EMFILE) {
				l.fatal = fmt.Errorf("%d subscribers are more than the files this process may open (ulimit -n): %w", len(l.subs), err)
				return math.MaxInt64
			}
			l.failed(i, err)
		}
	}
	return math.MaxInt64
}

// failed is an attempt that did not come to its end, or the end of one who was there.
func (l *loop) failed(i int, err error) {
	s := &l.subs[i]
	was := s.phase
	l.hangUp(&s.socket)
	*s = subscriber{}
	if was == listening {
		l.res.Disconnected++
		l.note(err)
		return
	}
	l.underWay--
	l.res.Connect.Errors++
	if l.res.Connect.FirstErr == "" {
		l.res.Connect.FirstErr = err.Error()
	}
	l.again = append(l.again, retry{index: i, at: l.now() + int64(retryAfter)})
}

func (l *loop) note(err error) {
	if l.res.FirstError == "" {
		l.res.FirstError = err.Error()
	}
}

// upgrade asks for the WebSocket.
func (l *loop) upgrade(i int) error {
	s := &l.subs[i]
	path, headers := l.dialect.upgrade(i, i%l.job.Channels)
	s.phase = upgrading
	return s.write([]byte("GET " + path + " HTTP/1.1\r\nHost: " + l.job.Target.Addr +
		"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nSec-WebSocket-Version: 13\r\n" + headers + "\r\n"))
}

func (l *loop) onSubscriber(i int, _ uint32) {
	s := &l.subs[i]
	switch {
	case !s.open:
	case s.phase == connecting:
		err := l.connected(&s.socket, aboutSubscriber, i)
		if err == nil {
			err = l.upgrade(i)
		}
		if err != nil {
			l.failed(i, err)
		}
	default:
		if err := l.hear(i, s); err != nil {
			l.failed(i, err)
		}
	}
}

// hear reads what is there: a plain socket until a read brings less than there was room for, one with TLS, of which records may
// wait in memory, until there is nothing.
func (l *loop) hear(i int, s *subscriber) error {
	for {
		had := copy(l.buf, s.rest)
		if had == len(l.buf) {
			if had >= 1<<24 {
				return errors.New("a frame of more than 16 MiB")
			}
			l.buf = append(l.buf, make([]byte, len(l.buf))...)
		}
		n, err := s.read(l.buf[had:])
		if errors.Is(err, errAgain) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return errors.New("the server hung up")
		}
		if err != nil {
			return err
		}
		if l.window {
			l.res.Bytes += n
			l.res.Reads++
		}
		rest, err := l.frames(i, s, l.buf[:had+n])
		if err != nil {
			return err
		}
		switch {
		case len(rest) > 0:
			s.rest = append(s.rest[:0], rest...)
		case s.rest != nil:
			s.rest = nil
		}
		if s.tls == nil && n < len(l.buf)-had {
			return nil
		}
	}
}

// frames handles what is whole and returns what is not.
func (l *loop) frames(i int, s *subscriber, p []byte) ([]byte, error) {
	if s.phase == upgrading {
		end := bytes.Index(p, []byte("\r\n\r\n"))
		if end < 0 {
			return p, nil
		}
		if !bytes.HasPrefix(p, []byte("HTTP/1.1 101")) {
			return nil, fmt.Errorf("the upgrade: %.300s", p)
		}
		p = p[end+4:]
		s.phase = greeting
		if err := l.greet(i, s, nil); err != nil {
			return nil, err
		}
	}
	now := l.now()
	for {
		op, payload, n := serverFrame(p)
		if n == 0 {
			return p, nil
		}
		p = p[n:]
		switch op {
		case 8:
			return nil, fmt.Errorf("the server closed: %s", closeReason(payload))
		case 9:
			l.beaten++
			if err := s.write(clientFrame(nil, 10, payload)); err != nil {
				return nil, err
			}
		case 10:
		default:
			if s.phase == greeting {
				if err := l.greet(i, s, payload); err != nil {
					return nil, err
				}
				continue
			}
			if err := l.deliver(i, s, payload, now); err != nil {
				return nil, err
			}
		}
	}
}

func closeReason(p []byte) string {
	if len(p) < 2 {
		return "no code"
	}
	return fmt.Sprintf("%d %s", int(p[0])<<8|int(p[1]), p[2:])
}

func (l *loop) greet(i int, s *subscriber, frame []byte) error {
	reply, ready, err := l.dialect.greet(i%l.job.Channels, frame)
	if err == nil && reply != nil {
		err = s.write(l.frameOf(reply))
	}
	if err != nil || !ready {
		return err
	}
	s.phase = listening
	l.underWay--
	l.ready++
	if l.backAt != nil {
		l.backAt = append(l.backAt, l.now())
	}
	return nil
}

func (l *loop) frameOf(payload []byte) []byte {
	if l.dialect.binary() {
		return clientFrame(nil, 2, payload)
	}
	return clientFrame(nil, 1, payload)
}

// deliver counts the messages of a frame. Most frames of a run have theirs at the same place.
func (l *loop) deliver(i int, s *subscriber, p []byte, now int64) error {
	found := false
	for len(p) >= MinPayload {
		at := l.hint
		if at+MinPayload > len(p) || p[at] != mark[0] || p[at+1] != mark[1] {
			if at = bytes.Index(p, []byte(mark)); at < 0 || at+MinPayload > len(p) {
				break
			}
			if !found {
				l.hint = at
			}
		}
		m, ok := readMessage(p[at:])
		if !ok {
			return fmt.Errorf("a message that is none of this run's: %.200s", p)
		}
		found = true
		l.count(i, m, now)
		p = p[min(at+l.job.Payload, len(p)):]
	}
	if found {
		return nil
	}
	if answer := l.dialect.answer(p); answer != nil {
		l.beaten++
		return s.write(l.frameOf(answer))
	}
	return nil
}

func (l *loop) count(i int, m message, now int64) {
	last := &l.last[i*l.stride+min(int(m.lane), l.stride-1)]
	switch {
	case m.seq == *last+1:
		*last = m.seq
	case m.seq > *last:
		l.res.Gaps += int(m.seq - *last - 1)
		*last = m.seq
	default:
		l.res.Disorder++
	}
	l.received++
	if l.window {
		l.res.Delivered++
	}
	if m.due >= l.windowFrom && m.due < l.windowTo {
		l.delivery.add((now - m.due) / 1000)
	}
}

// beat sends the heartbeats that are due, spread over their interval.
func (l *loop) beat(now int64) (next int64) {
	frame, every := l.dialect.beat()
	if every == 0 {
		return math.MaxInt64
	}
	gap := max(int64(every)/int64(len(l.subs)), 1)
	for ; l.beats <= now; l.beats += gap {
		s := &l.subs[l.beatNext]
		l.beatNext = (l.beatNext + 1) % len(l.subs)
		if s.phase != listening {
			continue
		}
		l.beaten++
		if err := s.write(l.beatFrame(frame)); err != nil {
			l.note(err)
		}
	}
	return l.beats
}

// beatFrame is a frame of the protocol, or WebSocket's own ping where the protocol has none.
func (l *loop) beatFrame(payload []byte) []byte {
	if payload == nil {
		return clientFrame(nil, 9, nil)
	}
	return l.frameOf(payload)
}
