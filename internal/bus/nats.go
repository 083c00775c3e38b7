package bus

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// EmbedOptions of Embed.
type EmbedOptions struct {
	// Node is the name of this NATS server in its cluster. Required.
	Node petrel.NodeID
	// Cell names the NATS cluster and begins every subject. Default "petrel".
	Cell string
	// Listen is HOST:PORT for the routes of other nodes; port 0 takes a free one. Required.
	Listen string
	// Advertise is the HOST:PORT that others are told, when it is not Listen. Default "".
	Advertise string
	// Routes are HOST:PORT of other nodes' buses: one that is alive is enough, the rest is heard from it.
	// Each is tried again for ever.
	Routes []string
	// TLS is for both ends of every route; it must ask for the other's certificate and check it, by its
	// roots or by VerifyConnection. Only a Listen on loopback may do without.
	TLS *tls.Config
	// Secret of the cell; who does not have it gets no route. Required. It is not sent: a hash of it is.
	Secret string
	// Logger: nil discards.
	Logger *slog.Logger
}

func (o *EmbedOptions) validate() (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return "", 0, fmt.Errorf("bus: listen address: %w", err)
	}
	port, _ = strconv.Atoi(portText) // checked below
	switch {
	case o.Node == "" || o.Secret == "":
		return "", 0, errors.New("bus: Embed needs a node's name and a secret")
	case o.TLS == nil && host != "localhost" && !net.ParseIP(host).IsLoopback():
		return "", 0, fmt.Errorf("bus: without TLS only loopback may be listened on, not %q", host)
	case o.TLS != nil && !checksBothEnds(o.TLS):
		return "", 0, errors.New("bus: the TLS configuration does not check the certificates of both ends")
	}
	for _, addr := range append(slices.Clone(o.Routes), o.Listen, cmp.Or(o.Advertise, o.Listen)) {
		if _, p, err := net.SplitHostPort(addr); err != nil {
			return "", 0, fmt.Errorf("bus: address of a node: %w", err)
		} else if n, err := strconv.Atoi(p); err != nil || n < 0 || n > math.MaxUint16 {
			return "", 0, fmt.Errorf("bus: address %q of a node: no such port", addr)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return host, port, nil
}

func checksBothEnds(c *tls.Config) bool {
	if c.VerifyConnection != nil {
		return c.ClientAuth == tls.RequireAnyClientCert || c.ClientAuth == tls.RequireAndVerifyClientCert
	}
	return c.ClientAuth == tls.RequireAndVerifyClientCert && !c.InsecureSkipVerify
}

// Limits of the embedded server.
const (
	routePing     = 2 * time.Second  // so that a route that hears nothing is cut after two of them
	routeWrite    = 5 * time.Second  // for which a route may not take a byte
	routePending  = 32 << 20         // bytes that wait for one route
	serverPayload = 1 << 20          // bytes of a frame: more than repairBytes and MaxPayload
	startWithin   = 10 * time.Second // for the listener to be there
	flushWithin   = 250 * time.Millisecond
	natsBuffer    = 4096 // frames between the NATS client and the inbox
)

// Embedded is a NATS server in this process and a connection to it.
type Embedded struct {
	natsWire
	srv *server.Server

	routing sync.Mutex // held while routes are added
	opts    *server.Options
	user    *url.Userinfo
}

// Embed starts a NATS server without JetStream that listens for routes. Bus.Stop ends it.
func Embed(o EmbedOptions) (*Embedded, error) {
	host, port, err := o.validate()
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	sum := sha256.Sum256([]byte("petrel bus\x00" + o.Secret))
	user, password := "petrel", hex.EncodeToString(sum[:])
	e := &Embedded{user: url.UserPassword(user, password)}
	e.opts = &server.Options{
		ServerName: string(o.Node),
		// The server starts no routes without a listener for clients (DontListen). So there is one, at a
		// random port of loopback, and nobody is let in by it: onlyPipes.
		Host: "127.0.0.1", Port: server.RANDOM_PORT, CustomClientAuthentication: onlyPipes{},
		NoSigs: true, MaxPayload: serverPayload, MaxPending: routePending,
		Routes: e.routesTo(o.Routes),
		Cluster: server.ClusterOpts{
			Name: subjectCell(o.Cell), Host: host, Port: port, Advertise: o.Advertise,
			Username: user, Password: password, AuthTimeout: 5,
			TLSConfig: o.TLS, TLSTimeout: 5,
			// Routes that were heard of are given up after one try by default, and a partition would
			// outlive its cause. This is some days.
			ConnectRetries: 1 << 20,
			PoolSize:       -1, // one account: one connection, which keeps frames in order
			Compression:    server.CompressionOpts{Mode: server.CompressionOff},
			PingInterval:   routePing, MaxPingsOut: 2, WriteDeadline: routeWrite,
		},
	}
	srv, err := server.NewServer(e.opts.Clone())
	if err != nil {
		return nil, fmt.Errorf("bus: embed NATS: %w", err)
	}
	srv.SetLoggerV2(natsLog{o.Logger}, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startWithin) {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, fmt.Errorf("bus: NATS does not listen on %s", o.Listen)
	}
	e.srv = srv
	e.init(o.Cell, o.Logger, "", nats.InProcessServer(srv))
	e.after = func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
	return e, nil
}

func (e *Embedded) routesTo(addrs []string) (out []*url.URL) {
	for _, a := range addrs {
		out = append(out, &url.URL{Scheme: "nats", Host: a, User: e.user})
	}
	return out
}

// AddRoutes looks for other nodes' buses at more addresses (HOST:PORT), as if they had been given to Embed.
func (e *Embedded) AddRoutes(addrs ...string) error {
	e.routing.Lock()
	defer e.routing.Unlock()
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		return slices.ContainsFunc(e.opts.Routes, func(u *url.URL) bool { return u.Host == a })
	})
	if len(addrs) == 0 {
		return nil
	}
	next := e.opts.Clone()
	next.Routes = append(next.Routes, e.routesTo(addrs)...)
	if err := e.srv.ReloadOptions(next.Clone()); err != nil {
		return fmt.Errorf("bus: add routes: %w", err)
	}
	e.opts = next
	return nil
}

// Addr is where other nodes' routes arrive.
func (e *Embedded) Addr() string { return e.srv.ClusterAddr().String() }

// onlyPipes lets in who is in this process.
type onlyPipes struct{}

// Check is server.Authentication's.
func (onlyPipes) Check(c server.ClientAuthentication) bool {
	a := c.RemoteAddress()
	return c.Kind() == server.CLIENT && a != nil && a.Network() == "pipe"
}

// DialOptions of Dial.
type DialOptions struct {
	// URL of a NATS cluster: nats://user:password@host:4222,… or tls://. Required.
	URL string
	// Cell begins every subject, so that cells can share a NATS cluster. Default "petrel".
	Cell string
	// TLS for tls:// URLs. Default: the system's roots.
	TLS *tls.Config
	// Logger: nil discards.
	Logger *slog.Logger
}

// Dial returns a wire over a NATS cluster that is there already. A cluster that is not reachable is
// tried for ever, from Start on; what is published meanwhile is lost, and counted.
func Dial(o DialOptions) (Wire, error) {
	if o.URL == "" {
		return nil, errors.New("bus: Dial needs a URL")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &natsWire{}
	opts := []nats.Option{nats.RetryOnFailedConnect(true)}
	if o.TLS != nil {
		opts = append(opts, nats.Secure(o.TLS))
	}
	w.init(o.Cell, o.Logger, o.URL, opts...)
	return w, nil
}

// natsWire is a connection to a NATS server. Subjects: CELL.all, CELL.b.BUCKET, CELL.n.NODE (in hex).
type natsWire struct {
	cell  string
	log   *slog.Logger
	url   string
	opts  []nats.Option
	after func() // close, after the connection is closed

	in   chan *nats.Msg
	done chan struct{}
	pump sync.WaitGroup

	mu     sync.Mutex // guards what follows
	nc     *nats.Conn
	subs   map[Bucket]*nats.Subscription
	closed bool
}

func (w *natsWire) init(cell string, log *slog.Logger, url string, opts ...nats.Option) {
	w.cell, w.log, w.url, w.opts, w.after = subjectCell(cell), log, url, opts, func() {}
	w.in, w.done, w.subs = make(chan *nats.Msg, natsBuffer), make(chan struct{}), map[Bucket]*nats.Subscription{}
}

// subjectCell makes a name that NATS takes as one part of a subject.
func subjectCell(cell string) string {
	if cell == "" || cell == "petrel" {
		return "petrel"
	}
	return "petrel-" + hex.EncodeToString([]byte(cell))
}

func (w *natsWire) start(p socket) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nats.ErrConnectionClosed
	}
	opts := append([]nats.Option{
		nats.Name("petrel " + string(p.node)), nats.NoEcho(), nats.MaxReconnects(-1), nats.Timeout(2 * time.Second),
		nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.PingInterval(routePing), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // what cannot be sent now is lost now: it would come late
		nats.NoCallbacksAfterClientClose(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) {
				p.dropped(dropClient)
				return
			}
			w.log.Warn("the NATS connection has an error", "error", err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { w.log.Warn("the NATS connection is lost", "error", err) }),
		nats.ReconnectHandler(func(*nats.Conn) { w.log.Info("the NATS connection is back") }),
	}, w.opts...)
	nc, err := nats.Connect(w.url, opts...)
	if err != nil {
		return err
	}
	w.nc = nc
	// One channel for all subjects: frames of different subjects keep their order too.
	w.pump.Go(func() {
		for {
			select {
			case m := <-w.in:
				p.receive(m.Data)
			case <-w.done:
				return
			}
		}
	})
	for _, subject := range []string{w.cell + ".all", w.inbox(p.node)} {
		if _, err := nc.ChanSubscribe(subject, w.in); err != nil {
			return fmt.Errorf("listen to %s: %w", subject, err)
		}
	}
	return nil
}

func (w *natsWire) inbox(node petrel.NodeID) string {
	return w.cell + ".n." + hex.EncodeToString([]byte(node))
}

func (w *natsWire) bucket(k Bucket) string { return w.cell + ".b." + strconv.Itoa(int(k)) }

func (w *natsWire) send(p parcel) error {
	w.mu.Lock()
	nc := w.nc
	w.mu.Unlock()
	if nc == nil {
		return nats.ErrConnectionClosed
	}
	switch p.to {
	case toAll:
		return nc.Publish(w.cell+".all", p.data)
	case toBucket:
		return nc.Publish(w.bucket(p.bucket), p.data)
	}
	return nc.Publish(w.inbox(p.node), p.data)
}

func (w *natsWire) listen(k Bucket, on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nc == nil {
		return nats.ErrConnectionClosed
	}
	if sub := w.subs[k]; !on && sub != nil {
		delete(w.subs, k)
		return sub.Unsubscribe()
	}
	if !on {
		return nil
	}
	sub, err := w.nc.ChanSubscribe(w.bucket(k), w.in)
	if err != nil {
		return err
	}
	w.subs[k] = sub
	return nil
}

func (w *natsWire) close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	nc := w.nc
	w.mu.Unlock()
	if nc != nil {
		if err := nc.FlushTimeout(flushWithin); err != nil {
			w.log.Debug("the last frames may not have been sent", "error", err)
		}
		nc.Close()
	}
	close(w.done)
	w.pump.Wait()
	w.after()
}

// natsLog passes the server's logging on. Its notices are about its own life, and are for debugging.
type natsLog struct{ log *slog.Logger }

const natsSays = "nats says"

// Noticef, and what follows, is server.Logger's.
func (l natsLog) Noticef(f string, v ...any) { l.log.Debug(natsSays, "text", fmt.Sprintf(f, v...)) }

func (l natsLog) Warnf(f string, v ...any) {
	if strings.HasPrefix(f, "TLS certificate chain and hostname of solicited routes will not be verified") {
		return // it only sees InsecureSkipVerify; Identity.Routes verifies the chain itself
	}
	text := fmt.Sprintf(f, v...)
	if strings.HasPrefix(text, "Error trying to connect to") || strings.Contains(text, "duplicate name") {
		l.log.Debug(natsSays, "text", text) // many a second; heartbeats tell both once
		return
	}
	l.log.Warn(natsSays, "text", text)
}

func (l natsLog) Errorf(f string, v ...any) { l.Warnf(f, v...) }
func (l natsLog) Fatalf(f string, v ...any) { l.log.Error(natsSays, "text", fmt.Sprintf(f, v...)) }
func (l natsLog) Debugf(string, ...any)     {}
func (l natsLog) Tracef(string, ...any)     {}

var (
	_ Wire                  = (*Embedded)(nil)
	_ Wire                  = (*natsWire)(nil)
	_ Wire                  = (*memoryWire)(nil)
	_ server.Logger         = natsLog{}
	_ server.Authentication = onlyPipes{}
)
