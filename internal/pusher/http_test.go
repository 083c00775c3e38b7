package pusher

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/limit"
)

func TestTrigger(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	a, b := w.dial(), w.dial()
	for _, p := range []*peer{a, b} {
		p.join("project-3", "")
		p.join("private-x", "")
	}
	w.trigger(`{"name":"foo","channels":["project-3"],"data":"{\"some\":\"d\u00e4ta \ud83d\ude00\"}"}`)
	for _, p := range []*peer{a, b} {
		if f := p.want("foo"); f.text(t) != `{"some":"däta 😀"}` || f.Channel != "project-3" || f.UserID != "" {
			t.Errorf("%+v", f)
		}
	}
	w.trigger(`{"name":"foo","channel":"project-3","data":"x","socket_id":"` + a.id + `"}`)
	b.want("foo")
	a.quiet()
	w.trigger(`{"name":"to both","channels":["private-x","project-3"],"data":"x"}`)
	if x, y := a.want("to both"), a.want("to both"); x.Channel != "private-x" || y.Channel != "project-3" {
		t.Errorf("%+v %+v", x, y)
	}
	w.trigger(`{"name":"once","channels":["project-3","elsewhere","project-3"],"data":"x"}`)
	a.want("once")
	a.quiet()
	if status, _ := w.call(signedCall{
		method: "POST", path: "/apps/1001/events", body: `{"name":"q","data":"x"}`, query: url.Values{"channels[]": {"project-3", "private-x"}},
	}); status != 200 {
		t.Error(status)
	}
	a.want("q")
	a.want("q")
}

// TestTriggerRefused: every limit, at it and above it.
func TestTriggerRefused(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	list := func(n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf(`"c%d"`, i))
		}
		return "[" + strings.Join(names, ",") + "]"
	}
	for _, c := range []struct {
		body string
		want int
	}{
		{``, 400},
		{`x`, 400},
		{`[]`, 400},
		{`{}`, 400},
		{`{"name":"n","data":"x"}`, 400},
		{`{"channels":["a"],"data":"x"}`, 400},
		{`{"name":"","channels":["a"],"data":"x"}`, 400},
		{`{"name":"n","channels":["a"]}`, 400},
		{`{"name":"n","channels":["a"],"data":{"x":1}}`, 400},
		{`{"name":"n","channels":["a"],"data":null}`, 400},
		{`{"name":"n","channels":"a","data":"x"}`, 400},
		{`{"name":"n","channels":["a"],"channel":"b","data":"x"}`, 400},
		{`{"name":"n","channels":["a","a"],"data":"x"}`, 200},
		{`{"name":"n","channels":["a b"],"data":"x"}`, 400},
		{`{"name":"n","channels":["#a"],"data":"x"}`, 400},
		{`{"name":"n","channels":["#server-to-user-"],"data":"x"}`, 400},
		{`{"name":"n","channels":["#server-to-user-ada@example.org"],"data":"x"}`, 200},
		{`{"name":"n","channels":["` + strings.Repeat("a", 200) + `"],"data":"x"}`, 200},
		{`{"name":"n","channels":["` + strings.Repeat("a", 201) + `"],"data":"x"}`, 400},
		{`{"name":"` + strings.Repeat("é", 200) + `","channels":["a"],"data":"x"}`, 200},
		{`{"name":"` + strings.Repeat("n", 201) + `","channels":["a"],"data":"x"}`, 400},
		{`{"name":"pusher:ping","channels":["a"],"data":"x"}`, 400},
		{`{"name":"pusher_internal:x","channels":["a"],"data":"x"}`, 400},
		{`{"name":"n","channels":` + list(100) + `,"data":"x"}`, 200},
		{`{"name":"n","channels":` + list(101) + `,"data":"x"}`, 400},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat("x", 10_240) + `"}`, 200},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat("x", 10_241) + `"}`, 413},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat(`\"`, 10_240) + `"}`, 200},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat(`\"`, 10_241) + `"}`, 413},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat(`é`, 5_120) + `"}`, 200},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat(`é`, 5_121) + `"}`, 413},
		{`{"name":"n","channels":["a"],"data":"` + strings.Repeat(`x`, 1<<20) + `"}`, 413},
		{`{"name":"n","channels":["a"],"data":"x","socket_id":"1"}`, 400},
		{`{"name":"n","channels":["a"],"data":"x","socket_id":"1.2.3"}`, 400},
		{`{"name":"n","channels":["a"],"data":"x","socket_id":"1.2\n"}`, 400},
		{`{"name":"n","channels":["a"],"data":"x","socket_id":"1.2"}`, 200},
		{"{\"name\":\"n\",\"channels\":[\"a\"],\"data\":\"\xff\"}", 400},
		{`{"name":"n","name":"m","channels":["a"],"data":"x"}`, 400},
		{`{"NAME":"n","channels":["a"],"data":"x"}`, 400},
		{`{"name":"n\ud800","channels":["a"],"data":"x"}`, 400},
		{`{"name":"n\u0000","channels":["a"],"data":"x"}`, 400},
		{`{"name":"n","channels":["a"],"data":"\ud800"}`, 200},
		{`{"name":"n","channels":["a"],"data":"x","socket_id":null,"info":null,"other":{"a":1,"a":2}}`, 200},
	} {
		if status, text := w.call(signedCall{method: "POST", path: "/apps/1001/events", body: c.body}); status != c.want {
			t.Errorf("%.100s: %d %s; want %d", c.body, status, text, c.want)
		}
	}
	w.configure(map[string]int64{"max_event_bytes": 5, "max_channels": 1, "max_event_name": 3, "max_channel_name": 4})
	for body, want := range map[string]int{
		`{"name":"abc","channels":["abcd"],"data":"12345"}`: 200, `{"name":"abcd","channels":["a"],"data":"x"}`: 400,
		`{"name":"n","channels":["abcde"],"data":"x"}`: 400, `{"name":"n","channels":["a","b"],"data":"x"}`: 400, `{"name":"n","channels":["a"],"data":"123456"}`: 413,
	} {
		if status, text := w.call(signedCall{method: "POST", path: "/apps/1001/events", body: body}); status != want {
			t.Errorf("%s: %d %s; want %d", body, status, text, want)
		}
	}
}

// TestSignatures: nothing is done for a call that the app's backend did not sign.
func TestSignatures(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	w := newSite(t, func(o *Options, _ *gateway.Options) { o.Now = func() time.Time { return now } })
	p := w.dial()
	p.join("a", "")
	base := signedCall{method: "POST", path: "/apps/1001/events", body: `{"name":"n","channels":["a"],"data":"x"}`}
	with := func(change func(*signedCall)) signedCall {
		c := base
		change(&c)
		return c
	}
	set := func(k, v string) signedCall {
		return with(func(c *signedCall) { c.bend = func(q url.Values) { q.Set(k, v) } })
	}
	del := func(k string) signedCall {
		return with(func(c *signedCall) { c.bend = func(q url.Values) { q.Del(k) } })
	}
	for name, c := range map[string]struct {
		call signedCall
		want int
	}{
		"no key":            {del("auth_key"), 401},
		"no time":           {del("auth_timestamp"), 401},
		"no version":        {del("auth_version"), 401},
		"no signature":      {del("auth_signature"), 401},
		"no sum":            {del("body_md5"), 401},
		"other sum":         {set("body_md5", strings.Repeat("0", 32)), 401},
		"other version":     {set("auth_version", "2.0"), 401},
		"other key":         {set("auth_key", "nobody"), 401},
		"another app's key": {with(func(c *signedCall) { c.key, c.secret = testKey+"2", testSecret+"2" }), 401},
		"a suspended app":   {with(func(c *signedCall) { c.path, c.key, c.secret = "/apps/1003/events", testKey+"3", testSecret+"3" }), 403},
		"no such app":       {with(func(c *signedCall) { c.path = "/apps/7/events" }), 401},
		"other secret":      {with(func(c *signedCall) { c.key, c.secret = testKey, "guess" }), 401},
		"other path":        {with(func(c *signedCall) { c.bend = func(q url.Values) { q.Set("more", "1") } }), 401},
		"cut signature":     {set("auth_signature", "12"), 401},
		"600 s ago":         {with(func(c *signedCall) { c.at = now.Add(-600 * time.Second) }), 200},
		"601 s ago":         {with(func(c *signedCall) { c.at = now.Add(-601 * time.Second) }), 401},
		"in 600 s":          {with(func(c *signedCall) { c.at = now.Add(600 * time.Second) }), 200},
		"in 601 s":          {with(func(c *signedCall) { c.at = now.Add(601 * time.Second) }), 401},
		"no number":         {set("auth_timestamp", "now"), 401},
		"another method":    {with(func(c *signedCall) { c.method = "PUT" }), 405},
		"no such call":      {with(func(c *signedCall) { c.path = "/apps/1001/nothing" }), 404},
		"parameters":        {with(func(c *signedCall) { c.query = url.Values{"Zeta": {"a b"}, "alpha": {"ü&="}} }), 200},
		"a repeat":          {with(func(c *signedCall) { c.query = url.Values{"x[]": {"2", "1"}} }), 200},
		"signed twice":      {with(func(c *signedCall) { c.bend = func(q url.Values) { q.Add("auth_signature", "x") } }), 400},
	} {
		if status, text := w.call(c.call); status != c.want {
			t.Errorf("%s: %d %s; want %d", name, status, text, c.want)
		}
		if c.want == 200 {
			p.want("n")
		}
	}
	p.quiet()
	// A key is no secret: who cannot sign does not make us read.
	target := w.signedURL(base.body)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, target[:len(target)-1]+"x", unread{t})
	r.ContentLength = 1000
	rec := httptest.NewRecorder()
	if w.door.ServeHTTP(rec, r); rec.Code != http.StatusUnauthorized {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestInfoIsChargedOnce: an answer with counts is made on a second way, where it may wait for other nodes, and is one call all the same.
func TestInfoIsChargedOnce(t *testing.T) {
	t.Parallel()
	count, plain := `{"name":"n","channel":"a","data":"x","info":"subscription_count"}`, `{"name":"n","channel":"a","data":"x"}`
	escaped := `{"name":"n","channel":"a","data":"x","\u0069nfo":"subscription_count"}`
	calls := []signedCall{
		{path: "/apps/1001/events", body: count},
		{path: "/apps/1001/events", body: plain},
		{path: "/apps/1001/events", body: escaped},
		{path: "/apps/1001/batch_events", body: `{"batch":[` + plain + `,` + escaped + `]}`},
		{path: "/apps/1001/events", body: `{"name":"n","channel":"a","data":"\"info\"","info":""}`},
		{path: "/apps/1001/events", body: `{`},
		{method: "GET", path: "/apps/1001/channels"},
		{method: "GET", path: "/apps/1001/channels", query: url.Values{"info": {"unknown"}}},
	}
	w := newSite(t, func(_ *Options, g *gateway.Options) { g.AppRate = limit.Rate{PerSecond: 1e-6, Burst: len(calls)} })
	for i, c := range calls {
		if c.method == "" {
			c.method = "POST"
		}
		want := http.StatusOK
		if c.body == "{" || c.query != nil {
			want = http.StatusBadRequest
		}
		if status, text := w.call(c); status != want {
			t.Fatalf("call %d: %d %s", i, status, text)
		}
	}
	for i, c := range calls {
		if c.method == "" {
			c.method = "POST"
		}
		if status, text := w.call(c); status != http.StatusTooManyRequests {
			t.Fatalf("call %d over the rate: %d %s", i, status, text)
		}
	}
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}

// TestNoWordsOfGo: what is not what a call takes is told in the words of who sends it.
func TestNoWordsOfGo(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	for body, want := range map[string]string{
		`[]`: "The body is a list: it must be a JSON object.", `{"batch":{}}`: "The batch is not a list of events.", `{}`: "The batch has no events: send batch, a list of them.",
		`{"batch":[7]}`:                   "Event 0 of the batch: The event is a number: it must be a JSON object.",
		`{"batch":[{"name":[]}]}`:         "Event 0 of the batch: The name of the event is a list: it must be a string.",
		`{"batch":[{"name":"a","data":1}`: "The body is not JSON, or ends too early.",
	} {
		if status, text := w.call(signedCall{method: "POST", path: "/apps/1001/batch_events", body: body}); status != 400 || !strings.Contains(text, `"detail":"`+want+`"`) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}
