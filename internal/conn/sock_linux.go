package conn

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// sock is one socket of a loop: first it speaks HTTP, later it may carry a connection. Only whoever is its loop touches it, but for wake and cut.
type sock struct {
	l          *loop
	conn       *Conn   // nil while it speaks HTTP
	held       []byte  // HTTP: the begin of a request; a paused connection: what it has not heard, never nil
	peer       string  // its address, while it speaks HTTP
	parser     *parser // of a frame that has begun
	stuck      *stuck  // what the kernel has not taken yet
	tls        *layer  // between it and the connection; nil: none
	supply     *supply // the response that it waits for takes frames of a connection over HTTP
	since      int64   // since when it is waited for: a request, or the next one
	fd         int32   // < 0: ended
	slot       int32
	generation int32
	flood      flood
	deaf       bool // the peer broke the protocol or said goodbye, or is never heard: read on only to see the end
	between    bool // no byte of a next request has come
	away       bool // a handler works on its request elsewhere
	closing    bool // ends when everything is written
	hangup     bool // the peer's end is in its socket, behind what is still to be read: no further edge tells of it
	reread     bool // there may be more to read than has had its edge
	cutting    atomic.Bool
}

// stuck is the rest of a write that the kernel had no room for.
type stuck struct {
	left      []byte   // of the piece that was begun
	batch     [][]byte // as taken; the frames from next on are not begun
	next      int
	since     int64
	committed int64
}

// wake implements stream.
func (s *sock) wake(*Conn) {
	l := s.l
	l.mu.Lock()
	l.inbox.dirty = append(l.inbox.dirty, s)
	l.mu.Unlock()
	l.leave()
}

// cut implements stream.
func (s *sock) cut() {
	if s.cutting.Swap(true) {
		return
	}
	l := s.l
	l.mu.Lock()
	l.inbox.cut = append(l.inbox.cut, s)
	l.mu.Unlock()
	l.rouse()
}

// resume implements stream.
func (s *sock) resume() {
	l := s.l
	l.mu.Lock()
	l.inbox.woken = append(l.inbox.woken, s)
	l.mu.Unlock()
	l.rouse()
}

// goodbye implements stream. It may be asked before the socket knows its connection: that is in the table already, for whoever drains it.
func (s *sock) goodbye(w Wire, code CloseCode, reason string) []byte {
	if w == WireSSE {
		return sseClose(code, reason)
	}
	return closeFrame(code, reason)
}

// read takes what has come.
func (l *loop) read(s *sock) {
	if s.waits() {
		s.reread = true // the edge is spent
		if s.supply != nil && s.hangup {
			l.end(s)
		}
		return
	}
	in, reads := l.in, waveReads
	if s.tls != nil {
		in, reads = in[:scratch/4], 1 // of which each byte may cost as much as many: the others' turn comes sooner
	}
	for range reads {
		n, errno := rawRead(s.fd, in)
		switch {
		case errno == 0 && n > 0:
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR:
			continue
		default: // the peer is gone, politely or not
			l.gone(s, errno == 0)
			return
		}
		switch {
		case s.conn == nil:
			l.request.take(s, in[:n])
		case s.tls != nil:
			s.conn.heard.Store(l.now)
			l.unseal(s, in[:n])
		default:
			s.conn.heard.Store(l.now)
			l.feed(s, in[:n])
		}
		switch {
		case s.fd < 0:
			return
		case s.waits():
			s.reread = s.reread || s.hangup || n == len(in)
			return
		case n < len(in) && !s.hangup:
			return // the next edge comes with the next bytes
		}
	}
	l.again = append(l.again, s)
}

// gone ends a socket of which nothing more can be read.
func (l *loop) gone(s *sock, politely bool) {
	if s.deaf && politely {
		l.flush(s) // whoever said goodbye and has ended its side is still answered
	}
	l.end(s)
}

// waits says that nothing is to be read now: a paused connection, a request that is worked on, an answer that is not out.
func (s *sock) waits() bool {
	if s.conn != nil {
		return s.held != nil
	}
	return s.away || s.stuck != nil
}

// feed gives a connection's bytes to its parser. One that is between two frames has none of its own.
func (l *loop) feed(s *sock, b []byte) {
	if s.deaf {
		return
	}
	in := &l.parse
	in.ears, in.held = ears{c: s.conn, flood: s.flood}, false
	if s.parser != nil {
		in.p, s.parser = *s.parser, nil
	}
	in.p.z = s.conn.inflaters()
	rest, fail := in.p.feed(b, in)
	if fail != nil {
		in.fail(*fail)
	}
	s.deaf, s.flood = in.deaf, in.flood
	if limit := in.p.limit; s.deaf {
		in.p = parser{limit: limit}
	} else if in.p.midway() {
		p := in.p
		s.parser, in.p = &p, parser{limit: limit}
	}
	if in.held && s.fd >= 0 {
		s.held = append([]byte{}, rest...) // not nil: it says that nothing is to be read
	}
	in.c = nil
	l.heard += in.messages
	in.messages = 0
	if in.goodbye && s.fd >= 0 {
		l.end(s)
	}
}

// resume reads on where a connection was paused.
func (l *loop) resume(s *sock) {
	if s.supply != nil {
		l.supply(s)
		l.supplied(s)
		return
	}
	rest := s.held
	if s.conn == nil || rest == nil {
		return
	}
	s.held = nil
	l.feed(s, rest)
	if !l.ended(s) && s.fd >= 0 && s.reread {
		s.reread = false
		l.read(s)
	}
}

// flush writes what is queued for a connection until there is nothing, or the kernel takes no more.
func (l *loop) flush(s *sock) {
	if s.stuck != nil {
		return // it goes on when there is room
	}
	c := s.conn
	for {
		batch, since, committed := c.take(l.now)
		if batch == nil {
			return
		}
		if !l.write(s, batch, 0, since, committed) {
			return
		}
	}
}

// unstick goes on with a write that was stuck.
func (l *loop) unstick(s *sock) {
	st := s.stuck
	n, ok := l.put(s, st.left)
	if !ok {
		return
	}
	if st.left = st.left[n:]; len(st.left) > 0 {
		switch {
		case n > 0 && s.conn != nil:
			s.conn.writing.Store(l.now)
		case n > 0 && s.supply != nil:
			s.supply.x.c.writing.Store(l.now)
		}
		return
	}
	s.stuck = nil
	if p := s.supply; p != nil {
		p.x.c.writing.Store(0)
		if p.batch != nil {
			p.done += p.piece
			l.push(p)
		}
		l.supply(s)
		l.supplied(s)
		return
	}
	if s.conn == nil {
		l.request.written(s)
		l.request.goOn(s)
		return
	}
	if s.tls != nil {
		s.tls.owed = 0
	}
	if st.batch == nil {
		s.conn.writing.Store(0) // it was TLS's own alone
	} else if !l.write(s, st.batch, st.next, st.since, st.committed) {
		return
	}
	l.flush(s)
}

// write puts the frames of a batch on the wire, from next on, in as few writes as fit. It says whether all of it went.
func (l *loop) write(s *sock, batch [][]byte, next int, since, committed int64) bool {
	for next < len(batch) {
		piece, lent := batch[next], false
		next++
		if next < len(batch) && len(piece)+len(batch[next]) <= scratch {
			buf := append(l.out[:0], piece...)
			for next < len(batch) && len(buf)+len(batch[next]) <= scratch {
				buf = append(buf, batch[next]...)
				next++
			}
			piece, lent = buf, true
		}
		if s.tls != nil {
			var ok bool
			if piece, ok = l.seal(s, piece); !ok {
				l.end(s)
				return false
			}
			lent = true
		}
		n, ok := l.put(s, piece)
		if !ok {
			return false
		}
		if n < len(piece) {
			left := piece[n:]
			if lent {
				left = append([]byte(nil), left...)
			}
			s.stuck = &stuck{left, batch, next, since, committed}
			return false
		}
		if next < len(batch) {
			s.conn.writing.Store(l.now)
		}
	}
	return l.wrote(s, batch, since, committed)
}

// wrote is what follows a batch that is on the wire. It says whether the socket goes on.
func (l *loop) wrote(s *sock, batch [][]byte, since, committed int64) bool {
	l.sent += len(batch)
	l.writes++
	if l.s.t.wrote(s.conn, batch, since, committed) {
		l.end(s)
		return false
	}
	if s.deaf && s.conn.gaveUp() {
		l.bye(s)
		_ = unix.Shutdown(int(s.fd), unix.SHUT_WR) // the sweeper ends what does not end by this
	}
	return true
}

// put is one write. When it fails, the socket is at its end.
func (l *loop) put(s *sock, b []byte) (n int, ok bool) {
	for {
		n, errno := rawWrite(s.fd, b)
		switch errno {
		case 0:
			return n, true
		case unix.EAGAIN:
			return 0, true
		case unix.EINTR:
		default:
			l.end(s)
			return 0, false
		}
	}
}

// hearing turns what a loop reads of a connection into callbacks. A loop has one, for all of its connections in turn.
type hearing struct {
	ears
	p        parser
	held     bool // reading was paused by a message
	messages int
}

// text implements sink.
func (h *hearing) text(payload []byte) (more bool) {
	if h.deaf || !h.c.deliver() {
		return !h.deaf
	}
	h.messages++
	h.c.table.hear(h.c, payload)
	h.held = h.c.isPaused()
	return !h.held
}
