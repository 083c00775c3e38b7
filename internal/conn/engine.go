package conn

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// stream is the seam between a Conn and what moves its bytes. An engine (this file; later an epoll loop) calls
// take, wrote, broke, deliver, peerClosed and finish of the Conn; the Conn calls only what is named here.
type stream interface {
	// wake says that the queue is no longer empty. It must not block. It is called at most once until a take comes back empty.
	wake(c *Conn)
	// goodbye is the last frame of the wire.
	goodbye(w Wire, code CloseCode, reason string) []byte
	// resume says that reading goes on after a pause. It must not block.
	resume()
	// cut ends the stream now, whatever is under way. It must not block and may be called often.
	cut()
}

// out writes batches: what the two streams have in common. Writes block, in a goroutine that exists only while there is something to write.
type out struct {
	w     io.Writer
	flush func() error // after each batch; nil: nothing to do
	run   func()       // the writing goroutine's body, made once so that waking allocates nothing
}

// coalesce is the largest single write that batches are gathered into.
const coalesce = 64 << 10

// drainQueue writes until the queue is empty.
func (o *out) drainQueue(c *Conn) {
	for {
		now := time.Now().UnixNano()
		batch, since, committed := c.take(now)
		if batch == nil {
			return
		}
		if err := o.write(c, batch); err != nil {
			c.broke()
			return
		}
		if c.table.account(c, batch, since, committed) {
			c.stream.cut()
		} else if half, ok := o.w.(interface{ CloseWrite() error }); ok && c.gaveUp() {
			_ = half.CloseWrite() // the sweeper ends what does not end by this
		}
	}
}

// account notes that a batch is on the wire, and says whether it was the last one of its connection.
func (t *Table) account(c *Conn, batch [][]byte, since, committed int64) (finished bool) {
	t.metrics.framesSent.Add(float64(len(batch)))
	t.metrics.writes.Inc()
	return t.wrote(c, batch, since, committed)
}

// wrote is account for an engine that counts frames and writes itself.
func (t *Table) wrote(c *Conn, batch [][]byte, since, committed int64) (finished bool) {
	room, finished := c.wrote(batch)
	if since != 0 {
		t.metrics.write.Observe(time.Duration(time.Now().UnixNano() - since).Seconds())
	}
	if committed != 0 {
		t.metrics.delivery.Observe(time.Duration(ticks(time.Now()) - committed).Seconds())
	}
	if room != nil {
		room()
	}
	return finished
}

// write puts a batch on the wire in as few writes as fit, noting progress for the sweeper.
func (o *out) write(c *Conn, batch [][]byte) error {
	if len(batch) == 1 {
		if _, err := o.w.Write(batch[0]); err != nil {
			return err
		}
		return o.flushed()
	}
	held := c.table.buffers.Get().(*[]byte)
	defer c.table.buffers.Put(held)
	buf := (*held)[:0]
	send := func(b []byte) error {
		_, err := o.w.Write(b)
		c.writing.Store(time.Now().UnixNano())
		return err
	}
	for _, f := range batch {
		if len(buf)+len(f) > coalesce && len(buf) > 0 {
			if err := send(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
		if len(f) > coalesce {
			if err := send(f); err != nil {
				return err
			}
			continue
		}
		buf = append(buf, f...)
	}
	if len(buf) > 0 {
		if err := send(buf); err != nil {
			return err
		}
	}
	return o.flushed()
}

func (o *out) flushed() error {
	if o.flush == nil {
		return nil
	}
	return o.flush()
}

// socket is a WebSocket over a net.Conn.
type socket struct {
	out
	nc net.Conn
}

func (s *socket) wake(*Conn) { go s.run() }
func (s *socket) goodbye(_ Wire, code CloseCode, reason string) []byte {
	return closeFrame(code, reason)
}
func (s *socket) resume() {}                   // waitResumed hears of it
func (s *socket) cut()    { _ = s.nc.Close() } // the reader meets the error

// OpenWebSocket takes over a connection whose handshake is done. early is what the peer already sent after it.
// It returns at once; everything else is told to h.
func (t *Table) OpenWebSocket(nc net.Conn, early []byte, cfg Config, h Handler) *Conn {
	s := &socket{nc: nc}
	c := t.newConn(WireWebSocket, s, cfg, h)
	s.w = nc
	s.run = func() { s.drainQueue(c) }
	if !t.add(c) {
		return c
	}
	go func() {
		defer t.running.Done()
		defer c.finish(false)
		defer s.cut()
		t.guarded(c, func() { h.OnOpen(c) })
		s.read(c, early)
	}()
	return c
}

// Sizes of the read buffer: small while a connection is quiet, large while it has much to say.
const (
	quietRead = 1 << 10
	busyRead  = 32 << 10
)

// read is the reading goroutine: it ends when the stream does.
func (s *socket) read(c *Conn, early []byte) {
	in := &inbound{ears: ears{c: c}, s: s, p: parser{limit: c.table.opt.MessageBytes, z: c.inflaters()}}
	in.feed(early)
	quiet := make([]byte, quietRead)
	var busy *[]byte
	defer func() {
		if busy != nil {
			c.table.buffers.Put(busy)
		}
	}()
	for {
		buf := quiet
		if busy != nil {
			buf = (*busy)[:busyRead]
		}
		n, err := s.nc.Read(buf)
		if n > 0 {
			c.heard.Store(time.Now().UnixNano())
			in.feed(buf[:n])
		}
		if err != nil {
			if in.deaf && errors.Is(err, io.EOF) {
				c.settle() // whoever said goodbye and has ended its side is still answered
			}
			return
		}
		switch {
		case n == len(buf) && busy == nil:
			busy = c.table.buffers.Get().(*[]byte)
		case n < quietRead && busy != nil:
			c.table.buffers.Put(busy)
			busy = nil
		}
	}
}

// inbound turns what a socket reads into callbacks.
type inbound struct {
	ears
	s *socket
	p parser
}

func (in *inbound) feed(b []byte) {
	if in.deaf {
		return
	}
	if _, fail := in.p.feed(b, in); fail != nil {
		in.fail(*fail)
	}
	if in.goodbye {
		in.s.cut()
	}
}

// text implements sink.
func (in *inbound) text(payload []byte) (more bool) {
	if in.deaf || !in.c.deliver() {
		return true
	}
	in.c.table.metrics.received.Inc()
	in.c.table.hear(in.c, payload)
	in.c.waitResumed()
	return true
}

// ears are what the engines have in common when they hear of a connection: everything but its messages.
type ears struct {
	c       *Conn
	flood   flood
	deaf    bool // the peer broke the protocol or said goodbye: read on only to see the end
	goodbye bool // both sides have said goodbye
}

// flood counts the control frames of a peer in the second at hand.
type flood struct {
	second int32
	frames int16
}

// maxControls is how many pings and pongs of one peer are read in a second. They bring nothing, and no Handler sees them to slow them down.
const maxControls = 200

// tooMany counts one more.
func (f *flood) tooMany(now int64) bool {
	if second := int32(now / int64(time.Second)); second != f.second { //nolint:gosec // only told apart from the one before
		*f = flood{second: second}
	}
	f.frames++
	return f.frames > maxControls
}

func (e *ears) fail(f failure) {
	e.deaf = true
	e.c.fail(f)
}

// control implements sink.
func (e *ears) control(op ws.OpCode, payload []byte) {
	if e.deaf {
		return
	}
	if e.flood.tooMany(e.c.heard.Load()) {
		e.fail(failure{CloseOverloaded, "Too many pings in a second."})
		return
	}
	switch op {
	case ws.OpPing:
		_ = e.c.Send(serverFrame(ws.OpPong, payload)) // closing, or slow and closed: nothing else to do
	case ws.OpClose:
		code, ok := closeOf(payload)
		if !ok {
			e.fail(failure{CloseProtocol, "The close frame is malformed."})
			return
		}
		e.deaf = true
		e.goodbye = e.c.peerClosed(code)
	}
}

// closeOf reads a peer's close frame (RFC 6455 §5.5.1, §7.4).
func closeOf(payload []byte) (CloseCode, bool) {
	if len(payload) == 0 {
		return CloseNoStatus, true
	}
	if len(payload) == 1 {
		return 0, false
	}
	code := CloseCode(binary.BigEndian.Uint16(payload))
	return code, code.sendable() && utf8.Valid(payload[2:])
}

// events is a text/event-stream answer.
type events struct {
	out
	end  chan struct{} // closed by the first cut
	once func()
}

func (s *events) wake(*Conn)                                           { go s.run() }
func (s *events) goodbye(_ Wire, code CloseCode, reason string) []byte { return sseClose(code, reason) }
func (s *events) resume()                                              {}
func (s *events) cut()                                                 { s.once() }

// ServeSSE answers r with an event stream. It returns when that has ended, on a loop when r can be let go. Nothing is ever heard from such a connection:
// h gets no OnMessage, and no silence is held against it.
func (t *Table) ServeSSE(w http.ResponseWriter, r *http.Request, cfg Config, h Handler) {
	cfg.Heartbeat.Grace = 0
	if cfg.Ping == nil {
		cfg.Ping = []byte(": ping\n\n")
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold the events back
	if l := loopOf(w); l != nil {
		l.upgrade(WireSSE, cfg, h)
		return
	}
	ctl := http.NewResponseController(w)
	s := &events{end: make(chan struct{})}
	s.once = sync.OnceFunc(func() {
		close(s.end)
		_ = ctl.SetWriteDeadline(time.Unix(1, 0)) // frees a write that is stuck; no writer supports less than net/http's own
	})
	c := t.newConn(WireSSE, s, cfg, h)
	s.w, s.flush = w, ctl.Flush
	s.run = func() { s.drainQueue(c) }
	_ = ctl.SetWriteDeadline(time.Time{}) // the sweeper watches instead of a deadline for the whole answer
	_ = ctl.SetReadDeadline(time.Time{})
	w.WriteHeader(http.StatusOK)
	_ = ctl.Flush()
	if !t.add(c) {
		return
	}
	defer t.running.Done()
	t.guarded(c, func() { h.OnOpen(c) })
	select {
	case <-r.Context().Done():
	case <-s.end:
	}
	s.cut()
	c.finish(false)
	_ = ctl.SetWriteDeadline(time.Now().Add(t.opt.CloseWait)) // net/http still has the last chunk to write
}
