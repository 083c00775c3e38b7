package hub

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// door counts who is in a channel of which members are limited, at every moment and over all nodes.
type door struct {
	nodes []*cellNode
	limit int

	mu      sync.Mutex
	in      map[petrel.UserID]int // subscriptions that are admitted
	most    int
	refused int
	guests  [][]*guest // by node
	wrong   string
}

type guest struct {
	user     petrel.UserID
	sub      *Subscription
	admitted bool // guarded by door.mu, like what follows
	over     bool
}

func newDoor(nodes []*cellNode, limit int) *door {
	return &door{nodes: nodes, limit: limit, in: map[petrel.UserID]int{}, guests: make([][]*guest, len(nodes))}
}

func (d *door) count(g *guest, by int) {
	if d.in[g.user] += by; d.in[g.user] == 0 {
		delete(d.in, g.user)
	}
	if d.most = max(d.most, len(d.in)); by > 0 && len(d.in) > d.limit {
		d.wrong += fmt.Sprintf("%s is let in as number %d of %d\n", g.user, len(d.in), d.limit)
	}
}

// come asks to be let in; whether it is may turn out later.
func (d *door) come(node int, user petrel.UserID) {
	g := &guest{user: user}
	end := func(err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if petrel.CodeOf(err) != petrel.CodeLimitReached {
			d.wrong += fmt.Sprintln(err)
		}
		d.refused++
		g.over = true
	}
	s, err := d.nodes[node].Subscribe(Request{
		Channel: pusherChannel(0), Subscriber: &ear{}, Member: who(user), Presence: true, MaxMembers: d.limit,
		Owner: hooks{ended: end, admitted: func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !g.over { // it is leaving
				g.admitted = true
				d.count(g, 1)
			}
		}},
	})
	if err != nil {
		end(err)
		return
	}
	g.sub = s
	d.mu.Lock()
	d.guests[node] = append(d.guests[node], g)
	d.mu.Unlock()
}

// out counts a guest who is about to leave.
func (d *door) out(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.admitted {
		d.count(g, -1)
	}
	g.admitted, g.over = false, true
}

// leave ends the first subscription of a user on a node.
func (d *door) leave(node int, user petrel.UserID) bool {
	for i, g := range d.guests[node] {
		if g.user == user {
			d.out(g)
			g.sub.Close()
			d.guests[node] = append(d.guests[node][:i:i], d.guests[node][i+1:]...)
			return true
		}
	}
	return false
}

// expect says what is wrong, if not so many are in, or somebody waits.
func (d *door) expect(in int) string {
	waiting := d.waiting()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wrong == "" && (len(d.in) != in || waiting > 0) {
		return fmt.Sprintf("%d are in, of %d; %d wait, %d were refused", len(d.in), in, waiting, d.refused)
	}
	return d.wrong
}

// waiting is how many neither are in nor were refused.
func (d *door) waiting() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, all := range d.guests {
		for _, g := range all {
			if !g.admitted && !g.over {
				n++
			}
		}
	}
	return n
}

// TestPlacesAtOnce: many come to all nodes at the same moment, and exactly as many are let in as there is room for.
func TestPlacesAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit, each int
		delay       time.Duration
		shared      bool // the same users come to all nodes
	}{
		{limit: 1, each: 1},
		{limit: 2, each: 5, delay: 5 * time.Millisecond},
		{limit: 10, each: 10, delay: 30 * time.Millisecond},
		{limit: 10, each: 12, shared: true},
		{limit: 100, each: 120},
		{limit: 100, each: 100, delay: 10 * time.Millisecond, shared: true},
	} {
		t.Run(fmt.Sprintf("%d of 3×%d, %v, shared %v", c.limit, c.each, c.delay, c.shared), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes, net := startCell(t, 3)
				net.Shape("", "", bus.Link{Delay: c.delay})
				d := newDoor(nodes, c.limit)
				var all sync.WaitGroup
				for n := range nodes {
					all.Go(func() {
						for i := range c.each {
							user := petrel.UserID(fmt.Sprintf("u%d-%d", n, i))
							if c.shared {
								user = petrel.UserID(fmt.Sprint("u", i))
							}
							d.come(n, user)
						}
					})
				}
				all.Wait()
				<-time.After(3 * time.Second)
				come := 3 * c.each
				if c.shared {
					come = c.each
				}
				if wrong := d.expect(min(c.limit, come)); wrong != "" {
					t.Error(wrong)
				}
			})
		})
	}
}

// TestPlacesAreFree: where there is plenty of room, the others are asked once.
func TestPlacesAreFree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		d := newDoor(nodes, 100)
		for n := range nodes {
			for i := range 33 {
				d.come(n, petrel.UserID(fmt.Sprintf("u%d-%d", n, i)))
			}
		}
		<-time.After(time.Second)
		if wrong := d.expect(99); wrong != "" || d.refused > 0 {
			t.Error(wrong, d.refused)
		}
		for _, n := range nodes {
			if asked := valueOf(t, n.metrics.claims); asked != 1 { // whether the others are within their shares
				t.Errorf("asked %v times", asked)
			}
		}
		d.come(0, "the hundredth")
		d.come(1, "one more")
		<-time.After(time.Second)
		if wrong := d.expect(100); wrong != "" || d.refused != 1 {
			t.Error(wrong, d.refused)
		}
		for user := range 33 { // somebody left, and another node has the place
			d.leave(2, petrel.UserID(fmt.Sprintf("u2-%d", user)))
		}
		<-time.After(time.Second)
		for i := range 40 {
			d.come(0, petrel.UserID(fmt.Sprint("late", i)))
		}
		<-time.After(3 * time.Second)
		if wrong := d.expect(100); wrong != "" || d.refused != 8 {
			t.Error(wrong, d.refused)
		}
	})
}

// TestPlacesNotCheckedForEver: a node that was checked asks again once another went beyond its share, and is checked again once that one is within it.
func TestPlacesNotCheckedForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		d := newDoor(nodes, 6)
		d.come(1, "b")
		<-time.After(time.Second)
		for i := range 5 {
			d.come(0, petrel.UserID(fmt.Sprint("u", i)))
		}
		nodes[0].cable.refuse.Store(true) // what it reports says nothing of it
		<-time.After(time.Minute)
		d.come(1, "one too many")
		<-time.After(time.Second)
		if wrong := d.expect(6); wrong != "" || d.refused != 1 {
			t.Error(wrong, d.refused)
		}
		for i := range 4 {
			d.leave(0, petrel.UserID(fmt.Sprint("u", i)))
		}
		<-time.After(time.Second)
		asked := valueOf(t, nodes[1].metrics.claims)
		d.come(1, "c") // a probe, after which it is free
		<-time.After(time.Second)
		d.leave(1, "c")
		d.come(1, "d")
		if now := valueOf(t, nodes[1].metrics.claims); now != asked+1 {
			t.Errorf("asked %v times", now-asked)
		}
		<-time.After(time.Second)
		if wrong := d.expect(3); wrong != "" {
			t.Error(wrong)
		}
	})
}

// TestPlacesWithoutAnswer: a node that does not answer delays who comes by half a second, and counts with what it reported last.
func TestPlacesWithoutAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 3)
		d := newDoor(nodes, 6)
		d.come(2, "a")
		d.come(2, "b")
		d.come(0, "c")
		<-time.After(2 * time.Second)
		net.Shape("c", "a", bus.Link{Cut: true})
		for i := range 10 {
			d.come(0, petrel.UserID(fmt.Sprint("u", i)))
		}
		for range 3 { // who came when others were being asked about waits for the next round
			if <-time.After(rosterWithin + 10*time.Millisecond); d.waiting() == 0 {
				break
			}
		}
		if wrong := d.expect(6); wrong != "" || d.refused != 7 {
			t.Error(wrong, d.refused)
		}
		if unsure := valueOf(t, nodes[0].metrics.unsure); unsure == 0 {
			t.Error("it is not counted")
		}
	})
}

// TestSimPlaces: whoever comes, goes and moves, with reports that are late or lost and nodes that end, there is never one too many, and none waits for ever.
func TestSimPlaces(t *testing.T) {
	t.Parallel()
	type move struct {
		What           string
		Node, To, User int
		Wait           int
	}
	rapid.Check(t, func(r *rapid.T) {
		limit := rapid.IntRange(1, 12).Draw(r, "limit")
		moves := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) move {
			return move{
				What: rapid.SampledFrom([]string{"come", "come", "come", "come", "come", "leave", "leave", "move", "wait", "wait", "slow", "deaf", "hear", "end", "later"}).Draw(r, "what"),
				Node: rapid.IntRange(0, 2).Draw(r, "node"), To: rapid.IntRange(0, 2).Draw(r, "to"),
				User: rapid.IntRange(0, 19).Draw(r, "user"), Wait: rapid.IntRange(0, 60).Draw(r, "ms"),
			}
		}), 10, 80).Draw(r, "moves")
		var wrong string
		synctest.Test(t, func(t *testing.T) {
			nodes, net := startCell(t, 3)
			d := newDoor(nodes, limit)
			ended := false
			for _, m := range moves {
				user := petrel.UserID(fmt.Sprint("u", m.User))
				if ended && m.Node == 2 || ended && m.To == 2 {
					continue
				}
				switch m.What {
				case "come":
					d.come(m.Node, user)
				case "leave":
					d.leave(m.Node, user)
				case "move":
					if d.leave(m.Node, user) {
						d.come(m.To, user)
					}
				case "wait":
					<-time.After(time.Duration(m.Wait) * time.Millisecond)
				case "later":
					<-time.After(20 * time.Second)
				case "slow":
					net.Shape(nodes[m.Node].cable.node, nodes[m.To].cable.node, bus.Link{Delay: time.Duration(m.Wait) * time.Millisecond})
				case "deaf": // what it reports is lost
					nodes[m.Node].cable.refuse.Store(true)
				case "hear":
					nodes[m.Node].cable.refuse.Store(false)
				case "end":
					if m.User > 4 {
						continue
					}
					ended = true
					for _, g := range d.guests[2] {
						d.out(g)
					}
					nodes[2].stop()
					d.guests[2] = nil
				}
			}
			for _, n := range nodes {
				n.cable.refuse.Store(false)
			}
			<-time.After(5 * time.Second)
			if n := d.waiting(); n > 0 {
				d.wrong += fmt.Sprintln(n, "wait for ever")
			}
			<-time.After(2 * unheardAfter)
			d.mu.Lock()
			free := limit - len(d.in)
			d.mu.Unlock()
			for i := range free + 3 {
				d.come(i%2, petrel.UserID(fmt.Sprint("last", i)))
			}
			<-time.After(5 * time.Second)
			wrong = d.expect(limit)
			for i := range 2 {
				for _, g := range d.guests[i] {
					d.out(g)
					g.sub.Close()
				}
			}
			<-time.After(2 * unheardAfter)
			for i := range 2 {
				if kept := len(nodes[i].channelsBeside(pusherChannel(0))); kept != 0 {
					wrong += fmt.Sprintln("node", i, "keeps the channel")
				}
			}
		})
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

// valueOf reads a counter.
func valueOf(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all[0].GetMetric()[0].GetCounter().GetValue()
}
