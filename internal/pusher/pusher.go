// Package pusher is the protocol of Pusher Channels, version 7, as its clients and server libraries speak it: the socket at /app/{key}
// and the signed HTTP API at /apps/{id}/…. It turns both into our words and back; nothing else in the house knows Pusher.
//
// Rows like P4 or H3 in comments are those of docs/pusher.md. "Event" is Pusher's word here for what the rest of the house calls a publication.
//
// Everything is ephemeral: an event goes from the hub of one node to those of the others and is kept by nobody (a cache channel keeps its last
// one in memory). The publisher's node writes the whole frame once (frame.go); every node puts it into the framing of its wires (encode.go).
//
// # Invariants
//
//   - A connection gets events of a private, presence or encrypted channel only after it showed a signature of the app's own secret over its
//     own socket id and that channel. What is not explicitly allowed is refused.
//   - A call of the HTTP API does nothing before its signature was checked over the path, the query and the bytes of its body.
//   - Signatures are compared in constant time. No secret, signature or event data is logged or told in a refusal.
//   - Refusals at the handshake are told after it, as close codes: a client that only sees a failed upgrade comes back for ever (P7).
//   - No close code of 4300 or above is ever sent: pusher-js stays away for good after one.
//   - What one connection, app or request may hold is bounded by the app's Settings; what it may do in a second, too.
package pusher

import (
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Apps knows the apps and checks what their backends signed; *identity.Directory.
type Apps interface {
	AppOfKey(key string) (petrel.AppID, error)
	Verify(key string, message []byte, hexMAC string) (petrel.AppID, error)
	Settings(app petrel.AppID) *identity.Settings
}

var _ Apps = (*identity.Directory)(nil)

// ClientEvent is what OnClientEvent is told.
type ClientEvent struct {
	App      petrel.AppID
	Channel  string
	Event    string
	Data     []byte // as the client sent it, JSON
	SocketID petrel.ConnID
	User     string // of a presence channel; "" on others
}

// Options of Register.
type Options struct {
	Gateway *gateway.Gateway // required: where the routes go
	Hub     *hub.Hub         // required; made with HubOptions
	Apps    Apps             // required

	// ActivityTimeout is what a connection is told to ping after, and Grace how long it has to answer one of ours (P5, H2). Default 120 s
	// and 30 s. They are a contract: a connection keeps what its handshake said (H6).
	ActivityTimeout, Grace time.Duration
	// Handshakes of one app per second and node; default 2,000 with a burst of 20,000.
	Handshakes limit.Rate
	// FrameRate bounds the frames of one connection: one that sends more is read more slowly. Default 200 with a burst of 2,000.
	FrameRate limit.Rate
	// MaxReading is how many bytes of calls of the HTTP API are read at once; default 128 MiB.
	MaxReading int64

	// Last says that there is no other node that clients of this one may go to. It must not block. Default: never.
	Last func() bool

	// PublicURL is where clients reach this node and no other, "" when there is no such address: sessions over HTTP are then sent there.
	PublicURL string
	// Elsewhere finds sessions over HTTP on the other nodes of a cell; nil: there are none.
	Elsewhere Elsewhere

	// OnClientEvent is called for every client event that may be sent, before it is. It must not block. An error refuses it, and is told to the client.
	OnClientEvent func(e ClientEvent) error
	// OnCacheMiss is called when somebody subscribed to a cache channel that has no event. It must not block.
	OnCacheMiss func(app petrel.AppID, channel string)

	Now        func() time.Time      // default time.Now
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *Options) defaults() {
	if o.Gateway == nil || o.Hub == nil || o.Apps == nil {
		panic("pusher: Options is missing a part") // a mistake of whoever assembles the node
	}
	if o.Last == nil {
		o.Last = func() bool { return false }
	}
	if o.ActivityTimeout <= 0 {
		o.ActivityTimeout = 120 * time.Second
	}
	if o.Grace <= 0 {
		o.Grace = 30 * time.Second
	}
	if o.Handshakes == (limit.Rate{}) {
		o.Handshakes = limit.Rate{PerSecond: 2_000, Burst: 20_000}
	}
	if o.FrameRate == (limit.Rate{}) {
		o.FrameRate = limit.Rate{PerSecond: 200, Burst: 2_000}
	}
	if o.MaxReading <= 0 {
		o.MaxReading = 128 << 20
	}
	if o.OnClientEvent == nil {
		o.OnClientEvent = func(ClientEvent) error { return nil }
	}
	if o.OnCacheMiss == nil {
		o.OnCacheMiss = func(petrel.AppID, string) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Server is the protocol on one node.
type Server struct {
	opt        Options
	metrics    *metrics
	handshakes *limit.Table[petrel.AppID]
	users      users
	reading    atomic.Int64 // bytes of bodies that are being read
	bodies     sync.Pool    // *bytes.Buffer for what is read of requests
	fallback   *fallback
	entrances  sync.Map // *entrance by key
	pong       []byte   // the frame that answers a ping on a socket (H3)
	pongXHR    []byte   // and on the fallbacks

	running sync.WaitGroup // goroutines that were begun here
}

// Register adds every route of the protocol to the gateway. Call it once per gateway, before it serves.
func Register(o Options) *Server {
	o.defaults()
	s := &Server{opt: o, metrics: newMetrics(o.Registerer), pong: conn.TextFrame([]byte(pongPayload)), pongXHR: conn.XHRFrame([]byte(pongPayload))}
	s.opt.Last = lately(o.Last)
	s.users.by = map[userKey]map[*session]struct{}{}
	s.handshakes = newLimits(o.Handshakes)
	s.bodies.New = newBody
	socket := gateway.Route{Access: gateway.Own, LongLife: true, Repeats: true, Leaving: true, MaxBody: -1}
	onLoop := socket
	onLoop.Loop = true
	o.Gateway.Handle("GET /app/{key}", onLoop, http.HandlerFunc(s.connect))
	o.Gateway.Handle("/app/", socket, http.HandlerFunc(s.elsewhere))
	s.mountHTTP()
	s.mountFallback()
	return s
}

// Stop waits for what was begun here. Call it when the gateway has stopped.
func (s *Server) Stop() { s.running.Wait() }

// AppChanged closes the connections that would not be let in any more, after keys of an app changed, its suspension or its settings ("": of
// any app). It does not wait for that, so it may be called from apply's goroutine.
func (s *Server) AppChanged(app petrel.AppID) {
	s.entrances.Clear() // connections keep theirs
	s.running.Go(func() {
		s.opt.Gateway.Conns().Each(func(c *conn.Conn) {
			if p, ok := c.Handler().(*session); ok && (app == "" || p.app == app) {
				p.closeUnlessStill(c)
			}
		})
	})
}

// lookEvery is how often the cell is looked at for what every connection asks that is closed.
const lookEvery = 100 * time.Millisecond

// lately asks fn now and then, and says meanwhile what it said.
func lately(fn func() bool) func() bool {
	var mu sync.Mutex // guards what follows
	var said bool
	var until time.Time
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); !now.Before(until) {
			said, until = fn(), now.Add(lookEvery)
		}
		return said
	}
}
