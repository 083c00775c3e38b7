package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// memory is a Keeper of whatever does not come from a client.
type memory struct {
	mu   sync.Mutex
	kept map[petrel.Channel]petrel.Publication
}

func (m *memory) Keep(p *petrel.Publication) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.Client {
		m.kept[p.Channel] = *p
	}
}

func (m *memory) Kept(ch petrel.Channel) (petrel.Publication, time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.kept[ch]
	return p, time.Minute, ok
}

func pusherChannel(room int) petrel.Channel {
	return petrel.PusherChannel("app", fmt.Sprint("presence-", room))
}

// enter subscribes a user to an exact channel, who wants to know who is there.
func (n *cellNode) enter(t testing.TB, e Subscriber, user petrel.UserID, change ...func(*Request)) *Subscription {
	t.Helper()
	r := Request{Channel: pusherChannel(0), Subscriber: e, Member: &Member{ID: user, Info: []byte("of " + string(user))}, Presence: true}
	for _, fn := range change {
		fn(&r)
	}
	s, err := n.Subscribe(r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tick(ch petrel.Channel, what string) *petrel.Publication {
	return &petrel.Publication{Channel: ch, Type: what, At: time.Now()}
}

func TestExactPresenceOfOneNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, bus.NewNetwork(1), "a", 1)
		ann, bob, desk := &ear{}, &ear{}, &ear{}
		n.enter(t, ann, "ann", func(r *Request) { r.Owner = hooks{admitted: func() { _ = ann.Send([]byte("in")) }} })
		wantFrames(t, ann, "in", "1:ann=of ann") // before Subscribe returned
		phone := n.enter(t, bob, "bob")
		wantFrames(t, ann, "+bob=of bob")
		wantFrames(t, bob, "2:ann=of ann,bob=of bob")
		other := n.enter(t, desk, "bob", func(r *Request) { r.Member.Info = []byte("another word") })
		wantFrames(t, desk, "2:ann=of ann,bob=of bob")
		phone.Close()
		<-time.After(time.Minute)
		wantFrames(t, ann)
		wantFrames(t, desk)
		other.Close()
		<-time.After(leaveAfter - 100*time.Millisecond)
		again := n.enter(t, bob, "bob") // a reload
		wantFrames(t, bob, "2:ann=of ann,bob=of bob")
		<-time.After(time.Minute)
		wantFrames(t, ann)
		again.Close()
		again.Close()
		<-time.After(leaveAfter + lookEvery + 2*gather)
		wantFrames(t, ann, "-bob")
		if now := n.Here(pusherChannel(0)); now.Count != 1 || len(now.Users) != 1 || !now.Whole || !now.Online {
			t.Errorf("%+v", now)
		}
	})
}

func TestExactPresenceAcrossNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 3)
		net.Shape("", "", bus.Link{Delay: 5 * time.Millisecond})
		ann, bob, cat := &ear{}, &ear{}, &ear{}
		nodes[0].enter(t, ann, "ann")
		wantFrames(t, ann) // the others must be asked first
		<-time.After(rosterWithin / 2)
		wantFrames(t, ann, "1:ann=of ann")
		b := nodes[1].enter(t, bob, "bob")
		<-time.After(rosterWithin / 2)
		wantFrames(t, bob, "2:ann=of ann,bob=of bob")
		wantFrames(t, ann, "+bob=of bob")
		b.Close()
		<-time.After(300 * time.Millisecond)
		b = nodes[2].enter(t, cat, "bob")
		<-time.After(time.Minute)
		wantFrames(t, ann)
		wantFrames(t, cat, "2:ann=of ann,bob=of bob")
		b.Close()
		<-time.After(2 * time.Second)
		wantFrames(t, ann, "-bob")
	})
}

// TestExactInfoIsTheSameEverywhere: of several nodes one's word is shown, whoever asks.
func TestExactInfoIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		for i := range nodes {
			n := nodes[2-i]
			n.enter(t, &ear{}, "bob", func(r *Request) { r.Member.Info = []byte("on " + n.cable.node) })
			<-time.After(time.Second)
		}
		for _, n := range nodes {
			e := &ear{}
			n.enter(t, e, "ann")
			<-time.After(time.Second)
			if got := e.heard()[0]; !strings.Contains(got, "bob=on a") {
				t.Errorf("node %s lists %s", n.cable.node, got)
			}
		}
	})
}

// TestExactAdmittedIsHeard: what is published anywhere after Admitted reaches the subscriber, however long the way is.
func TestExactAdmittedIsHeard(t *testing.T) {
	t.Parallel()
	for _, way := range []time.Duration{0, time.Millisecond, 40 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(way.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes, net := startCell(t, 3)
				net.Shape("", "", bus.Link{Delay: way})
				for i := range 20 {
					ch := petrel.PusherChannel("app", fmt.Sprint("news-", i))
					e, in := &ear{}, make(chan struct{})
					begin := time.Now()
					if _, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: e, Owner: hooks{admitted: func() { close(in) }}}); err != nil {
						t.Fatal(err)
					}
					<-in
					if took := time.Since(begin); took > rosterWithin+lookEvery+gather {
						t.Fatalf("admitted after %v", took)
					}
					_ = nodes[1].Announce(tick(ch, "b"), nil)
					_ = nodes[2].Announce(tick(ch, "c"), nil)
					<-time.After(time.Second)
					if got := e.heard(); len(got) != 2 {
						t.Fatalf("channel %d: heard %v", i, got)
					}
				}
			})
		})
	}
}

// TestExactAdmittedWithoutAnswer: a node that does not answer delays a subscription by half a second.
func TestExactAdmittedWithoutAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		net.Shape("b", "a", bus.Link{Cut: true})
		for _, presence := range []bool{false, true} {
			in := make(chan struct{})
			begin := time.Now()
			ch := petrel.PusherChannel("app", fmt.Sprint("x", presence))
			if _, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: &ear{}, Presence: presence, Owner: hooks{admitted: func() { close(in) }}}); err != nil {
				t.Fatal(err)
			}
			<-in
			if took := time.Since(begin); took < rosterWithin || took > rosterWithin+lookEvery+gather {
				t.Errorf("presence %v: admitted after %v", presence, took)
			}
		}
	})
}

// TestExactPendingIsSilent: who waits hears nothing, is nobody, and may go.
func TestExactPendingIsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		net.Shape("b", "a", bus.Link{Cut: true})
		e := &ear{}
		s := nodes[0].enter(t, e, "ann", func(r *Request) { r.Owner = hooks{admitted: func() { t.Error("admitted") }} })
		_ = nodes[0].Announce(tick(pusherChannel(0), "x"), nil)
		if now := nodes[0].Here(pusherChannel(0)); now.Count != 0 || len(now.Users) != 0 || now.Whole {
			t.Errorf("%+v", now)
		}
		s.Close()
		<-time.After(time.Minute)
		wantFrames(t, e)
		if c, n := nodes[0].Counts(); c != 0 || n != 0 {
			t.Errorf("%d channels, %d subscriptions", c, n)
		}
	})
}

func TestExactMemberLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		two := func(r *Request) { r.MaxMembers = 2 }
		ann := &ear{}
		nodes[0].enter(t, ann, "ann", two)
		<-time.After(time.Second)
		bob := nodes[0].enter(t, &ear{}, "bob", two)
		if _, err := nodes[0].Subscribe(Request{Channel: pusherChannel(0), Subscriber: &ear{}, Member: who("cat"), Presence: true, MaxMembers: 2}); petrel.CodeOf(err) != petrel.CodeLimitReached {
			t.Errorf("the third: %v", err)
		}
		<-time.After(time.Second)
		// On a node that does not know yet who is there.
		var ended error
		nodes[1].enter(t, &ear{}, "cat", two, func(r *Request) {
			r.Owner = hooks{ended: func(err error) { ended = err }, admitted: func() { t.Error("admitted") }}
		})
		again := &ear{}
		nodes[1].enter(t, again, "ann", two)
		<-time.After(time.Second)
		if petrel.CodeOf(ended) != petrel.CodeLimitReached {
			t.Errorf("the third, elsewhere: %v", ended)
		}
		wantFrames(t, again, "2:ann=of ann,bob=of bob")
		ann.forget()
		bob.Close()
		nodes[0].enter(t, &ear{}, "cat", two) // who just left makes room
		<-time.After(leaveAfter / 2)
		wantFrames(t, ann, "-bob", "+cat=of cat")
		<-time.After(time.Minute)
		wantFrames(t, ann)
	})
}

// TestExactSlowIsClosed: nothing is dropped for who has no room; they are closed, and nobody else.
func TestExactSlowIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, bus.NewNetwork(1), "a", 1)
		ann, slow := &ear{}, &refuser{}
		n.enter(t, ann, "ann")
		n.enter(t, slow, "bob")
		slow.full = true
		_ = n.Announce(tick(pusherChannel(0), "x"), nil)
		slow.full = false
		_ = n.Announce(tick(pusherChannel(0), "y"), nil)
		n.enter(t, &ear{}, "cat")
		wantFrames(t, ann, "1:ann=of ann", "+bob=of bob", "x", "y", "+cat=of cat")
		wantFrames(t, &slow.ear, "2:ann=of ann,bob=of bob")
	})
}

// refuser is closed by what it has no room for, as a connection is.
type refuser struct {
	ear
	full bool
}

func (r *refuser) Send(f []byte) error {
	if r.full {
		return errors.New("slow")
	}
	return r.ear.Send(f)
}

// named is an ear with a name in the cell.
type named struct {
	*ear
	id petrel.ConnID
}

func (n named) ID() petrel.ConnID { return n.id }

func TestExactExcept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		ears := map[petrel.ConnID]*ear{}
		for i, conn := range []petrel.ConnID{"1.1", "1.2", "2.1", ""} {
			ears[conn] = &ear{}
			nodes[i/2].enter(t, ears[conn], "", func(r *Request) {
				r.Member, r.Presence = nil, false
				if conn != "" {
					r.Subscriber = named{ears[conn], conn}
				}
			})
		}
		<-time.After(time.Second)
		p := tick(pusherChannel(0), "x")
		p.Except, p.User, p.Client = "2.1", "ann", true
		_ = nodes[0].Announce(p, nil)
		<-time.After(time.Second)
		for conn, e := range ears {
			if got := len(e.heard()); (conn == "2.1") != (got == 0) {
				t.Errorf("%q heard %v", conn, e.heard())
			}
		}
	})
}

func TestCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		ch := petrel.PusherChannel("app", "news")
		listen := func(n *cellNode, counts bool) (*ear, *Subscription) {
			e := &ear{}
			s, err := n.Subscribe(Request{Channel: ch, Subscriber: e, Counts: counts})
			if err != nil {
				t.Fatal(err)
			}
			return e, s
		}
		told := func(n int) string { return fmt.Sprintf(`%s{"subscription_count":%d}`, TypeCount, n) }
		a, _ := listen(nodes[0], true)
		<-time.After(2 * time.Second)
		wantFrames(t, a, told(1))
		b, leaves := listen(nodes[1], true)
		<-time.After(2 * time.Second)
		wantFrames(t, a, told(2))
		wantFrames(t, b, told(2))
		var crowd []*Subscription
		for range 98 {
			_, s := listen(nodes[1], false)
			crowd = append(crowd, s)
		}
		<-time.After(2 * time.Second)
		wantLast(t, a, told(100)) // some may be told of before, if the lane's time comes in between
		_, s := listen(nodes[1], false)
		<-time.After(time.Minute)
		wantFrames(t, a, told(101))
		for range 10 {
			_, one := listen(nodes[1], false)
			crowd = append(crowd, one)
			<-time.After(200 * time.Millisecond)
		}
		<-time.After(time.Minute)
		wantFrames(t, a, told(102), told(111)) // seldom, of so many
		s.Close()
		leaves.Close()
		for _, s := range crowd {
			s.Close()
		}
		<-time.After(time.Minute)
		wantLast(t, a, told(1))
	})
}

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		var mu sync.Mutex
		var heard []string
		watch := func(n *cellNode, user petrel.UserID) func() {
			return n.Watch(petrel.UserChannel("app", user), func(now Here) {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, fmt.Sprintf("%s online=%v count=%d whole=%v", user, now.Online, now.Count, now.Whole))
			})
		}
		want := func(what ...string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(append([]string{}, what...), append([]string{}, heard...)); diff != "" {
				t.Fatal(diff)
			}
			heard = nil
		}
		signIn := func(n *cellNode, user petrel.UserID) *Subscription {
			s, err := n.Subscribe(Request{Channel: petrel.UserChannel("app", user), Subscriber: &ear{}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		stop := watch(nodes[0], "ann")
		<-time.After(time.Second)
		want("ann online=false count=0 whole=true")
		s := signIn(nodes[1], "ann")
		<-time.After(time.Second)
		want("ann online=true count=1 whole=true")
		second := signIn(nodes[0], "ann")
		s.Close()
		<-time.After(time.Minute)
		want()
		second.Close()
		<-time.After(leaveAfter / 2)
		s = signIn(nodes[1], "ann") // moved
		<-time.After(time.Minute)
		want()
		stopOther := watch(nodes[1], "ann")
		<-time.After(time.Second)
		want("ann online=true count=1 whole=true")
		stopOther()
		s.Close()
		<-time.After(2 * time.Second)
		want("ann online=false count=0 whole=true")
		stop()
		stop()
		signIn(nodes[1], "ann")
		<-time.After(time.Second)
		want()
		net.Shape("b", "a", bus.Link{Cut: true})
		defer watch(nodes[0], "ann")()
		<-time.After(time.Second)
		want("ann online=false count=0 whole=false")
		net.Shape("b", "a", bus.Link{})
		<-time.After(time.Second)
		want("ann online=true count=1 whole=true")
	})
}

func TestCensus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 3)
		// More than one answer holds, of channels and of one channel's users.
		long := strings.Repeat("x", 150)
		for i := range 3 {
			for j := range 800 {
				ch := petrel.PusherChannel("app", fmt.Sprintf("presence-%s-%d", long, j))
				if _, err := nodes[i].Subscribe(Request{Channel: ch, Subscriber: &ear{}, Member: who(petrel.UserID(fmt.Sprint("u", i%2)))}); err != nil {
					t.Fatal(err)
				}
				big := petrel.PusherChannel("app", "big")
				if _, err := nodes[i].Subscribe(Request{Channel: big, Subscriber: &ear{}, Member: who(petrel.UserID(fmt.Sprintf("%s%s%d", long, long, j+400*i)))}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := nodes[i].Subscribe(Request{Channel: petrel.PusherChannel("other", "presence-x"), Subscriber: &ear{}}); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(2 * time.Second)
		for _, n := range nodes {
			all, err := n.Census(t.Context(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Users: true})
			if err != nil || all.Partial() || len(all.Channels) != 801 {
				t.Fatalf("%d channels, missing %v: %v", len(all.Channels), all.Missing, err)
			}
			for _, c := range all.Channels {
				subs, users := 3, 2
				if c.Name == "big" {
					subs, users = 2400, 1600
				}
				if c.Subscriptions != subs || len(c.Users) != users {
					t.Fatalf("%s has %d subscriptions and %d users", c.Name, c.Subscriptions, len(c.Users))
				}
			}
			some, err := n.Census(t.Context(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Prefix: "presence-", Names: []string{"big", "nobody", "presence-" + long + "-7"}})
			if err != nil || len(some.Channels) != 1 || some.Channel("presence-"+long+"-7").Subscriptions != 3 || some.Channel("big").Subscriptions != 0 {
				t.Fatalf("%+v: %v", some, err)
			}
			none, err := n.Census(t.Context(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Names: []string{}})
			if err != nil || len(none.Channels) != 0 {
				t.Fatalf("%+v: %v", none, err)
			}
		}
		net.Shape("c", "a", bus.Link{Cut: true})
		begin := time.Now()
		some, err := nodes[0].Census(t.Context(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Names: []string{"big"}})
		if took := time.Since(begin); err != nil || !some.Partial() || some.Missing[0] != "c" || some.Channel("big").Subscriptions != 1600 || took > askWithin {
			t.Fatalf("%+v after %v: %v", some, took, err)
		}
		if _, err := nodes[0].Census(t.Context(), CensusQuery{Names: make([]string, maxNames+1)}); petrel.CodeOf(err) != petrel.CodeLimitReached {
			t.Fatal(err)
		}
	})
}

func TestTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		var nodes []*cellNode
		for _, name := range []petrel.NodeID{"a", "b", "c"} {
			nodes = append(nodes, startNode(t, net, name, 1, func(h *Hub) {
				h.OnTell(TopicTerminate, func(_ context.Context, app petrel.AppID, payload []byte) ([]byte, error) {
					if string(payload) == "refuse" && name == "b" {
						return nil, errors.New("no")
					}
					return fmt.Appendf(nil, "%s heard %s of %s", name, payload, app), nil
				})
			}))
		}
		<-time.After(2 * time.Second)
		say := func(told []Told) (out []string) {
			for _, x := range told {
				out = append(out, fmt.Sprintf("%s: %s %v", x.Node, x.Answer, x.Err != nil))
			}
			return out
		}
		told, err := nodes[1].Tell(t.Context(), TopicTerminate, "app", []byte("ann"))
		if diff := cmp.Diff([]string{"b: b heard ann of app false", "a: a heard ann of app false", "c: c heard ann of app false"}, say(told)); diff != "" || err != nil {
			t.Error(err, diff)
		}
		told, err = nodes[0].Tell(t.Context(), TopicTerminate, "app", []byte("refuse"))
		if diff := cmp.Diff([]string{"a: a heard refuse of app false", "b:  true", "c: c heard refuse of app false"}, say(told)); diff != "" || err == nil {
			t.Error(err, diff)
		}
		if _, err := nodes[0].Tell(t.Context(), 99, "app", nil); err == nil {
			t.Error("nobody is told about it, and nobody said so")
		}
		if _, err := nodes[0].Tell(t.Context(), TopicTerminate, "app", make([]byte, maxToldBytes+1)); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		net.Shape("c", "a", bus.Link{Cut: true})
		begin := time.Now()
		told, err = nodes[0].Tell(t.Context(), TopicTerminate, "app", []byte("ann"))
		if took := time.Since(begin); err == nil || took > askWithin || told[2].Err == nil || told[1].Err != nil {
			t.Errorf("%v after %v: %v", say(told), took, err)
		}
	})
}

// TestObserver: the owner of a channel knows what is on it, whoever listens, and so does the next owner.
func TestObserver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		p := &exactPlay{play: play{t: t, net: net}, owners: make([]*owner, 3)}
		for i := range p.nodes {
			p.start(i)
		}
		<-time.After(2 * time.Second)
		ch := petrel.PusherChannel("app", "news")
		b := p.nodes[0].Bucket(ch)
		first := p.owners[int(b)%3]
		listener := (first.node + 1) % 3
		s, err := p.nodes[listener].Subscribe(Request{Channel: ch, Subscriber: &ear{}})
		if err != nil {
			t.Fatal(err)
		}
		known := func(o *owner) string {
			o.mu.Lock()
			defer o.mu.Unlock()
			now, told := o.known[ch]
			return fmt.Sprintf("%v count=%d online=%v whole=%v", told, now.Count, now.Online, now.Whole)
		}
		<-time.After(rosterWithin)
		if got := known(first); got != "true count=1 online=true whole=true" {
			t.Errorf("the owner knows %s", got)
		}
		p.end(first.node)
		<-time.After(time.Second)
		var alive []*owner
		for i, n := range p.nodes {
			if n != nil {
				alive = append(alive, p.owners[i])
			}
		}
		second := alive[int(b)%2]
		if got := known(second); got != "true count=1 online=true whole=true" {
			t.Errorf("the next owner knows %s", got)
		}
		s.Close()
		<-time.After(rosterWithin)
		if got := known(second); got != "true count=0 online=true whole=true" {
			t.Errorf("when it was left: %s", got)
		}
		<-time.After(leaveAfter)
		if got := known(second); got != "true count=0 online=false whole=true" {
			t.Errorf("a second later: %s", got)
		}
		<-time.After(time.Minute)
		for i, n := range p.nodes {
			if n != nil && len(n.channelsBeside(ch)) != 0 {
				t.Errorf("node %s keeps a channel that is empty", nodeName(i))
			}
		}
	})
}

// TestReported: how many subscriptions there are is told to other nodes where somebody wants to know, also if they come to want it later.
func TestReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := bus.NewNetwork(1)
		var wanted atomic.Bool
		var nodes []*cellNode
		for _, name := range []petrel.NodeID{"a", "b"} {
			nodes = append(nodes, startNode(t, net, name, 1, func(h *Hub) { h.opt.Reported = func(petrel.Channel) bool { return wanted.Load() } }))
		}
		<-time.After(2 * time.Second)
		ch := petrel.PusherChannel("app", "news")
		listen := func() *Subscription {
			s, err := nodes[1].Subscribe(Request{Channel: ch, Subscriber: &ear{}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		listen()
		<-time.After(time.Second) // it counts once it is admitted
		defer nodes[0].Watch(ch, func(Here) {})()
		<-time.After(time.Second)
		listen()
		<-time.After(10 * time.Second)
		if now := nodes[0].Here(ch); now.Count != 1 {
			t.Errorf("not told, and yet: %+v", now) // what it was told when it asked
		}
		wanted.Store(true)
		nodes[1].Reconsider()
		<-time.After(time.Second)
		if now := nodes[0].Here(ch); now.Count != 2 {
			t.Errorf("when it is wanted: %+v", now)
		}
	})
}

// TestExactJoinsLater: a node that ran alone becomes one of a cell, and the others hear what is on it.
func TestExactJoinsLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Options{
			Encoders: []func(*petrel.Publication) []byte{words}, Rosters: []func(*Roster) []byte{roll}, Deltas: []func(*Delta) []byte{delta}, History: (&tale{}).page,
		})
		h.Start()
		defer h.Stop()
		alone := &cellNode{Hub: h}
		e := &ear{}
		alone.enter(t, e, "ann")
		var said recorder
		h.Join(&said)
		h.Peers([]Peer{{"b", 1}})
		<-time.After(time.Second)
		h.Receive("b", 1, appendItem([]byte{formatItems}, itemFull, func(b []byte) []byte {
			return full{version: 1, last: true, users: []petrel.UserID{"bob"}, number: 1, infos: []string{"of bob"}}.append(appendChannel(b, pusherChannel(0)))
		}))
		<-time.After(time.Second)
		wantFrames(t, e, "1:ann=of ann", "+bob=of bob")
		if !said.told(pusherChannel(0), 1, "ann") {
			t.Error("the others did not hear of who is there")
		}
	})
}

// recorder is a relay that keeps the changes that it was given.
type recorder struct {
	deaf
	mu      sync.Mutex
	changes map[petrel.Channel]change
}

func (r *recorder) Publish(_ Bucket, payload []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changes == nil {
		r.changes = map[petrel.Channel]change{}
	}
	readItems(payload, func(kind itemKind, in *reader) {
		if kind == itemChange {
			r.changes[in.channel()] = in.change()
		}
	})
	return nil
}

func (r *recorder) told(ch petrel.Channel, number int, users ...petrel.UserID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes[ch].number == number && slices.Equal(r.changes[ch].came, users)
}

// TestExactConcurrent: many at once on one channel, and everything that was taken is given back.
func TestExactConcurrent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				n, ch := nodes[i%2], pusherChannel(0)
				for j := range 50 {
					stop := n.Watch(ch, func(Here) {})
					s, err := n.Subscribe(Request{
						Channel: ch, Subscriber: &ear{}, Member: who(petrel.UserID(fmt.Sprint("u", i))), Presence: j%2 == 0, Counts: j%3 == 0, Last: true, MaxMembers: 6,
					})
					_ = n.Announce(tick(ch, "x"), nil)
					<-time.After(time.Duration(j%5) * 10 * time.Millisecond)
					if _, err := n.Census(t.Context(), CensusQuery{App: "app", Kind: petrel.ChannelPusher, Users: true}); err != nil {
						t.Error(err)
					}
					_ = n.Here(ch)
					stop()
					switch {
					case err == nil:
						s.Close()
					case petrel.CodeOf(err) != petrel.CodeLimitReached:
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		<-time.After(time.Minute)
		for _, n := range nodes {
			c, s := n.Counts()
			if kept := len(n.channelsBeside(pusherChannel(0))); c != 0 || s != 0 || kept != 0 {
				t.Errorf("node %s has %d channels, %d subscriptions, and keeps %d", n.cable.node, c, s, kept)
			}
			if now := n.Look(t.Context(), pusherChannel(0)); now.Count != 0 || len(now.Users) != 0 || !now.Whole {
				t.Errorf("node %s sees %+v", n.cable.node, now)
			}
		}
	})
}
