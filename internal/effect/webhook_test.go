package effect

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// received is one call that a receiver got.
type received struct {
	header http.Header
	body   string
}

// receiver is the backend of an app. Without an answer it says 200.
type receiver struct {
	*httptest.Server
	answer http.HandlerFunc
	mu     sync.Mutex
	calls  []received
}

func newReceiver(t *testing.T, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		r.calls = append(r.calls, received{req.Header.Clone(), string(b)})
		r.mu.Unlock()
		if req.Method != http.MethodPost {
			t.Errorf("a webhook came as %s", req.Method)
		}
		if r.answer != nil {
			r.answer(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) got() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.calls...)
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// hooksOf is a directory of one app with one webhook.
type hooksOf struct {
	mu      sync.Mutex
	hook    identity.Hook
	pair    identity.KeyPair
	removed string
	logs    bytes.Buffer
}

func (d *hooksOf) options() WebhookOptions {
	return WebhookOptions{
		Hook: func(app petrel.AppID, id petrel.HookID) (identity.Hook, bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.hook, d.removed == "" && app == d.hook.App && id == d.hook.ID
		},
		Sign: func(petrel.AppID) (identity.KeyPair, bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.pair, true
		},
		Remove: func(_ context.Context, h identity.Hook, reason string) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if h.Made == d.hook.Made {
				d.removed = reason
			}
			return nil
		},
		Event: func(_ context.Context, _ petrel.AppID, room petrel.RoomID, seq uint64) (petrel.Publication, bool, error) {
			if seq > 10 {
				return petrel.Publication{}, false, nil
			}
			return petrel.Publication{
				Channel: petrel.RoomChannel("1", room), Seq: seq, Type: "message.new", At: time.UnixMilli(1_700_000_000_123),
				Data: fmt.Appendf(nil, `{"id":"m","seq":%d,"text":"a <b>"}`, seq),
			}, true, nil
		},
		Allow: loopback, Linger: time.Millisecond, Version: "test",
		Logger: slog.New(slog.NewTextHandler(&d.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func hookAt(url string) *hooksOf {
	return &hooksOf{
		hook: identity.Hook{App: "1", ID: "h", URL: url, Events: []string{"*"}, Made: 7},
		pair: identity.KeyPair{Key: "278d425bdf160c739803", Secret: "7ad3773142a6692b25b8"},
	}
}

func jobFor(n int, body string) job.Job {
	return job.Job{ID: job.ID(n), App: "1", Kind: KindWebhook, Target: "h/7", Event: fmt.Sprint("event-", n), Attempts: 1, QueuedAt: 1_327_078_148_132 + int64(n), Body: []byte(body)}
}

const occupied = `{"name":"channel_occupied","channel":"my-channel"}`

// TestWebhookCall: what a receiver gets, to the byte.
func TestWebhookCall(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	d := hookAt(r.URL + "/in?token=do-not-log")
	w := NewWebhooks(d.options())
	defer w.Close()
	if err := w.Run(t.Context(), jobFor(1, occupied), 3); err != nil {
		t.Fatal(err)
	}
	j := jobFor(2, `{"name":"message.new","room":"lobby"}`)
	j.Seq = 9
	d.mu.Lock()
	d.pair = identity.KeyPair{Key: "newer", Secret: "another-secret"}
	d.mu.Unlock()
	if err := w.Run(t.Context(), j, 1); err != nil {
		t.Fatal(err)
	}
	calls := r.got()
	want := []string{
		`{"time_ms":1327078148133,"events":[{"event_id":"event-1","name":"channel_occupied","channel":"my-channel"}]}`,
		`{"time_ms":1327078148134,"events":[{"event_id":"event-2","name":"message.new","room":"lobby","seq":9,"at":"2023-11-14T22:13:20.123Z","data":{"id":"m","seq":9,"text":"a <b>"}}]}`,
	}
	for i, secret := range []string{"7ad3773142a6692b25b8", "another-secret"} {
		if calls[i].body != want[i] {
			t.Errorf("call %d:\n got %s\nwant %s", i, calls[i].body, want[i])
		}
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(want[i]))
		h := calls[i].header
		got := []string{h.Get("X-Pusher-Key"), h.Get("X-Pusher-Signature"), h.Get("Content-Type"), h.Get("User-Agent"), h.Get("Petrel-Event-Id"), h.Get("Petrel-Attempt")}
		if d := cmp.Diff([]string{[]string{"278d425bdf160c739803", "newer"}[i], hex.EncodeToString(mac.Sum(nil)), "application/json", "Petrel/test", fmt.Sprint("event-", i+1), []string{"3", "1"}[i]}, got); d != "" {
			t.Error(d)
		}
	}
	if s := d.logs.String(); strings.Contains(s, "do-not-log") || strings.Contains(s, "secret") {
		t.Error("a secret is in the log:", s)
	}
}

// TestWebhookSignature is the computed example of Pusher's documentation.
func TestWebhookSignature(t *testing.T) {
	t.Parallel()
	body := envelope([]told{{at: 1327078148132, body: []byte(occupied)}})
	mac := hmac.New(sha256.New, []byte("7ad3773142a6692b25b8"))
	mac.Write(body)
	if got := hex.EncodeToString(mac.Sum(nil)); got != "c19001ae3963ccb13bf618e5b16ba9848e7e74df0993aa0689168e341c6833cf" {
		t.Errorf("%s is signed %s", body, got)
	}
}

// TestWebhookAnswers: what follows from each answer.
func TestWebhookAnswers(t *testing.T) {
	t.Parallel()
	type outcome string
	const (
		done, fails, dead outcome = "done", "fails", "dead"
	)
	for _, c := range []struct {
		status int
		header string
		want   outcome
		after  time.Duration
	}{
		{200, "", done, 0},
		{201, "", done, 0},
		{204, "", done, 0},
		{299, "", done, 0},
		{302, "", fails, 0}, // without saying where
		{304, "", fails, 0},
		{400, "", fails, 0},
		{401, "", fails, 0},
		{404, "", fails, 0},
		{410, "", dead, 0},
		{429, "30", fails, 30 * time.Second},
		{429, "", fails, 0},
		{429, "soon", fails, 0},
		{429, "-1", fails, 0},
		{500, "30", fails, 0},
		{503, "0", fails, 0},
		{503, "99999999", fails, time.Hour},
		{503, "99999999999999999999999", fails, 0},
		{503, "Fri, 31 Dec 1999 23:59:59 GMT", fails, time.Second},
		{503, "Fri, 31 Dec 9999 23:59:59 GMT", fails, time.Hour},
	} {
		t.Run(fmt.Sprint(c.status, c.header), func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.header != "" {
					w.Header().Set("Retry-After", c.header)
				}
				w.WriteHeader(c.status)
			})
			d := hookAt(r.URL)
			w := NewWebhooks(d.options())
			defer w.Close()
			err := w.Run(t.Context(), jobFor(1, occupied), 1)
			got := fails
			var never permanent
			var retry Retry
			switch {
			case err == nil:
				got = done
			case errors.As(err, &never):
				got = dead
			}
			if got != c.want {
				t.Errorf("%s: %v", got, err)
			}
			if is := errors.As(err, &retry); is != (c.after > 0) || is && retry.After != c.after {
				t.Errorf("again after %v (%v), want %v", retry.After, is, c.after)
			}
			if (d.removed != "") != (c.status == 410) {
				t.Errorf("removed: %q", d.removed)
			}
		})
	}
}

// TestWebhookOfAnotherLife: what waits for a webhook that was removed is dead, also when there is another by its id.
func TestWebhookOfAnotherLife(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	d := hookAt(r.URL)
	w := NewWebhooks(d.options())
	defer w.Close()
	for _, change := range []func(j *job.Job){
		func(j *job.Job) { j.Target = "h/6" },
		func(j *job.Job) { j.Target = "other/7" },
		func(j *job.Job) { j.Target = "h" },
		func(j *job.Job) { j.App = "2" },
		func(j *job.Job) { j.Body = nil },
		func(j *job.Job) { j.Body = []byte(`x`) },
		func(j *job.Job) { j.Body, j.Seq = []byte(`{"name":"message.new","room":"lobby"}`), 11 },
	} {
		j := jobFor(1, occupied)
		change(&j)
		var never permanent
		if err := w.Run(t.Context(), j, 1); !errors.As(err, &never) {
			t.Errorf("%+v: %v", j, err)
		}
	}
	if len(r.got()) > 0 {
		t.Error("called:", r.got())
	}
}

// TestPublic: what may be called without anybody's leave.
func TestPublic(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "93.184.216.34": true, "1.1.1.1": true, "2606:2800:220:1:248:1893:25c8:1946": true, "64:ff9b::808:808": true, "::ffff:8.8.8.8": true,
		"0.0.0.0": false, "0.1.2.3": false, "127.0.0.1": false, "127.255.0.1": false, "10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.100.100.200": false, "100.127.255.255": false, "192.0.0.192": false, "192.0.2.1": false, "192.88.99.1": false,
		"198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false,
		"255.255.255.255": false, "168.63.129.16": false,
		"::": false, "::1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:169.254.169.254": false, "::127.0.0.1": false, "::8.8.8.8": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b::a00:1": false, "64:ff9b:1::808:808": false, "2002:7f00:1::": false, "2002:808:808::": false,
		"2001::1": false, "2001:0:4136:e378:8000:63bf:3fff:fdd2": false, "2001:db8::1": false, "3fff::1": false, "100::1": false, "fc00::1": false, "fd00:ec2::254": false,
		"fe80::1": false, "fe80::1%eth0": false, "2606:2800::1%eth0": false, "fec0::1": false, "ff02::1": false, "4000::1": false, "5f00::1": false, "::ffff:0:7f00:1": false,
	} {
		if got := public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is public: %v", addr, got)
		}
	}
}

// TestWebhookRefuses: nothing that is not public is dialled, whatever name leads there.
func TestWebhookRefuses(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	_, port, _ := net.SplitHostPort(r.Listener.Addr().String())
	for _, host := range []string{
		"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]", "10.0.0.1", "169.254.169.254",
		"rebinds.example", "private.example", "mixed.example", "mapped.example", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "none.example", "fails.example",
	} {
		d := hookAt("http://" + host + ":" + port + "/")
		o := d.options()
		o.Allow = nil
		o.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			switch host {
			case "none.example":
				return nil, nil
			case "fails.example":
				return nil, errors.New("no such host on resolver 10.9.9.9")
			case "mapped.example":
				return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, nil
			case "mixed.example":
				return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.0.0.1")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil // also what inet_aton makes of odd numbers
		}
		w := NewWebhooks(o)
		err := w.Run(t.Context(), jobFor(1, occupied), 1)
		if err == nil || (!errors.Is(err, errNotPublic) && host != "none.example" && host != "fails.example") {
			t.Errorf("%s: %v", host, err)
		}
		if err != nil && (strings.Contains(err.Error(), "127.0.0.1") || strings.Contains(err.Error(), "10.")) {
			t.Errorf("%s: the error tells what the name means here: %v", host, err)
		}
		w.Close()
	}
	if calls := r.got(); len(calls) > 0 {
		t.Errorf("called %d times", len(calls))
	}
}

// TestCheckAddress: what is written as an address that may not be called is refused at once; what a name stands for is not asked.
func TestCheckAddress(t *testing.T) {
	t.Parallel()
	allow := prefixes("127.0.0.0/8", "fd00::/8")
	for url, ok := range map[string]bool{
		"http://127.0.0.1/": true, "http://127.9.9.9:8080/x": true, "http://[fd00::1]/": true, "http://[::ffff:127.0.0.1]/": true, "https://1.1.1.1/": true,
		"https://[2606:4700::1111]:8443/": true, "https://localhost/": true, "https://shop.example/": true,
		"http://10.0.0.1/": false, "http://169.254.169.254/latest": false, "http://[::1]/": false, "http://[::ffff:10.0.0.1]:80/": false, "http://0.0.0.0/": false,
		"http://[fe80::1%25eth0]/": false, "http://[64:ff9b::7f00:1]/": false,
	} {
		if err := CheckAddress(allow, url); (err == nil) != ok || !ok && petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := CheckAddress(nil, "http://[::ffff:127.0.0.1]/"); err == nil || !strings.Contains(err.Error(), "--webhook-allow 127.0.0.1/32.") {
		t.Errorf("what would allow it is not said: %v", err)
	}
}

// TestWebhookRebinding: a name that resolves to an allowed address the first time and to a private one the second is checked both times.
func TestWebhookRebinding(t *testing.T) {
	t.Parallel()
	open := newReceiver(t, nil)
	_, port, _ := net.SplitHostPort(open.Listener.Addr().String())
	d := hookAt("http://rebinds.example:" + port + "/")
	o := d.options()
	o.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	var asked atomic.Int32
	o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
		if asked.Add(1) == 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil // the receiver would answer there, too
	}
	w := NewWebhooks(o)
	defer w.Close()
	if err := w.Run(t.Context(), jobFor(1, occupied), 1); err != nil {
		t.Fatal(err)
	}
	w.Close() // the connection is not kept
	if err := w.Run(t.Context(), jobFor(2, occupied), 1); !errors.Is(err, errNotPublic) {
		t.Errorf("the second time: %v", err)
	}
	if asked.Load() != 2 || len(open.got()) != 1 {
		t.Errorf("asked %d times, called %d times", asked.Load(), len(open.got()))
	}
}

// TestWebhookRedirects: followed as they are meant, up to three, and never to what a webhook may not be.
func TestWebhookRedirects(t *testing.T) {
	t.Parallel()
	inner := newReceiver(t, nil)
	innerURL, err := url.Parse(inner.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, location string
		status         int
		good           bool
	}{
		{"there", inner.URL + "/x#fragment", 307, true},
		{"moved", inner.URL + "/x", 301, true},
		{"found", inner.URL + "/x", 302, true},
		{"permanent", inner.URL + "/x", 308, true},
		{"see other", inner.URL + "/x", 303, false},
		{"nowhere", "", 307, false},
		{"round and round", "/", 307, false},
		{"credentials", "http://user:pass@" + innerURL.Host, 307, false},
		{"scheme", "file:///etc/passwd", 307, false},
		{"gopher", "gopher://" + innerURL.Host, 307, false},
		{"private", "http://127.0.0.2:" + innerURL.Port(), 307, false}, // allowed is 127.0.0.1 alone
		{"metadata", "http://169.254.169.254/latest/meta-data/", 302, false},
		{"control", "http://\x7f/", 307, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Location"] = []string{c.location}
				w.WriteHeader(c.status)
			})
			d := hookAt(r.URL)
			o := d.options()
			o.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			w := NewWebhooks(o)
			defer w.Close()
			if err := w.Run(t.Context(), jobFor(1, occupied), 1); (err == nil) != c.good {
				t.Errorf("%v", err)
			}
			if n := len(r.got()); n > maxRedirects+1 {
				t.Errorf("called %d times", n)
			}
		})
	}
	t.Cleanup(func() {
		for _, c := range inner.got() {
			if c.header.Get("X-Pusher-Signature") == "" || !strings.HasPrefix(c.body, `{"time_ms":1327078148133,`) {
				t.Errorf("redirected as %v %q", c.header, c.body)
			}
		}
		if n := len(inner.got()); n != 4 {
			t.Errorf("%d calls arrived", n)
		}
	})
}

func TestNoDowngrade(t *testing.T) {
	t.Parallel()
	from, err := url.Parse("https://shop.example/a/b")
	if err != nil {
		t.Fatal(err)
	}
	if to, err := redirect(from, "http://shop.example/"); err == nil {
		t.Errorf("from https to %s", to)
	}
	if to, err := redirect(from, "../c?d=e"); err != nil || to.String() != "https://shop.example/c?d=e" {
		t.Errorf("%v, %v", to, err)
	}
}

// TestWebhookSlow: a receiver that says nothing, or never ends, holds a call no longer than its time.
func TestWebhookSlow(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	for name, answer := range map[string]http.HandlerFunc{
		"silent": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		},
		"huge headers": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 200 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
			}
		},
	} {
		r := newReceiver(t, answer)
		d := hookAt(r.URL)
		o := d.options()
		o.CallTimeout = 200 * time.Millisecond
		w := NewWebhooks(o)
		err := w.Run(t.Context(), jobFor(1, occupied), 1)
		var never permanent
		if err == nil || errors.As(err, &never) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "silent" && !strings.Contains(err.Error(), "no answer within 200ms") {
			t.Errorf("%s: %v", name, err)
		}
		w.Close()
	}
	close(release)

	// A body without an end is not read to its end; the status counts.
	r := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		junk := make([]byte, 32<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(junk); err != nil {
				return
			}
		}
	})
	d := hookAt(r.URL)
	w := NewWebhooks(d.options())
	defer w.Close()
	if err := w.Run(t.Context(), jobFor(1, occupied), 1); err != nil {
		t.Errorf("an endless answer: %v", err)
	}
}

// TestNoProxy: the proxy of the environment is not asked.
func TestNoProxy(t *testing.T) {
	t.Parallel()
	w := NewWebhooks(hookAt("http://x.example").options())
	defer w.Close()
	if w.caller.transport.Proxy != nil {
		t.Error("webhooks go to a proxy")
	}
}

// TestBatches: what is due together for a webhook that wants it goes in one call, in order, and everybody hears what came of it.
func TestBatches(t *testing.T) {
	t.Parallel()
	var status atomic.Int32
	status.Store(200)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	d := hookAt(r.URL)
	d.hook.Batch = true
	o := d.options()
	o.Linger, o.MaxBatch = time.Hour, 10 // a batch is full, or nothing goes
	w := NewWebhooks(o)
	defer w.Close()
	run := func(n int) (errs []error) {
		errs = make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				errs[i] = w.Run(t.Context(), jobFor(i+1, fmt.Sprintf(`{"name":"n%02d","channel":"c"}`, i+1)), i+1)
			})
		}
		all.Wait()
		return errs
	}
	for _, err := range run(20) {
		if err != nil {
			t.Error(err)
		}
	}
	calls := r.got()
	if len(calls) != 2 {
		t.Fatalf("%d calls", len(calls))
	}
	seen := map[string]bool{}
	for _, c := range calls {
		var e struct {
			Time   int64 `json:"time_ms"`
			Events []struct {
				ID   string `json:"event_id"`
				Name string `json:"name"`
			}
		}
		if err := json.Unmarshal([]byte(c.body), &e); err != nil || len(e.Events) != 10 {
			t.Fatalf("%v %s", err, c.body)
		}
		var ids []string
		for i, ev := range e.Events {
			ids = append(ids, ev.ID)
			seen[ev.ID] = true
			if i > 0 && ev.Name <= e.Events[i-1].Name {
				t.Errorf("out of order: %s", c.body)
			}
		}
		if got := c.header.Get("Petrel-Event-Id"); got != strings.Join(ids, ",") {
			t.Errorf("ids %s, events %v", got, ids)
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d events came", len(seen))
	}
	status.Store(500)
	for _, err := range run(10) {
		if err == nil || err.Error() != "the receiver answered 500" {
			t.Errorf("of a batch that failed: %v", err)
		}
	}
	// Whoever does not want batches gets none.
	d.mu.Lock()
	d.hook.Batch = false
	d.mu.Unlock()
	status.Store(200)
	before := len(r.got())
	run(3)
	if n := len(r.got()) - before; n != 3 {
		t.Errorf("%d calls for three events", n)
	}
}

// TestBatchLingers: one that nobody joins goes alone, after a moment; one whose runner ends, ends.
func TestBatchLingers(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	d := hookAt(r.URL)
	d.hook.Batch = true
	w := NewWebhooks(d.options())
	defer w.Close()
	if err := w.Run(t.Context(), jobFor(1, occupied), 1); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx, jobFor(2, occupied), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a batch that was ended: %v", err)
	}
	if len(w.open) > 0 {
		t.Error("a batch stays open")
	}
}
