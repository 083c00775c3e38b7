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
)

// holdDown is longer than anybody who left is still shown.
const holdDown = 4 * time.Second

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

	time.Sleep(holdDown)
	if err := d.settle(ctx); err != nil {
		return nil, err
	}
	return w.verdict, d.lists()
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

// lists checks who is there, by the model, on everybody's list and over HTTP.
func (d *crowd) lists() error {
	w := d.w
	for _, c := range d.everybody() {
		for ch, list := range c.lists() {
			if want := w.users(ch); !maps.Equal(want, list) {
				w.verdict.find("%s has %d in its list of %s, and there are %d: %s", c.user, len(list), ch.name, len(want), difference(want, list))
			}
		}
	}
	text, err := w.call(http.MethodGet, "/apps/"+appID+"/channels", "filter_by_prefix=presence-&info=user_count", nil)
	if err != nil {
		return err
	}
	var occupied struct {
		Channels map[string]struct {
			Count int `json:"user_count"`
		} `json:"channels"`
	}
	if err := json.Unmarshal(text, &occupied); err != nil {
		return err
	}
	for _, ch := range w.channels {
		if !ch.presence {
			continue
		}
		want := w.users(ch)
		if got := occupied.Channels[ch.name].Count; got != len(want) {
			w.verdict.find("by HTTP %d are in %s, and there are %d", got, ch.name, len(want))
		}
		text, err := w.call(http.MethodGet, "/apps/"+appID+"/channels/"+ch.name+"/users", "", nil)
		if err != nil {
			return err
		}
		var list struct{ Users []struct{ ID string } }
		if err := json.Unmarshal(text, &list); err != nil {
			return err
		}
		got := map[string]bool{}
		for _, u := range list.Users {
			got[u.ID] = true
		}
		if !maps.Equal(want, got) {
			w.verdict.find("the list of %s over HTTP: %s", ch.name, difference(want, got))
		}
	}
	return nil
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
