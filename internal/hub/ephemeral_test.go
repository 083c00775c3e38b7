package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// cable is a Relay over a real Bus, as the node package makes one.
type cable struct {
	*bus.Bus
	node   petrel.NodeID
	refuse atomic.Bool
	lag    atomic.Int64 // how long each payload that comes is held up, and those behind it
	marks  atomic.Int32 // what becomes of this node's marks
}

// What becomes of marks.
const (
	marksSent int32 = iota
	marksLost
	marksRefused
	marksUnknown // as to an older build
)

func (c *cable) Node() petrel.NodeID { return c.node }

func (*cable) Bucket(ch petrel.Channel) Bucket { return Bucket(bus.BucketOf(ch.App, ch.Name)) }

func (c *cable) Publish(b Bucket, payload []byte) error {
	if c.refuse.Load() {
		return bus.ErrBusy
	}
	if len(payload) > 1 && itemKind(payload[1]) == itemMark {
		switch c.marks.Load() {
		case marksLost:
			return nil
		case marksRefused:
			return bus.ErrBusy
		}
	}
	return c.Bus.Publish(bus.Bucket(b), 1, payload)
}

// answering is how the node answers.
func (c *cable) answering(h *Hub) bus.Answer {
	return func(ctx context.Context, from petrel.NodeID, payload []byte) ([]byte, error) {
		if c.marks.Load() != marksUnknown || !bytes.HasPrefix(payload, []byte{formatAsk, askLasts}) {
			return h.Answer(ctx, from, payload)
		}
		channels := (&reader{b: payload[2:], ok: true}).channels()
		answer, err := h.Answer(ctx, from, appendChannels([]byte{formatAsk, askLasts}, channels))
		if err != nil {
			return nil, err
		}
		return answer[:len(answer)-1], nil // it does not say that there are no marks
	}
}

func (c *cable) Listen(b Bucket) (func(), error) { return c.Bus.Listen(bus.Bucket(b)) }

func (c *cable) Ask(ctx context.Context, node petrel.NodeID, payload []byte) ([]byte, error) {
	return c.Request(ctx, node, 1, payload)
}

// cellNode is one node of a cell in memory: a hub and a bus.
type cellNode struct {
	*Hub
	bus   *bus.Bus
	cable *cable
}

// stop ends the node as a process that is stopped does; kill as one that dies, unheard.
func (n *cellNode) stop() {
	n.Hub.Stop()
	n.bus.Stop()
}

func roll(r *Roster) []byte {
	b := fmt.Appendf(nil, "%d:", r.Count)
	for i, m := range r.Members {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%s=%s", m.ID, m.Info)
	}
	for i, user := range r.Users {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, user...)
	}
	return b
}

func delta(d *Delta) []byte {
	if d.Here {
		return fmt.Appendf(nil, "+%s=%s", d.Member.ID, d.Member.Info)
	}
	return fmt.Appendf(nil, "-%s", d.Member.ID)
}

func wordsAnd(p *petrel.Publication) []byte { return fmt.Append(nil, p.Type, string(p.Data)) }

// startNode puts a node on the network; every channel's history is empty.
func startNode(t testing.TB, net *bus.Network, name petrel.NodeID, incarnation uint64, before ...func(*Hub)) *cellNode {
	t.Helper()
	b, err := bus.New(bus.Options{Node: name, Incarnation: incarnation}, net.Join())
	if err != nil {
		t.Fatal(err)
	}
	empty := func(context.Context, Want) (Page, error) { return Page{}, nil }
	h := New(Options{
		Encoders: []func(*petrel.Publication) []byte{wordsAnd}, Rosters: []func(*Roster) []byte{roll}, Deltas: []func(*Delta) []byte{delta}, History: empty,
		Last: &memory{kept: map[petrel.Channel]petrel.Publication{}},
	})
	for _, fn := range before {
		fn(h)
	}
	relay := &cable{Bus: b, node: name}
	b.Handle(1, func(m bus.Message) {
		if lag := relay.lag.Load(); lag > 0 {
			<-time.After(time.Duration(lag))
		}
		h.Receive(m.Origin, m.Incarnation, m.Payload)
	})
	b.Serve(1, relay.answering(h))
	b.OnChange(func(all []bus.Peer) {
		var alive []Peer
		for _, p := range all {
			if p.Alive {
				alive = append(alive, Peer{p.Node, p.Incarnation})
			}
		}
		h.Peers(alive)
	})
	h.Join(relay)
	h.Start()
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	n := &cellNode{h, b, relay}
	t.Cleanup(n.stop)
	return n
}

// startCell starts n nodes named a, b, c… that know each other.
func startCell(t testing.TB, n int) (nodes []*cellNode, net *bus.Network) {
	t.Helper()
	net = bus.NewNetwork(1)
	for i := range n {
		nodes = append(nodes, startNode(t, net, petrel.NodeID(rune('a'+i)), 1))
	}
	<-time.After(2 * time.Second) // heartbeats
	return nodes, net
}

// join subscribes a user who wants to know who is there.
func (n *cellNode) join(t testing.TB, e Subscriber, user petrel.UserID, presence bool) *Subscription {
	t.Helper()
	s, err := n.Subscribe(Request{Channel: channelOf(0), Subscriber: e, Member: who(user), Presence: presence})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func who(user petrel.UserID) *Member {
	if user == "" {
		return nil
	}
	return &Member{ID: user}
}

func whisper(kind string) *petrel.Publication {
	p := pub(0, 0, kind)
	return &p
}

func TestEphemeralCrossesNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes, _ := startCell(t, 3)
		a, b, c, other := &ear{}, &ear{}, &ear{}, &ear{}
		nodes[0].join(t, a, "ann", false)
		nodes[0].join(t, other, "ann", false)
		nodes[1].join(t, b, "bob", false)
		nodes[2].join(t, c, "cat", false)
		<-time.After(time.Second)
		for i := range 5 {
			if err := nodes[0].Announce(whisper(fmt.Sprint("typing", i)), a); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Second)
		want := []string{"typing0", "typing1", "typing2", "typing3", "typing4"}
		for name, e := range map[string]*ear{"other": other, "b": b, "c": c} {
			if diff := cmp.Diff(want, e.heard()); diff != "" {
				t.Errorf("%s:\n%s", name, diff)
			}
		}
		if got := a.heard(); len(got) != 0 {
			t.Errorf("it came back to the sender: %v", got)
		}
		big := whisper("typing")
		big.Data = make([]byte, MaxEphemeral+1)
		if err := nodes[0].Announce(big, nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
	})
}

// TestEphemeralWithoutRelay: a node that is alone works alike.
func TestEphemeralWithoutRelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		h := newHub(t, story, nil)
		e, durable := &ear{}, &ear{}
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: durable, Durable: true})
		synctest.Wait()
		if err := h.Announce(whisper("typing"), nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"typing0"}, e.heard()); diff != "" {
			t.Error(diff)
		}
		if got := durable.heard(); len(got) != 0 {
			t.Errorf("who wants only what has a seq heard %v", got)
		}
	})
}

// TestEphemeralNeverWaitsForTheSlow: who has no room misses it; nobody else does, and the slow one stays.
func TestEphemeralNeverWaitsForTheSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		var encoded atomic.Int32
		h := newHub(t, story, func(o *Options) {
			o.Encoders[0] = func(p *petrel.Publication) []byte { encoded.Add(1); return words(p) }
		})
		slow, e := &ear{full: true}, &ear{}
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: slow})
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
		synctest.Wait()
		_ = h.Announce(whisper("one"), nil)
		slow.mu.Lock()
		slow.full = false
		slow.mu.Unlock()
		_ = h.Announce(whisper("two"), nil)
		if got := strings.Join(slow.heard(), " "); got != "two0" {
			t.Errorf("the slow one heard %q", got)
		}
		if got := strings.Join(e.heard(), " "); got != "one0 two0" || encoded.Load() != 2 {
			t.Errorf("the other heard %q, encoded %d times", got, encoded.Load())
		}
	})
}

// FuzzReceive: whatever comes from a wire, nothing panics and what can be read is read.
func FuzzReceive(f *testing.F) {
	item := func(kind itemKind, fill func([]byte) []byte) []byte {
		return appendItem([]byte{formatItems}, kind, fill)
	}
	said := change{version: 1, came: []petrel.UserID{"x"}, numbered: true, number: 3, infos: []string{"i"}}
	for _, ch := range []petrel.Channel{channelOf(0), pusherChannel(0)} {
		p := tick(ch, "typing")
		p.Except, p.User, p.Client = "1.1", "ann", true
		f.Add(item(itemPublication, func(b []byte) []byte { return appendPublication(b, p) }))
		f.Add(item(itemChange, func(b []byte) []byte { return said.append(appendChannel(b, ch)) }))
		f.Add(item(itemChange, func(b []byte) []byte {
			return appendUsers(appendUsers(appendNumbers(appendChannel(b, ch), 0, 1), []petrel.UserID{"x"}), nil) // of an older build
		}))
		f.Add(item(itemFull, func(b []byte) []byte {
			return full{version: 1, last: true, users: []petrel.UserID{"x"}, number: 2}.append(appendChannel(b, ch))
		}))
		f.Add(item(itemSummary, func(b []byte) []byte { return appendNumbers(appendChannel(b, ch), 9) }))
		f.Add(item(itemAsk, func(b []byte) []byte { return appendText(appendChannel(b, ch), "a") }))
	}
	f.Add(item(itemCall, func(b []byte) []byte { return appendNumbers(appendText(b, "b"), 2, 1, 70_000) }))
	f.Add(append(item(99, func(b []byte) []byte { return append(b, 1, 2, 3) }), byte(itemAsk), 1))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, in []byte) {
		h := New(Options{
			Encoders: []func(*petrel.Publication) []byte{words}, Rosters: []func(*Roster) []byte{roll}, Deltas: []func(*Delta) []byte{delta},
			Last: &memory{kept: map[petrel.Channel]petrel.Publication{}}, History: (&tale{}).page,
		})
		h.Observe(curious{})
		h.Join(deaf{})
		h.Peers([]Peer{{"b", 1}})
		s, _ := h.Subscribe(Request{Channel: channelOf(0), Subscriber: &ear{}, Presence: true, Member: who("me")})
		x, _ := h.Subscribe(Request{Channel: pusherChannel(0), Subscriber: &ear{}, Presence: true, Counts: true, Last: true, Member: who("me")})
		defer h.Watch(pusherChannel(0), func(Here) {})()
		h.Receive("b", 1, in)
		h.pass(time.Now(), true)
		h.Receive("b", 1, in)
		h.pass(time.Now().Add(time.Second), true)
		s.Close()
		x.Close()
		h.pass(time.Now().Add(time.Minute), true)
	})
}

// TestItemsThatNobodyKnows: what a newer build says besides is skipped, and what an older one leaves out is nothing.
func TestItemsThatNobodyKnows(t *testing.T) {
	t.Parallel()
	b := appendItem([]byte{formatItems}, 200, func(b []byte) []byte { return append(b, "what is this?"...) })
	b = appendItem(b, itemFull, func(b []byte) []byte {
		b = full{version: 7, last: true, users: []petrel.UserID{"x", "y"}, number: 5, infos: []string{"", "of y"}}.append(appendChannel(b, pusherChannel(0)))
		return append(b, "and more"...)
	})
	b = appendItem(b, itemChange, func(b []byte) []byte {
		return appendUsers(appendUsers(appendNumbers(appendChannel(b, channelOf(0)), 3, 4), []petrel.UserID{"z"}), nil)
	})
	var got []string
	ok := readItems(b, func(kind itemKind, in *reader) {
		switch kind {
		case itemFull:
			got = append(got, fmt.Sprintf("%v %+v", in.channel(), in.full()))
		case itemChange:
			got = append(got, fmt.Sprintf("%v %+v", in.channel(), in.change()))
		}
	})
	want := []string{
		"{app 2 presence-0} {version:7 part:0 last:true users:[x y] number:5 infos:[ of y]}",
		"{app 1 r0} {since:3 version:4 came:[z] left:[] numbered:false number:0 infos:[]}",
	}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Error(ok, diff)
	}
}

// curious is an observer that wants everything.
type curious struct{}

func (curious) Owns(Bucket) bool          { return true }
func (curious) Wants(petrel.Channel) bool { return true }
func (curious) Changed(petrel.Channel)    {}

// FuzzAnswer: whatever another node asks, or answers, nothing panics, and an answer is no longer than a bus takes.
func FuzzAnswer(f *testing.F) {
	names := []string{"presence-0", "x"}
	f.Add([]byte{formatAsk, askHello})
	f.Add(appendText(appendText([]byte{formatAsk, askTell, byte(TopicTerminate)}, "app"), "ann"))
	f.Add(censusPage{query: CensusQuery{App: "app", Kind: petrel.ChannelPusher, Names: names, Users: true}}.append([]byte{formatAsk, askCensus}))
	f.Add(censusPage{query: CensusQuery{App: "app", Kind: petrel.ChannelPusher, Users: true}, channel: "presence-0", user: "me", within: true}.append([]byte{formatAsk, askCensus}))
	f.Add(appendChannels([]byte{formatAsk, askLasts}, []petrel.Channel{pusherChannel(0), pusherChannel(1)}))
	part := censusPart{channels: []Counted{{"x", 3, []petrel.UserID{"a", "b"}}}, more: true, within: true}
	f.Add(part.append(nil))
	f.Add([]byte{formatAsk, 77})
	f.Fuzz(func(t *testing.T, in []byte) {
		h := New(Options{
			Encoders: []func(*petrel.Publication) []byte{words}, Rosters: []func(*Roster) []byte{roll}, Deltas: []func(*Delta) []byte{delta},
			Last: &memory{kept: map[petrel.Channel]petrel.Publication{}}, History: (&tale{}).page,
		})
		h.OnTell(TopicTerminate, func(_ context.Context, _ petrel.AppID, payload []byte) ([]byte, error) { return payload, nil })
		_, _ = h.Subscribe(Request{Channel: pusherChannel(0), Subscriber: &ear{}, Presence: true, Member: who("me")})
		_ = h.Announce(tick(pusherChannel(0), "x"), nil)
		answer, err := h.Answer(t.Context(), "b", in)
		if err == nil && (len(answer) == 0 || answer[0] != formatAsk || len(answer) > 250<<10) {
			t.Fatalf("the answer to %x is %x", in, answer)
		}
		r := &reader{b: in, ok: true}
		if part := r.censusPart(); r.ok && part.within && len(part.channels) == 0 {
			t.Fatalf("%+v", part)
		}
		_, _, _ = (&reader{b: in, ok: true}).lasts()
	})
}

// deaf is a relay that takes everything and brings nothing.
type deaf struct{}

func (deaf) Node() petrel.NodeID           { return "a" }
func (deaf) Bucket(petrel.Channel) Bucket  { return 1 }
func (deaf) Publish(Bucket, []byte) error  { return nil }
func (deaf) Listen(Bucket) (func(), error) { return func() {}, nil }

func (deaf) Ask(context.Context, petrel.NodeID, []byte) ([]byte, error) {
	return nil, errors.New("nobody is there")
}
