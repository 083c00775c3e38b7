package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/bench/rig"
)

// settleWithin is far more than it takes until who left is shown nowhere (a second) on the slowest machine: what is wrong then stays wrong.
const settleWithin = time.Minute

// soak runs everything, and judges what can be judged at any speed.
func soak(ctx context.Context, o options, out io.Writer) (*verdict, error) {
	w := newWorld(o)
	defer w.http.CloseIdleConnections()
	tell := func(format string, args ...any) { fmt.Fprintf(out, format, args...) }
	d := &crowd{w: w, all: map[*client]bool{}}
	defer func() {
		for _, c := range d.everybody() {
			d.leave(c, true)
		}
	}()
	tell("%d connections on %d channels, for %s; the seed is %d\n", o.conns, o.channels, o.duration, o.seed)
	begun := time.Now()
	acts, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	tell("connected in %s\n", time.Since(begun).Round(time.Millisecond))

	var watching, publishing, doing sync.WaitGroup
	watched, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watching.Go(func() { w.observe(watched, d, tell) })
	acting, stopActing := context.WithTimeout(ctx, o.duration)
	defer stopActing()
	published, stopPublishing := context.WithCancel(ctx)
	defer stopPublishing()
	for i := range publishers {
		publishing.Go(func() { w.publish(published, i) })
	}
	for _, act := range acts {
		doing.Go(func() { act(acting) })
	}
	w.bringTheBad(acting, &doing)
	<-acting.Done()
	doing.Wait()
	stopPublishing()
	publishing.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stopWatching()
	watching.Wait()

	if err := d.settle(ctx); err != nil {
		return nil, err
	}
	for begun := time.Now(); ; {
		wrong, err := d.lists()
		if err != nil {
			return nil, err
		}
		if len(wrong) == 0 {
			return w.verdict, nil
		}
		if time.Since(begun) > settleWithin {
			for _, what := range wrong {
				w.verdict.find("%s", what)
			}
			return w.verdict, nil
		}
		if err := rig.Pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// bringTheBad lets those come who do not keep up: the slow ones after a quarter of the time, so that what they do to the others is seen.
func (w *world) bringTheBad(acting context.Context, doing *sync.WaitGroup) {
	for i := range max(1, w.conns/200) {
		rnd := func(kind int) *rand.Rand {
			return rand.New(rand.NewPCG(uint64(w.seed), uint64(1_000_000*kind+i))) //nolint:gosec // what is done when, not a secret
		}
		doing.Go(func() { w.silent(acting, rnd(1)) })
		doing.Go(func() { w.half(acting, rnd(2)) })
		doing.Go(func() {
			r := rnd(3)
			if pause(acting, r, w.duration/4, w.duration/4) {
				w.verdict.phase.Store(1)
				w.slow(acting, r)
			}
		})
	}
}

// settle checks that everybody who kept up is there, and has heard everything.
func (d *crowd) settle(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for _, c := range d.everybody() {
		g.Go(func() error {
			if err := c.settle(ctx, nil, false); err != nil {
				d.w.verdict.find("%s (%s) did not stay until the end: %v", c.user, c.socket, err)
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// lists says where what is shown of who is there is not what the model says: on everybody's list, and over HTTP.
func (d *crowd) lists() (wrong []string, err error) {
	w := d.w
	differs := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for _, c := range d.everybody() {
		for ch, list := range c.lists() {
			if want := w.users(ch); !maps.Equal(want, list) {
				differs("%s has %d in its list of %s, and there are %d: %s", c.user, len(list), ch.name, len(want), difference(want, list))
			}
		}
	}
	text, err := w.call(http.MethodGet, "/apps/"+appID+"/channels", "filter_by_prefix=presence-&info=user_count", nil)
	if err != nil {
		return nil, err
	}
	var occupied struct {
		Channels map[string]struct {
			Count int `json:"user_count"`
		} `json:"channels"`
	}
	if err := json.Unmarshal(text, &occupied); err != nil {
		return nil, err
	}
	for _, ch := range w.channels {
		if !ch.presence {
			continue
		}
		want := w.users(ch)
		if got := occupied.Channels[ch.name].Count; got != len(want) {
			differs("by HTTP %d are in %s, and there are %d", got, ch.name, len(want))
		}
		text, err := w.call(http.MethodGet, "/apps/"+appID+"/channels/"+ch.name+"/users", "", nil)
		if err != nil {
			return nil, err
		}
		var list struct{ Users []struct{ ID string } }
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, err
		}
		got := map[string]bool{}
		for _, u := range list.Users {
			got[u.ID] = true
		}
		if !maps.Equal(want, got) {
			differs("the list of %s over HTTP: %s", ch.name, difference(want, got))
		}
	}
	return wrong, nil
}

// difference says in words what two sets do not share.
func difference(want, got map[string]bool) string {
	var missing, more []string
	for _, user := range slices.Sorted(maps.Keys(want)) {
		if !got[user] {
			missing = append(missing, user)
		}
	}
	for _, user := range slices.Sorted(maps.Keys(got)) {
		if !want[user] {
			more = append(more, user)
		}
	}
	return fmt.Sprintf("missing %v, too many %v", missing, more)
}
