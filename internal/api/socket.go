package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxBadFrames is how many frames of a connection may be unreadable: more are no accident.
const maxBadFrames = 10

// session is what the API keeps of one connection. OnMessage only queues: a goroutine works the queue off while there is something
// in it, in order. A full queue pauses reading, so that a client that sends more than is handled waits in its own socket.
type session struct {
	hub.Unconcerned // with what no room has
	s               *server
	place           *gateway.Place
	life            context.Context // ends with the connection
	end             context.CancelFunc
	conn            *conn.Conn

	mu      sync.Mutex // guards the fields below. Lock order: this before the hub's and the connection's
	inbox   [][]byte   // frames not yet handled, at most MaxPipelined: then reading is paused
	paused  bool
	working bool
	gone    bool
	joining string             // while join subscribes: its answer
	cred    gateway.Credential // Kind 0 until authenticated. Written by the worker, which may therefore read it without the lock
	subs    map[petrel.RoomID]*hub.Subscription
	greeted bool // hello was sent
	stale   staleMark

	// The worker's own.
	lags  lag
	bad   int
	typed limit.Bucket           // frames of typing
	warm  map[petrel.RoomID]bool // rooms in which a message of ours was accepted

	slots chan struct{} // one per message under way
}

// connect is GET /v1/connect.
func (s *server) connect(w http.ResponseWriter, r *http.Request) {
	err := s.opt.Gateway.OpenSocket(w, r, func(p *gateway.Place) (conn.Config, conn.Handler) {
		return conn.Config{Heartbeat: s.opt.Heartbeat, Ping: conn.TextFrame([]byte(`{"op":"ping"}`))}, s.newSession(p, r)
	})
	if err != nil {
		s.opt.Gateway.Refuse(w, r, err)
	}
}

func (s *server) newSession(p *gateway.Place, r *http.Request) *session {
	life, end := context.WithCancel(context.WithoutCancel(r.Context()))
	return &session{
		s: s, place: p, life: life, end: end, cred: gateway.CredentialOf(r.Context()),
		subs: map[petrel.RoomID]*hub.Subscription{}, warm: map[petrel.RoomID]bool{}, slots: make(chan struct{}, s.opt.MaxPipelined),
	}
}

var (
	_ conn.Handler = (*session)(nil)
	_ conn.Drainer = (*session)(nil)
	_ hub.Owner    = (*session)(nil)
)

// OnOpen implements conn.Handler.
func (c *session) OnOpen(cn *conn.Conn) {
	c.conn = cn
	if c.cred.Actor.Kind == 0 {
		cn.CloseAt(time.Now().Add(c.s.opt.AuthTimeout), conn.CloseUnauthenticated, "No token came in time: send it in the first frame.")
		return
	}
	c.welcome()
}

// OnMessage implements conn.Handler.
func (c *session) OnMessage(_ *conn.Conn, payload []byte) {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return
	}
	c.inbox = append(c.inbox, append([]byte(nil), payload...))
	if len(c.inbox) >= c.s.opt.MaxPipelined && !c.paused {
		c.paused = true
		c.conn.Pause()
	}
	start := !c.working
	c.working = true
	c.mu.Unlock()
	if start {
		c.s.running.Go(c.work)
	}
}

// OnDrain implements conn.Drainer.
func (c *session) OnDrain(*conn.Conn) {
	c.send(`{"op":"reconnect","after_ms":0,"reason":"drain"%s}`, c.s.successors())
}

// successors is the field of a reconnect order that names the nodes to go to, if any are known.
func (s *server) successors() string {
	urls := s.opt.Successors()
	if len(urls) == 0 {
		return ""
	}
	return fmt.Sprintf(`,"to":%s`, toJSON(urls))
}

// OnClose implements conn.Handler.
func (c *session) OnClose(*conn.Conn, conn.CloseCode) {
	c.mu.Lock()
	c.gone = true
	c.stale.turn(c.s, 0)
	c.inbox = nil
	subs := c.subs
	c.subs = nil
	c.mu.Unlock()
	for room, s := range subs {
		s.Close()
		c.quits(room)
	}
	c.place.Release()
	c.end() // commands under way go on in the log; nobody waits for them here
}

// work handles queued frames until there are none.
func (c *session) work() {
	defer c.recovered()
	for {
		c.mu.Lock()
		if c.paused && len(c.inbox) <= c.s.opt.MaxPipelined/2 {
			c.paused = false
			c.conn.Resume()
		}
		if len(c.inbox) == 0 {
			c.working = false
			c.inbox = nil
			c.mu.Unlock()
			return
		}
		payload := c.inbox[0]
		c.inbox[0] = nil
		c.inbox = c.inbox[1:]
		c.mu.Unlock()
		c.handle(payload)
	}
}

func (c *session) recovered() {
	if v := recover(); v != nil {
		c.s.opt.Logger.Error("Handling a frame panicked; the connection is closed. This is a bug: please report it.", "conn", c.conn.ID(), "panic", v)
		c.conn.Close(conn.CloseInternal, "Something went wrong on our side.")
	}
}

// handle answers one frame.
func (c *session) handle(payload []byte) {
	start := time.Now()
	f, err := parseFrame(payload)
	if err != nil {
		c.badFrame(f.id, err)
		return
	}
	if c.cred.Actor.Kind == 0 {
		if !c.firstFrame(f) || f.op == "auth" {
			return
		}
	}
	if err := c.s.opt.Gateway.Allow(c.cred); err != nil {
		c.refuse(f, err)
		return
	}
	switch f.op {
	case "send":
		c.sendMessage(f, start)
		return // answered later
	case "subscribe":
		err = c.subscribe(f)
	case "unsubscribe":
		err = c.unsubscribe(f)
	case "ping":
		c.send(`{"op":"pong"%s}`, f.idField())
	case "pong":
	case "auth":
		err = c.renew(f)
	case "typing":
		err = c.typing(f)
	case "read":
		err = petrel.Errorf(petrel.CodeInvalidField, "The op %s comes later: this server does not know it yet.", f.op)
	}
	if err != nil {
		c.refuse(f, err)
	}
	c.s.metrics.frame.WithLabelValues(f.op).Observe(time.Since(start).Seconds())
}

// firstFrame takes the token of a connection that came without one. Any other frame, and any other token, ends it.
func (c *session) firstFrame(f frame) (ok bool) {
	err := error(petrel.Errorf(petrel.CodeUnauthenticated, "The first frame must bring the token."))
	var cred gateway.Credential
	if f.token != "" {
		if cred, err = c.s.opt.Gateway.Authenticate(c.life, f.token); err == nil {
			err = c.place.Move(cred.Actor.App)
		}
	}
	if err != nil {
		c.refuse(f, err)
		c.conn.Close(closeFor(err), gateway.NewProblem(err).Detail)
		return false
	}
	c.mu.Lock()
	c.cred = cred
	c.mu.Unlock()
	c.welcome()
	return true
}

// renew replaces the token by a younger one of the same user, so that a connection outlives its first.
func (c *session) renew(f frame) error {
	cred, err := c.s.opt.Gateway.Authenticate(c.life, f.token)
	if err != nil {
		return err
	}
	if cred.Actor != c.cred.Actor {
		return petrel.Errorf(petrel.CodeForbidden, "The token is of another user. Open a connection of their own.")
	}
	c.mu.Lock()
	c.cred = cred
	c.mu.Unlock()
	c.conn.CloseAt(cred.Expires, conn.CloseTokenExpired, "The token has expired. Come back with a new one.")
	closeUnlessStill(c.conn, cred)
	c.send(`{"op":"ok"%s}`, f.idField())
	return nil
}

// closeFor is the close code that says the same as a refusal.
func closeFor(err error) conn.CloseCode {
	switch petrel.CodeOf(err) {
	case petrel.CodeTokenExpired:
		return conn.CloseTokenExpired
	case petrel.CodeAppSuspended, petrel.CodeForbidden:
		return conn.CloseForbidden
	case petrel.CodeLimitReached:
		return conn.CloseLimitReached
	case petrel.CodeUnauthenticated, petrel.CodeInvalidToken, petrel.CodeAppNotFound:
		return conn.CloseUnauthenticated
	}
	return conn.CloseOverloaded
}

// welcome says hello: who is connected, to what, and by which heartbeat the connection lives.
func (c *session) welcome() {
	c.conn.CloseAt(c.cred.Expires, conn.CloseTokenExpired, "The token has expired. Come back with a new one.")
	closeUnlessStill(c.conn, c.cred)
	c.mu.Lock()
	defer c.mu.Unlock()
	h, stale := c.s.opt.Heartbeat, c.s.stale()
	c.send(`{"op":"hello","conn":%q,"user":%q,"node":%q,"epoch":%q,"stale_ms":%d,"heartbeat":{"interval_ms":%d,"grace_ms":%d,"epoch":%d}}`,
		c.conn.ID(), c.cred.Actor.User, c.s.opt.Node, c.s.opt.Projection.Applied().Epoch, stale.Milliseconds(), h.Interval.Milliseconds(), h.Grace.Milliseconds(), h.Epoch)
	if c.greeted = true; !c.gone {
		c.stale.turn(c.s, stale)
	}
}

func (c *session) badFrame(id string, err error) {
	c.s.metrics.badFrames.Inc()
	c.refuse(frame{id: id}, err)
	if c.bad++; c.bad >= maxBadFrames {
		c.conn.Close(conn.CloseBadFrames, fmt.Sprintf("%d frames could not be read.", c.bad))
	} else if c.cred.Actor.Kind == 0 {
		c.conn.Close(conn.CloseUnauthenticated, "The first frame must bring the token.")
	}
}

// send queues a frame made of a format; ids, codes and positions in it need no escaping beyond %q.
func (c *session) send(format string, args ...any) {
	_ = c.conn.Send(conn.TextFrame(fmt.Appendf(nil, format, args...))) // closing, or slow and thereby closed
}

// refuse answers with an error frame.
func (c *session) refuse(f frame, err error) {
	p := gateway.NewProblem(err)
	if p.Code == petrel.CodeInternal && c.life.Err() == nil {
		c.s.opt.Logger.Error("A frame failed for a reason of ours.", "conn", c.conn.ID(), "op", f.op, "error", err)
	}
	retry := ""
	var e *petrel.Error
	switch {
	case errors.As(err, &e) && e.RetryAfter > 0:
		retry = fmt.Sprintf(`,"retry_after_ms":%d`, max(1, e.RetryAfter.Milliseconds()))
	case p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests:
		retry = `,"retry_after_ms":1000`
	}
	c.send(`{"op":"error"%s,"code":"%s","detail":%s%s}`, f.idField(), p.Code, quote(p.Detail), retry)
}

// sendMessage decides and commits a message. It returns when the message has joined a batch of the log, so that the next
// one comes after it; the answer is sent when it is durable and applied.
//
// The first message to a room is waited for: in an open room it joins its author, and until that is applied the next would be decided
// as a join too, conflict, and be decided again out of turn.
func (c *session) sendMessage(f frame, start time.Time) {
	cmd, id, err := f.message.command(f.room)
	if err != nil {
		c.refuse(f, err)
		return
	}
	c.slots <- struct{}{}
	joined := make(chan struct{})
	joinedOnce := sync.OnceFunc(func() { close(joined) })
	meta := command.Meta{Command: id, Request: petrel.RequestID(petrel.NewName()), Joined: joinedOnce}
	if !c.warm[f.room] {
		meta.Joined = nil // the answer is what we wait for
	}
	ok := false
	actor := c.cred.Actor
	c.s.running.Go(func() {
		defer c.recovered()
		defer func() { <-c.slots }()
		defer joinedOnce()
		ctx, cancel := context.WithTimeout(c.life, c.s.opt.CommandTimeout)
		defer cancel()
		res, err := c.s.do(ctx, actor, meta, cmd)
		if err != nil {
			c.refuse(f, err)
			return
		}
		ok = true
		repeated := ""
		if res.Repeated || !res.Changed {
			repeated = `,"repeated":true`
		}
		c.send(`{"op":"ok"%s,"message":%s,"position":%q%s}`, f.idField(), toJSON(res.Answer), res.Position.String(), repeated)
		c.s.metrics.frame.WithLabelValues("send").Observe(time.Since(start).Seconds())
	})
	<-joined
	if meta.Joined == nil && ok {
		c.warm[f.room] = true
	}
}

// subscribe answers with the room's head and then lets the hub offer every event after the position given.
func (c *session) subscribe(f frame) error {
	c.mu.Lock()
	_, twice := c.subs[f.room]
	n := len(c.subs)
	c.mu.Unlock()
	if twice {
		return petrel.Errorf(petrel.CodeInvalidField, "This connection is subscribed to the room already. Unsubscribe first to begin elsewhere.")
	}
	if n >= c.s.opt.MaxSubscriptions {
		return petrel.Errorf(petrel.CodeLimitReached, "A connection may have at most %d subscriptions.", c.s.opt.MaxSubscriptions)
	}
	ctx, cancel := context.WithTimeout(c.life, c.s.opt.CommandTimeout)
	defer cancel()
	if err := c.lags.again(f.begin.position); err != nil {
		return err
	}
	head, at, resync, err := c.s.reach(ctx, c.cred.Actor, f.room, f.begin)
	if err != nil {
		c.lags.note(f.begin.position, err)
		return err
	}
	ok := fmt.Sprintf(`{"op":"ok"%s,"room":%q,"head":%d,"epoch":%q,"position":%q}`, f.idField(), f.room, head, at.Epoch, at.String())
	if resync != "" {
		c.s.metrics.resyncs.WithLabelValues(resync).Inc()
		c.send("%s", ok)
		c.send(`{"op":"resync","room":%q,"reason":%q,"head":%d}`, f.room, resync, head)
		return nil
	}
	after := head
	if f.begin.after != nil {
		after = *f.begin.after
	}
	return c.join(f, after, ok)
}

// join subscribes; the answer is queued before the first event.
func (c *session) join(f frame, after uint64, ok string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil
	}
	room := f.room
	c.joining = ok
	sub, err := c.s.opt.Hub.Subscribe(hub.Request{
		Channel: petrel.RoomChannel(c.cred.Actor.App, room), Subscriber: c.conn, Owner: c, Actor: c.cred.Actor, Member: memberOf(c.cred.Actor), Wire: wireOf(c.conn), After: after, Presence: f.presence,
	})
	c.joining = ""
	if err == nil {
		c.subs[room] = sub
	}
	return err
}

// Admitted implements hub.Owner. It is called while join holds mu.
func (c *session) Admitted(*hub.Subscription) { c.send("%s", c.joining) }

// Resync implements hub.Owner.
func (c *session) Resync(s *hub.Subscription, reason string, head uint64) {
	room := c.left(s)
	c.s.metrics.resyncs.WithLabelValues(reason).Inc()
	c.send(`{"op":"resync","room":%q,"reason":%q,"head":%d}`, room, reason, head)
}

// Ended implements hub.Owner.
func (c *session) Ended(s *hub.Subscription, err error) {
	room := c.left(s)
	p := gateway.NewProblem(err)
	c.send(`{"op":"unsubscribed","room":%q,"code":%q,"detail":%s}`, room, p.Code, quote(p.Detail))
}

// left forgets a subscription that the hub has ended.
func (c *session) left(s *hub.Subscription) petrel.RoomID {
	room := petrel.RoomID(s.Channel().Name)
	c.mu.Lock()
	if c.subs[room] == s {
		delete(c.subs, room)
	}
	c.mu.Unlock()
	c.quits(room)
	return room
}

func (c *session) unsubscribe(f frame) error {
	c.mu.Lock()
	sub := c.subs[f.room]
	delete(c.subs, f.room)
	c.mu.Unlock()
	if sub != nil { // else it had ended already, which is what is wanted
		sub.Close()
		c.quits(f.room)
	}
	c.send(`{"op":"ok"%s,"room":%q}`, f.idField(), f.room)
	return nil
}

// credential implements whose.
func (c *session) credential() gateway.Credential {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cred
}

// lag remembers a position that this node did not reach in time, so that a client with many rooms does not wait for it once for each.
type lag struct {
	position string
	until    time.Time
}

func (l *lag) note(position string, err error) {
	if position != "" && petrel.CodeOf(err) == petrel.CodeTimeout {
		l.position, l.until = position, time.Now().Add(time.Second)
	}
}

// again says that a position was not reached just now, nil when it is worth a try.
func (l *lag) again(position string) error {
	if position != "" && position == l.position && time.Now().Before(l.until) {
		return timeout("position was applied here")
	}
	return nil
}
