package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// sse is one event of a stream.
type sse struct{ id, event, data string }

// listen opens a stream and returns a function that reads the next event, skipping comments.
func (s *stack) listen(t *testing.T, query string, headers ...string) func() sse {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/events?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	defer time.AfterFunc(patience, cancel).Stop()
	resp, err := s.client.Do(req) //nolint:bodyclose // closed with the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() (e sse) {
		t.Helper()
		defer time.AfterFunc(patience, cancel).Stop()
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.event = value
			case "data":
				e.data = value
			case "":
				if e.data != "" {
					return e
				}
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return e
	}
}

func TestEventStream(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"a","kind":"open"}`)
	s.room("ann", `{"id":"b","kind":"open"}`)
	next := s.listen(t, "rooms=a,b&token="+s.token("ann"))
	hello := next()
	if hello.event != "hello" || !strings.Contains(hello.data, `"user":"ann"`) {
		t.Fatalf("%+v", hello)
	}
	s.post("ann", "a", "m1", "x")
	first := next()
	s.post("ann", "b", "m2", "y")
	second := next()
	s.post("ann", "a", "m3", "z")
	third := next()
	life := string(s.store.Applied().Epoch) + "/"
	ids := []string{first.id, second.id, third.id}
	if diff := cmp.Diff([]string{life + "a~2,b~1", life + "a~2,b~2", life + "a~3,b~2"}, ids); diff != "" {
		t.Fatal(diff)
	}
	var e struct {
		Room, Type, At string
		Seq            uint64
		Data           json.RawMessage
	}
	if err := json.Unmarshal([]byte(third.data), &e); err != nil || e.Room != "a" || e.Seq != 3 || e.Type != "message.new" || len(e.At) != len(timeLayout) {
		t.Fatalf("%s %v", third.data, err)
	}
	again := s.listen(t, "rooms=a,b", s.as("ann"), "Last-Event-ID: "+first.id)
	again()
	got := map[string]bool{}
	for range 2 {
		e := again()
		got[e.data] = true
	}
	if !got[second.data] || !got[third.data] {
		t.Fatalf("resumed with %v", got)
	}
	fresh := s.listen(t, "rooms=a&last_event_id=a~0&token="+s.token("ann"))
	fresh()
	if e := fresh(); e.id != life+"a~1" || !strings.Contains(e.data, "room.created") {
		t.Fatalf("from the beginning: %+v", e)
	}
}

func TestEventStreamRefusals(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"a","kind":"open"}`)
	s.room("ann", `{"id":"den","kind":"private"}`)
	many := make([]string, maxStreamRooms+1)
	for i := range many {
		many[i] = fmt.Sprint("r", i)
	}
	for _, c := range []struct {
		query string
		code  petrel.Code
	}{
		{"", petrel.CodeInvalidField},
		{"rooms=", petrel.CodeInvalidField},
		{"rooms=a,a", petrel.CodeInvalidField},
		{"rooms=a,", petrel.CodeInvalidID},
		{"rooms=a%20b", petrel.CodeInvalidID},
		{"rooms=" + strings.Join(many, ","), petrel.CodeInvalidField},
		{"rooms=nope", petrel.CodeRoomNotFound},
		{"rooms=a,den", petrel.CodeRoomNotFound},
		{"rooms=a&presence=yes", petrel.CodeInvalidField},
		{"rooms=a&position=x", petrel.CodeInvalidPosition},
		{"rooms=a&last_event_id=a", petrel.CodeInvalidField},
		{"rooms=a&last_event_id=a~-1", petrel.CodeInvalidField},
		{"rooms=a&last_event_id=e/", petrel.CodeInvalidField},
		{"rooms=a&last_event_id=e/f/a~1", petrel.CodeInvalidField},
	} {
		if _, code := s.ask("GET", "/v1/events?"+c.query, "", s.as("bob")).problem(t); code != c.code {
			t.Errorf("%.60s: %s, want %s", c.query, code, c.code)
		}
	}
}

func TestEventStreamEnds(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, _ *gateway.Options, _ *conn.Options) {
		o.ReplayLimit, o.Alone = 1, func() bool { return true }
	})
	s.room("ann", `{"id":"den","kind":"private","members":["bob"]}`)
	next := s.listen(t, "rooms=den", s.as("bob"))
	next()
	s.ask("DELETE", "/v1/rooms/den/members/bob", "", s.as("ann"))
	e := next()
	if strings.Contains(e.data, "member.removed") { // not heard by a stream that was still catching up
		e = next()
	}
	if e.event != "unsubscribed" || !strings.Contains(e.data, "room_not_found") {
		t.Fatalf("%+v", e)
	}
	life := string(s.store.Applied().Epoch)
	for id, reason := range map[string]string{
		"den~99": "ahead", "den~0": "too_old", life + "/den~99": "ahead", life + "/den~0": "too_old",
		"0123456789abcdef/den~2": "epoch", "/den~0": "too_old",
	} {
		next := s.listen(t, "rooms=den&last_event_id="+id, s.as("ann"))
		next()
		if e := next(); e.event != "resync" || !strings.Contains(e.data, reason) {
			t.Fatalf("%s: %+v", id, e)
		}
	}
}

// TestEventStreamEndsWithItsToken: a token that runs out while the stream is open ends it, with the code that says why.
func TestEventStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"den","kind":"open"}`)
	short := s.listen(t, "rooms=den&token="+s.shortToken("ann"))
	if e := short(); e.event != "hello" {
		t.Fatalf("%+v", e)
	}
	if e := short(); e.event != "close" || !strings.Contains(e.data, "4002") {
		t.Fatalf("an expired token: %+v", e)
	}
}

// FuzzStrictJSON: what it lets through is one object that encoding/json reads, and reads alike when its keys are looked at one by one.
func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":{"b":[1,{"c":null}]}}`, `{"a":1,"a":2}`, `{"a":"\ud83d\ude00"}`, `{"a":"\\ud83d"}`, `{"\ud83d":1}`, `[]`, `{} x`, `{"a":[[[[]]]]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if strictJSON(in) != nil {
			return
		}
		var v map[string]any
		if err := json.Unmarshal(in, &v); err != nil {
			t.Fatalf("let through what is not an object: %v", err)
		}
		if b, err := json.Marshal(v); err != nil || strings.ContainsRune(string(b), '\uFFFD') && !strings.ContainsRune(string(in), '\uFFFD') && !strings.Contains(strings.ToLower(string(in)), `\ufffd`) {
			t.Fatalf("a character was replaced silently: %q became %q (%v)", in, b, err)
		}
	})
}
