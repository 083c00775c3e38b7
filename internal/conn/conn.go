// Package conn is one connection as everything above sees it: an id, a non-blocking
// Send and Close, counters and close codes. What moves the bytes lies below a seam
// (stream, in engine.go). There are two engines: loops on epoll that accept, read and write for thousands of connections
// (Server; Linux; WebSockets over TLS join them after their handshakes), and a reading goroutine per connection with a writing one while there is something to write, over
// WebSocket framing, an SSE answer or the answers of an XHR session. So nothing here hands out a goroutine or a
// channel per connection: what happens is told through the callbacks of a Handler.
//
// A frame is ready bytes of the connection's wire (a whole WebSocket frame, an SSE chunk),
// encoded once and shared by every connection it goes to; conn never looks into it and never changes it.
//
// # Invariants
//
//   - Send, TrySend and Close never block and may be called from any goroutine, under any lock of the caller.
//   - Frames are written whole, in the order in which Send accepted them, and none after the close frame.
//   - The queue is bounded in frames and bytes. Send on a full queue closes the connection with CloseSlow,
//     TrySend on a full queue changes nothing. What was accepted is written unless the connection is closed as slow or breaks.
//   - A Handler hears OnMessage one at a time and never after OnClose; OnClose comes exactly once, last.
//   - A connection is closed for silence only by the Heartbeat it was given, and no more than a set share
//     of the table in a minute: beyond that the reaper pauses and says so.
//   - Over HTTP (XHR) at most one response receives at a time. What it took and could not write is queued again, in order, for the
//     next one; without one for a bounded time the connection ends. Nothing is on its way on a response that pusher-js drops.
//   - No callback is made while a lock of this package is held.
//
// How it fails: a peer that breaks RFC 6455 is closed with the code the RFC names; a socket that takes nothing for
// WriteTimeout is cut; a Handler that panics costs its own connection (1011) and a loud log, nothing else.
package conn

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// What Send returns instead of queueing.
var (
	// ErrClosed: the connection is closing or gone.
	ErrClosed = errors.New("conn: closed")
	// ErrSlow: the queue was full, and the connection is now closing with CloseSlow.
	ErrSlow = errors.New("conn: queue full")
)

// Handler is told what happens on a connection. Its methods must not block: an engine may run them on a loop
// that other connections share. Work that takes time goes elsewhere, with Pause and Resume against too much of it.
type Handler interface {
	// OnOpen is the first call, before anything is read: the place to say hello.
	OnOpen(c *Conn)
	// OnMessage hands over one whole text message, valid UTF-8. The payload is valid until the method returns.
	OnMessage(c *Conn, payload []byte)
	// OnClose is the last call: the connection is gone and its place free. The code is the one that ended it, whoever sent it.
	OnClose(c *Conn, code CloseCode)
}

// Drainer is what a Handler also implements to say goodbye in its own protocol when the node leaves:
// the table calls it once, right before it closes the connection with CloseReconnect.
type Drainer interface {
	OnDrain(c *Conn)
}

// Coder is what a Handler also implements whose protocol has other numbers for what connections are closed for: the peer is told the number that it returns.
// It is called under the connection's lock.
type Coder interface {
	CloseCode(c CloseCode) CloseCode
}

// Wire says which bytes a connection speaks.
type Wire uint8

// Wires.
const (
	WireWebSocket Wire = iota
	WireSSE
	WireXHR // the HTTP fallbacks of pusher-js (xhr.go)
)

func (w Wire) String() string {
	switch w {
	case WireSSE:
		return "sse"
	case WireXHR:
		return "xhr"
	case WireWebSocket:
	}
	return "websocket"
}

// Heartbeat is the contract of a connection: the server sends a ping every Interval, and closes for silence
// only when nothing was heard for Interval+Grace. Both are zero on wires that cannot be heard from (SSE): then only
// pings are sent, every Interval, and a write that does not go through is what ends the connection.
type Heartbeat struct {
	Interval time.Duration // 0: no pings, no reaping
	Grace    time.Duration // ≤ 0: never closed for silence
	Epoch    uint64        // version of the cell's setting that this contract came from
}

type state uint8

const (
	open    state = iota
	closing       // a close frame is queued or sent; Send refuses
	dead          // nothing is read or written any more
)

// Conn is one connection. All methods are safe for concurrent use. An idle one is little more than this struct: what few connections
// need lies behind pointers, what is needed to say something is lent, and times are Unix nanoseconds.
type Conn struct {
	id      petrel.ConnID
	table   *Table
	handler Handler
	stream  stream

	heard   atomic.Int64 // of the last bytes from the peer
	writing atomic.Int64 // at which the write under way last got on; 0: none

	mu        sync.Mutex // guards everything below, but place; held for a few instructions, never across a write or a callback
	out       *outbox    // nil: there was nothing to say for a while
	rare      *rare      // nil: there is nothing of it
	contract  *contract  // never nil; shared
	nextPing  int64      // the sweeper's own
	frames    int32      // queued or being written
	bytes     int32
	sent      uint32 // frames, all that were written; it may begin anew
	place     int32  // in table.conns; guarded by its mutex
	code      CloseCode
	wire      Wire
	state     state
	flushing  bool // a write is under way or about to be: whoever queues need not wake anyone
	closeSent bool // the close frame is on the wire
	peerDone  bool // the peer's close frame was read: nothing more will come
	failed    bool // the peer broke the protocol: nothing of what comes is read, not even its close frame
	paused    bool // reading waits
	drainTold bool // OnDrain was called
	deflate   bool // messages may be compressed; never changes
	brief     bool // nobody waits for its end; never changes
	quiet     bool // nothing was queued since the sweeper looked
}

// outbox is what a connection has while it has something to say. It is lent by the table.
type outbox struct {
	queue     [][]byte // accepted, not yet taken by a write
	spare     [][]byte // the slice of the last write, emptied, to be filled next
	since     int64    // at which the oldest unwritten frame was queued; 0: not being measured
	committed int64    // of the commit behind one of the unwritten frames, by the process's clock (ticks); 0: none is measured
}

// rare is what few connections have.
type rare struct {
	resumed *sync.Cond    // made when first paused
	room    func()        // called once when the queue has drained to a quarter
	ends    *ending       // nil: never
	idle    chan struct{} // made by who must wait for a write to end
	closeBy int64         // when state closing gives up waiting for the peer
	giveUp  int64         // at which a client without a response to send by counts as gone; 0: it has one
}

// extra is rare, made if need be; mu is held.
func (c *Conn) extra() *rare {
	if c.rare == nil {
		c.rare = &rare{}
	}
	return c.rare
}

// contract is what a connection was promised, and the frame it is pinged with.
type contract struct {
	Heartbeat
	ping []byte
}

// ending is when a connection will be closed, and how.
type ending struct {
	at     time.Time
	code   CloseCode
	reason string
}

// born is when the process's clock began to count.
var born = time.Now()

// ticks is a time by the process's clock, which nobody sets; never 0.
func ticks(t time.Time) int64 {
	if d := int64(t.Sub(born)); d != 0 {
		return d
	}
	return 1
}

// ID names the connection on this node for as long as it lives.
func (c *Conn) ID() petrel.ConnID { return c.id }

// Wire says which bytes the connection speaks.
func (c *Conn) Wire() Wire { return c.wire }

// Deflates says whether the peer reads compressed frames (DeflatedFrame) beside others.
func (c *Conn) Deflates() bool { return c.deflate }

// inflaters are those of a connection on which compressed messages may come, else nil.
func (c *Conn) inflaters() *inflaters {
	if c.deflate {
		return c.table.inflate
	}
	return nil
}

// Handler is who hears of the connection.
func (c *Conn) Handler() Handler { return c.handler }

// Queued is how much was accepted and is not on the wire.
func (c *Conn) Queued() (frames, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.frames), int(c.bytes)
}

// Send queues one frame. It returns ErrClosed when the connection is closing, and ErrSlow after it found the queue full and
// closed the connection with CloseSlow.
func (c *Conn) Send(frame []byte) error { return c.send(frame, time.Time{}) }

// SendSampled is Send of what was committed at since, by this process's clock: how long it took to the end of its write is measured.
func (c *Conn) SendSampled(frame []byte, since time.Time) error {
	return c.send(frame, since)
}

func (c *Conn) send(frame []byte, committed time.Time) error {
	c.mu.Lock()
	if c.state != open {
		c.mu.Unlock()
		return ErrClosed
	}
	if c.full(len(frame)) {
		wake := c.closeLocked(CloseSlow, "The connection took messages more slowly than they came. Come back and resume.")
		c.mu.Unlock()
		c.table.metrics.slow.Inc()
		if wake {
			c.stream.wake(c)
		}
		return ErrSlow
	}
	wake := c.push(frame)
	if !committed.IsZero() && c.out.committed == 0 {
		c.out.committed = ticks(committed)
	}
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
	return nil
}

// TrySend queues one frame if there is room and says whether it did. A full queue changes nothing: wait with NotifyRoom.
func (c *Conn) TrySend(frame []byte) (queued bool, err error) {
	c.mu.Lock()
	if c.state != open {
		c.mu.Unlock()
		return false, ErrClosed
	}
	// Half of the queue is left to what happens live meanwhile, or the next live frame would close the connection.
	if c.frames > 0 && (int(c.frames) >= c.table.opt.QueueFrames/2 || int(c.bytes)+len(frame) > c.table.opt.QueueBytes/2) {
		c.mu.Unlock()
		return false, nil
	}
	wake := c.push(frame)
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
	return true, nil
}

// NotifyRoom calls fn once: when the queue has drained to a quarter, or at once when it already has or the connection is gone.
// fn must not block. Only one fn waits at a time; a second call chains behind the first.
func (c *Conn) NotifyRoom(fn func()) {
	c.mu.Lock()
	if c.state == dead || c.drained() {
		c.mu.Unlock()
		fn()
		return
	}
	m := c.extra()
	if before := m.room; before != nil {
		m.room = func() { before(); fn() }
	} else {
		m.room = fn
	}
	c.mu.Unlock()
}

// Close sends what is queued and then a close frame with code and reason, waits a little for the peer's, and ends.
// With CloseSlow the queue is dropped first. Only the first Close counts.
func (c *Conn) Close(code CloseCode, reason string) {
	c.mu.Lock()
	wake := c.closeLocked(code, reason)
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
}

// fail closes for a fault of the peer's (RFC 6455 §7.1.7).
func (c *Conn) fail(f failure) {
	c.mu.Lock()
	c.failed = true
	wake := c.closeLocked(f.code, f.reason)
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
}

// gaveUp says that the peer broke the protocol and was told so: our side of the socket is to end, so that the peer need not wait for it.
func (c *Conn) gaveUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed && c.closeSent
}

// unheard says that the peer was too slow, and did not answer that it was told so: whatever it was sent is of no use to it.
func (c *Conn) unheard() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == closing && c.code == CloseSlow && !c.peerDone && (c.wire == WireWebSocket || !c.closeSent) // on other wires nobody answers
}

// CloseAt makes the table close the connection with code when t has passed (to the second). The zero time forgets it.
func (c *Conn) CloseAt(t time.Time, code CloseCode, reason string) {
	var e *ending
	if !t.IsZero() {
		e = &ending{t, code, reason}
	}
	c.mu.Lock()
	if e != nil || c.rare != nil {
		c.extra().ends = e
	}
	c.mu.Unlock()
}

// SetHeartbeat binds a new contract, with the ping frame that goes with it. On a wire where the client must acknowledge
// a new contract, call it when the acknowledgement came, not before.
func (c *Conn) SetHeartbeat(h Heartbeat, ping []byte) {
	next := c.table.contractOf(h, ping)
	c.mu.Lock()
	c.contract = next
	c.mu.Unlock()
}

// Heartbeat is the contract that the connection has now.
func (c *Conn) Heartbeat() Heartbeat {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contract.Heartbeat
}

// Pause stops reading after the message at hand; the peer's further bytes wait in its own socket. Silence is not held against
// a paused connection.
func (c *Conn) Pause() {
	c.mu.Lock()
	c.paused = true
	if m := c.extra(); m.resumed == nil {
		m.resumed = sync.NewCond(&c.mu)
	}
	c.mu.Unlock()
}

// Resume reads again.
func (c *Conn) Resume() {
	c.mu.Lock()
	was := c.paused
	if was {
		c.paused = false
		c.heard.Store(time.Now().UnixNano())
		c.rare.resumed.Broadcast()
	}
	c.mu.Unlock()
	if was {
		c.stream.resume()
	}
}

func (c *Conn) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused && c.state == open
}

// full says whether n more bytes do not fit. A single frame always fits into an empty queue.
func (c *Conn) full(n int) bool {
	return c.frames > 0 && (int(c.frames) >= c.table.opt.QueueFrames || int(c.bytes)+n > c.table.opt.QueueBytes)
}

func (c *Conn) drained() bool {
	return int(c.frames) <= c.table.opt.QueueFrames/4 && int(c.bytes) <= c.table.opt.QueueBytes/4
}

// push queues a frame and says whether the caller must wake the engine, after it let go of mu.
func (c *Conn) push(frame []byte) (wake bool) {
	o := c.outbox()
	c.quiet = false
	o.queue = append(o.queue, frame)
	c.frames++
	c.bytes += int32(len(frame)) //nolint:gosec // bounded by QueueBytes and the largest frame
	if o.since == 0 && c.sent%sampleEvery == 0 {
		o.since = time.Now().UnixNano()
	}
	wake = !c.flushing
	c.flushing = true
	return wake
}

// outbox is out, lent if need be; mu is held.
func (c *Conn) outbox() *outbox {
	if c.out == nil {
		c.out = c.table.outboxes.Get().(*outbox)
	}
	return c.out
}

// sampleEvery: the time from queue to wire is measured for about one write in so many.
const sampleEvery = 16

func (c *Conn) closeLocked(code CloseCode, reason string) (wake bool) {
	if c.state != open {
		return false
	}
	if o := c.out; code == CloseSlow && o != nil {
		for _, f := range o.queue {
			c.frames--
			c.bytes -= int32(len(f)) //nolint:gosec // as it was added
		}
		clear(o.queue)
		o.queue = o.queue[:0]
	}
	c.state, c.code = closing, code
	m := c.extra()
	m.closeBy = time.Now().Add(c.table.opt.CloseWait).UnixNano()
	if m.resumed != nil {
		m.resumed.Broadcast() // the reader must see the peer's close frame
		c.stream.resume()
	}
	if p, ok := c.handler.(Coder); ok {
		code = p.CloseCode(code)
	}
	return c.push(c.stream.goodbye(c.wire, code, reason))
}

// take hands the queue to a writer. It is empty only when the writer must stop: then flushing is false again.
// since is when its oldest frame was queued, 0 when this write is not among the measured ones; committed likewise.
func (c *Conn) take(now int64) (batch [][]byte, since int64, committed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.out
	if o == nil || len(o.queue) == 0 || c.state == dead {
		c.flushing = false
		c.written()
		return nil, 0, 0
	}
	batch = o.queue
	o.queue, o.spare = o.spare, nil
	c.writing.Store(now)
	since, o.since = o.since, 0
	committed, o.committed = o.committed, 0
	return batch, since, committed
}

// keepSpare is the largest emptied queue a connection keeps: what an idle one costs is bounded by it.
const keepSpare = 64

// wrote gives back what take handed out. It returns what must be called without the lock, and whether everything was said.
func (c *Conn) wrote(batch [][]byte) (room func(), finished bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range batch {
		c.bytes -= int32(len(f)) //nolint:gosec // as it was added
	}
	c.frames -= int32(len(batch)) //nolint:gosec // as they were added
	c.sent += uint32(len(batch))  //nolint:gosec // it may begin anew
	c.writing.Store(0)
	clear(batch)
	if cap(batch) <= keepSpare {
		c.out.spare = batch[:0]
	}
	if m := c.rare; m != nil && m.room != nil && c.drained() {
		room, m.room = m.room, nil
	}
	if c.state == closing && !c.closeSent {
		if c.code != CloseSlow {
			c.rare.closeBy = time.Now().Add(c.table.opt.CloseWait).UnixNano() // it got on: what was accepted is worth waiting for
		}
		c.closeSent = len(c.out.queue) == 0 // the close frame is always the last of the queue
	}
	return room, c.closeSent && (c.peerDone || c.wire != WireWebSocket)
}

// untake puts what take handed out back at the head of the queue: for a wire whose next write may succeed.
func (c *Conn) untake(batch [][]byte, since, committed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing.Store(0)
	o := c.outbox()
	o.queue = slices.Concat(batch, o.queue) // not in place: batch is part of what wrote may keep
	if since != 0 {
		o.since = since
	}
	if committed != 0 {
		o.committed = committed
	}
}

// begin queues the first frame of a connection that nobody knows yet. It wakes nobody: on a loop the caller does, once the table has c; over HTTP the first
// response asks for what is queued. It comes before the table has c, because who drains that says goodbye behind it.
func (c *Conn) begin(first []byte) {
	c.mu.Lock()
	c.push(first)
	c.mu.Unlock()
}

// sendIfIdle queues a frame that says nothing, unless something is on its way anyway.
func (c *Conn) sendIfIdle(frame []byte) {
	c.mu.Lock()
	wake := c.state == open && c.frames == 0 && c.push(frame)
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
}

// broke ends a connection whose write failed; the reader will meet the closed stream and finish it.
func (c *Conn) broke() {
	c.mu.Lock()
	if c.state == open {
		c.code = CloseAbnormal
	}
	c.state = dead
	c.flushing = false
	c.writing.Store(0)
	c.written()
	c.rouse()
	c.mu.Unlock()
	c.stream.cut()
}

// written tells who waits that no write is under way; mu is held.
func (c *Conn) written() {
	if m := c.rare; m != nil && m.idle != nil {
		close(m.idle)
		m.idle = nil
	}
}

// rouse has a reader that waits look at the state; mu is held.
func (c *Conn) rouse() {
	if m := c.rare; m != nil && m.resumed != nil {
		m.resumed.Broadcast()
	}
}

// hush gives back the outbox of a connection that has had nothing to say for a second or two; mu is held, and it comes once a second.
func (c *Conn) hush() {
	if c.quiet {
		c.giveBack()
	}
	c.quiet = true
}

// giveBack returns the outbox if there is nothing in it, and nothing being written; mu is held.
func (c *Conn) giveBack() {
	if c.out != nil && c.frames == 0 {
		c.out.since, c.out.committed = 0, 0
		c.table.outboxes.Put(c.out)
		c.out = nil
	}
}

// deliver says whether a message that was read is still to be handed on.
func (c *Conn) deliver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == open
}

// peerClosed notes the peer's close frame, answers it in kind, and says whether both have now said goodbye.
func (c *Conn) peerClosed(code CloseCode) (finished bool) {
	c.mu.Lock()
	c.peerDone = true
	wake := c.closeLocked(code, "")
	finished = c.closeSent
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
	return finished
}

// waitResumed blocks the engine's reader while reading is paused.
func (c *Conn) waitResumed() {
	c.mu.Lock()
	for c.paused && c.state == open {
		c.rare.resumed.Wait()
	}
	c.mu.Unlock()
}

// settle waits until nothing is being written.
func (c *Conn) settle() {
	c.mu.Lock()
	var idle chan struct{}
	if c.flushing && c.state != dead {
		idle = c.whenWritten()
	}
	c.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// whenWritten is closed when no write is under way any more; mu is held.
func (c *Conn) whenWritten() chan struct{} {
	m := c.extra()
	m.idle = make(chan struct{})
	return m.idle
}

// finish ends a connection whose stream is closed: it waits for a write under way, unless the caller is who writes, frees the
// place and tells the handler.
func (c *Conn) finish(writer bool) {
	c.mu.Lock()
	if writer {
		c.flushing = false
		c.writing.Store(0)
	}
	if c.state == open {
		c.code = CloseAbnormal
	}
	c.state = dead
	code := c.code
	var room func()
	if m := c.rare; m != nil {
		room, m.room = m.room, nil
	}
	c.rouse()
	c.giveBack()
	var idle chan struct{}
	if c.flushing {
		idle = c.whenWritten()
	}
	c.mu.Unlock()
	if idle != nil {
		<-idle
	}
	c.table.remove(c, code)
	if room != nil {
		room()
	}
	c.table.guarded(c, func() { c.handler.OnClose(c, code) })
}
