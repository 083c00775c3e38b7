package hub

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// list is who is there as the frames of an ear tell it: a list, and who came and went since. It fails on what does not fit.
func (e *ear) list() (users []string, count int, err error) {
	here := map[string]bool{}
	listed := false
	for _, f := range e.heard() {
		if user, ok := strings.CutPrefix(f, TypeJoin+`{"user":"`); ok {
			user = strings.TrimSuffix(user, `"}`)
			if here[user] || !listed {
				return nil, 0, fmt.Errorf("%s came twice, or before the list: %v", user, e.heard())
			}
			here[user] = true
			count++
			continue
		}
		if user, ok := strings.CutPrefix(f, TypeLeave+`{"user":"`); ok {
			user = strings.TrimSuffix(user, `"}`)
			if !here[user] {
				return nil, 0, fmt.Errorf("%s left and was not there: %v", user, e.heard())
			}
			delete(here, user)
			count--
			continue
		}
		n, names, ok := strings.Cut(f, ":")
		if _, err := fmt.Sscan(n, &count); err != nil || !ok {
			return nil, 0, fmt.Errorf("what is %q?", f)
		}
		listed = true
		clear(here)
		for name := range strings.SplitSeq(names, ",") {
			if name != "" {
				here[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(here)), count, nil
}

func (e *ear) forget() {
	e.mu.Lock()
	e.frames = nil
	e.mu.Unlock()
}

func wantFrames(t *testing.T, e *ear, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), e.heard()); diff != "" {
		t.Fatal(diff)
	}
	e.forget()
}

// wantLast compares the last frame alone.
func wantLast(t *testing.T, e *ear, want string) {
	t.Helper()
	if heard := e.heard(); len(heard) == 0 || heard[len(heard)-1] != want {
		t.Fatalf("heard %q, want %q at the end", heard, want)
	}
	e.forget()
}

const (
	bobCame = `presence.join{"user":"bob"}`
	bobLeft = `presence.leave{"user":"bob"}`
)

func TestPresenceOfOneNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, bus.NewNetwork(1), "a", 1)
		ann, app := &ear{}, &ear{}
		n.join(t, ann, "ann", true)
		n.join(t, app, "", true) // the app itself is nobody
		synctest.Wait()
		<-time.After(gather)
		synctest.Wait()
		wantFrames(t, ann, "1:ann")
		wantFrames(t, app, "1:ann")
		phone, desk := n.join(t, &ear{}, "bob", false), n.join(t, &ear{}, "bob", false)
		<-time.After(time.Second)
		wantFrames(t, ann, bobCame)
		phone.Close()
		<-time.After(time.Minute)
		wantFrames(t, ann)
		desk.Close()
		<-time.After(leaveAfter - 100*time.Millisecond)
		desk = n.join(t, &ear{}, "bob", false) // a reload
		<-time.After(time.Minute)
		wantFrames(t, ann)
		desk.Close()
		<-time.After(leaveAfter - 100*time.Millisecond)
		wantFrames(t, ann)
		<-time.After(500 * time.Millisecond)
		wantFrames(t, ann, bobLeft)
	})
}

// TestPresenceOfTheSlow: who has no room for an arrival gets a new list when there is some.
func TestPresenceOfTheSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, bus.NewNetwork(1), "a", 1)
		slow := &ear{}
		n.join(t, slow, "ann", true)
		<-time.After(time.Second)
		slow.forget()
		setFull := func(v bool) {
			slow.mu.Lock()
			slow.full = v
			slow.mu.Unlock()
		}
		setFull(true)
		n.join(t, &ear{}, "bob", false)
		<-time.After(time.Second)
		n.join(t, &ear{}, "cat", false)
		<-time.After(time.Second)
		wantFrames(t, slow)
		setFull(false)
		<-time.After(time.Second)
		wantFrames(t, slow, "3:ann,bob,cat")
	})
}

// TestPresenceOfMany: many at once are one list, and beyond MaxListed only the number is told, seldom.
func TestPresenceOfMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		ann := &ear{}
		nodes[0].join(t, ann, "ann", true)
		<-time.After(time.Second + 7*time.Millisecond) // from now on nothing else happens at the same instant: who comes at once is told at once
		ann.forget()
		var subs []*Subscription
		crowd := func(n int) {
			for range n {
				subs = append(subs, nodes[1].join(t, &ear{}, petrel.UserID(fmt.Sprint("u", len(subs))), false))
			}
			<-time.After(3 * time.Second)
		}
		crowd(maxTold + 1)
		if users, count, err := ann.list(); err != nil || len(ann.heard()) != 1 || count != maxTold+2 || len(users) != count {
			t.Fatalf("%d frames, %d users, count %d: %v", len(ann.heard()), len(users), count, err)
		}
		ann.forget()
		crowd(2 * maxUsers)
		if _, count, err := ann.list(); err != nil || count != len(subs)+1 || len(ann.heard()) > 3 {
			t.Fatalf("%d frames, count %d: %v", len(ann.heard()), count, err)
		}
		if r := nodes[0].Present(t.Context(), channelOf(0)); r.Count != len(subs)+1 || len(r.Users) != MaxListed || r.Partial {
			t.Fatalf("%d users of %d", len(r.Users), r.Count)
		}
		late := &ear{}
		nodes[0].join(t, late, "late", true)
		<-time.After(3 * time.Second)
		if users, count, err := late.list(); err != nil || count != len(subs)+2 || len(users) != MaxListed {
			t.Fatalf("%d users, count %d: %v", len(users), count, err)
		}
		ann.forget()
		for _, s := range subs[10:] {
			s.Close()
		}
		<-time.After(5 * time.Second)
		if users, count, err := ann.list(); err != nil || count != 12 || len(users) != 12 {
			t.Fatalf("%d users, count %d: %v", len(users), count, err)
		}
	})
}

// TestPresenceAcrossNodes: who comes on any node is told on every one, moving shows nothing, and readers need no subscription.
func TestPresenceAcrossNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		bob := nodes[1].join(t, &ear{}, "bob", false)
		<-time.After(time.Second)
		ann := &ear{}
		nodes[0].join(t, ann, "ann", true)
		<-time.After(200 * time.Millisecond)
		wantFrames(t, ann, "2:ann,bob")
		bob.Close()
		<-time.After(300 * time.Millisecond)
		bob = nodes[2].join(t, &ear{}, "bob", false)
		<-time.After(time.Minute)
		wantFrames(t, ann)
		bob.Close()
		<-time.After(2 * time.Second)
		wantFrames(t, ann, bobLeft)
		begin := time.Now()
		r := nodes[2].Present(t.Context(), channelOf(0))
		if took := time.Since(begin); took >= rosterWithin || r.Partial || r.Count != 1 || r.Users[0] != "ann" {
			t.Fatalf("read %v in %v", r, took)
		}
		<-time.After(2 * keepView)
		if channels := len(nodes[2].channelsBeside(channelOf(0))); channels != 0 {
			t.Fatal("a channel stays that nobody asks for")
		}
	})
}

// TestPresenceOfADeadNode: its users leave within ten seconds; when it is back in a new life, what it says replaces what it said.
func TestPresenceOfADeadNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		ann := &ear{}
		nodes[0].join(t, ann, "ann", true)
		nodes[1].join(t, &ear{}, "bob", false)
		<-time.After(time.Second)
		wantFrames(t, ann, "2:ann,bob")
		net.Shape("b", "a", bus.Link{Cut: true}) // nobody hears it go
		nodes[1].stop()
		<-time.After(10 * time.Second)
		wantFrames(t, ann, bobLeft)
		net.Shape("b", "a", bus.Link{})
		again := startNode(t, net, "b", 2)
		again.join(t, &ear{}, "cat", false)
		<-time.After(3 * time.Second)
		wantFrames(t, ann, `presence.join{"user":"cat"}`)
		again.stop()
		<-time.After(2 * time.Second) // it said so: nobody waits for its silence
		wantFrames(t, ann, `presence.leave{"user":"cat"}`)
	})
}

// TestPresenceSurvivesARefusingRelay: what was never sent, so that no bus can repair it, is noticed by the next summary; or, when no summary
// speaks of the channel any more, because it was silent for too long.
func TestPresenceSurvivesARefusingRelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		ann := &ear{}
		nodes[0].join(t, ann, "ann", true)
		bob := nodes[1].join(t, &ear{}, "bob", false)
		<-time.After(time.Second)
		unheard := func(fn func()) {
			nodes[1].cable.refuse.Store(true)
			fn()
			<-time.After(4 * gather)
			nodes[1].cable.refuse.Store(false)
		}
		want := func(within time.Duration, names ...string) {
			t.Helper()
			<-time.After(within)
			if users, _, err := ann.list(); err != nil || !slices.Equal(users, names) {
				t.Fatalf("%v %v, want %v", users, err, names)
			}
		}
		var cat *Subscription
		unheard(func() { cat = nodes[1].join(t, &ear{}, "cat", false) })
		dan := nodes[1].join(t, &ear{}, "dan", false) // a step from a version that nobody here has
		want(askEvery+leaveAfter, "ann", "bob", "cat", "dan")
		unheard(func() { bob.Close() })
		want(sumUpEvery+askEvery+leaveAfter, "ann", "cat", "dan")
		unheard(func() { cat.Close(); dan.Close() })
		want(unheardAfter+2*sumUpEvery, "ann")
		unheard(func() { nodes[1].join(t, &ear{}, "eve", false) })
		want(sumUpEvery+askEvery+leaveAfter, "ann", "eve")
	})
}

// TestPresenceBelievesOnlyTheLiving: what comes of a node that is not alive, of a life that is over, or again, counts for nothing.
func TestPresenceBelievesOnlyTheLiving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Options{Encoders: []func(*petrel.Publication) []byte{wordsAnd}, Rosters: []func(*Roster) []byte{roll}, History: (&tale{}).page})
		h.Join(deaf{})
		h.Start()
		defer h.Stop()
		n := &cellNode{Hub: h}
		e := &ear{}
		n.join(t, e, "ann", true)
		full := func(version uint64, users ...petrel.UserID) []byte {
			return appendItem([]byte{formatItems}, itemFull, func(b []byte) []byte {
				return appendUsers(append(appendNumbers(appendChannel(b, channelOf(0)), version, 0), 1), users)
			})
		}
		change := func(since, version uint64, came, left []petrel.UserID) []byte {
			return appendItem([]byte{formatItems}, itemChange, func(b []byte) []byte {
				return appendUsers(appendUsers(appendNumbers(appendChannel(b, channelOf(0)), since, version), came), left)
			})
		}
		want := func(what string, names ...string) {
			t.Helper()
			<-time.After(2 * time.Second)
			if users, _, err := e.list(); err != nil || !slices.Equal(users, names) {
				t.Fatalf("%s: %v %v, want %v", what, users, err, names)
			}
		}
		h.Receive("b", 1, full(1, "x"))
		want("a node that is not known", "ann")
		h.Peers([]Peer{{"b", 1}})
		h.Receive("b", 1, full(5, "x", "y"))
		want("one that is", "ann", "x", "y")
		h.Receive("b", 1, full(4, "z"))
		h.Receive("b", 1, change(0, 3, []petrel.UserID{"z"}, nil))
		h.Receive("b", 1, change(2, 3, []petrel.UserID{"z"}, nil))
		want("older versions", "ann", "x", "y")
		h.Receive("b", 1, change(5, 6, []petrel.UserID{"z"}, []petrel.UserID{"x"}))
		h.Receive("b", 1, change(5, 6, []petrel.UserID{"z"}, []petrel.UserID{"x"}))
		h.Receive("b", 1, change(8, 9, []petrel.UserID{"w"}, nil)) // 7 and 8 are missing
		want("the next one", "ann", "y", "z")
		h.Receive("b", 2, full(1, "v"))
		want("a life that is not known yet", "ann", "y", "z")
		h.Peers([]Peer{{"b", 2}})
		want("a new life", "ann")
		h.Receive("b", 1, full(7, "y"))
		want("the life that is over", "ann")
		h.Receive("b", 2, change(0, 1, []petrel.UserID{"v"}, nil))
		want("the new life's first word", "ann", "v")
		h.Peers(nil)
		want("dead", "ann")
	})
}

// step is one thing that happens in a play.
type step struct {
	What       string
	Node, To   int
	User, Room int
	Loss       float64
	Wait       time.Duration
}

var stepKinds = []string{"come", "come", "come", "go", "go", "move", "watch", "unwatch", "read", "link", "link", "cut", "heal", "kill", "stop", "start", "refuse", "refuse", "wait", "wait"}

func drawSteps(t *rapid.T) []step {
	one := rapid.Custom(func(t *rapid.T) step {
		return step{
			What: rapid.SampledFrom(stepKinds).Draw(t, "what"), Node: rapid.IntRange(0, 2).Draw(t, "node"), To: rapid.IntRange(0, 2).Draw(t, "to"),
			User: rapid.IntRange(0, 4).Draw(t, "user"), Room: rapid.IntRange(0, 1).Draw(t, "room"), Loss: rapid.SampledFrom([]float64{0.05, 0.5, 0.9}).Draw(t, "loss"),
			Wait: time.Duration(rapid.SampledFrom([]int{1, 30, 300, 1200, 7000, 20_000}).Draw(t, "ms")) * time.Millisecond,
		}
	})
	return rapid.SliceOfN(one, 1, 60).Draw(t, "steps")
}

// play is a cell, and who is in truth on which node.
type play struct {
	t       *testing.T
	net     *bus.Network
	nodes   [3]*cellNode // nil: not running
	lives   [3]uint64
	subs    [3][]played
	watches [3][]watched
}

type played struct {
	user petrel.UserID
	room int
	sub  *Subscription
}

type watched struct {
	room int
	ear  *ear
	sub  *Subscription
}

func nodeName(i int) petrel.NodeID { return petrel.NodeID(rune('a' + i)) }

func (p *play) start(i int) {
	if p.nodes[i] == nil {
		p.lives[i]++
		p.nodes[i] = startNode(p.t, p.net, nodeName(i), p.lives[i])
	}
}

func (p *play) end(i int) {
	if p.nodes[i] != nil {
		p.nodes[i].stop()
		p.nodes[i], p.subs[i], p.watches[i] = nil, nil, nil
	}
}

func (p *play) come(node int, user petrel.UserID, room int) {
	if p.nodes[node] == nil {
		return
	}
	s, err := p.nodes[node].Subscribe(Request{Channel: channelOf(room), Subscriber: &ear{}, Member: who(user)})
	if err != nil {
		p.t.Fatal(err)
	}
	p.subs[node] = append(p.subs[node], played{user, room, s})
}

func (p *play) do(s step) {
	user := petrel.UserID(fmt.Sprint("u", s.User))
	n := p.nodes[s.Node]
	switch s.What {
	case "come":
		p.come(s.Node, user, s.Room)
	case "go", "move":
		if i := slices.IndexFunc(p.subs[s.Node], func(x played) bool { return x.user == user && x.room == s.Room }); i >= 0 {
			p.subs[s.Node][i].sub.Close()
			p.subs[s.Node] = slices.Delete(p.subs[s.Node], i, i+1)
			if s.What == "move" {
				p.come(s.To, user, s.Room)
			}
		}
	case "watch":
		if n != nil {
			e := &ear{}
			sub, err := n.Subscribe(Request{Channel: channelOf(s.Room), Subscriber: e, Presence: true})
			if err != nil {
				p.t.Fatal(err)
			}
			p.watches[s.Node] = append(p.watches[s.Node], watched{s.Room, e, sub})
		}
	case "unwatch":
		if w := p.watches[s.Node]; len(w) > 0 {
			w[0].sub.Close()
			p.watches[s.Node] = w[1:]
		}
	case "read":
		if n != nil {
			n.Present(context.Background(), channelOf(s.Room))
		}
	case "link":
		p.net.Shape(nodeName(s.Node), nodeName(s.To), bus.Link{Loss: s.Loss, Delay: s.Wait / 100, Jitter: s.Wait / 100})
	case "cut":
		p.net.Shape(nodeName(s.Node), nodeName(s.To), bus.Link{Cut: true})
	case "heal":
		p.net.Shape(nodeName(s.Node), nodeName(s.To), bus.Link{})
	case "refuse":
		if n != nil {
			n.cable.refuse.Store(!n.cable.refuse.Load())
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
	case "wait":
		<-time.After(s.Wait)
	}
}

// TestSimPresence: whatever happens to nodes and links, once it has ended every node shows exactly who is there.
func TestSimPresence(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		steps := drawSteps(r)
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = playOut(t, steps) })
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

func playOut(t *testing.T, steps []step) (wrong string) {
	p := &play{t: t, net: bus.NewNetwork(7)}
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
	for room := range 2 {
		want := map[string]bool{}
		for i := range p.nodes {
			for _, s := range p.subs[i] {
				if s.room == room {
					want[string(s.user)] = true
				}
			}
		}
		all := slices.Sorted(maps.Keys(want))
		for i, n := range p.nodes {
			if n == nil {
				continue
			}
			for _, w := range p.watches[i] {
				users, count, err := w.ear.list()
				if w.room == room && (err != nil || !slices.Equal(users, all) || count != len(all)) {
					return fmt.Sprintf("node %s: a watcher of room %d was told %v (%d), there are %v; %v", nodeName(i), room, users, count, all, err)
				}
			}
			r := n.Present(context.Background(), channelOf(room))
			var read []string
			for _, u := range r.Users {
				read = append(read, string(u))
			}
			if !slices.Equal(read, all) || r.Partial || r.Count != len(all) {
				return fmt.Sprintf("node %s reads %v of room %d (partial: %v), there are %v", nodeName(i), read, room, r.Partial, all)
			}
		}
	}
	return ""
}
