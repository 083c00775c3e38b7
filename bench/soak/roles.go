package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/bench/rig"
)

// crowd is everybody who keeps up.
type crowd struct {
	w  *world
	mu sync.Mutex // guards all
	// all are the connections that are there, each driven by one goroutine or by none.
	all map[*client]bool
}

// tlsShare is how many connections of a hundred come by TLS.
const tlsShare = 10

// join connects a client that must not be sent away.
func (d *crowd) join(ctx context.Context, user string, secured bool) (*client, error) {
	c, err := dial(ctx, d.w, user, secured)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.all[c] = true
	d.mu.Unlock()
	return c, nil
}

// leave ends a client.
func (d *crowd) leave(c *client, reset bool) {
	d.mu.Lock()
	delete(d.all, c)
	d.mu.Unlock()
	c.end(reset)
}

func (d *crowd) size() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all)
}

func (d *crowd) everybody() []*client {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*client, 0, len(d.all))
	for c := range d.all {
		out = append(out, c)
	}
	return out
}

// connect brings all who keep up, and returns what those of them do who do not only listen.
func (d *crowd) connect(ctx context.Context) (acts []func(acting context.Context), err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i := range d.w.conns {
		g.Go(func() error {
			rnd := rand.New(rand.NewPCG(uint64(d.w.seed), uint64(1000+i))) //nolint:gosec // what is done when, not a secret
			user, secured := "u"+strconv.Itoa(i), i%100 < tlsShare
			if i%20 == 1 {
				user = "u" + strconv.Itoa(i-1) // on two connections, in different channels and sometimes in one
			}
			c, err := d.join(ctx, user, secured)
			if err != nil {
				return err
			}
			if err := c.subscribe(ctx, d.w.channels[(i/2)%len(d.w.channels)]); err != nil {
				return err
			}
			var act func(context.Context)
			switch {
			case i%10 == 5:
				act = func(acting context.Context) { d.churn(acting, c, rnd) }
			case i%33 == 7:
				act = func(acting context.Context) { d.reset(acting, c, secured, rnd) }
			default:
				return nil
			}
			mu.Lock()
			acts = append(acts, act)
			mu.Unlock()
			return nil
		})
	}
	return acts, g.Wait()
}

// churn comes and goes on channels.
func (d *crowd) churn(acting context.Context, c *client, rnd *rand.Rand) {
	ctx := context.WithoutCancel(acting) // what was begun is ended, so that the model knows what came of it
	for pause(acting, rnd, 3*time.Second, 7*time.Second) {
		ch := d.w.channels[rnd.IntN(len(d.w.channels))]
		var err error
		if c.has(ch) {
			err = c.settle(ctx, ch, true)
		} else {
			err = c.subscribe(ctx, ch)
		}
		if err == nil { // leave another one, so that nobody has more and more
			if subs := c.channels(); len(subs) > 3 {
				err = c.settle(ctx, subs[rnd.IntN(len(subs))], true)
			}
		}
		if err != nil {
			d.w.verdict.find("%s, who comes and goes: %v", c.user, err)
			return
		}
		d.w.verdict.moves.Add(1)
	}
}

// reset ends its connection without a word, and comes back.
func (d *crowd) reset(acting context.Context, c *client, secured bool, rnd *rand.Rand) {
	ctx := context.WithoutCancel(acting)
	for pause(acting, rnd, 5*time.Second, 30*time.Second) {
		channels := c.channels()
		d.leave(c, true)
		next, err := d.join(ctx, c.user, secured)
		for _, ch := range channels {
			if err == nil {
				err = next.subscribe(ctx, ch)
			}
		}
		if err != nil {
			d.w.verdict.find("%s, who was reset and comes back: %v", c.user, err)
			return
		}
		c = next
		d.w.verdict.resets.Add(1)
	}
}

// slow reads a byte a second from channels on which much is said, and comes back after a while, whether it was sent away or not: it would
// hear of that only behind what it has not read.
func (w *world) slow(acting context.Context, rnd *rand.Rand) {
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) //nolint:gosec // a descriptor
		}), err)
	}}
	d := ws.Dialer{NetDial: small.DialContext, ReadBufferSize: 1024}
	w.misbehave(acting, rnd, func() {
		nc, _, _, err := d.Dial(acting, "ws://"+w.target.plain+"/app/"+appKey+"?protocol=7&client=soak&version=1")
		if err != nil {
			return
		}
		defer nc.Close()
		defer hardClose(nc)
		w.verdict.slow.Add(1)
		for _, ch := range w.hot {
			text := `{"event":"pusher:subscribe","data":{"channel":"` + ch.name + `"}}`
			if ws.WriteFrame(nc, ws.MaskFrameInPlace(ws.NewTextFrame([]byte(text)))) != nil {
				return
			}
		}
		one := make([]byte, 1)
		for left := 20 + rnd.IntN(40); left > 0 && err == nil && pause(acting, rnd, time.Second, time.Second); left-- {
			_ = nc.SetReadDeadline(time.Now().Add(time.Second)) // on an open socket it cannot fail
			if _, err = nc.Read(one); errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
		}
	})
}

// silent subscribes, and then neither reads nor answers: what is left when a machine at the other end loses its power.
func (w *world) silent(acting context.Context, rnd *rand.Rand) {
	w.misbehave(acting, rnd, func() {
		nc, _, _, err := ws.Dial(acting, "ws://"+w.target.plain+"/app/"+appKey+"?protocol=7&client=soak&version=1")
		if err != nil {
			return
		}
		defer nc.Close()
		defer hardClose(nc)
		text := `{"event":"pusher:subscribe","data":{"channel":"` + w.channels[1].name + `"}}`
		if ws.WriteFrame(nc, ws.MaskFrameInPlace(ws.NewTextFrame([]byte(text)))) != nil || !pause(acting, rnd, 160*time.Second, 200*time.Second) {
			return
		}
		// Its silence was noticed by now: behind what waits to be read there is the end.
		_ = nc.SetReadDeadline(time.Now().Add(answerWithin)) // on an open socket it cannot fail
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			w.verdict.find("who does not answer for three minutes is not sent away")
			return
		}
		w.verdict.silent.Add(1)
	})
}

// half begins a request and never ends it.
func (w *world) half(acting context.Context, rnd *rand.Rand) {
	w.misbehave(acting, rnd, func() {
		nc, err := (&net.Dialer{}).DialContext(acting, "tcp", w.target.plain)
		if err != nil {
			return
		}
		defer nc.Close()
		begin := []string{"", "GET /app/" + appKey + " HT", "POST /apps/soak/events HTTP/1.1\r\nHost: soak\r\nContent-Length: 100\r\n\r\n{", "GET /v1/connect HTTP/1.1\r\nHost: x\r\nX: "}
		if _, err := io.WriteString(nc, begin[rnd.IntN(len(begin))]); err != nil {
			return
		}
		_ = nc.SetReadDeadline(time.Now().Add(4 * answerWithin)) // on an open socket it cannot fail
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			w.verdict.find("who never ends a request is not sent away")
			return
		}
		w.verdict.half.Add(1)
	})
}

// misbehave does it again and again.
func (w *world) misbehave(acting context.Context, rnd *rand.Rand, once func()) {
	for pause(acting, rnd, 100*time.Millisecond, 3*time.Second) {
		once()
	}
}

// pause waits for a time between the two; false when ctx is over.
func pause(ctx context.Context, rnd *rand.Rand, least, most time.Duration) bool {
	return rig.Pause(ctx, least+time.Duration(rnd.Int64N(int64(most-least)+1))) == nil
}
