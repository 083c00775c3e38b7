package petreltest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// simFrame is what a connection is sent.
type simFrame struct {
	room petrel.RoomID
	seq  uint64
	kind string
	data string
}

func (f simFrame) encode() []byte {
	return fmt.Appendf(nil, "%s %d %s %s", f.room, f.seq, f.kind, f.data)
}

func decodeFrame(b []byte) simFrame {
	parts := strings.SplitN(string(b), " ", 4)
	seq, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || len(parts) != 4 {
		panic(fmt.Sprintf("a frame of the simulation cannot be read: %q", b))
	}
	return simFrame{petrel.RoomID(parts[0]), seq, parts[2], parts[3]}
}

// simQueue is the bounded queue of one subscription, which its client empties after a while: a slow one late. Subscriptions of one
// connection do not share a queue as real ones do: which of two that catch up at one moment gets the last room is the scheduler's choice.
type simQueue struct {
	capacity int
	delay    time.Duration
	read     func(simFrame)
	lost     func(why string)
	apart    *simQueue

	mu      sync.Mutex // guards what follows
	queue   [][]byte
	waiting []func()
	reading bool // a timer will empty the queue
	closed  bool
}

var errSimClosed = errors.New("closed")

// Send implements hub.Subscriber: who is too slow is closed.
func (c *simQueue) Send(frame []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && len(c.queue) >= c.capacity {
		c.closed = true
		go c.lost("slow")
	}
	if c.closed {
		return errSimClosed
	}
	c.put(frame)
	return nil
}

// TrySend implements hub.Subscriber.
func (c *simQueue) TrySend(frame []byte) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return false, errSimClosed
	case 2*len(c.queue) >= c.capacity:
		return false, nil
	}
	c.put(frame)
	return true, nil
}

// simOwner hears how a subscription ended.
type simOwner struct {
	hub.Unconcerned
	tell func(why string)
}

// Resync implements hub.Owner.
func (o simOwner) Resync(_ *hub.Subscription, reason string, head uint64) {
	o.tell(fmt.Sprintf("resync %s at %d", reason, head))
}

// Ended implements hub.Owner.
func (o simOwner) Ended(_ *hub.Subscription, err error) {
	o.tell("unsubscribed " + string(petrel.CodeOf(err)))
}

// TrySendApart implements hub.Apart: what is ephemeral has a queue of its own, so that it changes nothing for what is durable.
func (c *simQueue) TrySendApart(frame []byte) (bool, error) {
	return c.apart.TrySend(frame)
}

// put queues a frame; mu is held.
func (c *simQueue) put(frame []byte) {
	c.queue = append(c.queue, frame)
	if !c.reading {
		c.reading = true
		time.AfterFunc(c.delay, c.drain)
	}
}

// NotifyRoom implements hub.Subscriber.
func (c *simQueue) NotifyRoom(fn func()) {
	c.mu.Lock()
	if !c.closed && len(c.queue) > 0 {
		c.waiting = append(c.waiting, fn)
		fn = nil
	}
	c.mu.Unlock()
	if fn != nil {
		fn()
	}
}

// drain hands what is queued to the client.
func (c *simQueue) drain() {
	c.mu.Lock()
	frames, waiting := c.queue, c.waiting
	c.queue, c.waiting = nil, nil
	c.mu.Unlock()
	for _, f := range frames {
		c.read(decodeFrame(f)) // a closed connection is nobody's, and reads nothing
	}
	c.mu.Lock()
	c.reading = len(c.queue) > 0
	if c.reading {
		time.AfterFunc(c.delay, c.drain)
	}
	c.mu.Unlock()
	for _, fn := range waiting {
		fn()
	}
}

// close ends the connection: what is queued is not read any more.
func (c *simQueue) close() {
	if c.apart != nil {
		c.apart.close()
	}
	c.mu.Lock()
	c.closed = true
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, fn := range waiting {
		fn()
	}
}

// simSub is one subscription as its client sees it: where it began, and everything it was sent until it ended.
type simSub struct {
	client *simClient
	node   *simNode
	room   petrel.RoomID
	after  uint64
	sub    *hub.Subscription
	queue  *simQueue

	// Guarded by sim.mu.
	got     []simFrame
	listed  bool // a roster came
	present map[petrel.UserID]bool
	typed   map[petrel.UserID]int // number of the last typing heard
	end     string                // "": goes on
}

func (b *simSub) String() string {
	return fmt.Sprintf("%s's subscription to %s on %s after %d", b.client.user, b.room, b.node.id, b.after)
}

func (b *simSub) last() uint64 { return b.after + uint64(len(b.got)) }

// simConn is one connection of a client.
type simConn struct{ number int }

// simClient is a user with at most one connection.
type simClient struct {
	s     *sim
	user  petrel.UserID
	delay time.Duration // until it reads what it is sent

	node  *simNode // that it is connected to; nil: none
	conn  *simConn
	conns int
	subs  map[petrel.RoomID]*simSub // of the connection
	seen  map[petrel.RoomID]uint64  // where it would resume
}

func (c *simClient) actor() petrel.Actor {
	return petrel.Actor{Kind: petrel.ActorUser, App: simApp, User: c.user}
}

// connect opens a connection to a node and resumes every subscription there was.
func (c *simClient) connect(n *simNode) {
	c.lose("moves")
	c.s.pause(time.Millisecond)
	if !n.ready.Load() {
		return
	}
	c.s.mu.Lock()
	c.conns++
	conn := &simConn{c.conns}
	c.node, c.conn, c.subs = n, conn, map[petrel.RoomID]*simSub{}
	rooms := simKeys(c.seen)
	c.s.mu.Unlock()
	c.s.note("%s connects to %s", c.user, n.id)
	for _, room := range rooms {
		c.subscribe(room)
	}
}

// subscribe begins where the client left off, or at the head of a room that is new to it.
func (c *simClient) subscribe(room petrel.RoomID) {
	c.s.mu.Lock()
	n, conn := c.node, c.conn
	resume, known := c.seen[room]
	twice := c.subs != nil && c.subs[room] != nil
	c.s.mu.Unlock()
	if n == nil || twice {
		return
	}
	ctx := n.ctx
	c.s.running.Go(func() {
		b := &simSub{client: c, node: n, room: room, after: resume, present: map[petrel.UserID]bool{}, typed: map[petrel.UserID]int{}}
		head, err := n.head(ctx, c.actor(), room, resume)
		switch {
		case err != nil:
			c.s.note("%s may not subscribe to %s on %s: %s", c.user, room, n.id, petrel.CodeOf(err))
			return
		case !known:
			b.after = head
		case resume > head:
			c.s.note("%s is told resync of %s on %s: %d is ahead of %d", c.user, room, n.id, resume, head)
			return
		}
		c.join(conn, b)
	})
	synctest.Wait()
}

// head reads a room's head, and waits a while for a node that has not come as far as the client.
func (n *simNode) head(ctx context.Context, actor petrel.Actor, room petrel.RoomID, want uint64) (head uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		var at petrel.Applied
		err = n.store.View(ctx, func(r *projection.Reader) (err error) {
			if at, err = r.Applied(); err == nil {
				head, err = chat.Head(r, actor, room)
			}
			return err
		})
		if (err == nil && head >= want) || (err != nil && want == 0) || petrel.CodeOf(err) == petrel.CodeRoomDeleted {
			return head, err
		}
		if n.loop.WaitApplied(ctx, at.Index+1) != nil {
			return head, err
		}
	}
}

func (c *simClient) join(conn *simConn, b *simSub) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.conn != conn || c.subs[b.room] != nil {
		return
	}
	from := b.after
	if c.s.bug == bugResume && len(c.s.subs)%3 == 0 {
		from++
	}
	ended := func(why string) {
		c.s.note("%s ends: %s", b, why)
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		b.end = why
		if c.subs[b.room] == b {
			delete(c.subs, b.room)
			delete(c.seen, b.room)
		}
	}
	b.queue = &simQueue{
		capacity: 8, delay: c.delay,
		read: func(f simFrame) { c.read(conn, b, f) }, lost: func(why string) { c.lostBy(conn, why) },
	}
	b.queue.apart = &simQueue{capacity: 16, delay: c.delay, read: b.queue.read}
	sub, err := b.node.hub.Subscribe(hub.Request{
		Channel: petrel.RoomChannel(simApp, b.room), Subscriber: b.queue, Actor: c.actor(), After: from, Member: &hub.Member{ID: c.user}, Presence: true,
		Owner: simOwner{tell: ended},
	})
	if err != nil {
		return
	}
	b.sub = sub
	c.subs[b.room], c.seen[b.room] = b, b.after
	c.s.subs = append(c.s.subs, b)
	c.s.noteLocked("%s begins", b)
}

// read takes a frame of a subscription from the connection. What still comes of one that the client has ended is before
// the answer to its next one, so that it takes neither for the other.
func (c *simClient) read(conn *simConn, b *simSub, f simFrame) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.conn != conn || c.subs[f.room] != b {
		return // it has left meanwhile
	}
	about := ""
	if f.seq == 0 {
		about = f.data
	}
	c.s.noteLocked("%s@%s reads %s %d %s %s", c.user, b.node.id, f.room, f.seq, f.kind, about)
	switch {
	case f.seq != 0:
		if want := b.last() + 1; f.seq > want {
			c.s.foundLocked("silent gap", "%s: %d after %d", b, f.seq, want-1)
		} else if f.seq < want {
			c.s.foundLocked("delivered twice", "%s: %d after %d", b, f.seq, want-1)
		}
		b.got = append(b.got, f)
		c.seen[f.room] = b.last()
	case f.kind == "roster":
		b.listed, b.present = true, map[petrel.UserID]bool{}
		for _, u := range strings.Fields(strings.Trim(f.data, "[]")) {
			b.present[petrel.UserID(u)] = true
		}
	case f.kind == hub.TypeJoin, f.kind == hub.TypeLeave:
		user := petrel.UserID(strings.Split(f.data, `"`)[3])
		if b.present[user] == (f.kind == hub.TypeJoin) {
			c.s.foundLocked("presence told twice", "%s: %s of %s", b, f.kind, user)
		}
		b.present[user] = f.kind == hub.TypeJoin
	case f.kind == simTyping:
		user, number, _ := strings.Cut(f.data, " ")
		k, _ := strconv.Atoi(number)
		if k <= b.typed[petrel.UserID(user)] {
			c.s.foundLocked("typing out of order", "%s: number %d of %s after %d", b, k, user, b.typed[petrel.UserID(user)])
		}
		b.typed[petrel.UserID(user)] = k
	}
}

// simTyping is the type of the ephemeral publication that clients send.
const simTyping = "typing"

// lose ends the connection, if there is one.
func (c *simClient) lose(why string) {
	c.s.mu.Lock()
	conn := c.conn
	c.s.mu.Unlock()
	if conn != nil {
		c.lostBy(conn, why)
	}
}

func (c *simClient) lostBy(conn *simConn, why string) {
	c.s.mu.Lock()
	var subs []*simSub
	if c.conn == conn {
		c.s.noteLocked("%s loses its connection to %s: %s", c.user, c.node.id, why)
		for _, room := range simKeys(c.subs) {
			b := c.subs[room]
			b.end = why
			subs = append(subs, b)
		}
		c.node, c.conn, c.subs = nil, nil, nil
	}
	c.s.mu.Unlock()
	for _, b := range subs {
		b.queue.close()
		b.sub.Close()
	}
}

// leaveRoom ends one subscription for good.
func (c *simClient) leaveRoom(room petrel.RoomID) {
	c.s.mu.Lock()
	b := c.subs[room]
	delete(c.subs, room)
	delete(c.seen, room)
	if b != nil {
		b.end = "unsubscribes"
		c.s.noteLocked("%s ends: unsubscribes", b)
	}
	c.s.mu.Unlock()
	if b != nil {
		b.sub.Close()
	}
}

// simCommand is what a client wants, under one id, however often it asks.
type simCommand struct {
	number int
	client *simClient
	id     petrel.CommandID
	cmd    command.Command
	room   petrel.RoomID
	tries  []*simTry
}

// What a client was told of a command.
const (
	toldNothing = "nothing" // no answer, or that nobody knows
	toldOK      = "ok"
	toldRefused = "refused" // nothing happened, and nothing will
)

// simTry is one sending of a command.
type simTry struct {
	command  *simCommand
	number   int
	node     *simNode
	deaf     bool // the answer gets lost on its way to the client
	from, to time.Duration
	told     string
	code     petrel.Code
	result   command.Result
}

// send gives a command to a node, and notes what the client is told in the end.
func (c *simCommand) send(n *simNode, deaf bool) {
	s := c.client.s
	s.tries++
	t := &simTry{command: c, number: s.tries, node: n, deaf: deaf, from: s.now(), told: toldNothing}
	c.tries = append(c.tries, t)
	s.note("%s sends %d, %s %s to %s by %s", c.client.user, t.number, c.cmd.CommandKind(), c.id, c.room, n.id)
	ctx := context.WithValue(n.ctx, turnKey{}, t.number)
	s.running.Go(func() {
		meta := command.Meta{Command: c.id, Request: petrel.RequestID(fmt.Sprint("q", t.number))}
		if s.bug == bugAnswer {
			meta.Joined = func() { s.answered(t, command.Result{Changed: true}, nil) }
		}
		res, err := n.desk.Do(ctx, c.client.actor(), meta, c.cmd)
		s.settled(t, ctx, res, err)
	})
	synctest.Wait()
}

// settled is called when a node has answered, or the connection to it is gone.
func (s *sim) settled(t *simTry, ctx context.Context, res command.Result, err error) {
	if ctx.Err() != nil || t.deaf {
		res, err = command.Result{}, petrel.Errorf(petrel.CodeUnknownOutcome, "The answer was lost.").Because(errSimLost)
	}
	s.answered(t, res, err)
	if err != nil || res.Position.Index == 0 {
		return
	}
	// Who was answered reads what it wrote, on the node that answered and at once.
	if at := t.node.store.Applied().Index; at < res.Position.Index {
		s.found("answered before it was applied", "try %d: %s is at %d, the answer says %d", t.number, t.node.id, at, res.Position.Index)
	}
	if post, ok := res.Answer.(chat.Message); ok {
		s.readsElsewhere(t, post, res.Position.Index)
	}
}

// readsElsewhere: who brings the position of its write to another node reads it there.
func (s *sim) readsElsewhere(t *simTry, post chat.Message, index uint64) {
	n := s.nodes[(t.node.number+1)%len(s.nodes)]
	if !n.ready.Load() {
		return
	}
	store := n.store // of this life
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	if s.bug != bugPosition && n.loop.WaitApplied(ctx, index) != nil {
		return // it lags, or goes away
	}
	err := store.View(ctx, func(r *projection.Reader) error {
		_, err := chat.GetMessage(r, petrel.Actor{Kind: petrel.ActorApp, App: simApp}, post.Room, post.ID)
		return err
	})
	switch petrel.CodeOf(err) {
	case petrel.CodeMessageNotFound, petrel.CodeRoomNotFound:
		s.found("written and not read", "try %d was answered %d by %s, %s says: %v", t.number, index, t.node.id, n.id, err)
	}
}

func (s *sim) answered(t *simTry, res command.Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.told != toldNothing {
		return
	}
	t.to, t.result, t.code = s.now(), res, petrel.CodeOf(err)
	switch {
	case err == nil:
		t.told = toldOK
	case t.code == petrel.CodeUnknownOutcome:
	case t.code == petrel.CodeInternal:
		s.foundLocked("internal error", "try %d: %v", t.number, err)
	default:
		t.told = toldRefused
	}
	s.noteLocked("try %d is told %s %s, repeated %v, at %d", t.number, t.told, t.code, res.Repeated, res.Position.Index)
}

// told says what the client knows of the command after all tries.
func (c *simCommand) told() string {
	for _, told := range []string{toldOK, toldNothing} {
		if slices.ContainsFunc(c.tries, func(t *simTry) bool { return t.told == told }) {
			return told
		}
	}
	return toldRefused
}

// answerSeq is the seq that the answer to a post says, 0 for anything else.
func answerSeq(t *simTry) uint64 {
	if m, ok := t.result.Answer.(chat.Message); ok && t.command.cmd.CommandKind() == "chat.post_message" {
		return m.Seq
	}
	return 0
}
