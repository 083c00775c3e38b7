package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestSocketConversation(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"lobby","kind":"open"}`)
	s.post("ann", "lobby", "m1", "before")
	ann, bob := s.open("ann"), s.open("bob")

	ann.write(`{"op":"subscribe","id":1,"room":"lobby"}`)
	if f := ann.read(); f.Op != "ok" || f.ID != 1 || f.Head != 2 || f.Room != "lobby" || f.Epoch == "" {
		t.Fatalf("subscribe from now: %+v", f)
	}
	bob.write(`{"op":"subscribe","id":7,"room":"lobby","after":0}`)
	if f := bob.read(); f.Op != "ok" || f.ID != 7 {
		t.Fatalf("subscribe from the beginning: %+v", f)
	}
	types := func(p *peer, n int) (out []string) {
		for range n {
			f := p.read()
			out = append(out, fmt.Sprint(f.Op, " ", f.Room, " ", f.Seq, " ", f.Type))
		}
		return out
	}
	if diff := cmp.Diff([]string{"event lobby 1 room.created", "event lobby 2 message.new"}, types(bob, 2)); diff != "" {
		t.Fatal(diff)
	}
	bob.write(`{"op":"send","id":8,"room":"lobby","message":{"id":"m2","text":"hi"}}`)
	var ok heard
	var events []string
	for range 3 { // the answer and the two events come in any order
		if f := bob.read(); f.Op == "ok" {
			ok = f
		} else {
			events = append(events, f.Type)
		}
	}
	if ok.ID != 8 || ok.Message.Seq != 4 || ok.Message.Text != "hi" || ok.Repeated || ok.Position == "" {
		t.Fatalf("answer to a message: %+v", ok)
	}
	if diff := cmp.Diff([]string{"member.added", "message.new"}, events); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff([]string{"event lobby 3 member.added", "event lobby 4 message.new"}, types(ann, 2)); diff != "" {
		t.Fatal(diff)
	}
	bob.write(`{"op":"send","id":9,"room":"lobby","message":{"id":"m2","text":"hi"}}`)
	if f := bob.read(); f.Op != "ok" || !f.Repeated || f.Message.Seq != 4 {
		t.Fatalf("repeat: %+v", f)
	}
	ann.write(`{"op":"unsubscribe","id":2,"room":"lobby"}`)
	if f := ann.read(); f.Op != "ok" || f.ID != 2 {
		t.Fatalf("unsubscribe: %+v", f)
	}
	s.post("bob", "lobby", "m3", "unheard")
	ann.write(`{"op":"ping","id":3}`)
	if f := ann.read(); f.Op != "pong" || f.ID != 3 {
		t.Fatalf("ping: %+v", f)
	}
	ann.write(`{"op":"subscribe","id":4,"room":"lobby","after":4}`)
	if f := ann.read(); f.Op != "ok" || f.Head != 5 {
		t.Fatalf("%+v", f)
	}
	if f := ann.read(); f.Seq != 5 {
		t.Fatalf("resumed at %+v", f)
	}
}

// TestEventsAreReplaysByteForByte: what a subscriber hears live is what a replay shows.
func TestEventsAreReplaysByteForByte(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open","custom":{"b":[1,2],"a":"<&>"}}`)
	live := s.open("bob")
	live.write(`{"op":"subscribe","id":1,"room":"r","after":0}`)
	live.read()
	s.post("ann", "r", "m1", "x < y & ü")
	s.post("cid", "r", "m2", "joins")
	s.ask("PATCH", "/v1/rooms/r/messages/m1", `{"text":"edited"}`, s.as("ann"))
	var first []heard
	for range 5 {
		first = append(first, live.read())
	}
	late := s.open("dan")
	late.write(`{"op":"subscribe","id":1,"room":"r","after":0}`)
	late.read()
	for i := range first {
		if f := late.read(); string(f.Data) != string(first[i].Data) || f.Seq != first[i].Seq || f.Type != first[i].Type {
			t.Fatalf("event %d\nlive   %s\nreplay %s", i, first[i].Data, f.Data)
		}
	}
}

func TestSocketHello(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.Heartbeat = conn.Heartbeat{Interval: 25 * time.Second, Grace: 10 * time.Second, Epoch: 3}
	})
	for name, dial := range map[string]func() (*peer, error){
		"query":  func() (*peer, error) { return s.dial("?token="+s.token("ann"), nil) },
		"header": func() (*peer, error) { return s.dial("", http.Header{"Authorization": {"Bearer " + s.token("ann")}}) },
		"frame": func() (*peer, error) {
			p, err := s.dial("?attempt=1", nil)
			if err == nil {
				p.write(fmt.Sprintf(`{"op":"auth","token":%q}`, s.token("ann")))
			}
			return p, err
		},
		"any first frame": func() (*peer, error) {
			p, err := s.dial("", nil)
			if err == nil {
				p.write(fmt.Sprintf(`{"op":"ping","token":%q}`, s.token("ann")))
			}
			return p, err
		},
	} {
		p, err := dial()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f := p.read()
		if f.Op != "hello" || f.User != "ann" || f.Conn == "" || f.Node != "n1" || f.Epoch == "" ||
			f.Heartbeat.IntervalMS != 25_000 || f.Heartbeat.GraceMS != 10_000 || f.Heartbeat.Epoch != 3 {
			t.Fatalf("%s: %+v", name, f)
		}
	}
}

func TestSocketTokens(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) { o.AuthTimeout = time.Millisecond })
	if _, err := s.dial("?token=nonsense", nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Fatalf("a bad token in the address: %v", err)
	}
	silent, err := s.dial("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if code := silent.ends(); code != conn.CloseUnauthenticated {
		t.Fatalf("no token at all: %v", code)
	}
	p, err := s.dial("?token="+s.shortToken("ann"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if code := p.ends(); code != conn.CloseTokenExpired {
		t.Fatalf("expired while connected: %v", code)
	}
}

func TestSocketFirstFrames(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	for frame, want := range map[string]struct {
		code petrel.Code
		end  conn.CloseCode
	}{
		`{"op":"auth","token":"x"}`:            {petrel.CodeInvalidToken, conn.CloseUnauthenticated},
		`{"op":"auth"}`:                        {petrel.CodeInvalidField, conn.CloseUnauthenticated},
		`{"op":"subscribe","id":1,"room":"r"}`: {petrel.CodeUnauthenticated, conn.CloseUnauthenticated},
		`{"op":"ping"}`:                        {petrel.CodeUnauthenticated, conn.CloseUnauthenticated},
		`nonsense`:                             {petrel.CodeInvalidJSON, conn.CloseUnauthenticated},
		`{"op":"ping","token":` + fmt.Sprintf("%q", s.token("ann")[:20]) + `}`: {petrel.CodeInvalidToken, conn.CloseUnauthenticated},
	} {
		p, err := s.dial("", nil)
		if err != nil {
			t.Fatal(err)
		}
		p.write(frame)
		if f := p.read(); f.Op != "error" || f.Code != string(want.code) {
			t.Errorf("%s: %+v", frame, f)
		}
		if code := p.ends(); code != want.end {
			t.Errorf("%s: ended with %v", frame, code)
		}
	}
}

func TestSocketRenewsItsToken(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	p, err := s.dial("?token="+s.tokenFor("1", "ann", 2*time.Second), nil)
	if err != nil {
		t.Fatal(err)
	}
	p.read()
	p.write(fmt.Sprintf(`{"op":"auth","id":1,"token":%q}`, s.token("bob")))
	if f := p.read(); f.Op != "error" || f.Code != string(petrel.CodeForbidden) {
		t.Fatalf("another user's token: %+v", f)
	}
	p.write(fmt.Sprintf(`{"op":"auth","id":2,"token":%q}`, s.token("ann")))
	if f := p.read(); f.Op != "ok" || f.ID != 2 {
		t.Fatalf("a younger token: %+v", f)
	}
	<-time.After(3500 * time.Millisecond) // the sweep is by the second, and expiry by the wall's clock
	p.write(`{"op":"ping","id":3}`)
	if f := p.read(); f.Op != "pong" {
		t.Fatalf("the first token's end ended the connection: %+v", f)
	}
}

func TestSocketErrors(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.MaxSubscriptions, o.ReplayLimit, o.Alone = 1, 2, func() bool { return true }
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	s.room("ann", `{"id":"den","kind":"private"}`)
	s.room("ann", `{"id":"r2","kind":"open"}`)
	for i := range 3 {
		s.post("ann", "r", fmt.Sprint("m", i), "x")
	}
	p := s.open("bob")
	for _, c := range []struct{ frame, code string }{
		{`{"op":"subscribe","id":5,"room":"nope"}`, "room_not_found"},
		{`{"op":"subscribe","id":5,"room":"den"}`, "room_not_found"},
		{`{"op":"send","id":5,"room":"den","message":{"text":"x"}}`, "room_not_found"},
		{`{"op":"send","id":5,"room":"r","message":{"text":""}}`, "invalid_field"},
		{`{"op":"send","id":5,"room":"r","message":{"id":"m1","text":"mine"}}`, "id_reused"},
		{`{"op":"send","id":5,"room":"r","message":{"text":"` + strings.Repeat("x", chat.MaxText+1) + `"}}`, "too_large"},
		{`{"op":"typing","id":5,"room":"r"}`, "invalid_field"}, // not subscribed
		{`{"op":"typing","id":5}`, "invalid_field"},
		{`{"op":"typing","id":5,"room":"r","active":"yes"}`, "invalid_field"},
		{`{"op":"read","id":5,"room":"r","seq":1}`, "invalid_field"},
		{`{"op":"subscribe","id":5,"room":"r","presence":1}`, "invalid_field"},
		{`{"op":"subscribe","id":5,"room":"r","position":""}`, "invalid_position"},
		{`{"op":"subscribe","id":5,"room":"r","position":"nobody gave it out"}`, "invalid_position"},
	} {
		p.write(c.frame)
		if f := p.read(); f.Op != "error" || f.ID != 5 || f.Code != c.code {
			t.Errorf("%.80s: %+v", c.frame, f)
		}
	}
	for frame, reason := range map[string]string{
		`{"op":"subscribe","id":6,"room":"r","after":99}`:             "ahead",
		`{"op":"subscribe","id":6,"room":"r","after":4,"epoch":"zz"}`: "epoch",
		`{"op":"subscribe","id":6,"room":"r","after":0}`:              "too_old",
	} {
		p.write(frame)
		if f := p.read(); f.Op != "ok" || f.ID != 6 || f.Head != 4 {
			t.Errorf("%s: %+v", frame, f)
		}
		if f := p.read(); f.Op != "resync" || f.Reason != reason || f.Room != "r" || f.Head != 4 {
			t.Errorf("%s: %+v", frame, f)
		}
	}
	p.write(`{"op":"subscribe","id":7,"room":"r"}`)
	p.read()
	p.write(`{"op":"subscribe","id":8,"room":"r"}`)
	if f := p.read(); f.Code != "invalid_field" || f.ID != 8 {
		t.Errorf("subscribed twice: %+v", f)
	}
	p.write(`{"op":"subscribe","id":9,"room":"r2"}`)
	if f := p.read(); f.Code != "limit_reached" || f.ID != 9 {
		t.Errorf("one too many: %+v", f)
	}
}

func TestSocketBadFrames(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	p := s.open("ann")
	for _, c := range []struct{ frame, code string }{
		{`{`, "invalid_json"},
		{`[]`, "invalid_json"},
		{`{"op":"ping","op":"ping"}`, "invalid_json"},
		{`{"op":"ping"}x`, "invalid_json"},
		{`{"op":"dance"}`, "invalid_field"},
		{`{"op":"ping","colour":1}`, "invalid_field"},
		{`{"op":"subscribe","room":"r","after":-1}`, "invalid_field"},
		{`{"op":"subscribe","room":"a b"}`, "invalid_id"},
		{`{"op":"ping","id":1.5}`, "invalid_field"},
		{`{}`, "invalid_field"},
	} {
		p.write(c.frame)
		if f := p.read(); f.Op != "error" || f.Code != c.code {
			t.Errorf("%s: %+v", c.frame, f)
		}
	}
	if code := p.ends(); code != conn.CloseBadFrames {
		t.Fatalf("after ten bad frames: %v", code)
	}
}

// TestPipelinedMessagesKeepTheirOrder: a burst of one sender comes out in the order in which it went in, also into an open room that
// the sender has yet to join.
func TestPipelinedMessagesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	const n = 500
	p := s.open("bob")
	go func() {
		for i := range n {
			p.write(fmt.Sprintf(`{"op":"send","id":%d,"room":"r","message":{"id":"m%d","text":"%d"}}`, i, i, i))
		}
	}()
	seqs := make([]uint64, n)
	for range n {
		f := p.read()
		if f.Op != "ok" {
			t.Fatalf("%+v", f)
		}
		seqs[f.ID] = f.Message.Seq
	}
	for i := range n {
		if want := uint64(i) + 3; seqs[i] != want { // room.created, member.added
			t.Fatalf("message %d has seq %d, want %d", i, seqs[i], want)
		}
	}
}

// slowDesk holds commands up until told, and counts how many it holds.
type slowDesk struct {
	Desk
	held    atomic.Int32
	release chan struct{}
}

func (d *slowDesk) Do(ctx context.Context, a petrel.Actor, m command.Meta, c command.Command) (command.Result, error) {
	d.held.Add(1)
	if m.Joined != nil {
		m.Joined()
	}
	select {
	case <-d.release:
	case <-ctx.Done():
	}
	d.held.Add(-1)
	return command.Result{Answer: chat.Message{}}, nil
}

func TestPipelineIsBounded(t *testing.T) {
	t.Parallel()
	desk := &slowDesk{release: make(chan struct{})}
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) { o.Desk = desk; o.MaxPipelined = 4 })
	p := s.open("ann")
	p.write(`{"op":"send","id":0,"room":"r","message":{"text":"first"}}`)
	desk.release <- struct{}{} // the first of a room is waited for
	p.read()
	go func() {
		for i := range 40 {
			p.write(fmt.Sprintf(`{"op":"send","id":%d,"room":"r","message":{"text":"x"}}`, i+1))
		}
	}()
	waitFor(t, func() bool { return desk.held.Load() == 4 })
	for range 100 {
		if n := desk.held.Load(); n > 4 {
			t.Fatalf("%d under way at once", n)
		}
	}
	close(desk.release)
	for range 40 {
		if f := p.read(); f.Op != "ok" {
			t.Fatalf("%+v", f)
		}
	}
}

func TestCommandsUnderWayAreBounded(t *testing.T) {
	t.Parallel()
	desk := &slowDesk{release: make(chan struct{})}
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.Desk = desk
		o.MaxInFlight = 100
		o.MaxInFlightOfApp = 2
	})
	answers := make(chan int, 3)
	for range 2 {
		go func() {
			r, err := s.try("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("ann"))
			if err != nil {
				t.Error(err)
			}
			answers <- r.StatusCode
		}()
	}
	waitFor(t, func() bool { return desk.held.Load() == 2 })
	if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("bob")).problem(t); status != 429 || code != petrel.CodeRateLimited {
		t.Fatalf("the third of an app: %d %s", status, code)
	}
	other := "Authorization: Bearer " + s.tokenFor("2", "ann", time.Hour)
	go func() {
		r, err := s.try("POST", "/v1/rooms/r/messages", `{"text":"x"}`, other)
		if err != nil {
			t.Error(err)
		}
		answers <- r.StatusCode
	}()
	waitFor(t, func() bool { return desk.held.Load() == 3 }) // another app is not held up
	close(desk.release)
	for range 3 {
		if status := <-answers; status >= 400 {
			t.Errorf("answered %d", status)
		}
	}
}

// TestRightsEndWhileSubscribed: who is removed hears of it and of nothing after; a deleted room ends for all.
func TestRightsEndWhileSubscribed(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"den","kind":"private","members":["bob"]}`)
	ann, bob := s.open("ann"), s.open("bob")
	for _, p := range []*peer{ann, bob} {
		p.write(`{"op":"subscribe","id":1,"room":"den"}`)
		if f := p.read(); f.Op != "ok" {
			t.Fatalf("%+v", f)
		}
	}
	hears := func(p *peer, types ...string) {
		t.Helper()
		for _, want := range types {
			if f := p.read(); f.Type != want {
				t.Fatalf("%+v instead of %s", f, want)
			}
		}
	}
	// Who is still catching up when the right ends may not hear of the event that ended it, but always that it ended, and nothing after. What came
	// before is therefore heard before.
	ends := func(p *peer, last, code string) {
		t.Helper()
		f := p.read()
		if f.Type == last {
			f = p.read()
		}
		if f.Op != "unsubscribed" || f.Code != code {
			t.Fatalf("%+v instead of the end", f)
		}
	}
	s.post("ann", "den", "m1", "hello bob")
	hears(ann, "message.new")
	hears(bob, "message.new")
	s.ask("DELETE", "/v1/rooms/den/members/bob", "", s.as("ann"))
	s.post("ann", "den", "m2", "he is gone")
	ends(bob, "member.removed", "room_not_found")
	bob.write(`{"op":"ping","id":2}`)
	if f := bob.read(); f.Op != "pong" {
		t.Fatalf("bob hears on: %+v", f)
	}
	hears(ann, "member.removed", "message.new")
	s.ask("DELETE", "/v1/rooms/den", "", s.as("ann"))
	ends(ann, "room.deleted", "room_deleted")
}

func TestSuspendedAppLosesItsConnections(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	p := s.open("ann")
	late, err := s.dial("?token="+s.tokenFor("2", "ann", time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	late.read()
	if _, err := s.desk.Do(t.Context(), petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, identity.SuspendApp{App: "1", Reason: "floods"}); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(); code != conn.CloseForbidden {
		t.Fatalf("ended with %v", code)
	}
	late.write(`{"op":"ping","id":1}`)
	if f := late.read(); f.Op != "pong" {
		t.Fatalf("another app's connection: %+v", f)
	}
}

// TestRetiredKeyEndsItsConnections: who holds a leaked secret keeps nothing of it: no socket, no stream. Another key's connections stay.
func TestRetiredKeyEndsItsConnections(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	old := s.open("ann")
	stream := s.listen(t, "rooms=r", s.as("ann"))
	stream()
	operator, retired := petrel.Actor{Kind: petrel.ActorOperator}, s.keys["1"].Key
	add := identity.NewAddKey("1", "", "")
	if _, err := s.desk.Do(t.Context(), operator, command.Meta{}, add); err != nil {
		t.Fatal(err)
	}
	s.keys["1"] = add.Pair
	young := s.open("ann")
	if _, err := s.desk.Do(t.Context(), operator, command.Meta{}, identity.RetireKey{App: "1", Key: retired}); err != nil {
		t.Fatal(err)
	}
	if code := old.ends(); code != conn.CloseUnauthenticated {
		t.Fatalf("the socket ended with %v", code)
	}
	if e := stream(); e.event != "close" || !strings.Contains(e.data, "4001") {
		t.Fatalf("the stream ended with %+v", e)
	}
	young.write(`{"op":"ping","id":1}`)
	if f := young.read(); f.Op != "pong" {
		t.Fatalf("another key's connection: %+v", f)
	}
}

// fickle accepts every token the first time, and never again: the key was retired in between.
type fickle struct {
	mu    sync.Mutex
	known map[string]bool
}

func (f *fickle) Token(_ context.Context, token string) (gateway.Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[token] {
		return gateway.Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "The token does not verify.")
	}
	f.known[token] = true
	return gateway.Credential{Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "ann"}, Expires: time.Now().Add(time.Hour)}, nil
}

func (f *fickle) Key(context.Context, string, string, petrel.UserID) (gateway.Credential, error) {
	return gateway.Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "There are no keys.")
}

// TestKeyRetiredWhileConnecting: a credential that ends after its check, and before the connection is where AppChanged looks, is no way in.
func TestKeyRetiredWhileConnecting(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(_ *Options, g *gateway.Options, _ *conn.Options) { g.Auth = &fickle{known: map[string]bool{}} })
	p, err := s.dial("?token=address", nil)
	if err != nil {
		t.Fatal(err)
	}
	if code := p.ends(); code != conn.CloseUnauthenticated {
		t.Errorf("token in the address: %v", code)
	}
	p, err = s.dial("", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.write(`{"op":"auth","token":"frame"}`)
	if code := p.ends(); code != conn.CloseUnauthenticated {
		t.Errorf("token in the first frame: %v", code)
	}
}

// TestLongResume: a resume far larger than the queue arrives whole, while messages keep coming.
func TestLongResume(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(_ *Options, g *gateway.Options, c *conn.Options) {
		g.UserRate = limit.Rate{PerSecond: 1e6, Burst: 1e6}
		c.QueueFrames = 512
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	const n = 3_000
	p := s.open("ann")
	go func() {
		for i := range n {
			p.write(fmt.Sprintf(`{"op":"send","id":%d,"room":"r","message":{"text":"x"}}`, i))
		}
	}()
	for range n {
		if f := p.read(); f.Op != "ok" {
			t.Fatalf("%+v", f)
		}
	}
	q := s.open("bob")
	q.write(`{"op":"subscribe","id":1,"room":"r","after":0}`)
	if f := q.read(); f.Op != "ok" || f.Head != n+1 {
		t.Fatalf("%+v", f)
	}
	posted := make(chan error, 1)
	go func() {
		var err error
		for i := range 20 {
			_, perr := s.try("POST", "/v1/rooms/r/messages", fmt.Sprintf(`{"id":"live%d","text":"y"}`, i), s.as("ann"))
			err = errors.Join(err, perr)
		}
		posted <- err
	}()
	for seq := uint64(1); seq <= n+21; seq++ {
		if f := q.read(); f.Op != "event" || f.Seq != seq {
			t.Fatalf("want event %d, got %+v", seq, f)
		}
	}
	if err := <-posted; err != nil {
		t.Fatal(err)
	}
}

func TestDrainSaysReconnect(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	p := s.open("ann")
	drained := make(chan error, 1)
	go func() { drained <- s.gateway.Drain(t.Context(), 0) }()
	if f := p.read(); f.Op != "reconnect" || f.Reason != "drain" {
		t.Fatalf("%+v", f)
	}
	if code := p.ends(); code != conn.CloseReconnect {
		t.Fatalf("ended with %v", code)
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
}

func TestPanicsStayInside(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) { o.Desk = panicDesk{} })
	if status, code := s.ask("POST", "/v1/rooms", `{"kind":"open"}`, s.as("ann")).problem(t); status != 500 || code != petrel.CodeInternal {
		t.Fatalf("%d %s", status, code)
	}
	p := s.open("ann")
	p.write(`{"op":"send","id":1,"room":"r","message":{"text":"x"}}`)
	if code := p.ends(); code != conn.CloseInternal {
		t.Fatalf("ended with %v", code)
	}
}

type panicDesk struct{}

func (panicDesk) Do(context.Context, petrel.Actor, command.Meta, command.Command) (command.Result, error) {
	panic("bug")
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("it never came to be")
		case <-time.After(time.Millisecond):
		}
	}
}

// FuzzFrame: no frame makes the reader panic, and what it lets through keeps the rules.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		`{"op":"subscribe","id":1,"room":"lobby","after":41,"epoch":"x","position":"AAAB","presence":true}`, `{"op":"typing","room":"lobby","active":false}`, `{"op":"send","id":2,"room":"lobby","message":{"id":"a","text":"hi","custom":{"a":[1]},"mentions":["bob"]}}`,
		`{"op":"auth","token":"x"}`, `{"op":"ping"}`, `{"op":"ping","id":9007199254740993}`, `{"op":"read","seq":null}`, `{"op":"send","room":"a","message":null}`, `{"\u006fp":"ping"}`, `{"op":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := parseFrame(in)
		if err != nil {
			if code := petrel.CodeOf(err); code == petrel.CodeInternal {
				t.Fatalf("a refusal without a code: %v", err)
			}
			return
		}
		if _, known := fields[got.op]; !known {
			t.Fatalf("op %q got through", got.op)
		}
		if got.room != "" {
			if _, err := petrel.ParseRoomID(string(got.room)); err != nil {
				t.Fatalf("room %q got through", got.room)
			}
		}
		if got.op == "send" {
			_, _, _ = got.message.command(got.room)
		}
	})
}
