package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// client is a connection that keeps up, and checks what it hears.
type client struct {
	w      *world
	user   string
	socket string
	nc     net.Conn
	in     *bufio.Reader
	gone   chan struct{} // closed when nothing is read any more

	writing sync.Mutex

	mu    sync.Mutex // guards what follows
	err   error
	subs  map[string]*heard
	waits map[string]chan struct{} // for subscription_succeeded, by channel
	pongs []chan struct{}
}

// heard is a subscription.
type heard struct {
	ch      *channel
	live    bool
	floor   int64 // the last number that had begun when it was told that it is subscribed
	last    int64 // that was heard
	members map[string]bool
}

// errOver is what a client that ended itself returns.
var errOver = errors.New("ended")

const answerWithin = time.Minute // far more than anything takes: what is missing then never comes

// dial connects and waits for the greeting.
func dial(ctx context.Context, w *world, user string, secured bool) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	d := ws.Dialer{ReadBufferSize: 1024, WriteBufferSize: 512}
	url := "ws://" + w.target.plain
	if secured {
		url = "wss://" + w.target.secured
		d.TLSConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it is our own server, on this machine
	}
	nc, br, _, err := d.Dial(ctx, url+"/app/"+appKey+"?protocol=7&client=soak&version=1")
	if err != nil {
		return nil, err
	}
	if br == nil {
		br = bufio.NewReaderSize(nc, 1024)
	}
	c := &client{w: w, user: user, nc: nc, in: br, gone: make(chan struct{}), subs: map[string]*heard{}, waits: map[string]chan struct{}{}}
	if err := c.greeted(); err != nil {
		_ = nc.Close()
		return nil, err
	}
	go c.read()
	return c, nil
}

// frame is what Pusher's protocol sends.
type frame struct {
	Event   string `json:"event"`
	Channel string `json:"channel"`
	Data    data   `json:"data"`
}

// data is a string that holds JSON, and in a pong bare JSON.
type data string

// UnmarshalJSON implements json.Unmarshaler.
func (d *data) UnmarshalJSON(text []byte) error {
	if text[0] != '"' {
		*d = data(text)
		return nil
	}
	return json.Unmarshal(text, (*string)(d))
}

// next reads one frame of text.
func (c *client) next() (f frame, err error) {
	for {
		text, op, err := wsutil.ReadServerData(struct {
			*bufio.Reader
			*controls
		}{c.in, (*controls)(c)})
		if err != nil {
			return f, err
		}
		if op == ws.OpText {
			return f, json.Unmarshal(text, &f)
		}
	}
}

// controls lets the library answer control frames without tearing a frame apart.
type controls client

func (c *controls) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.nc.Write(p)
}

func (c *client) greeted() error {
	f, err := c.next()
	if err != nil {
		return err
	}
	var hello struct {
		Socket string `json:"socket_id"`
	}
	if err := json.Unmarshal([]byte(f.Data), &hello); err != nil || f.Event != "pusher:connection_established" {
		return fmt.Errorf("the first frame is %q: %.200s", f.Event, f.Data)
	}
	c.socket = hello.Socket
	return nil
}

// read handles frames until the connection ends.
func (c *client) read() {
	defer close(c.gone)
	for {
		f, err := c.next()
		if err == nil {
			err = c.take(f)
		}
		if err != nil {
			c.mu.Lock()
			if c.err == nil {
				c.err = err
			}
			c.mu.Unlock()
			_ = c.nc.Close()
			return
		}
	}
}

func (c *client) take(f frame) error {
	switch f.Event {
	case "pusher:ping":
		return c.send("pusher:pong", map[string]any{})
	case "pusher:error":
		return fmt.Errorf("pusher:error: %.300s", f.Data)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	switch f.Event {
	case "pusher:pong":
		if len(c.pongs) == 0 {
			return errors.New("a pong that nobody asked for")
		}
		close(c.pongs[0])
		c.pongs = c.pongs[1:]
		return nil
	case "pusher:subscription_error":
		return fmt.Errorf("%s of %s: %.300s", f.Event, f.Channel, f.Data)
	}
	h := c.subs[f.Channel]
	if h == nil {
		c.w.verdict.find("%s heard %s of %s, where it is not subscribed", c.user, f.Event, f.Channel)
		return nil
	}
	switch f.Event {
	case "m":
		c.hear(h, string(f.Data))
	case "pusher_internal:subscription_succeeded":
		c.succeeded(h, string(f.Data))
	case "pusher_internal:member_added", "pusher_internal:member_removed":
		c.moved(h, f.Event == "pusher_internal:member_added", string(f.Data))
	default:
		return fmt.Errorf("an unknown event %s", f.Event)
	}
	return nil
}

// hear judges a publication: everything since it was subscribed must come, once, and in order.
func (c *client) hear(h *heard, data string) {
	var m struct{ N, T int64 }
	if err := json.Unmarshal([]byte(data), &m); err != nil {
		c.w.verdict.find("%s heard what nobody said, on %s: %.100s", c.user, h.ch.name, data)
		return
	}
	c.w.verdict.delivered(time.Duration(time.Now().UnixNano() - m.T))
	switch {
	case !h.live:
		c.w.verdict.find("%s heard number %d of %s before it was subscribed", c.user, m.N, h.ch.name)
	case h.last == 0 && m.N > h.floor+1:
		c.w.verdict.find("%s heard number %d of %s first, and %d had begun when it was subscribed: %d lost", c.user, m.N, h.ch.name, h.floor, m.N-h.floor-1)
	case h.last != 0 && m.N > h.last+1:
		c.w.verdict.find("%s heard number %d of %s after %d: %d lost", c.user, m.N, h.ch.name, h.last, m.N-h.last-1)
	case h.last != 0 && m.N <= h.last:
		c.w.verdict.find("%s heard number %d of %s after %d: twice, or out of order", c.user, m.N, h.ch.name, h.last)
	}
	h.last = m.N
}

func (c *client) succeeded(h *heard, data string) {
	if h.live {
		c.w.verdict.find("%s was subscribed to %s twice", c.user, h.ch.name)
	}
	h.live, h.floor = true, h.ch.begun.Load()
	if h.ch.presence {
		var list struct {
			Presence struct {
				IDs []string `json:"ids"`
			} `json:"presence"`
		}
		if err := json.Unmarshal([]byte(data), &list); err != nil {
			c.w.verdict.find("%s got a list of %s that cannot be read: %.200s", c.user, h.ch.name, data)
		}
		h.members = map[string]bool{}
		for _, id := range list.Presence.IDs {
			h.members[id] = true
		}
	}
	if wait := c.waits[h.ch.name]; wait != nil {
		close(wait)
		delete(c.waits, h.ch.name)
	}
}

// moved follows who comes and goes.
func (c *client) moved(h *heard, came bool, data string) {
	var m struct {
		User string `json:"user_id"`
	}
	if err := json.Unmarshal([]byte(data), &m); err != nil || h.members[m.User] == came || m.User == c.user {
		c.w.verdict.find("%s heard on %s that %q moved (came: %t), whom it had in its list: %t", c.user, h.ch.name, m.User, came, h.members[m.User])
	}
	if came {
		h.members[m.User] = true
	} else {
		delete(h.members, m.User)
	}
}

func (c *client) send(event string, data any) error {
	text, err := json.Marshal(map[string]any{"event": event, "data": data})
	if err != nil {
		return err
	}
	bytes := ws.MustCompileFrame(ws.MaskFrameInPlace(ws.NewTextFrame(text)))
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err = c.nc.Write(bytes)
	return err
}

// subscription is the data of pusher:subscribe.
func (c *client) subscription(ch *channel) map[string]any {
	data := map[string]any{"channel": ch.name}
	if ch.presence {
		who := `{"user_id":` + strconv.Quote(c.user) + `,"user_info":{"name":"soak"}}`
		data["channel_data"], data["auth"] = who, appKey+":"+sign(c.socket+":"+ch.name+":"+who)
	}
	return data
}

// subscribe waits until it is subscribed.
func (c *client) subscribe(ctx context.Context, ch *channel) error {
	wait := make(chan struct{})
	c.mu.Lock()
	c.subs[ch.name], c.waits[ch.name] = &heard{ch: ch}, wait
	c.mu.Unlock()
	if ch.presence {
		c.w.enter(ch, c.user)
	}
	if err := c.send("pusher:subscribe", c.subscription(ch)); err != nil {
		return err
	}
	return c.await(ctx, wait, "is not told that it is subscribed to "+ch.name)
}

func (c *client) await(ctx context.Context, done <-chan struct{}, what string) error {
	t := time.NewTimer(answerWithin)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-c.gone:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("%s %s within %s", c.user, what, answerWithin)
	}
}

// settle checks that everything acknowledged by now was heard on the channels that it is subscribed to, or on one of them. With leave it also
// unsubscribes from that one.
func (c *client) settle(ctx context.Context, only *channel, leave bool) error {
	owed := map[*heard]int64{}
	wait := make(chan struct{})
	c.mu.Lock()
	for _, h := range c.subs {
		if h.live && (only == nil || h.ch == only) {
			owed[h] = h.ch.acked.Load()
		}
	}
	c.pongs = append(c.pongs, wait)
	c.mu.Unlock()
	if leave {
		if err := c.send("pusher:unsubscribe", map[string]any{"channel": only.name}); err != nil {
			return err
		}
	}
	if err := c.send("pusher:ping", map[string]any{}); err != nil {
		return err
	}
	if err := c.await(ctx, wait, "gets no pong"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, acked := range owed {
		if acked > h.floor && h.last < acked {
			c.w.verdict.find("%s has heard %d of %s (subscribed at %d), and %d was acknowledged", c.user, h.last, h.ch.name, h.floor, acked)
		}
	}
	if leave {
		delete(c.subs, only.name)
		if only.presence {
			c.w.leave(only, c.user)
		}
	}
	return nil
}

// has says whether it is subscribed.
func (c *client) has(ch *channel) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subs[ch.name] != nil
}

// members are its lists of presence channels.
func (c *client) lists() map[*channel]map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[*channel]map[string]bool{}
	for _, h := range c.subs {
		if h.ch.presence && h.live {
			list := map[string]bool{}
			for user := range h.members {
				list[user] = true
			}
			out[h.ch] = list
		}
	}
	return out
}

// end closes the connection, politely or by a reset, and waits until nothing is read any more.
func (c *client) end(reset bool) {
	c.mu.Lock()
	c.err = errOver
	subs := c.subs
	c.subs = map[string]*heard{}
	c.mu.Unlock()
	if reset {
		hardClose(c.nc)
	}
	_ = c.nc.Close()
	<-c.gone
	for _, h := range subs {
		if h.ch.presence {
			c.w.leave(h.ch, c.user)
		}
	}
}

// hardClose makes Close a reset.
func hardClose(nc net.Conn) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

// channels are those that it is subscribed to.
func (c *client) channels() []*channel {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*channel, 0, len(c.subs))
	for _, h := range c.subs {
		out = append(out, h.ch)
	}
	slices.SortFunc(out, func(a, b *channel) int { return strings.Compare(a.name, b.name) }) // the same for one seed
	return out
}
