package api

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// next is the position of the entry that this stack will apply next: what a client brings that saw it on a node that is ahead.
func (s *stack) next(by uint64) string {
	at := s.store.Applied()
	return petrel.Position{Epoch: at.Epoch, Index: at.Index + by}.String()
}

// TestSubscribeWaitsForWhatAnotherNodeGave: who brings a place that this node has not reached waits for it, and goes on exactly there.
func TestSubscribeWaitsForWhatAnotherNodeGave(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) { o.PositionWait = patience })
	s.room("ann", `{"id":"r","kind":"open"}`)
	epoch := s.store.Applied().Epoch
	head := uint64(1)
	for i, how := range []func() string{
		func() string { return fmt.Sprintf(`"after":%d,"epoch":%q`, head+1, epoch) },                          // it was delivered elsewhere, says the client
		func() string { return fmt.Sprintf(`"after":%d,"epoch":%q,"position":%q`, head+1, epoch, s.next(1)) }, // and so says the position
		func() string { return fmt.Sprintf(`"position":%q`, s.next(1)) },
	} {
		begin := how()
		p := s.open("bob")
		p.write(`{"op":"subscribe","id":1,"room":"r",` + begin + `}`)
		answered := make(chan heard, 1)
		go func() {
			f, err := p.tryRead()
			if err != nil {
				f.Detail = err.Error()
			}
			answered <- f
		}()
		select {
		case f := <-answered:
			t.Fatalf("%s: it did not wait: %+v", begin, f)
		case <-time.After(100 * time.Millisecond):
		}
		seq := s.post("ann", "r", fmt.Sprint("m", i), "x")
		if f := <-answered; f.Op != "ok" || f.Head != seq || f.Position == "" {
			t.Fatalf("%s: %+v", begin, f)
		}
		s.post("ann", "r", fmt.Sprint("n", i), "y")
		if f := p.read(); f.Op != "event" || f.Seq != seq+1 {
			t.Fatalf("%s: %+v", begin, f)
		}
		head = seq + 1
	}
	stream := make(chan func() sse, 1)
	at := s.store.Applied()
	head = s.post("ann", "r", "before", "x")
	go func() {
		stream <- s.listen(t, fmt.Sprintf("rooms=r&last_event_id=%s/r~%d&position=%s", at.Epoch, head, s.next(1)), s.as("bob"))
	}()
	select {
	case <-stream:
		t.Fatal("the stream did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	s.post("ann", "r", "after", "y")
	var next func() sse
	select {
	case next = <-stream:
	case <-time.After(patience):
		t.Fatal("the stream never came")
	}
	next()
	if e := next(); !strings.HasSuffix(e.id, fmt.Sprint("r~", head+1)) {
		t.Fatalf("%+v", e)
	}
}

// TestSubscribeGivesUp: what never comes is told: by a time to come back when somebody knows of it, by resync when nobody does.
func TestSubscribeGivesUp(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.PositionWait = 50 * time.Millisecond
		o.Settle = func(context.Context) error {
			if away.Load() {
				return petrel.ErrNotAppended
			}
			return nil
		}
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	epoch := s.store.Applied().Epoch
	p := s.open("bob")
	for range 2 { // the second at once: the position is known to be far
		p.write(`{"op":"subscribe","id":1,"room":"r","after":1,"position":"` + s.next(50) + `"}`)
		if f := p.read(); f.Code != string(petrel.CodeTimeout) || f.RetryAfterMS < 1 {
			t.Fatalf("%+v", f)
		}
	}
	p.write(`{"op":"subscribe","id":2,"room":"r","after":9,"epoch":"` + string(epoch) + `"}`)
	if f := p.read(); f.Op != "ok" {
		t.Fatalf("%+v", f)
	}
	if f := p.read(); f.Op != "resync" || f.Reason != "ahead" {
		t.Fatalf("%+v", f)
	}
	away.Store(true) // from the leader: nobody here can know that it never was
	p.write(`{"op":"subscribe","id":2,"room":"r","after":9,"epoch":"` + string(epoch) + `"}`)
	if f := p.read(); f.Code != string(petrel.CodeTimeout) || f.RetryAfterMS < 1 {
		t.Fatalf("%+v", f)
	}
	elsewhere := petrel.Position{Epoch: "0123456789abcdef", Index: 1}.String()
	p.write(`{"op":"subscribe","id":3,"room":"r","after":1,"epoch":"0123456789abcdef","position":"` + elsewhere + `"}`)
	if f := p.read(); f.Op != "ok" {
		t.Fatalf("%+v", f)
	}
	if f := p.read(); f.Op != "resync" || f.Reason != "epoch" {
		t.Fatalf("%+v", f)
	}
	p.write(`{"op":"subscribe","id":4,"room":"r","position":"` + elsewhere + `"}`)
	if f := p.read(); f.Code != string(petrel.CodeEpoch) {
		t.Fatalf("%+v", f)
	}
	if status, code := s.ask("GET", "/v1/events?rooms=r&position="+s.next(50), "", s.as("bob")).problem(t); status != 503 || code != petrel.CodeTimeout {
		t.Fatalf("a stream: %d %s", status, code)
	}
}
