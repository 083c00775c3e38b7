package pusher

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// roster is the data of a presence channel's subscription_succeeded.
type roster struct {
	Presence struct {
		IDs   []string                   `json:"ids"`
		Hash  map[string]json.RawMessage `json:"hash"`
		Count int                        `json:"count"`
	} `json:"presence"`
}

func (p *peer) enter(channel, data string) (r roster) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.join(channel, data)), &r); err != nil {
		p.t.Fatal(err)
	}
	if len(r.Presence.IDs) != r.Presence.Count || len(r.Presence.Hash) != r.Presence.Count || !slices.IsSorted(r.Presence.IDs) {
		p.t.Fatalf("%+v", r)
	}
	return r
}

// TestPresence: each user once, whatever the number of connections and nodes; the first one is told as added, the last one as removed.
func TestPresence(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		ann, bob, tab := one.dial(), two.dial(), two.dial()
		r := ann.enter("presence-a", `{"user_id":"ann","user_info":{"name":"Ann <\"é\">"}}`)
		if d := cmp.Diff([]string{"ann"}, r.Presence.IDs); d != "" || string(r.Presence.Hash["ann"]) != `{"name":"Ann <\"é\">"}` {
			t.Fatalf("%+v", r)
		}
		r = bob.enter("presence-a", `{"user_id":10}`)
		if d := cmp.Diff([]string{"10", "ann"}, r.Presence.IDs); d != "" || string(r.Presence.Hash["10"]) != "null" || string(r.Presence.Hash["ann"]) == "null" {
			t.Fatalf("%+v", r)
		}
		if f := ann.want("pusher_internal:member_added"); f.Channel != "presence-a" || f.text(t) != `{"user_id":"10","user_info":null}` {
			t.Fatalf("%+v", f)
		}
		tab.enter("presence-a", `{"user_id":"10"}`)
		ann.quiet()
		// A client event says who sent it, and only others hear it.
		bob.say(`{"event":"client-x","channel":"presence-a","data":{"a":1}}`)
		for _, p := range []*peer{ann, tab} {
			if f := p.want("client-x"); f.UserID != "10" || f.text(t) != `{"a":1}` {
				t.Fatalf("%+v", f)
			}
		}
		bob.quiet()
		if _, body := one.call(signedCall{method: "GET", path: "/apps/1001/channels/presence-a/users"}); body != `{"users":[{"id":"10"},{"id":"ann"}]}` {
			t.Error(body)
		}
		bob.ws.CloseNow()
		tab.say(`{"event":"pusher:unsubscribe","data":{"channel":"presence-a"}}`)
		if f := ann.want("pusher_internal:member_removed"); f.text(t) != `{"user_id":"10"}` {
			t.Fatalf("%+v", f)
		}
	})
}

// TestPresenceRefused: who cannot be a member.
func TestPresenceRefused(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.configure(map[string]int64{"max_members": 2, "max_user_bytes": 20})
	p := w.dial()
	for _, data := range []string{
		``, `x`, `{}`, `[]`, `{"user_id":""}`, `{"user_id":{}}`, `{"user_id":null}`, `{"user_id":"a","user_info":"` + strings.Repeat("x", 20) + `"}`,
		`{"user_id":"` + strings.Repeat("x", 129) + `"}`,
	} {
		p.ask("presence-a", data)
		p.want("pusher:subscription_error")
		p.want("pusher:error")
	}
	p.sayf(`{"event":"pusher:subscribe","data":{"channel":"presence-a","channel_data":"{\"user_id\":\"eve\"}","auth":%q}}`, p.auth("presence-a", `{"user_id":"ann"}`))
	p.want("pusher:subscription_error")
	p.wantError(4009)
	w.dial().enter("presence-a", `{"user_id":"ann"}`)
	w.dial().enter("presence-a", `{"user_id":"bob"}`)
	w.dial().enter("presence-a", `{"user_id":"bob"}`)
	p.ask("presence-a", `{"user_id":"eve"}`)
	if f := p.want("pusher:subscription_error"); !strings.Contains(f.text(t), `"type":"LimitReached"`) {
		t.Errorf("%s", f.Data)
	}
	p.want("pusher:error")
	p.enter("presence-b", `{"user_id":"eve"}`)
}

// TestCache: the last event of the app's backend comes right after the subscription, a miss is told and hooked.
func TestCache(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var missed []string
	everywhere(t, func(o *Options, _ *gateway.Options) {
		o.OnCacheMiss = func(app petrel.AppID, channel string) {
			mu.Lock()
			defer mu.Unlock()
			missed = append(missed, string(app)+"/"+channel)
		}
	}, func(t *testing.T, one, two *site) {
		for _, name := range []string{"cache-a", "private-cache-a", "private-encrypted-cache-a", "presence-cache-a"} {
			data := ""
			if strings.HasPrefix(name, "presence") {
				data = `{"user_id":"ann"}`
			}
			a := one.dial()
			a.join(name, data)
			if f := a.want("pusher:cache_miss"); f.Channel != name || f.Data != nil {
				t.Errorf("%+v", f)
			}
			one.trigger(fmt.Sprintf(`{"name":"n","channel":%q,"data":"1"}`, name))
			one.trigger(fmt.Sprintf(`{"name":"n","channel":%q,"data":"{\"p\":2}"}`, name))
			a.want("n")
			a.want("n")
			if strings.HasPrefix(name, "private-cache") { // a client's is not kept
				a.sayf(`{"event":"client-n","channel":%q,"data":"3"}`, name)
				a.quiet()
			}
			b := two.dial()
			b.join(name, data)
			if f := b.want("n"); f.Channel != name || f.text(t) != `{"p":2}` {
				t.Errorf("%+v", f)
			}
			_, body := two.call(signedCall{method: "GET", path: "/apps/1001/channels/" + name, query: url.Values{"info": {"cache"}}})
			var got struct {
				Cache struct {
					Data string
					TTL  int
				}
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil || got.Cache.Data != `{"p":2}` || got.Cache.TTL < 1700 || got.Cache.TTL > 1800 {
				t.Errorf("%s, %v", body, err)
			}
		}
		if _, body := two.call(signedCall{method: "GET", path: "/apps/1001/channels/cache-b", query: url.Values{"info": {"cache"}}}); body != `{"occupied":false,"cache":null}` {
			t.Error(body)
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		if len(missed) != 8 || missed[0] != "1001/cache-a" {
			t.Errorf("misses: %v", missed)
		}
	})
}

// TestCounts: where the app wants it, subscribers hear how many they are.
func TestCounts(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		for _, w := range []*site{one, two} {
			w.configure(map[string]int64{"subscription_count": 1})
		}
		a, b := one.dial(), two.dial()
		count := func(p *peer, n int) {
			t.Helper()
			for {
				f := p.want("pusher_internal:subscription_count")
				if f.Channel != "a" {
					t.Fatalf("%+v", f)
				}
				if f.text(t) == fmt.Sprintf(`{"subscription_count":%d}`, n) {
					return
				}
			}
		}
		a.join("a", "")
		count(a, 1)
		b.join("a", "")
		count(a, 2)
		count(b, 2)
		b.ws.CloseNow()
		count(a, 1)
	})
}

func (p *peer) signin(data string) {
	p.t.Helper()
	b, err := json.Marshal(map[string]any{"event": "pusher:signin", "data": map[string]string{"auth": testKey + ":" + sign(testSecret, p.id+"::user::"+data), "user_data": data}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.say(string(b))
}

// TestUsers: signing in, what is sent to a user, and the end of a user's connections over all nodes.
func TestUsers(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		ann, tab, bob := one.dial(), two.dial(), two.dial()
		ann.ask("#server-to-user-ann", "")
		ann.want("pusher:subscription_error")
		ann.wantError(4009)
		for _, p := range []*peer{ann, tab} {
			p.signin(`{"id":"ann","name":"é"}`)
			if f := p.want("pusher:signin_success"); f.text(t) != `{"user_data":"{\"id\":\"ann\",\"name\":\"é\"}"}` {
				t.Errorf("%s", f.Data)
			}
			p.join("#server-to-user-ann", "")
		}
		bob.signin(`{"id":"bob"}`)
		bob.want("pusher:signin_success")
		bob.ask("#server-to-user-ann", "")
		bob.want("pusher:subscription_error")
		bob.wantError(4009)
		bob.signin(`{"id":"eve"}`) // a second identity
		bob.wantError(0)
		bob.signin(`{"id":"bob"}`)
		bob.want("pusher:signin_success")
		for _, data := range []string{`{}`, `{"id":""}`, `{"id":1}`, `x`, `{"id":"` + strings.Repeat("x", 129) + `"}`} {
			ann.signin(data)
			ann.wantError(0)
		}
		ann.sayf(`{"event":"pusher:signin","data":{"user_data":"{\"id\":\"ann\"}","auth":%q}}`, bob.auth("x", ""))
		ann.wantError(4009)
		if status, _ := one.call(signedCall{method: "POST", path: "/apps/1001/events", body: `{"name":"n","channels":["#server-to-user-ann"],"data":"x"}`}); status != 200 {
			t.Error(status)
		}
		ann.want("n")
		tab.want("n")
		bob.quiet()
		for _, path := range []string{"/apps/1001/users/nobody/terminate_connections", "/apps/1001/users/a nn %/terminate_connections", "/apps/1001/users/ann/terminate_connections"} {
			if status, body := one.call(signedCall{method: "POST", path: path}); status != 200 || body != "{}" {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
		for _, p := range []*peer{ann, tab} {
			if _, end := p.read(); end != 4009 {
				t.Errorf("terminated with %d", end)
			}
		}
		bob.quiet()
	})
}

// TestWatchlist: those who are watched come and go; the first states are told together.
func TestWatchlist(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		bob := two.dial()
		bob.signin(`{"id":"bob"}`)
		bob.want("pusher:signin_success")
		ann := one.dial()
		ann.signin(`{"id":"ann","watchlist":["bob","eve","bob",""]}`)
		ann.want("pusher:signin_success")
		heard := func(want string) {
			t.Helper()
			if f := ann.want("pusher_internal:watchlist_events"); string(f.Data) != want {
				t.Errorf("%s; want %s", f.Data, want)
			}
		}
		heard(`{"events":[{"name":"online","user_ids":["bob"]},{"name":"offline","user_ids":["eve"]}]}`)
		eve := one.dial()
		eve.signin(`{"id":"eve"}`)
		heard(`{"events":[{"name":"online","user_ids":["eve"]}]}`)
		bob.ws.CloseNow()
		heard(`{"events":[{"name":"offline","user_ids":["bob"]}]}`)
	})
}

func TestWatchlistIsBounded(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	var ids []string
	for i := range 101 {
		ids = append(ids, fmt.Sprintf("u%03d", i))
	}
	list, err := json.Marshal(ids)
	if err != nil {
		t.Fatal(err)
	}
	p := w.dial()
	p.signin(`{"id":"ann","watchlist":` + string(list) + `}`)
	p.want("pusher:signin_success")
	told, warned := false, false
	for !told || !warned {
		switch f, _ := p.read(); f.Event {
		case "pusher:error":
			if warned = true; f.code() != 4302 {
				t.Errorf("%s", f.Data)
			}
		case "pusher_internal:watchlist_events":
			if told = true; !strings.Contains(string(f.Data), `"u099"`) || strings.Contains(string(f.Data), `"u100"`) {
				t.Errorf("%s", f.Data)
			}
		default:
			t.Fatalf("%+v", f)
		}
	}
	p.quiet()
}

// TestQueries: what there is, over all nodes.
func TestQueries(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		one.dial().join("a", "")
		two.dial().join("a", "")
		two.dial().enter("presence-p", `{"user_id":"ann"}`)
		one.dial().enter("presence-p", `{"user_id":"ann"}`)
		one.dial().enter("presence-p", `{"user_id":"b\"ob"}`)
		for _, c := range []struct {
			path, query string
			status      int
			want        string
		}{
			{"/channels", "", 200, `{"channels":{"a":{},"presence-p":{}}}`},
			{"/channels", "filter_by_prefix=presence-", 200, `{"channels":{"presence-p":{}}}`},
			{"/channels", "filter_by_prefix=presence-&info=user_count", 200, `{"channels":{"presence-p":{"user_count":2}}}`},
			{"/channels", "info=subscription_count", 200, `{"channels":{"a":{"subscription_count":2},"presence-p":{"subscription_count":3}}}`},
			{"/channels", "filter_by_prefix=nothing", 200, `{"channels":{}}`},
			{"/channels", "info=user_count", 400, ""},
			{"/channels", "info=cache", 400, ""},
			{"/channels", "info=x", 400, ""},
			{"/channels/a", "", 200, `{"occupied":true}`},
			{"/channels/b", "", 200, `{"occupied":false}`},
			{"/channels/a", "info=subscription_count", 200, `{"occupied":true,"subscription_count":2}`},
			{"/channels/a", "info=user_count", 400, ""},
			{"/channels/a", "info=cache", 400, ""},
			{"/channels/presence-p", "info=user_count,subscription_count", 200, `{"occupied":true,"user_count":2,"subscription_count":3}`},
			{"/channels/presence-p/users", "", 200, `{"users":[{"id":"ann"},{"id":"b\"ob"}]}`},
			{"/channels/presence-q/users", "", 200, `{"users":[]}`},
			{"/channels/a/users", "", 400, ""},
			{"/channels/a b", "", 400, ""},
		} {
			q, err := url.ParseQuery(c.query)
			if err != nil {
				t.Fatal(err)
			}
			status, body := one.call(signedCall{method: "GET", path: "/apps/1001" + c.path, query: q})
			if status != c.status || (c.want != "" && body != c.want) {
				t.Errorf("%s?%s: %d %s", c.path, c.query, status, body)
			}
		}
		for body, want := range map[string]string{
			`{"name":"n","channels":["presence-p","a","c"],"data":"x","info":"user_count,subscription_count"}`: `{"channels":{"presence-p":{"user_count":2},"a":{"subscription_count":2},"c":{"subscription_count":0}}}`,
			`{"name":"n","channel":"a","data":"x","info":"user_count"}`:                                        `{"channels":{"a":{}}}`,
		} {
			if status, got := two.call(signedCall{method: "POST", path: "/apps/1001/events", body: body}); status != 200 || got != want {
				t.Errorf("%s: %d %s", body, status, got)
			}
		}
	})
}

// TestBatch: all or nothing, answers in the order of the events, and a socket that is left out on whatever node it is.
// TestPartial: an answer that lacks what another node has says so.
func TestPartial(t *testing.T) {
	t.Parallel()
	net := bus.NewNetwork(1)
	a, b := newSite(t, nil), newSite(t, nil)
	meet(t, net, a, b)
	a.dial().join("a", "")
	for _, late := range []bool{false, true} {
		if late { // n2 lives, and answers after everybody has stopped waiting
			net.Shape("n2", "n1", bus.Link{Delay: 2 * time.Second})
		}
		for _, c := range []signedCall{
			{method: "GET", path: "/apps/1001/channels"},
			{method: "POST", path: "/apps/1001/events", body: `{"name":"n","channel":"a","data":"x","info":"subscription_count"}`},
		} {
			c.seen = func(h http.Header) {
				if got := h.Get("Petrel-Partial") == "true"; got != late {
					t.Errorf("%s %s: partial %v, want %v", c.method, c.path, got, late)
				}
			}
			if status, text := a.call(c); status != http.StatusOK {
				t.Errorf("%d %s", status, text)
			}
		}
	}
}

func TestBatch(t *testing.T) {
	t.Parallel()
	everywhere(t, nil, func(t *testing.T, one, two *site) {
		a, b := one.dial(), two.dial()
		for _, p := range []*peer{a, b} {
			p.join("a", "")
			p.join("b", "")
		}
		post := func(body string) (int, string) {
			return one.call(signedCall{method: "POST", path: "/apps/1001/batch_events", body: body})
		}
		status, body := post(`{"batch":[{"name":"1","channel":"a","data":"x","info":"subscription_count"},{"name":"2","channel":"b","data":"y","socket_id":"` + b.id + `"}]}`)
		if status != 200 || body != `{"batch":[{"subscription_count":2},{}]}` {
			t.Errorf("%d %s", status, body)
		}
		a.want("1")
		a.want("2")
		b.want("1")
		if status, body := post(`{"batch":[{"name":"3","channel":"a","data":"x"}]}`); status != 200 || body != "{}" {
			t.Errorf("%d %s", status, body)
		}
		a.want("3")
		b.want("3") // and not "2" before it
		event := `{"name":"n","channel":"a","data":"x"}`
		for body, want := range map[string]int{
			`{}`: 400, `{"batch":[]}`: 400, `{"batch":{}}`: 400, `{"batch":[` + event + `,{"name":"n"}]}`: 400,
			`{"batch":[` + event + `,{"name":"n","channels":["a"],"data":"x"}]}`:                                400,
			`{"batch":[` + strings.Repeat(event+",", 10) + event + `]}`:                                         400,
			`{"batch":[` + event + `,{"name":"n","channel":"a","data":"` + strings.Repeat("x", 10_241) + `"}]}`: 413,
		} {
			if status, text := post(body); status != want {
				t.Errorf("%.80s: %d %s; want %d", body, status, text, want)
			}
		}
		a.quiet()
		b.quiet()
		if status, _ := post(`{"batch":[` + strings.Repeat(event+",", 9) + event + `]}`); status != 200 {
			t.Error(status)
		}
		for range 10 {
			b.want("n")
		}
	})
}

// TestAuthorizedInTime: where the app wants it, a connection that shows no signature in time is closed for good.
func TestAuthorizedInTime(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.configure(map[string]int64{"authorized_connections": 1})
	late, joined, signed := w.dial(), w.dial(), w.dial()
	joined.join("private-a", "")
	signed.signin(`{"id":"ann"}`)
	signed.want("pusher:signin_success")
	late.join("a", "")
	if _, end := late.read(); end != 4009 {
		t.Errorf("closed with %d", end)
	}
	joined.quiet()
	signed.quiet()
}
