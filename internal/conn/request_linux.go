package conn

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// requests is the HTTP of a loop. It answers what is hot and plain: HTTP/1.1 with a Host, a body of a known length, and
// nothing to expect. Everything else is net/http's, also what cannot be read: it knows how to refuse it.
type requests struct {
	l     *loop
	src   bytes.Reader
	buf   *bufio.Reader
	reply reply
	date  [32]byte // of the second that dated names
	dated int64
}

func (r *requests) init(l *loop) {
	r.l, r.buf = l, bufio.NewReaderSize(nil, 4<<10)
	r.reply.header = http.Header{}
}

// verdict is what becomes of the bytes at hand.
type verdict uint8

const (
	short verdict = iota // the request is not whole
	whole                // it is, and it is for the loop
	leave                // it is net/http's
)

// take works off the requests in what a socket has sent.
func (r *requests) take(s *sock, b []byte) {
	if s.closing {
		return
	}
	if s.between {
		s.between, s.since = false, r.l.now
	}
	if len(s.held) > 0 {
		b, s.held = append(s.held, b...), nil
	}
	for s.fd >= 0 && s.conn == nil && !s.away && !s.closing && s.stuck == nil && len(b) > 0 {
		v, n := r.look(b)
		switch v {
		case short:
			s.held = append([]byte(nil), b...)
			return
		case leave:
			r.handOver(s, b)
			return
		case whole:
		}
		one := b[:n]
		b = b[n:]
		r.serve(s, one, b)
		r.l.served++
		r.l.relieve()
	}
	if s.fd >= 0 && s.conn == nil && !s.away && len(b) > 0 {
		s.held = append([]byte(nil), b...) // pipelined behind an answer that is not written yet
	}
}

// look finds the end of the first request in b.
func (r *requests) look(b []byte) (verdict, int) {
	o := &r.l.s.opt
	line, _, ok := bytes.Cut(b, []byte("\r\n"))
	if !ok {
		if len(b) > o.MaxHead || b[0] < 'A' || b[0] > 'Z' { // TLS, or nothing that anybody knows: net/http says so at once
			return leave, 0
		}
		return short, 0
	}
	method, rest, _ := bytes.Cut(line, []byte{' '})
	target, proto, _ := bytes.Cut(rest, []byte{' '})
	path, _, _ := bytes.Cut(target, []byte{'?'})
	if string(proto) != "HTTP/1.1" || len(path) == 0 || path[0] != '/' || !o.Hot(string(method), string(path)) {
		return leave, 0
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	switch {
	case end > o.MaxHead, end < 0 && len(b) > o.MaxHead:
		return leave, 0
	case end < 0:
		return short, 0
	}
	length, hosts := 0, 0
	for head := b[len(line)+2 : end+2]; len(head) > 0; {
		var field []byte
		field, head, _ = bytes.Cut(head, []byte("\r\n"))
		name, value, ok := bytes.Cut(field, []byte{':'})
		if !ok || !plain(name, value) {
			return leave, 0 // also a bare line feed, which only net/http takes for the end of a line
		}
		switch len(name) {
		case len("Host"):
			if bytes.EqualFold(name, []byte("Host")) {
				hosts++
			}
		case len("Expect"):
			if bytes.EqualFold(name, []byte("Expect")) {
				return leave, 0
			}
		case len("Content-Length"):
			if bytes.EqualFold(name, []byte("Content-Length")) {
				n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 31)
				if err != nil || length != 0 || n > uint64(o.MaxBody) { //nolint:gosec // a size
					return leave, 0
				}
				length = int(n)
			}
		case len("Transfer-Encoding"):
			if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
				return leave, 0
			}
		}
	}
	if hosts != 1 {
		return leave, 0
	}
	if size := end + 4 + length; len(b) >= size {
		return whole, size
	}
	return short, 0
}

// plain says that a header has only what may be in its name and its value (RFC 9110 §5.5, §5.6.2).
func plain(name, value []byte) bool {
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// handOver gives a socket to net/http.
func (r *requests) handOver(s *sock, b []byte) {
	fd := int(s.fd)
	_ = unix.EpollCtl(r.l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	r.l.forget(s)
	r.l.s.handOver(fd, b)
}

// serve answers one request; rest is what came behind it.
func (r *requests) serve(s *sock, one, rest []byte) {
	r.src.Reset(one)
	r.buf.Reset(&r.src)
	req, err := http.ReadRequest(r.buf)
	if err != nil {
		r.handOver(s, append(append([]byte(nil), one...), rest...))
		return
	}
	if s.peer == "" {
		s.peer = remote(int(s.fd))
	}
	req.RemoteAddr = s.peer
	w := &r.reply
	w.reset(onLoop)
	r.l.call(s, w, req)
	if w.repeat {
		r.sendAway(s, one, rest)
		return
	}
	switch {
	case w.leaves:
		r.handOver(s, append(append([]byte(nil), one...), rest...))
	case w.handler != nil:
		r.upgrade(s, w, req, rest)
	case w.supply != nil:
		r.receive(s, w, req.Close, rest)
	default:
		r.answer(s, w, req.Close)
	}
}

// sendAway answers a request in a goroutine of its own, because it may have to wait. Nothing is read of the socket meanwhile.
func (r *requests) sendAway(s *sock, one, rest []byte) {
	one, s.held, s.away = append([]byte(nil), one...), append([]byte(nil), rest...), true
	addr := s.peer
	r.l.s.running.Go(func() {
		w := &reply{header: http.Header{}}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(one))) // was read before
		if err == nil {
			req.RemoteAddr = addr
			r.l.call(s, w, req)
		}
		posted := r.l.post(func() {
			if s.fd < 0 {
				w.abandon(s)
				return
			}
			s.away = false
			held := s.held
			switch {
			case w.leaves:
				s.held = nil
				r.handOver(s, append(one, held...))
				return
			case w.handler != nil:
				r.upgrade(s, w, req, held)
				return
			case w.supply != nil:
				r.receive(s, w, req.Close, held)
				r.l.supplied(s)
				return
			}
			r.answer(s, w, err != nil || req.Close)
			r.goOn(s)
		})
		if !posted { // the loop has ended, and its sockets with it
			w.abandon(s)
		}
	})
}

// call runs the handler. A panic in it costs this one answer.
func (l *loop) call(s *sock, w *reply, req *http.Request) {
	defer func() {
		if v := recover(); v != nil {
			l.s.t.metrics.panics.Inc()
			l.s.t.opt.Logger.Error("A request's handler panicked on a loop. This is a bug: please report it.", "panic", v, "stack", string(debug.Stack()))
			w.abandon(s)
			w.reset(w.loop)
			w.header.Set("Connection", "close")
			w.WriteHeader(http.StatusInternalServerError)
		}
	}()
	l.s.opt.Handler.ServeHTTP(w, req)
}

// upgrade makes a connection of a socket.
func (r *requests) upgrade(s *sock, w *reply, req *http.Request, rest []byte) {
	l := r.l
	h := w.handler
	c := l.s.t.newConn(w.wire, s, w.cfg, h)
	var first []byte
	if w.wire == WireWebSocket {
		first = handshake(req.Header.Get("Sec-WebSocket-Key"), c.deflate)
	} else { // an answer that ends with the socket: frames go out as they are, the same bytes to everybody
		s.deaf = true // nothing is ever heard on it, but its end
		first = append(w.head(nil, r.now(), true), "\r\n"...)
	}
	c.begin(first)
	if !l.s.t.add(c) { // it has ended
		l.end(s)
		return
	}
	s.conn, s.held, s.peer = c, nil, ""
	s.wake(c) // it leaves with what OnOpen says
	l.s.t.guarded(c, func() { h.OnOpen(c) })
	l.feed(s, rest)
	if s.reread {
		s.reread = false
		l.read(s)
	}
}

// answer writes what a handler answered.
func (r *requests) answer(s *sock, w *reply, last bool) {
	l := r.l
	last = last || w.header.Get("Connection") == "close" || l.s.draining()
	b := w.append(l.out[:0], r.now(), last)
	s.since, s.between, s.closing = l.now, true, last
	n, ok := l.put(s, b)
	switch {
	case !ok:
	case n < len(b):
		s.stuck = &stuck{left: append([]byte(nil), b[n:]...)}
	default:
		r.written(s)
	}
}

// written is called when an answer is out.
func (r *requests) written(s *sock) {
	if s.closing {
		_ = unix.Shutdown(int(s.fd), unix.SHUT_WR) // what the peer still sends would turn our answer into a reset
		s.between = false
	}
}

// goOn takes up what came while the socket waited for its answer. It is not called from within take.
func (r *requests) goOn(s *sock) {
	if s.fd < 0 || s.waits() {
		return
	}
	if held := s.held; len(held) > 0 {
		s.held = nil
		r.take(s, held)
	}
	if s.fd >= 0 && s.reread && !s.waits() {
		s.reread = false
		r.l.read(s)
	}
}

// now is the Date of the second.
func (r *requests) now() []byte {
	if second := r.l.now / int64(time.Second); second != r.dated {
		r.dated = second
		copy(r.date[:], time.Unix(second, 0).UTC().AppendFormat(r.date[:0], http.TimeFormat))
	}
	return r.date[:len(http.TimeFormat)]
}

// remote is the peer's address, as net/http shows it.
func remote(fd int) string {
	addr, err := unix.Getpeername(fd)
	if err != nil {
		return ""
	}
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), strconv.Itoa(a.Port))
	case *unix.SockaddrInet6:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), strconv.Itoa(a.Port))
	}
	return ""
}

// reply is the ResponseWriter of a loop: it keeps the answer until the handler has returned.
type reply struct {
	header  http.Header
	status  int
	body    []byte
	loop    bool // runs on a loop
	repeat  bool // Again was called
	leaves  bool // Rest was called
	wire    Wire
	cfg     Config
	handler Handler // not nil: the socket becomes a connection
	supply  *supply // not nil: the answer takes frames of a connection
}

const onLoop = true

func (w *reply) reset(loop bool) {
	clear(w.header)
	*w = reply{header: w.header, body: w.body[:0], loop: loop}
}

var (
	_ http.ResponseWriter = (*reply)(nil)
	_ looped              = (*reply)(nil)
)

// Header implements http.ResponseWriter.
func (w *reply) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *reply) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *reply) Write(b []byte) (int, error) {
	if w.handler != nil || w.supply != nil {
		return 0, http.ErrHijacked
	}
	w.WriteHeader(http.StatusOK)
	w.body = append(w.body, b...)
	return len(b), nil
}

func (w *reply) again() bool {
	w.repeat = w.loop
	return w.loop
}

func (w *reply) rest() { w.leaves = true }

func (w *reply) upgrade(wire Wire, cfg Config, h Handler) { w.wire, w.cfg, w.handler = wire, cfg, h }

func (w *reply) receive(x *XHR, rc, old *receiver, streams bool) {
	w.supply = &supply{x: x, rc: rc, old: old, streams: streams}
}

// abandon is called when an answer is not written: nothing waits for it then, and who was to hear of a connection hears that there is none.
func (w *reply) abandon(s *sock) {
	if p := w.supply; p != nil {
		p.x.detach(p.rc, false)
	}
	if w.handler != nil {
		t := s.l.s.t
		t.refuse(t.newConn(w.wire, s, w.cfg, w.handler))
	}
}

// append writes the answer as HTTP/1.1.
func (w *reply) append(b, date []byte, last bool) []byte {
	b = w.head(b, date, last)
	if w.status != http.StatusNoContent && w.status != http.StatusNotModified {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, int64(len(w.body)), 10), "\r\n"...)
	}
	return append(append(b, "\r\n"...), w.body...)
}

// head writes the answer's head, but for its length and the empty line.
func (w *reply) head(b, date []byte, last bool) []byte {
	status := w.status
	if status == 0 {
		status = http.StatusOK
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(append(b, ' '), http.StatusText(status)...), "\r\nDate: "...)
	b = append(append(b, date...), "\r\n"...)
	for name, values := range w.header {
		if name == "Connection" || name == "Content-Length" || name == "Date" {
			continue
		}
		for _, v := range values {
			b = append(append(append(b, name...), ": "...), clean(v)...)
			b = append(b, "\r\n"...)
		}
	}
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	return b
}

// clean keeps a header's value on its line.
func clean(v string) string {
	if strings.ContainsAny(v, "\r\n") {
		return strings.NewReplacer("\r", " ", "\n", " ").Replace(v)
	}
	return v
}
