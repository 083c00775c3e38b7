package conn

import (
	"bytes"
	"strconv"
)

// supply is a response on a loop that takes the frames of a connection over HTTP. It has no goroutine: whoever queues a frame has the loop write it.
// A stream ends with its socket, so that frames go out as they are; a poll is an ordinary answer that comes late.
type supply struct {
	x       *XHR
	rc      *receiver
	old     *receiver // had its place, and may still be writing
	streams bool

	// The loop's own.
	s     *sock
	head  []byte // of the answer, but for its length; until it is written
	last  bool   // the socket ends with it
	ready bool   // frames may be taken
	grown int    // in units of UTF-16

	// Of the write under way: frames as taken, how many of them are out, and how many are in what the kernel has not taken yet.
	batch            [][]byte
	done, piece      int
	since, committed int64
}

var _ taker = (*supply)(nil)

// take implements taker.
func (p *supply) take() { p.s.resume() }

// leave implements taker.
func (p *supply) leave() { p.s.l.post(func() { p.s.l.dismiss(p) }) }

func (p *supply) stopped() bool {
	select {
	case <-p.rc.stop:
		return true
	default:
		return false
	}
}

// receive makes a response that takes frames of a request that was read.
func (r *requests) receive(s *sock, w *reply, last bool, rest []byte) {
	l, p := r.l, w.supply
	p.s, p.last = s, p.streams || last || l.s.draining()
	p.head = w.head(nil, r.now(), p.last)
	s.supply, s.away = p, true
	p.x.bind(p.rc, p)
	if p.old == nil {
		l.begin(p)
	} else {
		l.s.running.Go(func() { // rare: the client came back before it saw the end of its last response, or somebody else has its session
			<-p.old.done
			l.post(func() { l.begin(p); l.supplied(s) })
		})
	}
	switch {
	case s.supply == nil:
	case s.hangup: // nobody is there any more
		l.end(s)
	default:
		s.held = append([]byte(nil), rest...) // pipelined
	}
}

// begin is called when no other response of the connection takes frames.
func (l *loop) begin(p *supply) {
	s := p.s
	if s.supply != p {
		return // it has ended
	}
	if p.stopped() {
		l.dismiss(p)
		return
	}
	p.ready, p.old = true, nil
	if p.streams { // by its head the client's browser knows that it was let in
		head := append(p.head, "\r\n"...)
		p.head = nil
		if n, ok := l.put(s, head); !ok {
			return
		} else if n < len(head) {
			p.x.c.writing.Store(l.now)
			s.stuck = &stuck{left: head[n:]}
			return
		}
	}
	l.supply(s)
}

// supply writes what is queued.
func (l *loop) supply(s *sock) {
	for p := s.supply; p != nil && p.ready && s.stuck == nil && !p.stopped(); p = s.supply {
		if p.batch, p.since, p.committed = p.x.c.take(l.now); p.batch == nil {
			return
		}
		if p.streams {
			p.x.asks(p.batch)
		}
		l.push(p)
	}
}

// supplied goes on with the socket after something was done for its response.
func (l *loop) supplied(s *sock) {
	if s.supply == nil && s.fd >= 0 {
		l.request.goOn(s)
	}
}

// push writes the batch from where it is.
func (l *loop) push(p *supply) {
	s := p.s
	for p.done < len(p.batch) && p.grown <= recycleAfter {
		buf := l.out[:0]
		next := len(p.batch)
		if p.streams {
			for next = p.done; next < len(p.batch) && p.grown <= recycleAfter && (next == p.done || len(buf)+len(p.batch[next]) <= scratch); next++ {
				buf = append(buf, p.batch[next]...)
				p.grown += units(p.batch[next])
			}
		} else {
			buf = p.answer(buf, p.batch)
		}
		p.piece = next - p.done
		n, ok := l.put(s, buf)
		if !ok {
			return
		}
		if n < len(buf) {
			s.stuck = &stuck{left: bytes.Clone(buf[n:])}
			return
		}
		p.done = next
		p.x.c.writing.Store(l.now)
	}
	l.pushed(p)
}

// answer writes a whole answer.
func (p *supply) answer(b []byte, frames [][]byte) []byte {
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	b = append(append(b, p.head...), "Content-Length: "...)
	b = append(strconv.AppendInt(b, int64(size), 10), "\r\n\r\n"...)
	for _, f := range frames {
		b = append(b, f...)
	}
	return b
}

// pushed is called when the batch is out, or as much of it as this response may have.
func (l *loop) pushed(p *supply) {
	over := p.settle()
	if over {
		p.x.cut()
	}
	if over || !p.streams || p.grown > recycleAfter {
		p.x.detach(p.rc, true)
		l.answered(p.s, p.last)
	}
}

// settle accounts for what is out of the batch, queues the rest again, and says whether that was the last of the connection.
func (p *supply) settle() (over bool) {
	batch, n := p.batch, p.done
	if batch == nil {
		p.x.c.writing.Store(0)
		return false
	}
	p.batch, p.done, p.piece = nil, 0, 0
	if n < len(batch) {
		p.x.c.untake(batch[n:], p.since, p.committed)
		p.since, p.committed = 0, 0
	}
	return n > 0 && p.x.c.table.account(p.x.c, batch[:n], p.since, p.committed)
}

// answered makes a socket what it was before the request.
func (l *loop) answered(s *sock, last bool) {
	s.supply, s.away, s.since, s.between, s.closing = nil, false, l.now, true, last
	l.request.written(s)
}

// dismiss ends a response that must take no more: another has its place, or the connection is over.
func (l *loop) dismiss(p *supply) {
	s := p.s
	if s.supply != p {
		return
	}
	if s.stuck != nil {
		l.end(s) // in the middle of a frame
		return
	}
	var frames [][]byte
	if p.x.detach(p.rc, false) {
		frames = [][]byte{xhrReplaced()} // whoever reads it is not the client that the connection belongs to now
	}
	var b []byte
	switch {
	case !p.streams:
		if !p.last {
			p.head = append(p.head, "Connection: close\r\n"...)
		}
		b = p.answer(nil, frames)
	case p.head != nil:
		b = append(p.head, "\r\n"...)
		fallthrough
	default:
		for _, f := range frames {
			b = append(b, f...)
		}
	}
	if n, ok := l.put(s, b); !ok {
		return
	} else if n < len(b) {
		s.supply = nil
		l.end(s)
		return
	}
	l.answered(s, true)
	l.supplied(s)
}

// unsupply is called when the socket of a response is at its end: what is not out is queued again.
func (l *loop) unsupply(s *sock) {
	p := s.supply
	s.supply = nil
	select {
	case <-p.rc.done: // dismissed
		return
	default:
	}
	if !p.streams {
		p.done = 0 // an answer that is cut short is none
	}
	_ = p.settle() // not the last: that is behind what is not out
	p.x.detach(p.rc, false)
}
