package pusher

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestWorkedSignatures: requests whose signatures Pusher's documentation, or a second implementation, computed (docs/pusher.md).
func TestWorkedSignatures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, target, body string
		app                  petrel.AppID
		key, secret          string
		at                   int64
		want                 string // the string that is signed
	}{
		{
			"POST", "/apps/3/events?auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
			`{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}`, "3", "278d425bdf160c739803", "7ad3773142a6692b25b8", 1353088179,
			"POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f",
		},
		{
			"POST", "/apps/1001/batch_events?auth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&body_md5=7b3f1cf49b4197806cd091d5b686e467&auth_signature=b0aac4edcec2c149773d575e9939e2a63990faa7215197f847dfba543331a1a4",
			`{"batch":[{"channel":"private-room-1","name":"message","data":"{\"text\":\"hi\"}"},{"channel":"cache-ticker","name":"tick","data":"{\"p\":42}","info":"subscription_count"}]}`,
			"1001", testKey, testSecret, 1700000000,
			"POST\n/apps/1001/batch_events\nauth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&body_md5=7b3f1cf49b4197806cd091d5b686e467",
		},
		{
			"GET", "/apps/1001/channels?info=user_count&filter_by_prefix=presence-&auth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&auth_signature=f3b59bd3ede21942d883e4cd47aa84441d6be5347f7b2bc498411ff550549b73",
			"", "1001", testKey, testSecret, 1700000000,
			"GET\n/apps/1001/channels\nauth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&filter_by_prefix=presence-&info=user_count",
		},
		{
			"POST", "/apps/1001/users/u-42/terminate_connections?auth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&auth_signature=f48a77c7e38b9483870ab443eb6510df9a5213413ec93db9ac84b9a5d58ea894",
			"", "1001", testKey, testSecret, 1700000000,
			"POST\n/apps/1001/users/u-42/terminate_connections\nauth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0",
		},
		{
			"POST", "/apps/1001/users/u-42/terminate_connections?AUTH_KEY=petrel-key&auth_timestamp=1700000000&auth_version=1.0&body_md5=99914b932bd37a50b983c5e7c90ae93b&auth_signature=33E7AA1C3336A87E73CD4E146777338FC4B48EEC64E8AB8E7520E0FCC2DBC00A",
			"{}", "1001", testKey, testSecret, 1700000000,
			"POST\n/apps/1001/users/u-42/terminate_connections\nauth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&body_md5=99914b932bd37a50b983c5e7c90ae93b",
		},
	} {
		s := &Server{opt: Options{Apps: oneApp{c.app, c.key, identity.Secret(c.secret)}, Now: func() time.Time { return time.Unix(c.at, 0).Add(599 * time.Second) }}, metrics: newMetrics(nil)}
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader(c.body))
		ps, signature, err := parseParams(r.URL.RawQuery)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(ps.message(nil, r.Method, r.URL.Path)); got != c.want {
			t.Errorf("signed is\n%s\nwant\n%s", got, c.want)
		}
		if err := s.checkClaims(c.app, ps, signature); err != nil {
			t.Errorf("%s: %v", c.target, err)
		}
		if err := s.checkSignature(r, &call{app: c.app, params: ps}, signature); err != nil {
			t.Errorf("%s: %v", c.target, err)
		}
		if err := s.checkSum(&call{app: c.app, params: ps, body: []byte(c.body)}); err != nil {
			t.Errorf("%s: %v", c.target, err)
		}
		if err := s.checkSum(&call{app: c.app, params: ps, body: []byte(c.body + " ")}); petrel.CodeOf(err) != petrel.CodeInvalidToken {
			t.Errorf("%s with another body: %v", c.target, err)
		}
	}
}

// oneApp is one app with one key.
type oneApp struct {
	app    petrel.AppID
	key    string
	secret identity.Secret
}

func (a oneApp) AppOfKey(key string) (petrel.AppID, error) {
	if key != a.key {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "No.")
	}
	return a.app, nil
}

func (a oneApp) Verify(key string, message []byte, hexMAC string) (petrel.AppID, error) {
	if key != a.key || !strings.EqualFold(hexMAC, sign(string(a.secret), string(message))) {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "No.")
	}
	return a.app, nil
}

func (oneApp) Settings(petrel.AppID) *identity.Settings {
	s := identity.DefaultSettings()
	return &s
}

// FuzzParams: no query panics; what is signed names every parameter once, sorted, and never the signature.
func FuzzParams(f *testing.F) {
	f.Add("a=1&b=2&auth_signature=x")
	f.Add("channels[]=b&channels[]=a&Channels%5B%5D=c")
	f.Add("%zz=1&&=&a")
	f.Add("auth_signature=1&AUTH_signature=2")
	f.Fuzz(func(t *testing.T, raw string) {
		ps, _, err := parseParams(raw)
		if err != nil {
			if petrel.CodeOf(err) != petrel.CodeInvalidField {
				t.Fatal(err)
			}
			return
		}
		for i, p := range ps {
			if p.name == "auth_signature" || p.name != strings.ToLower(p.name) || (i > 0 && ps[i-1].name > p.name) {
				t.Fatalf("%q: %+v", raw, ps)
			}
		}
		if q, err := url.ParseQuery(raw); err == nil && len(q) > 0 && len(ps.message(nil, "GET", "/")) < len("GET\n/\n") {
			t.Fatal("no message")
		}
	})
}

// FuzzFrame: no frame of a client panics, ends the connection by itself, or is answered with what is not JSON.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		`{"event":"pusher:subscribe","data":{"channel":"a"}}`, `{"event":"pusher:subscribe","data":"{\"channel\":\"presence-a\",\"auth\":\"k:s\",\"channel_data\":\"{}\"}"}`,
		`{"event":"client-x","channel":"private-a","data":"\ud83d\ude00\u0000"}`, `{"event":"pusher:signin","data":{"auth":"k:s","user_data":"{\"id\":\"1\"}"}}`,
		`{"event":"pusher:ping"}`, `{"event":"\ud800","data":"\udfff"}`, `[]`, `{"event":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		frame, err := parseFrame(payload)
		if err != nil {
			return
		}
		w, _ := readWish(frame.Data)
		if len(frame.Data) == 0 {
			return
		}
		data := asString(frame.Data)
		out := appendEvent(nil, frame.Event, frame.Channel, data, w.Channel)
		again, err := parseFrame(out)
		if err != nil || again.Event != frame.Event || again.Channel != frame.Channel {
			t.Fatalf("%q became %q: %v", payload, out, err)
		}
		var text string
		if err := json.Unmarshal(again.Data, &text); err != nil || len(text) != stringLen(again.Data) {
			t.Fatalf("%q is %d bytes long, not %d: %v", again.Data, len(text), stringLen(again.Data), err)
		}
	})
}

// BenchmarkTrigger is a signed publish, from the gateway's door to the hub, on a channel without subscribers: what it costs before anybody is written to.
func BenchmarkTrigger(b *testing.B) {
	w := newSite(b, func(_ *Options, g *gateway.Options) { g.AppRate.PerSecond = -1 })
	body := `{"name":"message","channels":["room"],"data":"{\"text\":\"` + strings.Repeat("hello ", 20) + `\",\"n\":1}"}`
	target := w.signedURL(body)
	r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, target, nil)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		rec := httptest.NewRecorder()
		if w.door.ServeHTTP(rec, r); rec.Code != http.StatusOK {
			b.Fatal(rec.Code, rec.Body)
		}
	}
}
