package hub

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// lastOf subscribes to a channel and its last publication. The ear is told when it is in, and when there is none.
func lastOf(t testing.TB, h *Hub, ch petrel.Channel) *ear {
	t.Helper()
	e := &ear{}
	if _, err := h.Subscribe(Request{
		Channel: ch, Subscriber: e, Last: true,
		Owner: hooks{admitted: func() { _ = e.Send([]byte("in")) }, missed: func() { _ = e.Send([]byte("missed")) }},
	}); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		ch := petrel.PusherChannel("app", "cache-x")
		wait := func() { <-time.After(time.Second) }
		first := lastOf(t, nodes[0].Hub, ch)
		wait()
		wantFrames(t, first, "in", "missed")
		begin := time.Now()
		second := lastOf(t, nodes[0].Hub, ch) // it is known that there is none
		wantFrames(t, second, "in", "missed")
		if time.Since(begin) > 0 {
			t.Error("others were asked again")
		}
		_ = nodes[2].Announce(tick(ch, "one"), nil)
		client := tick(ch, "by a client")
		client.Client = true
		_ = nodes[2].Announce(client, nil)
		wait()
		wantFrames(t, first, "one", "by a client")
		wantFrames(t, lastOf(t, nodes[0].Hub, ch), "in", "one")
		e := lastOf(t, nodes[1].Hub, ch) // it has not heard of it
		wait()
		wantFrames(t, e, "in", "one")
		wantFrames(t, lastOf(t, nodes[1].Hub, ch), "in", "one")
		if p, left, ok := nodes[2].Last(t.Context(), ch); !ok || p.Type != "one" || left != time.Minute {
			t.Errorf("%+v, %v, %v", p, left, ok)
		}
		other := petrel.PusherChannel("app", "cache-y")
		_ = nodes[2].Announce(tick(other, "old"), nil)
		<-time.After(time.Millisecond)
		_ = nodes[1].Announce(tick(other, "new"), nil)
		if p, _, ok := nodes[0].Last(t.Context(), other); !ok || p.Type != "new" {
			t.Errorf("%+v, %v", p, ok)
		}
		if _, _, ok := nodes[0].Last(t.Context(), petrel.PusherChannel("app", "cache-z")); ok {
			t.Error("there is one of a channel that nobody published on")
		}
	})
}

// TestLastIsNeverOlder: who waits for the last publication, and is offered a newer one meanwhile, is not offered the older one after it.
func TestLastIsNeverOlder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		ch := petrel.PusherChannel("app", "cache-x")
		_ = nodes[1].Announce(tick(ch, "old"), nil)
		<-time.After(time.Second)
		e, in := &ear{}, make(chan struct{})
		net.Shape("b", "a", bus.Link{Delay: 50 * time.Millisecond})
		if _, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: e, Last: true, Owner: hooks{admitted: func() { close(in) }, missed: func() { t.Error("missed") }}}); err != nil {
			t.Fatal(err)
		}
		<-in
		_ = nodes[0].Announce(tick(ch, "new"), nil)
		<-time.After(time.Second)
		wantFrames(t, e, "new")
		p, _, _ := nodes[0].Last(t.Context(), ch)
		if p.Type != "new" {
			t.Errorf("kept: %s", p.Type)
		}
	})
}

// TestLastIsNotStale: what a node has kept from when it listened before is not the last, when there was another one since.
func TestLastIsNotStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 2)
		ch := petrel.PusherChannel("app", "cache-x")
		for _, name := range []string{"one", "two"} {
			<-time.After(time.Minute) // it does not listen any more
			_ = nodes[1].Announce(tick(ch, name), nil)
			<-time.After(time.Second)
			if p, _, ok := nodes[0].Last(t.Context(), ch); !ok || p.Type != name {
				t.Errorf("%+v, %v; want %s", p, ok, name)
			}
			e := &ear{}
			s, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: e, Last: true, Owner: hooks{missed: func() { t.Error("missed") }}})
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second)
			wantFrames(t, e, name)
			s.Close()
		}
	})
}

// TestLastIsHeardOnce: what is published while its channel's last one is asked for is heard once, in its order, and so is what comes after it.
func TestLastIsHeardOnce(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]time.Duration{"the answer overtakes": 50 * time.Millisecond, "nothing is slow": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes, _ := startCell(t, 2)
				ch := petrel.PusherChannel("app", "cache-x")
				if _, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: &ear{}}); err != nil { // so that it listens
					t.Fatal(err)
				}
				<-time.After(time.Second)
				nodes[0].cable.lag.Store(int64(slow))
				_ = nodes[1].Announce(tick(ch, "one"), nil)
				_ = nodes[1].Announce(tick(ch, "two"), nil)
				e := &ear{}
				if _, err := nodes[0].Subscribe(Request{Channel: ch, Subscriber: e, Last: true, Owner: hooks{missed: func() { t.Error("missed") }}}); err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Second)
				_ = nodes[1].Announce(tick(ch, "three"), nil)
				<-time.After(time.Second)
				got := e.heard()
				if len(got) > 0 && got[0] == "one" {
					got = got[1:] // it came before the channel's last was known
				}
				if !slices.Equal(got, []string{"two", "three"}) {
					t.Errorf("heard %q", got)
				}
			})
		})
	}
}

// TestLastOfMany: a thousand who come at once ask the other nodes a few times, and get what there is, whatever becomes of the marks. What is not under way is
// not waited for.
func TestLastOfMany(t *testing.T) {
	t.Parallel()
	rounds := 5 * lastWithin // a few that wait for as long as they may, and what comes before
	for name, c := range map[string]struct {
		shape  func(asker, other *cable)
		within time.Duration
	}{
		"nothing is slow":      {func(_, _ *cable) {}, lastWithin},
		"marks come slowly":    {func(asker, _ *cable) { asker.lag.Store(int64(time.Millisecond)) }, rounds},
		"marks are lost":       {func(_, other *cable) { other.marks.Store(marksLost) }, rounds},
		"marks are refused":    {func(_, other *cable) { other.marks.Store(marksRefused) }, lastWithin},
		"an older build":       {func(_, other *cable) { other.marks.Store(marksUnknown) }, lastWithin},
		"an older build, slow": {func(asker, other *cable) { asker.lag.Store(int64(time.Millisecond)); other.marks.Store(marksUnknown) }, lastWithin},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes, _ := startCell(t, 2)
				big := strings.Repeat("x", 1000)
				var ears []*ear
				channel := func(i int) petrel.Channel { return petrel.PusherChannel("app", fmt.Sprint("cache-", i)) }
				for i := range 1000 {
					_ = nodes[1].Announce(tick(channel(i), fmt.Sprint(i, big)), nil)
				}
				<-time.After(time.Second) // one is in a bucket that every node hears
				c.shape(nodes[0].cable, nodes[1].cable)
				for i := range 1000 {
					ears = append(ears, lastOf(t, nodes[0].Hub, channel(i)))
				}
				<-time.After(c.within)
				for i, e := range ears {
					if got := e.heard(); !slices.Equal(got, []string{"in", fmt.Sprint(i, big)}) {
						t.Fatalf("%d heard %.20q", i, got)
					}
				}
			})
		})
	}
}

// TestLastOfANewcomer: what is known to be the last is not any more when a node comes that may have a newer one.
func TestLastOfANewcomer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		ch := petrel.PusherChannel("app", "cache-x")
		_ = nodes[0].Announce(tick(ch, "old"), nil)
		for range 2 { // the second time it is known
			first := lastOf(t, nodes[0].Hub, ch)
			<-time.After(time.Second)
			wantFrames(t, first, "in", "old")
		}
		startNode(t, net, "c", 1, func(h *Hub) { _ = h.Announce(tick(ch, "new"), nil) })
		<-time.After(3 * time.Second)
		second := lastOf(t, nodes[0].Hub, ch)
		<-time.After(time.Second)
		wantFrames(t, second, "in", "new")
	})
}

// TestLastAfterABreak: what another node published while it was out of reach is the last when it is back.
func TestLastAfterABreak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, net := startCell(t, 2)
		ch := petrel.PusherChannel("app", "cache-x")
		_ = nodes[0].Announce(tick(ch, "old"), nil)
		lastOf(t, nodes[0].Hub, ch)
		lastOf(t, nodes[1].Hub, ch)
		<-time.After(time.Second)
		net.Shape("", "", bus.Link{Cut: true})
		<-time.After(time.Minute)
		_ = nodes[1].Announce(tick(ch, "new"), nil)
		<-time.After(time.Minute)
		net.Shape("", "", bus.Link{})
		<-time.After(time.Minute)
		e := lastOf(t, nodes[0].Hub, ch)
		<-time.After(time.Second)
		wantFrames(t, e, "in", "new")
	})
}

// spy is a relay that does as it is told, and counts in the buckets of a real one.
type spy struct {
	deaf
	ask     func(node petrel.NodeID, payload []byte) ([]byte, error)
	publish func(b Bucket, payload []byte) error
}

func (spy) Bucket(ch petrel.Channel) Bucket { return (*cable)(nil).Bucket(ch) }

func (s spy) Publish(b Bucket, payload []byte) error {
	if s.publish == nil {
		return nil
	}
	return s.publish(b, payload)
}

func (s spy) Ask(_ context.Context, node petrel.NodeID, payload []byte) ([]byte, error) {
	return s.ask(node, payload)
}

// keeper is a hub that is not started, and keeps what is last.
func keeper() *Hub {
	return New(Options{
		Encoders: []func(*petrel.Publication) []byte{wordsAnd}, Rosters: []func(*Roster) []byte{roll}, Deltas: []func(*Delta) []byte{delta},
		Last: &memory{kept: map[petrel.Channel]petrel.Publication{}}, History: (&tale{}).page,
	})
}

// TestLastOfWhoCameMeanwhile: a node that comes while others are asked was not asked.
func TestLastOfWhoCameMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := keeper()
		asked := map[petrel.NodeID]int{}
		said := make(chan petrel.NodeID, 10)
		var once sync.Once
		h.Join(spy{ask: func(node petrel.NodeID, payload []byte) ([]byte, error) {
			if !bytes.HasPrefix(payload, []byte{formatAsk, askLasts}) {
				return []byte{formatAsk}, nil
			}
			once.Do(func() { h.Peers([]Peer{{"b", 1}, {"c", 1}}) })
			said <- node
			return appendNumbers([]byte{formatAsk}, 1, 0), nil // it has none
		}})
		h.Peers([]Peer{{"b", 1}})
		h.Start()
		defer h.Stop()
		for range 3 {
			e := lastOf(t, h, petrel.PusherChannel("app", "cache-x"))
			<-time.After(time.Second)
			wantFrames(t, e, "in", "missed")
		}
		close(said)
		for node := range said {
			asked[node]++
		}
		if diff := cmp.Diff(map[petrel.NodeID]int{"b": 2, "c": 1}, asked); diff != "" { // who comes third need not ask
			t.Error(diff)
		}
	})
}

// TestMarks: an answer is followed by one mark in each bucket of what is in it, and says how many went out.
func TestMarks(t *testing.T) {
	t.Parallel()
	h := keeper()
	var channels []petrel.Channel
	for i := range 400 {
		ch := petrel.PusherChannel("app", fmt.Sprint("cache-", i))
		channels = append(channels, ch)
		_ = h.Announce(tick(ch, strings.Repeat("x", 1000)), nil)
	}
	var sent []Bucket
	refuse := 0
	h.Join(spy{publish: func(b Bucket, payload []byte) error {
		if refuse > 0 {
			refuse--
			return bus.ErrBusy
		}
		readItems(payload, func(kind itemKind, in *reader) {
			if kind == itemMark && in.text() == "b" && in.number() == 7 {
				sent = append(sent, b)
			}
		})
		return nil
	}})
	question := appendChannels([]byte{formatAsk, askLasts}, channels)
	for _, c := range []struct {
		question []byte
		refuse   int
		marked   bool
	}{
		{question, 0, false},
		{appendNumbers(appendText(question, "b"), 7), 0, true},
		{appendNumbers(appendText(question, "b"), 7), 3, true},
	} {
		sent, refuse = nil, c.refuse
		answer, err := h.Answer(t.Context(), "b", c.question)
		if err != nil {
			t.Fatal(err)
		}
		done, found, marks := (&reader{b: answer[1:], ok: true}).lasts()
		if done == 0 || done >= 400 || len(found) != int(done) { //nolint:gosec // small
			t.Fatalf("%d of %d are in the answer", len(found), done)
		}
		var want []Bucket
		for _, p := range found {
			want = append(want, spy{}.Bucket(p.Channel))
		}
		slices.Sort(want)
		want = slices.Compact(want)[c.refuse:]
		if !c.marked {
			want = nil
		}
		if diff := cmp.Diff(want, sent); diff != "" || int(marks) != len(want) { //nolint:gosec // small
			t.Errorf("%d marks:\n%s", marks, diff)
		}
	}
}

// TestAnswersOfLasts: an answer that cannot be is none, and marks that nobody said were sent are not waited for.
func TestAnswersOfLasts(t *testing.T) {
	t.Parallel()
	ch := petrel.PusherChannel("app", "cache-x")
	p := tick(ch, "x")
	body := appendText(nil, appendPublication(nil, p))
	for name, c := range map[string]struct {
		answer []byte
		whole  bool
	}{
		"of an older build": {append([]byte{formatAsk, 1, 1}, body...), true},
		"without marks":     {append(append([]byte{formatAsk, 1, 1}, body...), 0), true},
		"of a newer build":  {append(append([]byte{formatAsk, 1, 1}, body...), 0, 7, 7), true},
		"too many marks":    {append(append([]byte{formatAsk, 1, 1}, body...), 2), false},
		"about nothing":     {[]byte{formatAsk, 0, 0}, false},
		"about too much":    {[]byte{formatAsk, 2, 0}, false},
		"cut":               {append([]byte{formatAsk, 1, 1}, body[:len(body)-1]...), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := keeper()
			h.Join(spy{ask: func(petrel.NodeID, []byte) ([]byte, error) { return c.answer, nil }})
			h.Peers([]Peer{{"b", 1}})
			newest, whole := h.askLasts(t.Context(), []petrel.Channel{ch}, true)
			if whole != c.whole || (newest[ch] != nil) != c.whole {
				t.Errorf("%v, %v", newest, whole)
			}
			if len(h.lane.marks) != 0 {
				t.Error("marks are waited for that nobody wants any more")
			}
		})
	}
}

// TestBucketsOfQuestionsAreHeard: where the last publication is asked for, marks will come, though who wanted it may have left.
func TestBucketsOfQuestionsAreHeard(t *testing.T) {
	t.Parallel()
	h := keeper()
	h.Join(spy{})
	l := &h.lane
	for i, of := range []*[]petrel.Channel{&l.lasts, &l.lasting} {
		ch := petrel.PusherChannel("app", fmt.Sprint("cache-", i))
		heard := true
		l.heard[spy{}.Bucket(ch)] = func() { heard = false }
		*of = []petrel.Channel{ch}
		if h.listenNow(true); !heard {
			t.Errorf("%d: the bucket was left", i)
		}
		*of = nil
		if h.listenNow(true); heard {
			t.Errorf("%d: the bucket was not left", i)
		}
	}
}
