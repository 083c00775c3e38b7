package pusher

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxBadFrames is how many frames of a connection may be unreadable: more are no accident.
const maxBadFrames = 10

// entrance is what all sessions that came with one key have in common.
type entrance struct {
	s   *Server
	app petrel.AppID
	key string
}

// entranceOf finds the entrance of a key that is known to be an app's.
func (s *Server) entranceOf(key string, app petrel.AppID) *entrance {
	if e, ok := s.entrances.Load(key); ok && e.(*entrance).app == app {
		return e.(*entrance)
	}
	e := &entrance{s, app, strings.Clone(key)} // it came as a part of a whole request
	s.entrances.Store(e.key, e)
	return e
}

// session is one client's connection, whatever its wire: it is told of whole frames, and answers with payloads that frameFor puts into the wire's framing.
// Nothing that it does for a frame waits. It has a place of its app's in the gateway. Its name over the whole cell, the socket id, is that of its connection.
type session struct {
	*entrance
	conn *conn.Conn // set by OnOpen
	left func()     // called at the end; nil: nobody is

	// The reader's own: frames come one at a time.
	rate   limit.Bucket // of frames
	events limit.Bucket // of client events

	mu      sync.Mutex // guards the fields below, but bad. Lock order: this before the hub's and the connection's
	gone    bool
	bad     uint8 // the reader's own
	subs    subscriptions
	account *account // who signed in; nil: nobody
}

// newSession makes the handler of a connection that is let in, and how it is opened. The connection is given the heartbeat that its handshake tells.
func (s *Server) newSession(e *entrance) (conn.Config, *session) {
	c := &session{entrance: e}
	beat := s.opt.ActivityTimeout
	if own := c.settings().ActivityTimeout; own > 0 {
		beat = time.Duration(own) * time.Second
	}
	return conn.Config{ID: newSocketID(), Heartbeat: conn.Heartbeat{Interval: beat, Grace: s.opt.Grace, Epoch: 1}}, c
}

var (
	_ conn.Handler = (*session)(nil)
	_ conn.Coder   = (*session)(nil)
	_ hub.Owner    = (*session)(nil)
)

// CloseCode implements conn.Coder: what Pusher calls the reasons that every connection may be closed for.
func (c *session) CloseCode(code conn.CloseCode) conn.CloseCode {
	switch {
	case code == conn.CloseSilent:
		return closeNoPong
	case code == conn.CloseSlow:
		return closeOverCapacity // it comes back after a second
	case code == conn.CloseReconnect && c.s.opt.Last():
		return closeOverCapacity // at once it would find the door closed, for which pusher-js waits 15 s; in a second this node may be there again
	}
	return code
}

func (c *session) settings() *identity.Settings { return c.s.opt.Apps.Settings(c.app) }

// OnOpen implements conn.Handler: it says hello (P4, P5).
func (c *session) OnOpen(cn *conn.Conn) {
	c.conn = cn
	c.s.metrics.connects.WithLabelValues("ok").Inc()
	hello := `{"socket_id":"` + string(cn.ID()) + `","activity_timeout":` + strconv.Itoa(max(1, int(cn.Heartbeat().Interval.Seconds()))) + `}`
	b := append(make([]byte, 0, 160), `{"event":"pusher:connection_established","data":`...)
	c.send(append(appendQuoted(b, hello), '}'))
	if within := c.settings().AuthorizedConnections; within > 0 {
		cn.CloseAt(time.Now().Add(time.Duration(within)*time.Second), closeUnauthorized, "The connection was not authorized in time: subscribe to a channel that needs it, or sign in.")
	}
	c.closeUnlessStill(cn) // what changed before the table had the connection was told to nobody
}

// OnMessage implements conn.Handler.
func (c *session) OnMessage(_ *conn.Conn, payload []byte) {
	c.slowDown()
	if string(payload) == pingFrame { // nearly all that idle connections say, and most of what they cost
		c.pong()
		c.s.metrics.pings.Inc()
		return
	}
	name := "unreadable"
	f, err := parseFrame(payload)
	if err == nil {
		name, err = c.handle(&f)
	} else if c.bad++; c.bad >= maxBadFrames {
		defer c.conn.Close(closeBadFrames, "Too many frames could not be read.")
	}
	result := "ok"
	if err != nil {
		result = "refused"
		c.refuse(err)
	}
	c.s.metrics.frames.WithLabelValues(name, result).Inc()
}

// slowDown reads on only when the connection's rate of frames allows it: a flood waits in its sender's own socket. What the app allows of
// client events is never slowed.
func (c *session) slowDown() {
	r := c.s.opt.FrameRate
	if r.Unlimited() {
		return
	}
	r.PerSecond = max(r.PerSecond, float64(2*c.settings().MaxClientEvents))
	ok, wait := c.rate.Take(r, time.Now(), 1)
	if ok {
		return
	}
	c.conn.Pause()
	time.AfterFunc(wait, c.conn.Resume)
}

// handle does what a frame asks for, and returns the name under which it is counted.
func (c *session) handle(f *clientFrame) (name string, err error) {
	switch f.Event {
	case "pusher:ping":
		c.pong()
	case "pusher:pong":
	case "pusher:subscribe":
		err = c.subscribe(f)
	case "pusher:unsubscribe":
		err = c.unsubscribe(f)
	case "pusher:signin":
		err = c.signin(f)
	default:
		if !strings.HasPrefix(f.Event, "client-") {
			return "unknown", refuse(0, "There is no event %.60q for clients to send.", f.Event)
		}
		return "client", c.clientEvent(f)
	}
	return strings.TrimPrefix(f.Event, "pusher:"), err
}

// pong answers a ping.
func (c *session) pong() {
	frame := c.s.pong
	if c.conn.Wire() == conn.WireXHR {
		frame = c.s.pongXHR
	}
	_ = c.conn.Send(frame) // closing, or slow and thereby closed
}

// send queues a payload in the wire's framing.
func (c *session) send(payload []byte) {
	_ = c.conn.Send(frameFor(c.conn, payload)) // closing, or slow and thereby closed
}

// refuse tells the client what cannot be. The connection stays.
func (c *session) refuse(err error) {
	code, text := 0, ""
	switch e := err.(type) { //nolint:errorlint // ours are never wrapped
	case *refusal:
		code, text = e.code, e.text
	default:
		text = gateway.NewProblem(err).Detail
	}
	c.send(errorPayload(code, text))
}

func errorPayload(code int, text string) []byte {
	b := append(make([]byte, 0, 96+len(text)), `{"event":"pusher:error","data":{"message":`...)
	b = appendQuoted(b, text)
	if code != 0 {
		b = strconv.AppendInt(append(b, `,"code":`...), int64(code), 10)
	}
	return append(b, "}}"...)
}

// closeUnlessStill closes a connection that would not be let in now. It may come before OnOpen.
func (c *session) closeUnlessStill(cn *conn.Conn) {
	if app, err := c.s.opt.Apps.AppOfKey(c.key); err != nil || app != c.app {
		code, text := closeFor(err)
		cn.Close(code, text)
	}
}

// OnClose implements conn.Handler.
func (c *session) OnClose(*conn.Conn, conn.CloseCode) {
	c.mu.Lock()
	c.gone = true
	subs, account := c.subs, c.account
	c.subs = subscriptions{}
	c.mu.Unlock()
	for s := range subs.all() {
		s.Close()
	}
	if account != nil {
		account.signOut(c)
	}
	c.s.opt.Gateway.Leave(c.app)
	if c.left != nil {
		c.left()
	}
}

func (c *session) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// quoted is a JSON string.
func quoted(s string) string { return string(appendQuoted(nil, s)) }
