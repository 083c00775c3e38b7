package hub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// roll is who is there as the frames of a member's ear tell it: one list with the member in it, and who came and went since, one by one. It fails on
// a second list, on who comes twice or leaves without being there, and on the member's own coming and going.
func (e *ear) roll(self string) (users []string, err error) {
	here := map[string]bool{}
	for i, f := range e.heard() {
		name, _, _ := strings.Cut(f[1:], "=")
		switch {
		case (i == 0) != (f[0] != '+' && f[0] != '-'):
			return nil, fmt.Errorf("frame %d is %q", i, f)
		case f[0] == '+' && !here[name] && name != self:
			here[name] = true
		case f[0] == '-' && here[name] && name != self:
			delete(here, name)
		case i == 0:
			n, names, _ := strings.Cut(f, ":")
			for name := range strings.SplitSeq(names, ",") {
				name, info, _ := strings.Cut(name, "=")
				if info != "of "+name {
					return nil, fmt.Errorf("%s is listed as %q", name, info)
				}
				here[name] = true
			}
			if n != fmt.Sprint(len(here)) || !here[self] {
				return nil, fmt.Errorf("%s was given the list %q", self, f)
			}
		default:
			return nil, fmt.Errorf("frame %d of %s is %q, of %v", i, self, f, e.heard())
		}
	}
	return slices.Sorted(maps.Keys(here)), nil
}

// exactPlay is a cell, and what is in truth on which node: in two channels members, who follow each other, and those who only listen, or
// count; and users who are signed in, and watched.
type exactPlay struct {
	play
	audience [3][]attending
	watchers [3][]*onlooker
	owners   []*owner // by node; of the last life
}

type attending struct {
	ch     petrel.Channel
	user   petrel.UserID // empty: nobody
	counts bool
	ear    *ear
	sub    *Subscription
}

// onlooker keeps what a watcher was told.
type onlooker struct {
	ch    petrel.Channel
	stop  func()
	mu    sync.Mutex
	heard []Here
}

// owner observes the channels of its share of the buckets.
type owner struct {
	p     *exactPlay
	node  int
	hub   *Hub
	mu    sync.Mutex
	alive []int
	known map[petrel.Channel]Here
}

func (o *owner) Owns(b Bucket) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.alive) > 0 && o.alive[int(b)%len(o.alive)] == o.node
}

func (o *owner) Wants(ch petrel.Channel) bool { return ch.Kind == petrel.ChannelPusher }

func (o *owner) Changed(ch petrel.Channel) {
	now := o.hub.Here(ch)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known[ch] = now
}

func (p *exactPlay) start(i int) {
	if p.nodes[i] != nil {
		return
	}
	p.lives[i]++
	o := &owner{p: p, node: i, known: map[petrel.Channel]Here{}}
	p.owners[i] = o
	p.nodes[i] = startNode(p.t, p.net, nodeName(i), p.lives[i], func(h *Hub) {
		o.hub = h
		h.Observe(o)
	})
	p.reown()
}

func (p *exactPlay) end(i int) {
	if p.nodes[i] != nil {
		p.nodes[i].stop()
		p.nodes[i], p.audience[i], p.watchers[i] = nil, nil, nil
		p.reown()
	}
}

// reown shares the buckets among the nodes that run.
func (p *exactPlay) reown() {
	var alive []int
	for i, n := range p.nodes {
		if n != nil {
			alive = append(alive, i)
		}
	}
	for i, n := range p.nodes {
		if n == nil {
			continue
		}
		o := p.owners[i]
		o.mu.Lock()
		o.alive = alive
		clear(o.known) // who owns anew begins anew
		o.mu.Unlock()
		n.Reconsider()
	}
}

func (p *exactPlay) attend(node int, ch petrel.Channel, user petrel.UserID, counts bool) {
	n := p.nodes[node]
	if n == nil {
		return
	}
	e := &ear{}
	r := Request{Channel: ch, Subscriber: e, Counts: counts}
	if user != "" {
		r.Member, r.Presence = &Member{ID: user, Info: []byte("of " + string(user))}, true
	}
	s, err := n.Subscribe(r)
	if err != nil {
		p.t.Fatal(err)
	}
	p.audience[node] = append(p.audience[node], attending{ch: ch, user: user, counts: counts, ear: e, sub: s})
}

// quit ends the first subscription of its sort, and says whether there was one.
func (p *exactPlay) quit(node int, ch petrel.Channel, user petrel.UserID) bool {
	i := slices.IndexFunc(p.audience[node], func(x attending) bool { return x.ch == ch && x.user == user })
	if i < 0 {
		return false
	}
	p.audience[node][i].sub.Close()
	p.audience[node] = slices.Delete(p.audience[node], i, i+1)
	return true
}

func (p *exactPlay) do(s step) {
	user, ch := petrel.UserID(fmt.Sprint("u", s.User)), pusherChannel(s.Room)
	signedIn := petrel.UserChannel("app", user)
	switch s.What {
	case "come":
		p.attend(s.Node, ch, user, false)
	case "go", "move":
		if p.quit(s.Node, ch, user) && s.What == "move" {
			p.attend(s.To, ch, user, false)
		}
	case "read": // somebody who does not say who they are
		p.attend(s.Node, ch, "", s.User > 2)
	case "unwatch":
		switch {
		case s.Room == 0:
			p.quit(s.Node, ch, "")
		case s.User < 3:
			p.quit(s.Node, signedIn, "")
		case len(p.watchers[s.Node]) > 0:
			p.watchers[s.Node][0].stop()
			p.watchers[s.Node] = p.watchers[s.Node][1:]
		}
	case "watch":
		if s.Room == 0 {
			p.attend(s.Node, signedIn, "", false)
			break
		}
		if n := p.nodes[s.Node]; n != nil {
			w := &onlooker{ch: signedIn}
			w.stop = n.Watch(signedIn, func(now Here) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.heard = append(w.heard, now)
			})
			p.watchers[s.Node] = append(p.watchers[s.Node], w)
		}
	case "kill":
		for i := range p.nodes {
			p.net.Shape(nodeName(s.Node), nodeName(i), bus.Link{Cut: true}) // nobody hears it go
		}
		p.end(s.Node)
	case "stop":
		p.end(s.Node)
	case "start":
		p.start(s.Node)
	default:
		p.play.do(s)
	}
}

// TestSimExact: whatever happens to nodes and links, what every member is told fits together at every moment, and once it has ended everybody knows
// exactly who and how many are there.
func TestSimExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		steps := drawSteps(r)
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = playExact(t, steps) })
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

func playExact(t *testing.T, steps []step) (wrong string) {
	p := &exactPlay{play: play{t: t, net: bus.NewNetwork(7)}, owners: make([]*owner, 3)}
	for i := range p.nodes {
		p.start(i)
	}
	<-time.After(2 * time.Second)
	for _, s := range steps {
		p.do(s)
	}
	for i := range p.nodes {
		for j := range p.nodes {
			p.net.Shape(nodeName(i), nodeName(j), bus.Link{})
		}
	}
	for _, n := range p.nodes {
		if n != nil {
			n.cable.refuse.Store(false)
		}
	}
	<-time.After(2*unheardAfter + 10*time.Second)
	for i, n := range p.nodes {
		if n != nil {
			if err := p.judge(i, n.Hub); err != nil {
				return fmt.Sprintf("node %s: %v", nodeName(i), err)
			}
		}
	}
	return ""
}

// truth is what there is on a channel.
func (p *exactPlay) truth(ch petrel.Channel) (count int, users []string) {
	for i := range p.nodes {
		for _, a := range p.audience[i] {
			if a.ch == ch {
				count++
				if a.user != "" && !slices.Contains(users, string(a.user)) {
					users = append(users, string(a.user))
				}
			}
		}
	}
	slices.Sort(users)
	return count, users
}

func texts(users []petrel.UserID) (out []string) {
	for _, u := range users {
		out = append(out, string(u))
	}
	return out
}

// judge compares everything that was told on one node, and that it says, with the truth.
func (p *exactPlay) judge(node int, h *Hub) error {
	for _, a := range p.audience[node] {
		count, users := p.truth(a.ch)
		switch {
		case a.user != "":
			told, err := a.ear.roll(string(a.user))
			if err != nil {
				return err
			}
			if !slices.Equal(told, users) {
				return fmt.Errorf("%s was told of %v, there are %v: %v", a.user, told, users, a.ear.heard())
			}
		case a.counts:
			f := a.ear.heard()
			if want := fmt.Sprintf(`%s{"subscription_count":%d}`, TypeCount, count); len(f) == 0 || f[len(f)-1] != want {
				return fmt.Errorf("who counts was told %v, there are %d", f, count)
			}
		}
	}
	for _, w := range p.watchers[node] {
		count, _ := p.truth(w.ch)
		w.mu.Lock()
		heard := w.heard
		w.mu.Unlock()
		for i := 1; i < len(heard); i++ {
			if heard[i].Online == heard[i-1].Online {
				return fmt.Errorf("a watcher was told the same twice: %v", heard)
			}
		}
		if len(heard) == 0 || heard[len(heard)-1].Online != (count > 0) {
			return fmt.Errorf("a watcher was told %v, there are %d", heard, count)
		}
	}
	var want []Counted
	for room := range 2 {
		ch := pusherChannel(room)
		count, users := p.truth(ch)
		if o := p.owners[node]; o.Owns(h.Bucket(ch)) {
			o.mu.Lock()
			known, told := o.known[ch]
			o.mu.Unlock()
			now := h.Here(ch)
			if count == 0 { // and then it is not kept any more
				now = known
				now.Whole = told
			}
			if told != now.Whole || known.Count != now.Count || now.Count != count || !slices.Equal(known.Users, now.Users) || !slices.Equal(texts(now.Users), users) {
				return fmt.Errorf("the owner of room %d was told %+v (%v), and sees %+v; there are %d, %v", room, known, told, now, count, users)
			}
		}
		if now := h.Look(context.Background(), ch); now.Count != count || !slices.Equal(texts(now.Users), users) || !now.Whole {
			return fmt.Errorf("a look into room %d shows %+v, there are %d, %v", room, now, count, users)
		}
		if count > 0 {
			c := Counted{Name: ch.Name, Subscriptions: count}
			for _, u := range users {
				c.Users = append(c.Users, petrel.UserID(u))
			}
			want = append(want, c)
		}
	}
	all, err := h.Census(context.Background(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Users: true})
	if diff := cmp.Diff(want, append([]Counted(nil), all.Channels...)); diff != "" || err != nil || all.Partial() {
		return errors.Join(fmt.Errorf("the census, missing %v: %s", all.Missing, diff), err)
	}
	return nil
}
