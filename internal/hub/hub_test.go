package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ear keeps every frame; it always has room unless told otherwise.
type ear struct {
	mu      sync.Mutex
	frames  []string
	full    bool
	waiting []func()
}

func (e *ear) Send(f []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frames = append(e.frames, string(f))
	return nil
}

func (e *ear) TrySend(f []byte) (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.full {
		return false, nil
	}
	e.frames = append(e.frames, string(f))
	return true, nil
}

func (e *ear) NotifyRoom(fn func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiting = append(e.waiting, fn)
}

func (e *ear) heard() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.frames...)
}

// tale is a history that tests add to.
type tale struct {
	mu   sync.Mutex
	head map[petrel.Channel]uint64
	err  error
	read int
}

func (s *tale) set(ch petrel.Channel, head uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head == nil {
		s.head = map[petrel.Channel]uint64{}
	}
	s.head[ch] = head
}

func (s *tale) page(_ context.Context, w Want) (Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read++
	if s.err != nil {
		return Page{}, s.err
	}
	p := Page{Head: s.head[w.Channel]}
	for seq := w.After + 1; seq <= p.Head && len(p.Publications) < w.Limit; seq++ {
		p.Publications = append(p.Publications, petrel.Publication{Channel: w.Channel, Seq: seq})
	}
	return p, nil
}

func words(p *petrel.Publication) []byte { return fmt.Append(nil, p.Type, p.Seq) }

func newHub(t *testing.T, story *tale, change func(*Options)) *Hub {
	o := Options{Encoders: []func(*petrel.Publication) []byte{words, words}, History: story.page, PageSize: 2}
	if change != nil {
		change(&o)
	}
	h := New(o)
	h.Start()
	h.Start()
	t.Cleanup(func() { h.Stop(); h.Stop() })
	return h
}

func pubs(seqs ...uint64) (out []petrel.Publication) {
	for _, s := range seqs {
		out = append(out, pub(0, s, ""))
	}
	return out
}

func TestHandOverFromHistoryToLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story, e := &tale{}, &ear{}
		story.set(channelOf(0), 5)
		h := newHub(t, story, nil)
		admitted := func() { _ = e.Send([]byte("ok")) }
		s, err := h.Subscribe(Request{Channel: channelOf(0), Subscriber: e, After: 2, Owner: hooks{admitted: admitted}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		story.set(channelOf(0), 7)
		h.Publish(pubs(5, 6, 7)) // 5 was in history already
		h.Publish([]petrel.Publication{pub(0, 0, "typing")})
		if diff := cmp.Diff([]string{"ok", "3", "4", "5", "6", "7", "typing0"}, e.heard()); diff != "" {
			t.Fatal(diff)
		}
		s.Close()
		h.Publish(pubs(8))
		if n := len(e.heard()); n != 7 {
			t.Fatalf("%d frames: one came after Close", n)
		}
	})
}

func TestAtTheEdgeNothingIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		story.set(channelOf(0), 5)
		h := newHub(t, story, nil)
		for range 10 {
			if _, err := h.Subscribe(Request{Channel: channelOf(0), Subscriber: &ear{}, After: 5}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if story.read != 1 {
			t.Fatalf("ten who were up to date cost %d reads", story.read)
		}
	})
}

func TestGapGoesBackToHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story, e := &tale{}, &ear{}
		h := newHub(t, story, nil)
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
		synctest.Wait()
		story.set(channelOf(0), 4)
		h.Publish(pubs(4)) // 1 to 3 were never published here
		synctest.Wait()
		h.Publish(pubs(4))
		if diff := cmp.Diff([]string{"1", "2", "3", "4"}, e.heard()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestHistoryFailsAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story, e := &tale{err: errors.New("busy")}, &ear{}
		story.set(channelOf(0), 3)
		h := newHub(t, story, nil)
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
		<-time.After(10 * time.Second)
		story.mu.Lock()
		if story.read < 3 || story.read > 12 {
			t.Errorf("%d reads in 10 s", story.read)
		}
		story.err = nil
		story.mu.Unlock()
		<-time.After(10 * time.Second)
		if diff := cmp.Diff([]string{"1", "2", "3"}, e.heard()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestAheadIsResync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		story.set(channelOf(0), 5)
		h := newHub(t, story, nil)
		var reason string
		var head uint64
		_, _ = h.Subscribe(Request{
			Channel: channelOf(0), Subscriber: &ear{}, After: 9,
			Owner: hooks{resync: func(r string, at uint64) { reason, head = r, at }},
		})
		synctest.Wait()
		if _, n := h.Counts(); reason != "ahead" || head != 5 || n != 0 {
			t.Fatalf("reason %q, head %d, %d subscriptions left", reason, head, n)
		}
	})
}

// TestRevokedEndsExactlyThere: the member gets the event of its own removal and nothing after it; others go on.
func TestRevokedEndsExactlyThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		var gone atomic.Bool
		h := newHub(t, story, func(o *Options) {
			o.History = func(ctx context.Context, w Want) (Page, error) {
				if w.Actor.User == "ann" && gone.Load() {
					return Page{}, fmt.Errorf("%w: removed", ErrEnded)
				}
				return story.page(ctx, w)
			}
		})
		ann, bob := &ear{}, &ear{}
		var why error
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: ann, Actor: petrel.Actor{User: "ann"}, Owner: hooks{ended: func(err error) { why = err }}})
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: bob, Actor: petrel.Actor{User: "bob"}})
		synctest.Wait()
		story.set(channelOf(0), 3)
		gone.Store(true)
		removal := pub(0, 2, "removed")
		removal.Revoked = "ann"
		h.Publish([]petrel.Publication{pub(0, 1, ""), removal, pub(0, 3, "")})
		synctest.Wait()
		if diff := cmp.Diff([]string{"1", "removed2"}, ann.heard()); diff != "" || !errors.Is(why, ErrEnded) {
			t.Fatalf("ann (%v):\n%s", why, diff)
		}
		if diff := cmp.Diff([]string{"1", "removed2", "3"}, bob.heard()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestSlowCatchUpWaitsForRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story, e := &tale{}, &ear{full: true}
		story.set(channelOf(0), 5)
		h := newHub(t, story, nil)
		_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
		synctest.Wait()
		h.Publish(pubs(4, 5))
		if len(e.heard()) != 0 || story.read != 1 {
			t.Fatalf("frames %v, %d reads: it does not wait", e.heard(), story.read)
		}
		e.mu.Lock()
		e.full = false
		fns := e.waiting
		e.mu.Unlock()
		for _, fn := range fns {
			fn()
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"1", "2", "3", "4", "5"}, e.heard()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestAdmission(t *testing.T) {
	t.Parallel()
	story := &tale{}
	h := New(Options{Encoders: []func(*petrel.Publication) []byte{words}, History: story.page, MaxWaiting: 2})
	for i := range 3 {
		_, err := h.Subscribe(Request{Channel: channelOf(i), Subscriber: &ear{}})
		if i < 2 && err != nil {
			t.Fatal(err)
		}
		if i == 2 && petrel.CodeOf(err) != petrel.CodeOverloaded {
			t.Fatalf("third: %v", err)
		}
	}
	if _, n := h.Counts(); n != 2 {
		t.Fatalf("%d subscriptions: the refused one stayed", n)
	}
}

// TestEncodedOncePerWire counts encodings for 100 subscribers on two wires.
func TestEncodedOncePerWire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		story := &tale{}
		var n [3]atomic.Int32
		h := newHub(t, story, func(o *Options) {
			o.Encoders = nil
			for i := range n {
				o.Encoders = append(o.Encoders, func(p *petrel.Publication) []byte { n[i].Add(1); return words(p) })
			}
		})
		for i := range 100 {
			_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: &ear{}, Wire: i % 2})
		}
		synctest.Wait()
		h.Publish(pubs(1, 2, 3))
		if n[0].Load() != 3 || n[1].Load() != 3 || n[2].Load() != 0 {
			t.Fatalf("encoded %d, %d, %d times", n[0].Load(), n[1].Load(), n[2].Load())
		}
	})
}

// TestConcurrent is for the race detector: publishing, subscribing, closing and restoring at once.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	story := &tale{}
	h := newHub(t, story, nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for seq := uint64(1); seq <= 500; seq++ {
			story.set(channelOf(0), seq)
			h.Publish(pubs(seq))
			if seq%50 == 0 {
				h.OnRestore()
			}
		}
		close(stop)
	})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := h.Subscribe(Request{Channel: channelOf(0), Subscriber: &ear{}})
				if err == nil {
					s.Close()
				}
			}
		})
	}
	e := &ear{}
	_, _ = h.Subscribe(Request{Channel: channelOf(0), Subscriber: e})
	wg.Wait()
	deadline := time.After(10 * time.Second)
	for len(e.heard()) < 500 {
		select {
		case <-deadline:
			t.Fatalf("%d of 500", len(e.heard()))
		case <-time.After(time.Millisecond):
		}
	}
	for i, f := range e.heard() {
		if f != fmt.Sprint(i+1) {
			t.Fatalf("frame %d is %s", i, f)
		}
	}
}

// hooks are an Owner made of functions.
type hooks struct {
	admitted, missed func()
	resync           func(reason string, head uint64)
	ended            func(err error)
}

func (o hooks) Admitted(*Subscription) {
	if o.admitted != nil {
		o.admitted()
	}
}

func (o hooks) Missed(*Subscription) {
	if o.missed != nil {
		o.missed()
	}
}

func (o hooks) Resync(_ *Subscription, reason string, head uint64) { o.resync(reason, head) }
func (o hooks) Ended(_ *Subscription, err error)                   { o.ended(err) }

// channelsBeside is the part of the channels in which one lies.
func (h *Hub) channelsBeside(ch petrel.Channel) byName {
	sh, _ := h.shardOf(ch)
	return sh.channels
}

// sink counts what it is sent; it has a name in the cell, as connections have.
type sink struct{ n int }

func (*sink) ID() petrel.ConnID { return "sink" }

func (s *sink) Send([]byte) error            { s.n++; return nil }
func (s *sink) TrySend([]byte) (bool, error) { s.n++; return true, nil }
func (s *sink) NotifyRoom(fn func())         { fn() }

func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			story := &tale{}
			h := New(Options{Encoders: []func(*petrel.Publication) []byte{words}, History: story.page, MaxWaiting: 1 << 20})
			sinks := make([]sink, n)
			for i := range sinks {
				if _, err := h.Subscribe(Request{Channel: channelOf(0), Subscriber: &sinks[i]}); err != nil {
					b.Fatal(err)
				}
			}
			for s := h.queue.pop(false); s != nil; s = h.queue.pop(false) {
				h.turn(b.Context(), s)
			}
			one := pubs(1)
			b.ReportAllocs()
			for b.Loop() {
				h.Publish(one)
				one[0].Seq++
			}
			if sinks[0].n != b.N || sinks[n-1].n != b.N {
				b.Fatalf("%d and %d delivered of %d", sinks[0].n, sinks[n-1].n, b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/delivery")
		})
	}
}

// BenchmarkAnnounce offers publications on a channel that is exact.
func BenchmarkAnnounce(b *testing.B) {
	for _, n := range []int{1, 10, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := New(Options{Encoders: []func(*petrel.Publication) []byte{words}, History: (&tale{}).page})
			sinks := make([]sink, n)
			for i := range sinks {
				if _, err := h.Subscribe(Request{Channel: pusherChannel(0), Subscriber: &sinks[i]}); err != nil {
					b.Fatal(err)
				}
			}
			p := tick(pusherChannel(0), "x")
			p.Except = "nobody"
			b.ReportAllocs()
			for b.Loop() {
				_ = h.Announce(p, nil)
			}
			if sinks[0].n != b.N || sinks[n-1].n != b.N {
				b.Fatalf("%d and %d delivered of %d", sinks[0].n, sinks[n-1].n, b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/delivery")
		})
	}
}
