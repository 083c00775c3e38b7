package pusher

import (
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
)

// TestHandshake: P1, P2, P4 to P7: what is refused is refused after the upgrade, by a close code.
func TestHandshake(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	for _, c := range []struct {
		path string
		code websocket.StatusCode
	}{
		{"/app/nobody" + query, 4001},
		{"/app/" + testKey + "3" + query, 4003},
		{"/app/" + testKey + "/more" + query, 4005},
		{"/app/" + query, 4005},
		{"/app/" + testKey + "?protocol=x", 4006},
		{"/app/" + testKey + "?protocol=-7", 4006},
		{"/app/" + testKey + "?version=x.1", 4006},
		{"/app/" + testKey + "?protocol=3", 4007},
		{"/app/" + testKey + "?protocol=8", 4007},
		{"/app/" + testKey + "?version=0.9", 4007},
		{"/app/" + testKey, 4008},
		{"/app/" + testKey + "?client=js", 4008},
	} {
		p := w.open(c.path)
		if f := p.want("pusher:error"); f.code() != int(c.code) {
			t.Errorf("%s: %s", c.path, f.Data)
		}
		if _, end := p.read(); end != c.code {
			t.Errorf("%s: closed with %d, want %d", c.path, end, c.code)
		}
	}
	for _, path := range []string{query, "?protocol=4", "?protocol=5", "?version=1.12", "?protocol=6", "?version=8.6.0", "?version=2.0&client=js"} {
		w.open("/app/" + testKey + path).want("pusher:connection_established")
	}
	a, b := w.dial(), w.dial()
	if a.id == b.id {
		t.Error("two connections with one socket id")
	}
	res, err := w.client.Get(w.url + "/app/" + testKey + query)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 400 {
		t.Errorf("a plain request: %d", res.StatusCode)
	}
}

// TestCompressed: a client that reads compressed frames hears what the others hear, from the same publications.
func TestCompressed(t *testing.T) {
	t.Parallel()
	w := newSite(t, func(_ *Options, g *gateway.Options) { g.Conns = conn.NewTable(conn.Options{Deflate: true}) })
	var all []*peer
	for _, mode := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionContextTakeover, websocket.CompressionNoContextTakeover} {
		p := w.openWith("/app/"+testKey+query, mode)
		p.want("pusher:connection_established")
		p.say(`{"event":"pusher:subscribe","data":{"channel":"cache-` + strings.Repeat("long", 30) + `"}}`)
		p.want("pusher_internal:subscription_succeeded")
		p.want("pusher:cache_miss")
		all = append(all, p)
	}
	packed := 0
	w.door.Conns().Each(func(c *conn.Conn) {
		if c.Deflates() {
			packed++
		}
	})
	if packed != 2 {
		t.Fatalf("%d connections read compressed frames", packed)
	}
	for _, data := range []string{"short", strings.Repeat("long é€𝄞 ", 500)} {
		w.trigger(`{"name":"news","channel":"cache-` + strings.Repeat("long", 30) + `","data":"` + data + `"}`)
		for i, p := range all {
			if got := p.want("news").text(t); got != data {
				t.Fatalf("client %d got %d bytes of %d", i, len(got), len(data))
			}
		}
	}
	late := w.openWith("/app/"+testKey+query, websocket.CompressionNoContextTakeover)
	late.want("pusher:connection_established")
	late.say(`{"event":"pusher:subscribe","data":{"channel":"cache-` + strings.Repeat("long", 30) + `"}}`)
	late.want("pusher_internal:subscription_succeeded")
	if got := late.want("news").text(t); len(got) < 500 {
		t.Fatalf("the cached event has %d bytes", len(got))
	}
}

// TestSubscribe: the channels that need no more than a signature, and every way in which it can be wrong.
func TestSubscribe(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	p := w.dial()
	for _, name := range []string{"a", "private-a", "private-encrypted-a", "-_=@,.;", strings.Repeat("x", 200)} {
		if data := p.join(name, ""); data != "{}" {
			t.Errorf("%s: %s", name, data)
		}
	}
	p.ask("a", "") // twice
	p.want("pusher:subscription_error")
	p.wantError(0)
	for _, name := range []string{"", " ", "a b", "a/b", "é", "#a", "#server-to-user-", strings.Repeat("x", 201)} {
		p.ask(name, "")
		p.wantError(0)
	}
	good := p.auth("private-b", "")
	key, mac, _ := strings.Cut(good, ":")
	other := w.dial()
	for _, auth := range []string{
		"", ":", key, key + ":", key + ":" + mac[1:], key + ":" + mac + "00", mac, "nobody:" + mac, testKey + "2:" + mac,
		testKey + "2:" + sign(testSecret+"2", p.id+":private-b"), // another app's
		other.auth("private-b", ""), p.auth("private-c", ""), p.auth("private-b", "x"),
	} {
		p.sayf(`{"event":"pusher:subscribe","data":{"channel":"private-b","auth":%q}}`, auth)
		f := p.want("pusher:subscription_error")
		if f.Channel != "private-b" || !strings.Contains(f.text(t), `"status":401`) || strings.Contains(f.text(t), testSecret) {
			t.Errorf("%+v", f)
		}
		p.wantError(4009)
	}
	p.join("private-b", "")
	// As some libraries write it: data within a string.
	p.say(`{"event":"pusher:subscribe","data":"{\"channel\":\"c\"}"}`)
	p.want("pusher_internal:subscription_succeeded")
	w.trigger(`{"name":"n","channels":["a"],"data":"x"}`)
	p.want("n")
	p.say(`{"event":"pusher:unsubscribe","data":{"channel":"a"}}`)
	p.say(`{"event":"pusher:unsubscribe","data":{"channel":"never"}}`)
	p.quiet()
	w.trigger(`{"name":"n","channels":["a"],"data":"x"}`)
	p.quiet()
	p.join("a", "")
}

// TestDataIsReadOneWay: what the protocol's own events have as data is refused where it could be read in two ways; null is nothing, and other keys are left alone.
func TestDataIsReadOneWay(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	p := w.dial()
	member, user := "{\"user_id\":\"\ufffd\"}", "{\"id\":\"\ufffd\"}" // as a decoder reads half of a character
	for _, text := range []string{
		`{"event":"pusher:subscribe","data":{"channel":"a","channel":"b"}}`,
		`{"event":"pusher:subscribe","data":{"channel":"a","ch\u0061nnel":"b"}}`,
		`{"event":"pusher:subscribe","data":{"Channel":"a"}}`,
		`{"event":"pusher:subscribe","data":"{\"channel\":\"a\",\"channel\":\"b\"}"}`,
		`{"event":"pusher:subscribe","data":"{\"channel\":\"a\",\"x\":\"\ud800\"}"}`,
		`{"event":"pusher:subscribe","data":{"channel":"presence-a","auth":"` + p.auth("presence-a", member) + `","channel_data":"{\"user_id\":\"\ud800\"}"}}`,
		`{"event":"pusher:signin","data":{"auth":"` + testKey + ":" + sign(testSecret, p.id+"::user::"+user) + `","user_data":"{\"id\":\"\ud800\"}"}}`,
		`{"event":"pusher:subscribe","data":null}`,
		`{"event":"pusher:subscribe","data":"null"}`,
	} {
		p.say(text)
		p.wantError(0)
	}
	p.say(`{"event":"pusher:subscribe","data":{"auth":null,"channel_data":null,"x":1,"x":2,"AUTH":[],"channel":"a"}}`)
	p.want("pusher_internal:subscription_succeeded")
	p.say(`{"event":"pusher:unsubscribe","data":{"channel":"b","channel":"a"}}`)
	p.wantError(0)
	w.trigger(`{"name":"n","channel":"a","data":"x"}`)
	p.want("n")
}

func TestSubscriptionsAreBounded(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.configure(map[string]int64{"max_subscriptions": 2})
	p := w.dial()
	p.join("a", "")
	p.join("b", "")
	p.ask("c", "")
	p.want("pusher:subscription_error")
	p.wantError(0)
	p.say(`{"event":"pusher:unsubscribe","data":{"channel":"a"}}`)
	p.join("c", "")
}

// TestFrames: H2, H3, and frames that are not of the protocol: ten of them end the connection.
func TestFrames(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	p := w.dial()
	p.say(`{"event":"pusher:ping","data":{}}`)
	if f := p.want("pusher:pong"); string(f.Data) != "{}" {
		t.Errorf("%s", f.Data)
	}
	p.say(`{"event":"pusher:pong","data":"{}"}`)
	p.quiet()
	for range 3 { // not of the protocol, but frames
		for _, text := range []string{
			`{"event":"pusher:nothing"}`, `{"event":"hello","channel":"a"}`, `{"event":"pusher:subscribe"}`, `{"event":"pusher:subscribe","data":[]}`, `{"event":"pusher:unsubscribe","data":"x"}`,
		} {
			p.say(text)
			p.wantError(0)
		}
	}
	for _, text := range []string{``, `x`, `[]`, `null`, `{}`, `{"event":1}`, `{"event":""}`, `"pusher:ping"`, `{"event":"x"`} {
		p.say(text)
		p.wantError(0)
	}
	p.quiet()
	p.say(`{`)
	p.wantError(0)
	if _, end := p.read(); end != 4010 {
		t.Errorf("closed with %d", end)
	}
}

// TestClientEvents: who may send them, how many, who gets them and how.
func TestClientEvents(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	a, b := w.dial(), w.dial()
	for _, p := range []*peer{a, b} {
		p.join("private-a", "")
		p.join("public", "")
		p.join("private-encrypted-a", "")
	}
	say := func(event, channel, data string) {
		a.sayf(`{"event":%q,"channel":%q,"data":%s}`, event, channel, data)
	}
	for _, c := range []struct{ data, want string }{
		{`{"x": 1}`, `{"x": 1}`}, {`"text"`, "text"}, {`"{\"x\":1}"`, `{"x":1}`}, {`null`, "null"}, {`[1,"é"]`, `[1,"é"]`},
	} {
		say("client-x", "private-a", c.data)
		if f := b.want("client-x"); f.text(t) != c.want || f.Channel != "private-a" || f.UserID != "" {
			t.Errorf("%s: %+v", c.data, f)
		}
	}
	a.say(`{"event":"client-x","channel":"private-a"}`)
	b.want("client-x")
	a.quiet() // not echoed
	for _, channel := range []string{"public", "private-encrypted-a", "private-b", ""} {
		say("client-x", channel, "1")
		a.wantError(4301)
	}
	say("client-x", "private-a", `"`+strings.Repeat("x", 10_241)+`"`)
	a.wantError(4301)
	say("client-"+strings.Repeat("x", 194), "private-a", "1")
	a.wantError(4301)
	b.quiet()

	c := w.dial() // the eleventh in a second
	c.join("private-a", "")
	for range 11 {
		c.say(`{"event":"client-y","channel":"private-a","data":1}`)
	}
	for range 10 {
		b.want("client-y")
	}
	c.wantError(4301)
	c.quiet() // and it is still there

	w.configure(map[string]int64{"client_events": 0})
	say("client-x", "private-a", "1")
	for range 11 {
		if f, _ := a.read(); f.Event == "pusher:error" {
			if f.code() != 4301 {
				t.Errorf("%s", f.Data)
			}
			break
		}
	}
	b.quiet()
}

// TestAppChanges: a connection ends when its app is suspended, or its key retired; others stay.
func TestAppChanges(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.fold(event.AppKeyAdded{App: "1001", Key: "second", Secret: "second-secret"})
	p := w.dial()
	second := w.open("/app/second" + query)
	second.want("pusher:connection_established")
	// Either key's signature is good on either connection.
	p.sayf(`{"event":"pusher:subscribe","data":{"channel":"private-a","auth":"second:%s"}}`, sign("second-secret", p.id+":private-a"))
	p.want("pusher_internal:subscription_succeeded")
	w.fold(event.AppKeyRetired{App: "1001", Key: "second"})
	if _, end := second.read(); end != 4001 {
		t.Errorf("a retired key: closed with %d", end)
	}
	p.quiet()
	w.fold(event.AppSuspended{App: "1001"})
	if _, end := p.read(); end != 4003 {
		t.Errorf("a suspended app: closed with %d", end)
	}
}

// TestQuota: more connections than the app may have are told 4004, and those who leave make room.
func TestQuota(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.configure(map[string]int64{"max_connections": 2})
	a := w.dial()
	w.dial()
	p := w.open("/app/" + testKey + query)
	p.wantError(4004)
	if _, end := p.read(); end != 4004 {
		t.Errorf("closed with %d", end)
	}
	w.open("/app/" + testKey + "2" + query).want("pusher:connection_established")
	a.ws.Close(websocket.StatusNormalClosure, "")
	for {
		p := w.open("/app/" + testKey + query)
		if f, _ := p.read(); f.Event == "pusher:connection_established" {
			break
		}
		p.read()
	}
}

func TestManyFromOneAddress(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	for range 600 { // the burst of strangers is 500
		w.dial().ws.CloseNow()
	}
}
