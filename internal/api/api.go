// Package api is Petrel's own protocol: the HTTP API, the native socket and the event stream. It turns what
// comes over the wire into commands and reads, and what comes of them into answers. There is no rule of any domain here.
//
// The HTTP API is described to huma as Go types; the description at /v1/openapi.json is made of them. Before huma
// sees a body, strict.go has refused what JSON decoders differ over: keys that come twice, trailing bytes, lone surrogates.
//
// A socket (socket.go) handles its frames in the order in which they came. Of messages sent, up to MaxPipelined are under
// way at once: each joins a batch of the log before the next one is decided, so that they keep their order.
//
// # Invariants
//
//   - Every refusal is a problem or an error frame with a code of petrel's list.
//   - Answers are given only for what is durable and applied here; they carry the position from which on reads show it.
//   - A read that names a position waits for it, or is refused; it is never answered from before it.
//   - Everything that waits is bounded: commands under way (per node and app), frames of a connection, subscriptions of a connection.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Desk takes commands; *command.Desk.
type Desk interface {
	Do(ctx context.Context, actor petrel.Actor, meta command.Meta, cmd command.Command) (command.Result, error)
}

// Projection is what reads are answered from; *projection.Store.
type Projection interface {
	View(ctx context.Context, fn func(*projection.Reader) error) error
	Applied() petrel.Applied
}

// Waiting says when a position is applied here; *apply.Loop.
type Waiting interface {
	WaitApplied(ctx context.Context, index uint64) error
}

var (
	_ Desk       = (*command.Desk)(nil)
	_ Projection = (*projection.Store)(nil)
)

// Options of Register.
type Options struct {
	Gateway    *gateway.Gateway // required: where the routes go
	Hub        *hub.Hub         // required; made with HubOptions
	Desk       Desk             // required
	Projection Projection       // required
	Waiting    Waiting          // required

	Node  petrel.NodeID  // named in hello
	Shard petrel.ShardID // that positions speak of
	// Alone says whether this node is the shard's only voter: then every position that was ever given out is applied here, and
	// one that is further ahead than the commands under way could reach is refused at once. Default: never, so that
	// a node that lags behind others waits.
	Alone func() bool
	// Successors are the addresses of other nodes to which clients had better go when this one leaves, the best first. Default: none.
	Successors func() []string
	Version    string         // of this build, in the description of the API; default "dev"
	Heartbeat  conn.Heartbeat // of native connections; default 25 s, 10 s, epoch 1

	// JobLimits are those of an app. Default: the domain's.
	JobLimits func(app petrel.AppID) job.Limits
	// MaxSchedules is how many schedules an app may have. Default: the domain's.
	MaxSchedules func(app petrel.AppID) int
	// Settle returns when everything is applied here that was committed before; raftlog.Log's Barrier. Default: that is always so.
	Settle func(ctx context.Context) error
	// Stale says how long this node has been out of touch with the shard's leader, 0 while it is in touch. Default: always 0.
	Stale func() time.Duration

	PositionWait     time.Duration // for a position that another node gave out to be applied here; default 5 s
	ReplayLimit      uint64        // events a subscription may be behind; default 100,000
	MaxInFlight      int           // commands under way, refused at 95 %; default 8,192
	MaxInFlightOfApp int           // of one app; default half of MaxInFlight
	MaxPipelined     int           // messages under way of one connection; default 64
	MaxSubscriptions int           // of one connection; default 500
	AuthTimeout      time.Duration // for the first frame of a socket that came without a token; default 10 s
	CommandTimeout   time.Duration // of one frame's work; default 10 s

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *Options) defaults() {
	if o.Gateway == nil || o.Hub == nil || o.Desk == nil || o.Projection == nil || o.Waiting == nil {
		panic("api: Options is missing a part") // a mistake of whoever assembles the node
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Alone == nil {
		o.Alone = func() bool { return false }
	}
	if o.JobLimits == nil {
		o.JobLimits = func(petrel.AppID) job.Limits { return job.Limits{} }
	}
	if o.MaxSchedules == nil {
		o.MaxSchedules = func(petrel.AppID) int { return identity.DefaultSettings().MaxSchedules }
	}
	if o.Successors == nil {
		o.Successors = func() []string { return nil }
	}
	if o.Heartbeat == (conn.Heartbeat{}) {
		o.Heartbeat = conn.Heartbeat{Interval: 25 * time.Second, Grace: 10 * time.Second, Epoch: 1}
	}
	if o.ReplayLimit == 0 {
		o.ReplayLimit = 100_000
	}
	num := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	num(&o.MaxInFlight, 8_192)
	num(&o.MaxInFlightOfApp, o.MaxInFlight/2)
	num(&o.MaxPipelined, 64)
	num(&o.MaxSubscriptions, 500)
	if o.PositionWait <= 0 {
		o.PositionWait = 5 * time.Second
	}
	if o.AuthTimeout <= 0 {
		o.AuthTimeout = 10 * time.Second
	}
	if o.CommandTimeout <= 0 {
		o.CommandTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// server is what the handlers share.
type server struct {
	opt      Options
	metrics  *metrics
	inFlight *limit.Places[petrel.AppID]
	typists  *typists
	// toldStale is how many connections were last told that what they get may be old.
	toldStale atomic.Int64
	end       context.CancelFunc // of what runs until Stop
	running   sync.WaitGroup     // goroutines of sessions: each ends soon after its connection
}

// API is what was registered.
type API struct{ s *server }

// Stop waits for what connections left under way. Call it when the gateway has stopped.
func (a *API) Stop() {
	a.s.end()
	a.s.running.Wait()
	a.s.typists.close()
}

// whose is a connection's handler that says by whose leave it is there.
type whose interface{ credential() gateway.Credential }

// AppChanged closes the connections whose credentials are not accepted any more, after keys of an app changed, or its suspension
// ("": of any app). It does not wait for that, so it may be called from apply's goroutine.
func (a *API) AppChanged(app petrel.AppID) {
	a.s.running.Go(func() {
		a.s.opt.Gateway.Conns().Each(func(c *conn.Conn) {
			w, ok := c.Handler().(whose)
			if !ok {
				return
			}
			cred := w.credential()
			if cred.Actor.Kind == 0 || (app != "" && cred.Actor.App != app) {
				return
			}
			closeUnlessStill(c, cred)
		})
	})
}

// closeUnlessStill closes a connection whose credential would not be accepted now. AppChanged asks for those that it finds in the table, and
// every connection once for itself when it is in there with its credential: what changed between the two is not missed.
func closeUnlessStill(c *conn.Conn, cred gateway.Credential) {
	if err := cred.Still(context.Background()); err != nil {
		c.Close(closeFor(err), gateway.NewProblem(err).Detail)
	}
}

// Register adds every route of the API to the gateway. Call it once per gateway, before it serves.
func Register(o Options) *API {
	o.defaults()
	s := &server{opt: o, inFlight: limit.NewPlaces[petrel.AppID](o.MaxInFlight, o.MaxInFlightOfApp)}
	s.typists = newTypists(o.Hub.Announce)
	s.metrics = newMetrics(o.Registerer, s)
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	if o.Stale != nil {
		s.running.Go(func() { s.watchStale(ctx) })
	}
	s.registerHTTP()
	o.Gateway.Handle("GET /v1/connect", gateway.Route{Access: gateway.Late, LongLife: true, Loop: true}, http.HandlerFunc(s.connect))
	o.Gateway.Handle("GET /v1/events", gateway.Route{Access: gateway.Stream, LongLife: true, Away: true}, http.HandlerFunc(s.events))
	return &API{s}
}

// do runs a command within the bounds on commands under way.
func (s *server) do(ctx context.Context, actor petrel.Actor, meta command.Meta, cmd command.Command) (command.Result, error) {
	switch s.inFlight.Take(actor.App) {
	case limit.TotalFull:
		s.metrics.busy.Inc()
		return command.Result{}, petrel.Errorf(petrel.CodeOverloaded, "This node has as many commands under way as it takes. Come back in a moment.").After(time.Second)
	case limit.ShareFull:
		s.metrics.busy.Inc()
		return command.Result{}, petrel.Errorf(petrel.CodeRateLimited, "The app has as many commands under way as it may have. Wait for some to be answered.").After(time.Second)
	case limit.Granted:
	}
	defer s.inFlight.Release(actor.App)
	return s.opt.Desk.Do(ctx, actor, meta, cmd)
}

// view runs a read and returns the position that it shows at least.
func (s *server) view(ctx context.Context, fn func(r *projection.Reader) error) (petrel.Position, error) {
	var at petrel.Applied
	err := s.opt.Projection.View(ctx, func(r *projection.Reader) error {
		at = s.opt.Projection.Applied() // read before the snapshot is used, so never later than what it shows
		return fn(r)
	})
	if err != nil && ctx.Err() != nil && petrel.CodeOf(err) == petrel.CodeInternal {
		err = timeout("read was done").Because(err)
	}
	return petrel.Position{Shard: s.opt.Shard, Epoch: at.Epoch, Index: at.Index}, err
}

// await waits until a position that a caller sent is applied here; "" asks for none.
func (s *server) await(ctx context.Context, text string) error {
	if text == "" {
		return nil
	}
	p, err := petrel.ParsePosition(text)
	if err != nil {
		return err
	}
	at := s.opt.Projection.Applied()
	if p.Shard != s.opt.Shard || p.Epoch != at.Epoch {
		return petrel.Errorf(petrel.CodeEpoch, "The position is of another life of the log. Read without it.")
	}
	if p.Index <= at.Index {
		return nil
	}
	// A position is given out once it is applied, but a caller may guess one that a command under way will have.
	if p.Index-at.Index > uint64(s.opt.MaxInFlight) && s.opt.Alone() { //nolint:gosec // positive
		return petrel.Errorf(petrel.CodeInvalidPosition, "The position is one that this server has not reached. Send one that it gave out, or none to read without waiting.")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opt.PositionWait)
	defer cancel()
	if err := s.opt.Waiting.WaitApplied(ctx, p.Index); err != nil {
		if ctx.Err() != nil {
			return timeout("position was applied here").Because(err)
		}
		return err
	}
	return nil
}

func timeout(what string) *petrel.Error {
	return petrel.Errorf(petrel.CodeTimeout, "The deadline passed before the %s.", what).After(time.Second)
}
