package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// httpProtocol is the application protocol (ALPN) of requests that one node forwards to another: HTTP/2, so that many answers that last
// share one descriptor.
const httpProtocol = "petrel-http/1"

// Bounds of forwarding.
const (
	findWithin    = 2 * time.Second // how long the other nodes are asked for a session
	maxRemembered = 65_536          // sessions whose node is remembered
	maxSessionID  = 300             // bytes of a name that another node asks for
	maxShare      = 1_000           // requests that share a stream between two nodes; more open another
	keepIdleFor   = time.Minute
	stuckFor      = 30 * time.Second // a client that takes nothing for so long is cut
)

// forwarder hands requests of Pusher's sessions over HTTP to the node that has the session: a client's requests come by any
// node, because nothing in its address says where its session lives. A session stays where it began.
type forwarder struct {
	cell      *cell
	local     func() *pusher.Server // nil before people are let in, and after
	logger    *slog.Logger
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	server    *http.Server
	served    chan struct{}
	requests  *prometheus.CounterVec
	within    time.Duration // how long the others are asked

	mu    sync.Mutex // guards where
	where map[pusher.SessionName]petrel.NodeID
}

var _ pusher.Elsewhere = (*forwarder)(nil)

// newForwarder answers other nodes from now on. Call it before the bus is started.
func newForwarder(c *cell, b *bus.Bus, local func() *pusher.Server, logger *slog.Logger, reg prometheus.Registerer) *forwarder {
	f := &forwarder{cell: c, local: local, logger: logger, where: map[pusher.SessionName]petrel.NodeID{}, served: make(chan struct{}), within: findWithin}
	f.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "petrel_node_forwarded_total", Help: "Requests of sessions over HTTP that were forwarded to the node that has the session, by what came of them.",
	}, []string{"result"})
	reg.MustRegister(f.requests)
	b.Serve(kindSession, f.answer)
	protocols, shared := new(http.Protocols), &http.HTTP2Config{MaxConcurrentStreams: maxShare}
	protocols.SetUnencryptedHTTP2(true) // the port has seen to TLS
	f.transport = &http.Transport{DialContext: f.dial, IdleConnTimeout: keepIdleFor, DisableCompression: true, Protocols: protocols, HTTP2: shared}
	quiet := slog.NewLogLogger(logger.Handler(), slog.LevelDebug)
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", string(bound(r.In).node)
			r.Out.Host = r.In.Host
		},
		Transport: f.transport, FlushInterval: -1, ErrorLog: quiet, ModifyResponse: f.answered, ErrorHandler: f.failed,
	}
	f.server = &http.Server{Handler: http.HandlerFunc(f.serve), ReadHeaderTimeout: stuckFor, ReadTimeout: stuckFor, IdleTimeout: 2 * keepIdleFor, ErrorLog: quiet, Protocols: protocols, HTTP2: shared}
	l := c.port.Listener(httpProtocol)
	go func() {
		defer close(f.served)
		if err := f.server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			logger.Error("requests that other nodes forward are not answered any more", "error", err)
		}
	}()
	return f
}

// close ends what is under way, here and there.
func (f *forwarder) close() {
	_ = f.server.Close() // its listener and streams; there is nobody to tell
	<-f.served
	f.transport.CloseIdleConnections()
}

// errand is one request on its way to the node that has its session.
type errand struct {
	name pusher.SessionName
	node petrel.NodeID
}

type errandKey struct{}

func bound(r *http.Request) errand {
	e, _ := r.Context().Value(errandKey{}).(errand)
	return e
}

// Find implements pusher.Elsewhere.
func (f *forwarder) Find(ctx context.Context, name pusher.SessionName, ask bool) petrel.NodeID {
	node := f.remembered(name)
	if node == "" && ask {
		node = f.find(ctx, name)
	}
	return node
}

// Forward implements pusher.Elsewhere.
func (f *forwarder) Forward(w http.ResponseWriter, r *http.Request, name pusher.SessionName, node petrel.NodeID) {
	f.proxy.ServeHTTP(newPaced(w), r.WithContext(context.WithValue(r.Context(), errandKey{}, errand{name, node})))
}

// remembered is the living node that had the session last, "" when none is known.
func (f *forwarder) remembered(name pusher.SessionName) petrel.NodeID {
	f.mu.Lock()
	node := f.where[name]
	f.mu.Unlock()
	if node != "" && f.address(node) == "" {
		f.forget(errand{name, node})
		return ""
	}
	return node
}

func (f *forwarder) forget(e errand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.where[e.name] == e.node {
		delete(f.where, e.name)
	}
}

// find asks every living node at once; the first that has the session is remembered.
func (f *forwarder) find(ctx context.Context, name pusher.SessionName) petrel.NodeID {
	b := f.cell.bus.Load()
	if b == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, f.within)
	defer cancel()
	peers := b.Peers()
	found := make(chan petrel.NodeID, len(peers)) // each says once
	asked := 0
	for _, p := range peers {
		if !p.Alive {
			continue
		}
		asked++
		go func() {
			answer, err := b.Request(ctx, p.Node, kindSession, []byte(name))
			if err != nil || string(answer) != "1" {
				found <- ""
				return
			}
			found <- p.Node
		}()
	}
	for range asked {
		if node := <-found; node != "" {
			f.remember(errand{name, node})
			return node
		}
	}
	return ""
}

func (f *forwarder) remember(e errand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.where) >= maxRemembered {
		for old := range f.where { // any: it is asked for again if it still lives
			delete(f.where, old)
			break
		}
	}
	f.where[e.name] = e.node
}

// answer says whether this node has a session.
func (f *forwarder) answer(_ context.Context, _ petrel.NodeID, name []byte) ([]byte, error) {
	if s := f.local(); s != nil && len(name) <= maxSessionID && s.HasSession(pusher.SessionName(name)) {
		return []byte("1"), nil
	}
	return []byte("0"), nil
}

// address is the peer port of a living node, "" when it is not alive.
func (f *forwarder) address(node petrel.NodeID) string {
	for _, p := range f.cell.peers() {
		if p.Node == node && p.Alive {
			return p.Info.Addresses.Peer
		}
	}
	return ""
}

// dial opens a stream to the node whose name stands where a host would.
func (f *forwarder) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	node, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	peer := f.address(petrel.NodeID(node))
	if peer == "" {
		return nil, bus.ErrNoPeer
	}
	return f.cell.port.Dial(ctx, peer, httpProtocol)
}

// answered looks at what the other node says.
func (f *forwarder) answered(r *http.Response) error {
	result := "ok"
	if r.StatusCode == http.StatusNotFound { // the session has ended
		f.forget(bound(r.Request))
		result = "ended"
	}
	f.requests.WithLabelValues(result).Inc()
	r.Header.Del("Cache-Control") // this node's own answer has it
	r.Header.Del("Date")
	return nil
}

// failed answers when the other node did not: its sessions are gone with it, and the client begins anew.
func (f *forwarder) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client has gone
	}
	e := bound(r)
	f.forget(e)
	f.requests.WithLabelValues("failed").Inc()
	f.logger.Info("a request could not be forwarded to the node that has its session", "node", e.node, "error", err)
	gateway.WriteProblem(w, petrel.Errorf(petrel.CodeNotFound, "The node that had this session does not answer: the session is lost. Begin a new one."))
}

// serve answers what another node forwarded.
func (f *forwarder) serve(w http.ResponseWriter, r *http.Request) {
	s := f.local()
	if s == nil {
		gateway.WriteProblem(w, petrel.Errorf(petrel.CodeNotFound, "This node has no sessions."))
		return
	}
	s.Forwarded().ServeHTTP(w, r)
}

// paced cuts a client that takes nothing: the node that has the session cannot see it, and this one has no timer of its own for it.
type paced struct {
	http.ResponseWriter
	ctl *http.ResponseController
}

func newPaced(w http.ResponseWriter) *paced {
	p := &paced{w, http.NewResponseController(w)}
	_ = p.ctl.SetReadDeadline(time.Time{})
	_ = p.ctl.SetWriteDeadline(time.Now().Add(stuckFor))
	return p
}

// Write implements http.ResponseWriter.
func (p *paced) Write(b []byte) (int, error) {
	_ = p.ctl.SetWriteDeadline(time.Now().Add(stuckFor)) // every listener of ours supports it
	return p.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }
