package conn

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Bounds of a connection over HTTP.
const (
	// longPoll is how often something is sent at least: a poll lasts no longer, and proxies cut answers that are silent for 30 s.
	longPoll = 25 * time.Second
	// absentFor is how long a connection lives without a response to send by, after the last one ended well: pusher-js asks again in the
	// same breath, so it is the time of one request on a bad network, and as much as SockJS's servers give.
	// No client of this wire comes back after a response that broke off, so then it is less.
	absentFor  = 5 * time.Second
	absentGone = 3 * time.Second
	// recycleAfter is when a streaming response has grown so far that pusher-js drops it and opens another, in units of UTF-16
	// as JavaScript counts them. It does so only once it has read all of it, and nothing is sent on a response behind the
	// frame that crosses this line: so nothing is ever under way on one that the client drops.
	recycleAfter = 256 << 10
	// maxSends bounds how many bodies of one client wait for their turn.
	maxSends = 32
)

// XHR is a Conn whose frames leave by successive HTTP responses, and whose messages come in the bodies of others. At
// most one response receives at a time; between two of them frames wait in the queue. pusher-js calls the two
// ways of receiving xhr_streaming and xhr_polling.
//
// There is no goroutine of its own: the loop or the goroutine that serves the receiving response writes, those of the bodies call the handler.
type XHR struct {
	c    *Conn
	more chan struct{} // a token: the queue is no longer empty
	turn chan struct{} // a token for whoever calls the handler
	over chan struct{} // closed by the first cut
	wait atomic.Int32  // bodies waiting for their turn, and the one that has it

	mu       sync.Mutex // guards the fields below; never held across a write
	receiver *receiver
	admitted bool // the table counts it
	cutDone  bool
	asked    bool // a heartbeat went out on a stream and was not answered yet
}

// receiver is one response that takes frames.
type receiver struct {
	w       http.ResponseWriter
	ctl     *http.ResponseController
	stop    chan struct{} // closed when another took its place, or the connection is over
	done    chan struct{} // closed when it will take and write no more frames
	writing bool          // guarded by XHR.mu
	loop    taker         // the response is on a loop; guarded by XHR.mu
}

// taker is a response on a loop. Its methods must not block.
type taker interface {
	take()  // frames wait
	leave() // it must take no more: stop is closed
}

// OpenXHR begins a connection. Serve its first response right after; OnOpen has then been called.
func (t *Table) OpenXHR(cfg Config, h Handler) *XHR {
	if beat := &cfg.Heartbeat; beat.Interval <= 0 || beat.Interval > longPoll {
		if beat.Interval > 0 && beat.Grace > 0 {
			beat.Grace += beat.Interval - longPoll // the sum is what silence is held against: it stays
		}
		beat.Interval = longPoll
	}
	if cfg.Ping == nil {
		cfg.Ping = []byte(xhrHeartbeat)
	}
	x := &XHR{more: make(chan struct{}, 1), turn: make(chan struct{}, 1), over: make(chan struct{})}
	x.c = t.newConn(WireXHR, x, cfg, h)
	x.c.giveUpAt(time.Now().Add(absentFor).UnixNano())
	x.c.begin(xhrOpen(cfg.Hostname))
	x.turn <- struct{}{}
	defer func() { <-x.turn }()
	if !t.add(x.c) {
		return x
	}
	x.mu.Lock()
	x.admitted = true
	ended := x.cutDone
	x.mu.Unlock()
	t.guarded(x.c, func() { h.OnOpen(x.c) })
	if ended {
		go x.end()
	}
	return x
}

// Conn is the connection as everything else knows it.
func (x *XHR) Conn() *Conn { return x.c }

// ServeStream answers r with frames as they come, until the client goes, the connection ends, another response
// takes over, or this one has grown to where pusher-js drops it (256 KiB); on a loop it returns at once. It returns ErrClosed, and has
// answered nothing, when the connection is over already. When that is cut without a goodbye, so is the answer of net/http: it panics with
// http.ErrAbortHandler. On a loop an answer ends with its socket, and one that was cut looks like one that has ended, until the client asks again.
func (x *XHR) ServeStream(w http.ResponseWriter, r *http.Request) error {
	return x.serve(w, r, true)
}

// ServePoll answers r with the frames that are waiting, or with the first that come. It returns ErrClosed, and has answered
// nothing, when the connection is over already.
func (x *XHR) ServePoll(w http.ResponseWriter, r *http.Request) error {
	return x.serve(w, r, false)
}

// serve makes w the one response that receives.
func (x *XHR) serve(w http.ResponseWriter, r *http.Request, streams bool) error {
	rc, old := x.attach(w)
	if rc == nil {
		return ErrClosed
	}
	x.c.heard.Store(time.Now().UnixNano())
	h := w.Header()
	h.Set("Content-Type", "application/javascript; charset=UTF-8") // browsers show such a body as it comes
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the frames back
	if l := loopOf(w); l != nil {
		l.receive(x, rc, old, streams)
		return nil
	}
	if old != nil {
		<-old.done // what it was writing is written, or in the queue again
	}
	_ = rc.ctl.SetWriteDeadline(time.Time{}) // the sweeper watches instead of a deadline for the whole answer
	_ = rc.ctl.SetReadDeadline(time.Time{})
	run := x.poll
	if streams {
		run = x.stream
	}
	well := run(r.Context(), rc) // says whether the response ended well
	replaced := x.detach(rc, well)
	_ = rc.ctl.SetWriteDeadline(time.Now().Add(x.c.table.opt.CloseWait)) // net/http still has the end to write
	switch {
	case well:
	case replaced:
		_, _ = w.Write(xhrReplaced()) // whoever reads it is not the client that the connection belongs to now
	case streams && x.cutShort():
		panic(http.ErrAbortHandler) // the client sees that its stream broke off, not an end that was meant
	}
	return nil
}

// cutShort says that the connection was cut without its goodbye.
func (x *XHR) cutShort() bool {
	select {
	case <-x.over:
	default:
		return false
	}
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	return !x.c.closeSent
}

// attach takes the place of the response that received until now.
func (x *XHR) attach(w http.ResponseWriter) (rc, old *receiver) {
	rc = &receiver{w: w, ctl: http.NewResponseController(w), stop: make(chan struct{}), done: make(chan struct{})}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cutDone {
		return nil, nil
	}
	old, x.receiver = x.receiver, rc
	x.c.giveUpAt(0)
	if old != nil {
		old.leave()
	}
	return rc, old
}

// giveUpAt says when a client without a response to send by counts as gone; 0: it has one.
func (c *Conn) giveUpAt(t int64) {
	c.mu.Lock()
	c.extra().giveUp = t
	c.mu.Unlock()
}

// leave makes a receiver stop. The caller holds XHR.mu.
func (rc *receiver) leave() {
	close(rc.stop)
	switch {
	case rc.loop != nil:
		rc.loop.leave()
	case rc.writing:
		_ = rc.ctl.SetWriteDeadline(time.Unix(1, 0)) // frees a write that is stuck
	}
}

// bind says which loop's response rc is.
func (x *XHR) bind(rc *receiver, t taker) {
	x.mu.Lock()
	rc.loop = t
	x.mu.Unlock()
}

// detach says that rc takes no more frames, and whether another has its place.
func (x *XHR) detach(rc *receiver, well bool) (replaced bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	close(rc.done)
	if x.receiver != rc {
		return !x.cutDone
	}
	x.receiver = nil
	absent := absentGone
	if well {
		absent = absentFor
	}
	x.c.giveUpAt(time.Now().Add(absent).UnixNano())
	return false
}

// stream writes frames until the response has to end.
func (x *XHR) stream(ctx context.Context, rc *receiver) (well bool) {
	if !x.begin(rc) {
		return false
	}
	grown := 0
	for {
		now := time.Now().UnixNano()
		batch, since, committed := x.next(ctx, rc, now)
		if batch == nil {
			return false
		}
		x.asks(batch)
		n, err := x.write(rc, batch, &grown, recycleAfter)
		if n < len(batch) {
			x.c.untake(batch[n:], since, committed)
			since, committed = 0, 0
		}
		if n > 0 && x.c.table.account(x.c, batch[:n], since, committed) {
			x.cut()
		}
		if err != nil {
			return false
		}
		if grown > recycleAfter {
			return true
		}
	}
}

// begin sends the head of a stream, by which the client's browser knows that it was let in.
func (x *XHR) begin(rc *receiver) bool {
	if !x.mayWrite(rc) {
		return false
	}
	defer x.written(rc)
	x.c.writing.Store(time.Now().UnixNano())
	rc.w.WriteHeader(http.StatusOK)
	_ = rc.ctl.Flush() // one who is gone is met at the next write
	x.c.writing.Store(0)
	return true
}

// asks notes a heartbeat among frames that are about to go out on a stream: its client will answer.
func (x *XHR) asks(batch [][]byte) {
	for _, f := range batch {
		if string(f) == xhrHeartbeat {
			x.mu.Lock()
			x.asked = true
			x.mu.Unlock()
			return
		}
	}
}

// poll writes the frames of one response.
func (x *XHR) poll(ctx context.Context, rc *receiver) (well bool) {
	batch, since, committed := x.next(ctx, rc, time.Now().UnixNano())
	if batch == nil {
		return false
	}
	size := 0
	for _, f := range batch {
		size += len(f)
	}
	rc.w.Header().Set("Content-Length", strconv.Itoa(size))
	rc.w.WriteHeader(http.StatusOK)
	if n, err := x.write(rc, batch, new(int), size); err != nil || n < len(batch) {
		x.c.untake(batch, since, committed) // all of it: an answer that is cut short is none
		return false
	}
	if x.c.table.account(x.c, batch, since, committed) {
		x.cut()
	}
	return true
}

// next waits for frames. It returns none when rc must stop.
func (x *XHR) next(ctx context.Context, rc *receiver, now int64) (batch [][]byte, since, committed int64) {
	for {
		select {
		case <-rc.stop:
			return nil, 0, 0
		case <-ctx.Done():
			return nil, 0, 0
		default:
		}
		if batch, since, committed = x.c.take(now); batch != nil {
			return batch, since, committed
		}
		select {
		case <-x.more:
			now = time.Now().UnixNano()
		case <-rc.stop:
		case <-ctx.Done():
		}
	}
}

// write puts frames on the response in as few writes as fit, until it has grown beyond limit, and returns how many are out.
func (x *XHR) write(rc *receiver, batch [][]byte, grown *int, limit int) (n int, err error) {
	if !x.mayWrite(rc) {
		return 0, ErrClosed
	}
	defer x.written(rc)
	held := x.c.table.buffers.Get().(*[]byte)
	defer x.c.table.buffers.Put(held)
	for n < len(batch) && *grown <= limit {
		buf, k := (*held)[:0], n
		for k < len(batch) && *grown <= limit && (k == n || len(buf)+len(batch[k]) <= coalesce) {
			buf = append(buf, batch[k]...)
			*grown += units(batch[k])
			k++
		}
		if _, err := rc.w.Write(buf); err != nil {
			return n, err
		}
		if err := rc.ctl.Flush(); err != nil {
			return n, err
		}
		x.c.writing.Store(time.Now().UnixNano())
		n = k
	}
	return n, nil
}

// mayWrite marks rc as writing, unless it has to leave.
func (x *XHR) mayWrite(rc *receiver) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-rc.stop:
		return false
	default:
	}
	rc.writing = true
	return true
}

func (x *XHR) written(rc *receiver) {
	x.mu.Lock()
	rc.writing = false
	x.mu.Unlock()
}

// units is how long b is in JavaScript, in units of UTF-16: one for each character, two for those beyond the basic plane.
func units(b []byte) (n int) {
	for _, c := range b {
		switch {
		case c >= 0xf0:
			n += 2
		case c < 0x80 || c >= 0xc0:
			n++
		}
	}
	return n
}

// Receive hands the messages in a body over to the handler: a JSON array of strings. An empty one is the client's
// heartbeat. It returns ErrClosed when the connection is closing or gone, and a *petrel.Error for a body that cannot be read or
// has to come again later; neither changes the connection.
func (x *XHR) Receive(ctx context.Context, body []byte) error {
	var messages []*string
	if err := json.Unmarshal(body, &messages); err != nil || messages == nil {
		return petrel.Errorf(petrel.CodeInvalidJSON, "Send a JSON array of strings, each of them one message.")
	}
	if petrel.LoneSurrogate(body) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "A message has an escape that is half of a character (a lone surrogate).")
	}
	for _, m := range messages {
		if m == nil {
			return petrel.Errorf(petrel.CodeInvalidJSON, "Send a JSON array of strings: null is none.")
		}
	}
	x.c.heard.Store(time.Now().UnixNano())
	if len(messages) == 0 {
		x.beat()
		return nil
	}
	defer x.wait.Add(-1)
	if x.wait.Add(1) > maxSends {
		return petrel.Errorf(petrel.CodeBusy, "More than %d messages of this connection wait to be read. Send the next when one was answered.", maxSends)
	}
	select {
	case x.turn <- struct{}{}:
	case <-x.over:
		return ErrClosed
	case <-ctx.Done():
		return petrel.Errorf(petrel.CodeBusy, "The message found no turn in time, and nothing was done with it.").Because(ctx.Err())
	}
	defer func() { <-x.turn }()
	for _, m := range messages {
		if !x.message([]byte(*m)) {
			return ErrClosed
		}
	}
	return nil
}

// message hands one message over, and says whether there may be more.
func (x *XHR) message(payload []byte) bool {
	t := x.c.table
	if most := t.opt.MessageBytes; len(payload) > most {
		x.c.Close(CloseTooBig, "A message may have at most "+strconv.Itoa(most)+" bytes.")
		return false
	}
	if !x.c.deliver() {
		return false
	}
	t.metrics.received.Inc()
	t.guarded(x.c, func() { x.c.handler.OnMessage(x.c, payload) })
	x.c.waitResumed()
	return true
}

// beat answers a client's heartbeat, unless it is itself the answer to one of ours or something is on its way anyway.
// A streaming client answers every heartbeat, so that two who always answered would never come to rest.
func (x *XHR) beat() {
	x.mu.Lock()
	answer := !x.asked
	x.asked = false
	x.mu.Unlock()
	if answer {
		x.c.sendIfIdle([]byte(xhrHeartbeat))
	}
}

// wake implements stream.
func (x *XHR) wake(*Conn) {
	x.mu.Lock()
	var t taker
	if x.receiver != nil {
		t = x.receiver.loop
	}
	x.mu.Unlock()
	if t != nil {
		t.take()
		return
	}
	select {
	case x.more <- struct{}{}:
	default:
	}
}

// resume implements stream: waitResumed hears of it.
func (x *XHR) resume() {}

// goodbye implements stream.
func (x *XHR) goodbye(_ Wire, code CloseCode, reason string) []byte { return XHRClose(code, reason) }

// cut implements stream.
func (x *XHR) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cutDone {
		return
	}
	x.cutDone = true
	close(x.over)
	if x.receiver != nil {
		x.receiver.leave()
	}
	if x.admitted {
		go x.end()
	}
}

// end is the last of a connection: when nobody writes and the handler is not being called, it is told.
func (x *XHR) end() {
	defer x.c.table.running.Done()
	x.mu.Lock()
	rc := x.receiver
	x.mu.Unlock()
	if rc != nil {
		<-rc.done
	}
	x.c.broke() // whoever waits in a paused connection goes on
	x.turn <- struct{}{}
	x.c.finish(false)
	<-x.turn
}
