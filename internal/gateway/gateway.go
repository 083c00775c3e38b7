// Package gateway is the front door: the public listener, and everything that happens to a request before
// anything of ours looks at what it asks for. In this order: a place for the socket, time and size limits of the
// head, a request id, well-formed path and query, drain, the route, who is it, may it speak this fast, the body and
// its limits. What is refused here has queued nothing and read nothing of the state.
//
// Every answer that is not a success is a problem (RFC 9457, problem.go) with a stable code; a handler that
// panics is one too, and a loud log.
//
// Sockets and event streams are let in here (stream.go): a place in the table of connections, counted in total
// and per app, and the handshake. There is no Origin check and no cookie: whoever asks shows a
// token, and a browser never sends one along by itself, so any origin may ask (CORS answers *, without credentials).
//
// TLS is ended here for listeners given to ServeTLS; behind a proxy that ends it, name that one's addresses in TrustedProxies.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"hash/maphash"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Credential is who asks, as the authenticator found.
type Credential struct {
	Actor   petrel.Actor
	Expires time.Time // when the token does; zero: never

	again func(context.Context) (Credential, error) // asks the authenticator once more; set by the gateway
}

// Still says whether the credential would be accepted now: for connections, when keys or apps have changed.
func (c Credential) Still(ctx context.Context) error {
	if c.again == nil {
		return nil
	}
	_, err := c.again(ctx)
	return err
}

// Authenticator checks credentials. Its refusals are *petrel.Error with the code to answer; anything else is answered as internal.
type Authenticator interface {
	// Token checks a user token.
	Token(ctx context.Context, token string) (Credential, error)
	// Key checks an app's key and secret, and that user may be acted for ("" is the app itself).
	Key(ctx context.Context, key, secret string, user petrel.UserID) (Credential, error)
}

// Options of a Gateway. All limits are per node.
type Options struct {
	Auth  Authenticator // required
	Conns *conn.Table   // required: where sockets and streams are opened

	MaxHeaderBytes int           // default 16 KiB (net/http adds 4 KiB)
	MaxBodyBytes   int64         // of a request, unless its route says otherwise; default 64 KiB
	HeaderTimeout  time.Duration // to read the head of a request; default 5 s
	ReadTimeout    time.Duration // to read head and body; default 15 s
	RequestTimeout time.Duration // deadline of a request's work; default 10 s
	IdleTimeout    time.Duration // of a kept-alive connection between requests; default 75 s

	MaxSockets     int // accepted TCP connections, refused at 95 %; default 16,384
	MaxConns       int // WebSocket and SSE connections, refused at 95 %; default 10,000
	MaxConnsPerApp int // of one app; default: MaxConns

	// IPRate bounds requests without valid credentials per address (an IPv6 /64 counts as one); default 50/s, burst 500.
	IPRate limit.Rate
	// AppRate bounds requests and socket frames of one app; default 20,000/s, burst 20,000.
	AppRate limit.Rate
	// UserRate bounds those that come with one user's token; default 500/s, burst 1,000. Server calls count for the app only.
	UserRate limit.Rate
	// RateKeys is how many addresses, apps and users are told apart; default 65,536 each.
	RateKeys int

	// TrustedProxies are peers whose X-Forwarded-For is believed; default: none.
	TrustedProxies []netip.Prefix

	Now        func() time.Time      // default time.Now
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *Options) defaults() {
	if o.Auth == nil || o.Conns == nil {
		panic("gateway: Auth and Conns are required") // a mistake of whoever assembles the node
	}
	num := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	dur := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	rate := func(p *limit.Rate, perSecond float64, burst int) {
		if *p == (limit.Rate{}) {
			*p = limit.Rate{PerSecond: perSecond, Burst: burst}
		}
	}
	num(&o.MaxHeaderBytes, 16<<10)
	if o.MaxBodyBytes <= 0 {
		o.MaxBodyBytes = 64 << 10
	}
	dur(&o.HeaderTimeout, 5*time.Second)
	dur(&o.ReadTimeout, 15*time.Second)
	dur(&o.RequestTimeout, 10*time.Second)
	dur(&o.IdleTimeout, 75*time.Second)
	num(&o.MaxSockets, 16_384)
	num(&o.MaxConns, 10_000)
	num(&o.MaxConnsPerApp, o.MaxConns)
	rate(&o.IPRate, 50, 500)
	rate(&o.AppRate, 20_000, 20_000)
	rate(&o.UserRate, 500, 1_000)
	num(&o.RateKeys, 65_536)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Gateway is an http.Handler with the listener that suits it.
type Gateway struct {
	opt      Options
	mux      *http.ServeMux
	routes   map[string]Route // by pattern; written by Handle only, before Serve
	hot      []shape          // of the routes that are answered on loops; likewise
	server   *http.Server
	metrics  *metrics
	life     context.Context    // over with Stop
	end      context.CancelFunc // of life
	draining atomic.Bool        // nothing that stays is let in
	closing  atomic.Bool        // nothing is

	mu      sync.Mutex     // guards the two below
	loops   []*conn.Server // none: net/http serves everything
	stopped bool

	byIP   *limit.Table[netip.Prefix]
	byApp  *limit.Table[petrel.AppID]
	byUser *limit.Table[userKey]

	sockets *limit.Places[struct{}]
	places  *limit.Places[petrel.AppID]
}

type userKey struct {
	app  petrel.AppID
	user petrel.UserID
}

// New returns a gateway without routes.
func New(o Options) *Gateway {
	o.defaults()
	seed := maphash.MakeSeed()
	g := &Gateway{
		opt: o, mux: http.NewServeMux(), routes: map[string]Route{},
		byIP:    limit.NewTable(o.IPRate, o.RateKeys, func(p netip.Prefix) uint64 { return maphash.Comparable(seed, p) }),
		byApp:   limit.NewTable(o.AppRate, o.RateKeys, func(a petrel.AppID) uint64 { return maphash.Comparable(seed, a) }),
		byUser:  limit.NewTable(o.UserRate, o.RateKeys, func(u userKey) uint64 { return maphash.Comparable(seed, u) }),
		sockets: limit.NewPlaces[struct{}](o.MaxSockets, 0),
		places:  limit.NewPlaces[petrel.AppID](o.MaxConns, o.MaxConnsPerApp),
	}
	g.metrics = newMetrics(o.Registerer, g)
	g.life, g.end = context.WithCancel(context.Background())
	g.server = &http.Server{
		Handler:           g,
		ReadHeaderTimeout: o.HeaderTimeout,
		ReadTimeout:       o.ReadTimeout,
		WriteTimeout:      o.ReadTimeout + o.RequestTimeout + 30*time.Second, // streams lift it for themselves
		IdleTimeout:       o.IdleTimeout,
		MaxHeaderBytes:    o.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return g
}

// Serve accepts on ln until Drain or Stop; then it returns nil. Where it can, loops accept and keep what is hot (conn.Server), and the
// rest goes to net/http; else net/http serves everything.
func (g *Gateway) Serve(ln net.Listener) error {
	return g.accept(ln, g.isHot, nil)
}

// accept serves ln, behind TLS if there is a configuration for it.
func (g *Gateway) accept(ln net.Listener, hot func(method, path string) bool, secure *tls.Config) error {
	accepting := &listener{Listener: ln, g: g}
	rest := net.Listener(accepting)
	loops, err := g.opt.Conns.NewServer(ln, conn.ServerOptions{
		Hot: hot, Handler: g, MaxHead: g.opt.MaxHeaderBytes, MaxBody: int(g.opt.MaxBodyBytes), ReadTimeout: g.opt.HeaderTimeout, IdleTimeout: g.opt.IdleTimeout,
		Take: accepting.take, Release: accepting.release, Full: full, Failed: accepting.failed,
	})
	switch {
	case errors.Is(err, conn.ErrNoLoops):
	case err != nil:
		return err
	case !g.keep(loops):
		loops.Stop()
		return nil
	case secure != nil:
		rest = loops.Rest() // with TLS right on it, as loops want it
	default:
		rest = placed{loops.Rest()}
	}
	if secure != nil {
		rest = tls.NewListener(rest, secure)
	}
	return served(g.server.Serve(rest))
}

// ServeTLS is Serve with TLS, which ends here. Requests have a goroutine each, and so has a stream of events; WebSockets go on to loops where there are any.
func (g *Gateway) ServeTLS(ln net.Listener, cfg *tls.Config) error {
	none := func(string, string) bool { return false }
	return g.accept(ln, none, cfg)
}

// keep notes the loops, for Stop to end them; false when it came first.
func (g *Gateway) keep(loops *conn.Server) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loops = append(g.loops, loops)
	return !g.stopped
}

// served is the end of net/http's Serve: nil when it was wanted.
func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Drain lets no socket or stream in any more (CodeDraining), tells those that are there to reconnect, spread over window, and waits until
// what was queued for them is written. Requests are answered meanwhile, each as the last one of its connection: who comes is told something better than
// a closed door, and connections over HTTP are told at all. Then it stops accepting, and waits for the requests under way. All of that until
// ctx is over.
func (g *Gateway) Drain(ctx context.Context, window time.Duration) error {
	g.draining.Store(true)
	err := g.opt.Conns.Drain(ctx, window)
	g.closing.Store(true)
	return errors.Join(err, g.server.Shutdown(ctx))
}

// Stop ends everything now. Safe after Drain, and twice.
func (g *Gateway) Stop() {
	g.draining.Store(true)
	g.closing.Store(true)
	g.end()
	_ = g.server.Close() // closes listeners and connections; there is nobody to tell
	g.opt.Conns.Stop()
	g.mu.Lock()
	loops := g.loops
	g.stopped = true
	g.mu.Unlock()
	for _, l := range loops {
		l.Stop()
	}
}

// Sockets is how many TCP connections are accepted, of how many.
func (g *Gateway) Sockets() (used, total int) { return g.sockets.Used(), g.sockets.Total() }

// Connections is how many WebSocket and SSE connections there are, of how many.
func (g *Gateway) Connections() (used, total int) { return g.places.Used(), g.places.Total() }

// Conns is the table in which sockets and streams are opened.
func (g *Gateway) Conns() *conn.Table { return g.opt.Conns }

// Allow charges one request or frame to the actor's app and, with a user's own token, to the user.
// It returns CodeRateLimited with the time to wait.
func (g *Gateway) Allow(cred Credential) error {
	now := g.opt.Now()
	if ok, wait := g.byApp.Take(cred.Actor.App, now, 1); !ok {
		g.metrics.refused.WithLabelValues("app_rate").Inc()
		return petrel.Errorf(petrel.CodeRateLimited, "The app sends more than its rate. Slow down.").After(wait)
	}
	if cred.Expires.IsZero() {
		return nil // a server call
	}
	if ok, wait := g.byUser.Take(userKey{cred.Actor.App, cred.Actor.User}, now, 1); !ok {
		g.metrics.refused.WithLabelValues("user_rate").Inc()
		return petrel.Errorf(petrel.CodeRateLimited, "The user sends more than their rate. Slow down.").After(wait)
	}
	return nil
}
