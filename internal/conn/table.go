package conn

import (
	"bytes"
	"context"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Options of a Table.
type Options struct {
	QueueFrames  int           // most frames queued for one connection; default 4096
	QueueBytes   int           // most bytes queued for one connection; default 1 MiB. One frame always fits an empty queue
	MessageBytes int           // largest message read from a client; default 64 KiB
	WriteTimeout time.Duration // a socket that takes nothing for so long is cut; default 30 s
	CloseWait    time.Duration // how long to wait for the peer's close frame; default 5 s
	Deflate      bool          // messages of WebSockets may be compressed (permessage-deflate), where the client offers it
	SilentShare  float64       // largest share of the table closed for silence in a minute; default 0.1 (but always at least 8)

	// IOUring has loops hand many frames to the kernel in one call, where it lets them.
	IOUring bool

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *Options) defaults() {
	if o.QueueFrames <= 0 {
		o.QueueFrames = 4096
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = 1 << 20
	}
	if o.MessageBytes <= 0 {
		o.MessageBytes = 64 << 10
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 30 * time.Second
	}
	if o.CloseWait <= 0 {
		o.CloseWait = 5 * time.Second
	}
	if o.SilentShare <= 0 {
		o.SilentShare = 0.1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Config of one connection.
type Config struct {
	ID        petrel.ConnID // default: made
	Heartbeat Heartbeat     // the contract the peer was or will be told
	Ping      []byte        // frame sent every Heartbeat.Interval; default the wire's own (a ping frame, a comment line)
	Hostname  string        // of XHR: where the client shall send its further requests; default: where it sent the first

	Brief bool // it closes as soon as it is open: Drain does not wait for it

	deflate bool // of a WebSocket: was agreed to
}

// Table is every connection of a node: it opens them, watches their age and silence once a second, and drains them.
type Table struct {
	opt      Options
	metrics  *metrics
	ping     []byte                   // the wire's own
	contract atomic.Pointer[contract] // the last one given
	inflate  *inflaters
	buffers  sync.Pool // *[]byte of coalesce bytes, for writes and busy reads
	outboxes sync.Pool // *outbox, empty

	running sync.WaitGroup // one per connection, and one for the sweeper

	mu      sync.Mutex // guards the fields below; never held together with a Conn's mu
	conns   []*Conn    // in no order
	started bool
	stopped bool
	stop    chan struct{} // closed by Stop

	// The reaper's window; the sweeper's own.
	windowEnds time.Time
	silent     int
	paused     bool
}

// NewTable returns an empty table. Without Start nothing is swept.
func NewTable(o Options) *Table {
	o.defaults()
	t := &Table{opt: o, ping: pingFrame(), inflate: newInflaters(), stop: make(chan struct{})}
	t.buffers.New = func() any { b := make([]byte, 0, coalesce); return &b }
	t.outboxes.New = func() any { return &outbox{} }
	t.metrics = newMetrics(o.Registerer, t.Len)
	return t
}

// Start begins the sweep. It does not block and may be called twice.
func (t *Table) Start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.started || t.stopped {
		return
	}
	t.started = true
	t.running.Add(1)
	go func() {
		defer t.running.Done()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-t.stop:
				return
			case now := <-tick.C:
				t.sweep(now)
			}
		}
	}()
}

// Stop cuts every connection and waits for all of them and the sweep to end. Drain first to be kind. It may be called twice.
func (t *Table) Stop() {
	t.mu.Lock()
	if !t.stopped {
		t.stopped = true
		close(t.stop)
	}
	t.mu.Unlock()
	for _, c := range t.all() {
		c.stream.cut()
	}
	t.running.Wait()
}

// Len is the number of connections.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}

// Each calls fn for every connection there is now, outside of any lock.
func (t *Table) Each(fn func(c *Conn)) {
	for _, c := range t.all() {
		fn(c)
	}
}

// Drain closes every connection with CloseReconnect, evenly spread over window, and waits until they are gone with
// everything that was queued for them written, or until ctx is over.
func (t *Table) Drain(ctx context.Context, window time.Duration) error {
	conns := t.all()
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, c := range conns {
		due := window * time.Duration(i) / time.Duration(len(conns))
		if wait := due - time.Since(start); wait > time.Millisecond {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-timer.C:
			}
		}
		t.drainOne(c)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		rest := slices.DeleteFunc(t.all(), func(c *Conn) bool { return c.brief })
		if len(rest) == 0 {
			return nil
		}
		for _, c := range rest { // also those that came while we were at it
			t.drainOne(c)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (t *Table) drainOne(c *Conn) {
	c.mu.Lock()
	first := c.state == open && !c.drainTold
	c.drainTold = true
	c.mu.Unlock()
	if d, ok := c.handler.(Drainer); ok && first {
		t.guarded(c, func() { d.OnDrain(c) })
	}
	c.Close(CloseReconnect, "This node is leaving. Come back and resume.")
}

// newConn is followed by add or refuse.
func (t *Table) newConn(w Wire, s stream, cfg Config, h Handler) *Conn {
	t.metrics.opened.WithLabelValues(w.String()).Inc()
	now := time.Now()
	c := &Conn{id: cfg.ID, wire: w, table: t, handler: h, stream: s, contract: t.contractOf(cfg.Heartbeat, cfg.Ping), deflate: cfg.deflate, brief: cfg.Brief}
	if c.id == "" {
		c.id = petrel.ConnID(petrel.NewName())
	}
	c.heard.Store(now.UnixNano())
	c.nextPing = now.Add(cfg.Heartbeat.Interval).UnixNano()
	return c
}

// contractOf returns the one that the connection before had, if it says the same: as a rule all do.
func (t *Table) contractOf(h Heartbeat, ping []byte) *contract {
	if ping == nil {
		ping = t.ping
	}
	if last := t.contract.Load(); last != nil && last.Heartbeat == h && bytes.Equal(last.ping, ping) {
		return last
	}
	next := &contract{h, ping}
	t.contract.Store(next)
	return next
}

// add takes c in. A table that has stopped refuses.
func (t *Table) add(c *Conn) bool {
	t.mu.Lock()
	stopped := t.stopped
	if !stopped {
		t.running.Add(1)
		c.place = int32(len(t.conns)) //nolint:gosec // as many as descriptors
		t.conns = append(t.conns, c)
	}
	t.mu.Unlock()
	if stopped {
		c.stream.cut()
		t.refuse(c)
	}
	return !stopped
}

// refuse ends c, which is not in the table: OnClose is its only callback.
func (t *Table) refuse(c *Conn) { c.finish(true) }

func (t *Table) remove(c *Conn, code CloseCode) {
	t.mu.Lock()
	if last := len(t.conns) - 1; last >= 0 && int(c.place) <= last && t.conns[c.place] == c {
		t.conns[c.place] = t.conns[last]
		t.conns[c.place].place = c.place
		t.conns[last] = nil
		t.conns = t.conns[:last]
	}
	t.mu.Unlock()
	t.metrics.closed.WithLabelValues(c.wire.String(), code.String()).Inc()
}

func (t *Table) all() []*Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.conns)
}

// guarded runs a callback: a panic in it costs this one connection.
func (t *Table) guarded(c *Conn, fn func()) {
	defer t.recovered(c)
	fn()
}

// hear is guarded for OnMessage, which comes most often.
func (t *Table) hear(c *Conn, payload []byte) {
	defer t.recovered(c)
	c.handler.OnMessage(c, payload)
}

func (t *Table) recovered(c *Conn) {
	if v := recover(); v != nil {
		t.metrics.panics.Inc()
		t.opt.Logger.Error("A connection's handler panicked; the connection is closed. This is a bug: please report it.",
			"conn", c.id, "panic", v, "stack", string(debug.Stack()))
		c.Close(CloseInternal, "Something went wrong on our side.")
	}
}

// sweep looks at every connection once.
func (t *Table) sweep(now time.Time) {
	conns := t.all()
	if now.After(t.windowEnds) {
		t.windowEnds, t.silent, t.paused = now.Add(time.Minute), 0, false
		t.metrics.reaperPaused.Set(0)
	}
	allowed := max(8, int(t.opt.SilentShare*float64(len(conns))))
	for _, c := range conns {
		switch c.due(now, t.opt.WriteTimeout) {
		case dueCut:
			c.stream.cut()
		case dueExpired:
			c.expire()
		case dueSilent:
			if t.silent >= allowed {
				t.pauseReaper(len(conns))
				continue
			}
			t.silent++
			c.Close(CloseSilent, "Nothing was heard within the heartbeat's interval and grace.")
		case duePing:
			c.mu.Lock()
			ping := c.contract.ping
			c.mu.Unlock()
			_ = c.Send(ping) // closing, or slow and thereby closed
		}
	}
}

// pauseReaper: when very many go silent at once the fault is more likely ours, or the network's, than theirs (Gitter, 2014).
func (t *Table) pauseReaper(conns int) {
	if t.paused {
		return
	}
	t.paused = true
	t.metrics.reaperPaused.Set(1)
	t.opt.Logger.Error("Too many connections went silent at once: closing for silence is paused until the minute is over. Look at the network and at this node's load.",
		"closed_in_this_minute", t.silent, "connections", conns)
}

func (c *Conn) expire() {
	c.mu.Lock()
	wake := c.rare != nil && c.rare.ends != nil && c.closeLocked(c.rare.ends.code, c.rare.ends.reason)
	c.mu.Unlock()
	if wake {
		c.stream.wake(c)
	}
}

// What the sweeper finds due.
type due uint8

const (
	dueNothing due = iota
	dueCut
	dueExpired
	dueSilent
	duePing
)

// due decides what is to be done with c. It alone touches nextPing.
func (c *Conn) due(now time.Time, writeTimeout time.Duration) due {
	if w := c.writing.Load(); w != 0 && now.UnixNano()-w > int64(writeTimeout) {
		return dueCut
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hush()
	m := c.rare
	switch {
	case m != nil && m.giveUp != 0 && now.UnixNano() > m.giveUp:
		return dueCut
	case c.state == closing && now.UnixNano() > m.closeBy:
		return dueCut
	case c.state != open:
		return dueNothing
	case m != nil && m.ends != nil && now.After(m.ends.at):
		return dueExpired
	}
	h := &c.contract.Heartbeat
	if h.Interval <= 0 {
		return dueNothing
	}
	if quiet := time.Duration(now.UnixNano() - c.heard.Load()); h.Grace > 0 && !c.paused && quiet > h.Interval+h.Grace {
		return dueSilent
	}
	if now.UnixNano() >= c.nextPing {
		c.nextPing = now.Add(h.Interval).UnixNano()
		return duePing
	}
	return dueNothing
}
