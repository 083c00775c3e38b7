package conn

import (
	"errors"
	"net/http"
	"runtime"
	"time"
)

// ErrNoLoops is what NewServer returns where connections cannot be served by loops: another system than Linux, or a listener that
// is not plain TCP. Serve with net/http instead; everything works alike, with a goroutine or two per connection.
var ErrNoLoops = errors.New("conn: loops need a TCP listener on Linux")

// ServerOptions of NewServer.
type ServerOptions struct {
	// Loops is how many loops share the connections. Default: one per processor (GOMAXPROCS).
	Loops int
	// Hot says, by method and path, which requests are answered on the loops. Every other connection goes to Rest. Required.
	Hot func(method, path string) bool
	// Handler answers hot requests. It runs on a loop that thousands of connections share: it must not wait for anything. What may
	// have to wait calls Again. Required.
	Handler http.Handler

	MaxHead     int           // bytes of a request's head; longer ones go to Rest, which refuses them. Default 16 KiB
	MaxBody     int           // bytes of a hot request's body; larger ones go to Rest. Default 64 KiB
	ReadTimeout time.Duration // for a request to come whole. Default 15 s
	IdleTimeout time.Duration // between two requests. Default 75 s

	// Take asks for a place for a socket, and Release gives it back. nil: every socket has one.
	Take    func() bool
	Release func()
	// Full is the whole answer to a socket without a place.
	Full []byte
	// Failed hears of sockets that the kernel did not hand over. nil: nobody does.
	Failed func(err error)

	ringLeast  int           // writes for which io_uring is used; tests make it 1
	ringSize   int           // writes handed to the kernel in one call at most; tests ask for more than it gives
	sweepEvery time.Duration // how often loops wake up for no reason; tests make it long
}

func (o *ServerOptions) defaults() {
	if o.Hot == nil || o.Handler == nil {
		panic("conn: Hot and Handler are required") // a mistake of whoever assembles the node
	}
	if o.Loops <= 0 {
		o.Loops = runtime.GOMAXPROCS(0)
	}
	if o.MaxHead <= 0 {
		o.MaxHead = 16 << 10
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 64 << 10
	}
	if o.ReadTimeout <= 0 {
		o.ReadTimeout = 15 * time.Second
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 75 * time.Second
	}
	if o.ringLeast <= 0 {
		o.ringLeast = 8 // fewer are not worth it
	}
	if o.ringSize <= 0 {
		o.ringSize = 64
	}
	if o.sweepEvery <= 0 {
		o.sweepEvery = time.Second
	}
	if o.Take == nil {
		o.Take = func() bool { return true }
	}
	if o.Release == nil {
		o.Release = func() {}
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
}

// looped is what the ResponseWriter of a loop implements besides.
type looped interface {
	again() bool // true: on a loop, which calls the handler again where it may wait
	rest()       // net/http calls the handler again
	upgrade(wire Wire, cfg Config, h Handler)
	receive(x *XHR, rc, old *receiver, streams bool)
}

// loopOf finds a loop's own ResponseWriter below wrappers, nil when the request is not answered on a loop.
func loopOf(w http.ResponseWriter) looped {
	for {
		switch v := w.(type) {
		case looped:
			return v
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return nil
		}
	}
}

// Again says whether a handler must return now, having answered nothing and changed nothing, because it is on a loop and is about to
// wait: it is called once more with the same request, where it may.
func Again(w http.ResponseWriter) bool {
	l := loopOf(w)
	return l != nil && l.again()
}

// Rest says whether a handler must return now, having answered nothing, because what it is about to answer comes in pieces, or hangs on the client's
// staying: it is called once more with the same request, by net/http.
func Rest(w http.ResponseWriter) bool {
	l := loopOf(w)
	if l != nil {
		l.rest()
	}
	return l != nil
}

// Open makes a WebSocket of a request that CheckUpgrade found right, on a loop or out of net/http. After an error nothing can be
// answered any more.
func (t *Table) Open(w http.ResponseWriter, r *http.Request, cfg Config, h Handler) error {
	cfg.deflate = t.opt.Deflate && offersDeflate(r.Header)
	if l := loopOf(w); l != nil {
		l.upgrade(WireWebSocket, cfg, h)
		return nil
	}
	nc, early, err := upgrade(w, r, cfg.deflate)
	if err != nil {
		return err
	}
	if t.adopt(nc, early, cfg, h) {
		return nil
	}
	t.OpenWebSocket(nc, early, cfg, h)
	return nil
}
