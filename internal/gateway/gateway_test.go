package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestMain(m *testing.M) {
	// net/http lets a refused sender read the answer for half a second before it closes.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// doorman knows the token "good" of ann in app 1, and the key "k" with secret "s".
type doorman struct{}

func (doorman) Token(_ context.Context, token string) (Credential, error) {
	switch token {
	case "good":
		return Credential{Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "ann"}, Expires: time.Unix(1<<40, 0)}, nil
	case "broken":
		return Credential{}, errors.New("the projection is on fire")
	}
	return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "The token does not verify.")
}

func (doorman) Key(_ context.Context, key, secret string, user petrel.UserID) (Credential, error) {
	if key != "k" || secret != "s" {
		return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "No such key.")
	}
	if user != "" {
		return Credential{Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: user}}, nil
	}
	return Credential{Actor: petrel.Actor{Kind: petrel.ActorApp, App: "1"}}, nil
}

// door is a gateway on a real listener with a few routes.
type door struct {
	*Gateway
	url  string
	addr string
}

// dial opens a connection, until the end of the test.
func (d door) dial(t *testing.T) net.Conn {
	t.Helper()
	nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() }) // it may be closed already
	return nc
}

func openDoor(t *testing.T, change func(*Options)) door {
	t.Helper()
	o := Options{Auth: doorman{}, Conns: conn.NewTable(conn.Options{})}
	if change != nil {
		change(&o)
	}
	g := New(o)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		a := CredentialOf(r.Context()).Actor
		fmt.Fprintf(w, "%s %s/%s %s %s %s", r.PathValue("id"), a.App, a.User, a.Kind, RequestID(r.Context()), b)
	})
	g.Handle("GET /v1/things/{id}", Route{}, echo)
	g.Handle("POST /v1/things/{id}", Route{}, echo)
	g.Handle("GET /v1/open", Route{Access: Public}, echo)
	g.Handle("GET /v1/panic", Route{}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("bug") }))
	g.Handle("GET /v1/deadline", Route{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		g.Refuse(w, r, petrel.Errorf(petrel.CodeTimeout, "Late."))
	}))
	g.Handle("GET /v1/connect", Route{Access: Late, LongLife: true}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := g.OpenSocket(w, r, func(p *Place) (conn.Config, conn.Handler) {
			return conn.Config{}, &session{p, CredentialOf(r.Context()).Actor.User}
		})
		if err != nil {
			g.Refuse(w, r, err)
		}
	}))
	g.Handle("GET /", Route{Access: Public}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<page>") }))
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	o.Conns.Start()
	t.Cleanup(func() {
		g.Stop()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return door{g, "http://" + ln.Addr().String(), ln.Addr().String()}
}

type session struct {
	place *Place
	user  petrel.UserID
}

func (s *session) OnOpen(c *conn.Conn)                    { _ = c.Send(conn.TextFrame([]byte("hello " + s.user))) }
func (s *session) OnMessage(c *conn.Conn, p []byte)       { _ = c.Send(conn.TextFrame(p)) }
func (s *session) OnClose(_ *conn.Conn, _ conn.CloseCode) { s.place.Release(); s.place.Release() }

// ask sends one request; headers are "Name: value".
func (d door) ask(t *testing.T, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Add(k, v)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// wantProblem checks that an answer is a whole problem.
func wantProblem(t *testing.T, resp *http.Response, body string, status int, code petrel.Code) {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
		Code                petrel.Code
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("not JSON: %q", body)
	}
	if resp.StatusCode != status || p.Status != status || p.Code != code || p.Detail == "" || p.Title == "" || p.Type != "urn:petrel:error:"+string(code) ||
		resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("want %d %s, got %d %s %s", status, code, resp.StatusCode, resp.Header.Get("Content-Type"), body)
	}
	if (status == 429 || status == 503) && resp.Header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	}
}

const good = "Authorization: Bearer good"

func TestRefusals(t *testing.T) {
	t.Parallel()
	d := openDoor(t, func(o *Options) { o.MaxBodyBytes = 100; o.RequestTimeout = time.Millisecond })
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code               petrel.Code
	}{
		"no token":            {"GET", "/v1/things/a", "", nil, 401, petrel.CodeUnauthenticated},
		"bad token":           {"GET", "/v1/things/a", "", []string{"Authorization: Bearer x"}, 401, petrel.CodeInvalidToken},
		"empty bearer":        {"GET", "/v1/things/a", "", []string{"Authorization: Bearer "}, 401, petrel.CodeInvalidToken},
		"huge token":          {"GET", "/v1/things/a", "", []string{"Authorization: Bearer " + strings.Repeat("x", 9000)}, 401, petrel.CodeInvalidToken},
		"other scheme":        {"GET", "/v1/things/a", "", []string{"Authorization: Digest x"}, 401, petrel.CodeInvalidToken},
		"two authorizations":  {"GET", "/v1/things/a", "", []string{good, good}, 401, petrel.CodeInvalidToken},
		"bad basic":           {"GET", "/v1/things/a", "", []string{"Authorization: Basic !!"}, 401, petrel.CodeInvalidToken},
		"wrong secret":        {"GET", "/v1/things/a", "", []string{"Authorization: Basic azp4"}, 401, petrel.CodeInvalidToken},
		"bad user":            {"GET", "/v1/things/a", "", []string{"Authorization: Basic azpz", "Petrel-User: a b"}, 400, petrel.CodeInvalidID},
		"two users":           {"GET", "/v1/things/a", "", []string{"Authorization: Basic azpz", "Petrel-User: a", "Petrel-User: b"}, 400, petrel.CodeInvalidID},
		"token in the query":  {"GET", "/v1/things/a?token=good", "", nil, 401, petrel.CodeUnauthenticated},
		"unknown":             {"GET", "/v1/nothing", "", []string{good}, 404, petrel.CodeNotFound},
		"unknown, no token":   {"POST", "/v1/nothing", "", nil, 404, petrel.CodeNotFound},
		"the root":            {"GET", "/v1", "", nil, 404, petrel.CodeNotFound},
		"trailing slash":      {"GET", "/v1/things/a/", "", []string{good}, 404, petrel.CodeNotFound},
		"method":              {"DELETE", "/v1/things/a", "", []string{good}, 405, petrel.CodeMethodNotAllowed},
		"strange method":      {"BREW", "/v1/things/a", "", []string{good}, 405, petrel.CodeMethodNotAllowed},
		"path not utf-8":      {"GET", "/v1/things/%ff", "", []string{good}, 400, petrel.CodeInvalidUTF8},
		"query not utf-8":     {"GET", "/v1/things/a?x=%ff", "", []string{good}, 400, petrel.CodeInvalidUTF8},
		"query not readable":  {"GET", "/v1/things/a?x=%zz", "", []string{good}, 400, petrel.CodeInvalidField},
		"parameter twice":     {"GET", "/v1/things/a?x=1&x=2", "", []string{good}, 400, petrel.CodeInvalidField},
		"dots":                {"GET", "/v1/things/%2e%2e", "", []string{good}, 400, petrel.CodeInvalidID},
		"one dot":             {"GET", "/v1/things/.", "", []string{good}, 400, petrel.CodeInvalidID},
		"empty part":          {"GET", "/v1//things/a", "", []string{good}, 400, petrel.CodeInvalidID},
		"body not utf-8":      {"POST", "/v1/things/a", "\xff", []string{good}, 400, petrel.CodeInvalidUTF8},
		"body too large":      {"POST", "/v1/things/a", strings.Repeat("x", 101), []string{good}, 413, petrel.CodeTooLarge},
		"body of a get":       {"GET", "/v1/things/a", strings.Repeat("x", 101), []string{good}, 413, petrel.CodeTooLarge},
		"fault of ours":       {"GET", "/v1/things/a", "", []string{"Authorization: Bearer broken"}, 500, petrel.CodeInternal},
		"panic":               {"GET", "/v1/panic", "", []string{good}, 500, petrel.CodeInternal},
		"deadline":            {"GET", "/v1/deadline", "", []string{good}, 503, petrel.CodeTimeout},
		"plain on the socket": {"GET", "/v1/connect", "", []string{good}, 400, petrel.CodeInvalidField},
		"bad socket token":    {"GET", "/v1/connect?token=x", "", nil, 401, petrel.CodeInvalidToken},
		"socket by post":      {"POST", "/v1/connect", "", []string{good}, 405, petrel.CodeMethodNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body := d.ask(t, c.method, c.path, c.body, c.headers...)
			wantProblem(t, resp, body, c.status, c.code)
			if resp.Header.Get("X-Request-Id") == "" || strings.Contains(body, "fire") {
				t.Fatalf("no request id, or a secret shown: %v %s", resp.Header, body)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		want               string
	}{
		"token":       {"GET", "/v1/things/a", "", []string{good, "X-Request-Id: r1"}, "a 1/ann user r1 "},
		"lower case":  {"GET", "/v1/things/a", "", []string{"Authorization: bearer good", "X-Request-Id: r1"}, "a 1/ann user r1 "},
		"app":         {"GET", "/v1/things/a", "", []string{"Authorization: Basic azpz", "X-Request-Id: r1"}, "a 1/ app r1 "},
		"app as user": {"GET", "/v1/things/a", "", []string{"Authorization: Basic azpz", "Petrel-User: bob", "X-Request-Id: r1"}, "a 1/bob user r1 "},
		"body":        {"POST", "/v1/things/a:b@c", "grüße", []string{good, "X-Request-Id: r1"}, "a:b@c 1/ann user r1 grüße"},
		"slash":       {"GET", "/v1/things/a%2Fb", "", []string{good, "X-Request-Id: r1"}, "a/b 1/ann user r1 "},
		"public":      {"GET", "/v1/open", "", []string{"X-Request-Id: r1"}, " / actor(0) r1 "},
		"page":        {"GET", "/", "", nil, "<page>"},
		"deep page":   {"GET", "/rooms/a", "", nil, "<page>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body := d.ask(t, c.method, c.path, c.body, c.headers...)
			if resp.StatusCode != 200 || body != c.want {
				t.Fatalf("%d %q, want %q", resp.StatusCode, body, c.want)
			}
		})
	}
}

func TestRequestIDIsMadeWhenInsane(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	resp, body := d.ask(t, "GET", "/v1/open", "", "X-Request-Id: a b\"c")
	id := resp.Header.Get("X-Request-Id")
	if len(id) != 36 || !strings.Contains(body, id) {
		t.Fatalf("id %q, body %q", id, body)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	resp, _ := d.ask(t, "OPTIONS", "/v1/things/a", "", "Origin: https://example.org", "Access-Control-Request-Method: POST")
	got := map[string]string{}
	for _, h := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Allow", "Access-Control-Allow-Credentials"} {
		got[h] = resp.Header.Get(h)
	}
	want := map[string]string{
		"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
		"Allow": "GET, HEAD, POST, OPTIONS", "Access-Control-Allow-Credentials": "",
	}
	if diff := cmp.Diff(want, got); diff != "" || resp.StatusCode != 204 {
		t.Fatalf("%d\n%s", resp.StatusCode, diff)
	}
	resp, _ = d.ask(t, "GET", "/v1/things/a", "", "Origin: https://example.org")
	if resp.Header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(resp.Header.Get("Access-Control-Expose-Headers"), "Petrel-Position") {
		t.Fatal("a refusal cannot be read across origins")
	}
	resp, body := d.ask(t, "OPTIONS", "/v1/nothing", "")
	wantProblem(t, resp, body, 404, petrel.CodeNotFound)
}

func TestRates(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000, 0)
	d := openDoor(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.UserRate = limit.Rate{PerSecond: 0.5, Burst: 2}
		o.AppRate = limit.Rate{PerSecond: 0.1, Burst: 4}
		o.IPRate = limit.Rate{PerSecond: 0.01, Burst: 1}
	})
	for range 2 {
		if resp, body := d.ask(t, "GET", "/v1/things/a", "", good); resp.StatusCode != 200 {
			t.Fatal(body)
		}
	}
	resp, body := d.ask(t, "GET", "/v1/things/a", "", good)
	wantProblem(t, resp, body, 429, petrel.CodeRateLimited)
	if got := resp.Header.Get("Retry-After"); got != "2" {
		t.Fatalf("Retry-After %s, want 2", got)
	}
	resp, _ = d.ask(t, "GET", "/v1/things/a", "", "Authorization: Basic azpz")
	if resp.StatusCode != 200 {
		t.Fatal("the user's limit hit the app")
	}
	resp, body = d.ask(t, "GET", "/v1/things/a", "", "Authorization: Basic azpz")
	wantProblem(t, resp, body, 429, petrel.CodeRateLimited)
	resp, body = d.ask(t, "GET", "/v1/things/a", "")
	wantProblem(t, resp, body, 401, petrel.CodeUnauthenticated)
	resp, body = d.ask(t, "GET", "/v1/things/a", "", "Authorization: Bearer x")
	wantProblem(t, resp, body, 429, petrel.CodeRateLimited)
}

func TestForwardedFor(t *testing.T) {
	t.Parallel()
	g := New(Options{Auth: doorman{}, Conns: conn.NewTable(conn.Options{}), TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, c := range []struct{ remote, header, want string }{
		{"192.0.2.1:5", "198.51.100.1", "192.0.2.1"},
		{"10.0.0.1:5", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:5", "203.0.113.9, 198.51.100.1, 10.1.1.1", "198.51.100.1"},
		{"10.0.0.1:5", "nonsense", "10.0.0.1"},
		{"[2001:db8::1]:5", "", "2001:db8::1"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.RemoteAddr = c.remote
		if c.header != "" {
			r.Header.Set("X-Forwarded-For", c.header)
		}
		if got := g.clientIP(r).String(); got != c.want {
			t.Errorf("%s via %q: %s, want %s", c.remote, c.header, got, c.want)
		}
	}
}

// TestNotHTTP: even what net/http refuses by itself is a problem.
func TestNotHTTP(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	for name, c := range map[string]struct {
		in     string
		status int
		code   petrel.Code
	}{
		"no http":        {"hello there\r\n\r\n", 400, petrel.CodeInvalidField},
		"bad escape":     {"GET /v1/things/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, petrel.CodeInvalidField},
		"no host":        {"GET /v1/open HTTP/1.1\r\n\r\n", 400, petrel.CodeInvalidField},
		"huge head":      {"GET /v1/open HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 40_000) + "\r\n\r\n", 431, petrel.CodeTooLarge},
		"two lengths":    {"POST /v1/things/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, petrel.CodeInvalidField},
		"bad header":     {"GET /v1/open HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400, petrel.CodeInvalidField},
		"raw byte":       {"GET /v1/things/\xff HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n", 400, petrel.CodeInvalidUTF8},
		"HTTP/3.7":       {"GET /v1/open HTTP/3.7\r\nHost: x\r\n\r\n", 505, petrel.CodeInvalidField},
		"expects more":   {"GET /v1/open HTTP/1.1\r\nHost: x\r\nExpect: foo\r\n\r\n", 417, petrel.CodeInvalidField},
		"odd encoding":   {"POST /v1/things/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, petrel.CodeInvalidField},
		"body cut short": {"POST /v1/things/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\nabc", 400, petrel.CodeInvalidJSON},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := d.dial(t)
			if _, err := io.WriteString(nc, c.in); err != nil {
				t.Fatal(err)
			}
			_ = nc.(*net.TCPConn).CloseWrite()
			resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			wantProblem(t, resp, string(b), c.status, c.code)
		})
	}
}

// TestHalfClosed: who ends their side of the connection after a request is answered, and so is who leaves: nobody can tell them apart. The end of the gateway is
// the end of requests, too.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	g := New(Options{Auth: doorman{}, Conns: conn.NewTable(conn.Options{})})
	defer g.Stop()
	type outer struct{}
	g.Handle("GET /v1/half", Route{Access: Public}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Value(outer{}).(context.Context).Done() // net/http has seen the end
		if err := r.Context().Err(); err != nil {
			t.Error(err)
		}
		go g.Stop()
		<-r.Context().Done()
		fmt.Fprint(w, "answered")
	}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), outer{}, r.Context())))
	}))
	defer server.Close()
	nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := io.WriteString(nc, "GET /v1/half HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = nc.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(nc); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") || !strings.HasSuffix(string(b), "answered") {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLateBody: a body that does not come in time is told so, and nothing is read behind it.
func TestLateBody(t *testing.T) {
	t.Parallel()
	d := openDoor(t, func(o *Options) { o.ReadTimeout = 50 * time.Millisecond })
	nc := d.dial(t)
	if _, err := io.WriteString(nc, "POST /v1/things/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\nabc"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !resp.Close {
		t.Errorf("%v, %v", resp.Header, err)
	}
	wantProblem(t, resp, string(b), 408, petrel.CodeBodyTimeout)
}

// TestFramingOfTwoMinds: behind a request that may have said its length in two ways nothing is served (RFC 9112 §6.1, §6.3).
func TestFramingOfTwoMinds(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	const behind = "GET /v1/things/smuggled HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"
	for name, head := range map[string]string{
		"a length and chunks": "POST /v1/things HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"chunks and a length": "POST /v1/things HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
		"chunks twice":        "POST /v1/things HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
		"chunks, then plain":  "POST /v1/things HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\nContent-Length: 4\r\n",
		"hot":                 "POST /hot HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"in HTTP/1.0":         "POST /v1/things HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := d.dial(t)
			if _, err := io.WriteString(nc, head+"Host: x\r\nAuthorization: Bearer good\r\nContent-Type: application/json\r\n\r\n0\r\n\r\n"+behind); err != nil {
				t.Fatal(err)
			}
			all, err := io.ReadAll(nc) // it ends
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(all), "HTTP/1."); n != 1 {
				t.Errorf("%d answers: %q", n, all)
			}
		})
	}
}

func TestSlowHeadIsCut(t *testing.T) {
	t.Parallel()
	d := openDoor(t, func(o *Options) { o.HeaderTimeout = 20 * time.Millisecond; o.ReadTimeout = 20 * time.Millisecond })
	nc := d.dial(t)
	if _, err := io.WriteString(nc, "GET /v1/open HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(nc); err != nil { // returns only because the server gives up
		t.Log(err)
	}
}

func TestSocketPlaces(t *testing.T) {
	t.Parallel()
	d := openDoor(t, func(o *Options) { o.MaxConns = 100; o.MaxConnsPerApp = 2 })
	ctx := t.Context()
	dial := func() (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(ctx, d.url+"/v1/connect?token=good", nil) //nolint:bodyclose // the caller looks at it
	}
	var open []*websocket.Conn
	for range 2 {
		c, _, err := dial() //nolint:bodyclose // upgraded
		if err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(ctx); err != nil || string(b) != "hello ann" {
			t.Fatalf("%q, %v", b, err)
		}
		open = append(open, c)
	}
	_, resp, err := dial()
	if err == nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "30" {
		t.Fatalf("third: %v %v", resp, err)
	}
	_ = resp.Body.Close()
	if used, total := d.Connections(); used != 2 || total != 100 {
		t.Fatalf("%d of %d", used, total)
	}
	if err := open[0].Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { used, _ := d.Connections(); return used == 1 })
	c, _, err := dial() //nolint:bodyclose // upgraded
	if err != nil {
		t.Fatal(err)
	}
	_ = c.CloseNow()
	_ = open[1].CloseNow()
	waitFor(t, func() bool { used, _ := d.Connections(); return used == 0 })
}

func TestHandshakes(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	all := []string{good, "Connection: keep-alive, Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	with := func(i int, h string) []string {
		out := append([]string(nil), all...)
		out[i] = h
		return out
	}
	for name, headers := range map[string][]string{
		"no connection": with(1, "X: y"),
		"no upgrade":    with(2, "X: y"),
		"short key":     with(4, "Sec-WebSocket-Key: AAAA"),
		"no key":        with(4, "X: y"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body := d.ask(t, "GET", "/v1/connect", "", headers...)
			wantProblem(t, resp, body, 400, petrel.CodeInvalidField)
		})
	}
	for name, headers := range map[string][]string{
		"old version":        with(3, "Sec-WebSocket-Version: 12"),
		"no version":         with(3, "X: y"),
		"version of the day": with(3, "Sec-WebSocket-Version: 13, 8"),
	} {
		t.Run(name, func(t *testing.T) { // RFC 6455 §4.4
			t.Parallel()
			resp, body := d.ask(t, "GET", "/v1/connect", "", headers...)
			wantProblem(t, resp, body, 426, petrel.CodeUpgradeRequired)
			if h := resp.Header; h.Get("Sec-WebSocket-Version") != "13" || h.Get("Upgrade") != "websocket" || !strings.EqualFold(h.Get("Connection"), "upgrade") {
				t.Errorf("%v does not say which version to speak", h)
			}
		})
	}
}

func TestSocketsFull(t *testing.T) {
	t.Parallel()
	d := openDoor(t, func(o *Options) { o.MaxSockets = 2 }) // 95 % of it: one
	first, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	waitFor(t, func() bool { used, _ := d.Sockets(); return used == 1 })
	second, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", d.addr) // by hand: an http.Client takes an answer that comes before its request for a fault
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	resp, err := http.ReadResponse(bufio.NewReader(second), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, resp, string(body), 503, petrel.CodeOverloaded)
}

// scarce is a listener in a process that has no file descriptor left, twice.
type scarce struct {
	net.Listener
	left atomic.Int32
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// TestAbortedAnswersCount: an answer that its handler breaks off is counted and told like every other, and broken off.
func TestAbortedAnswersCount(t *testing.T) {
	t.Parallel()
	var logs bytes.Buffer
	reg := prometheus.NewRegistry()
	g := New(Options{
		Auth: doorman{}, Conns: conn.NewTable(conn.Options{}), Registerer: reg,
		Logger: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	g.Handle("GET /v1/abort", Route{Access: Public}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() {
			if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // net/http compares the panic's value like this
				t.Errorf("net/http is told %v", v)
			}
		}()
		g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/abort", nil))
	}()
	families, err := reg.Gather()
	if err != nil || !strings.Contains(strings.ReplaceAll(fmt.Sprint(families), " ", ""), `value:"GET/v1/abort"}histogram:{sample_count:1`) {
		t.Errorf("not counted: %v %v", families, err)
	}
	if s := logs.String(); strings.Count(s, "request answered") != 1 || strings.Contains(s, "panicked") {
		t.Error(s)
	}
}

// TestNoDescriptors: what the kernel refuses is counted and told, once, and served when there is room, by net/http on sockets that are wrapped once.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	var logs bytes.Buffer
	reg := prometheus.NewRegistry()
	g := New(Options{Auth: doorman{}, Conns: conn.NewTable(conn.Options{}), Logger: slog.New(slog.NewTextHandler(&logs, nil)), Registerer: reg})
	g.Handle("GET /v1/open", Route{Access: Public}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &scarce{Listener: inner}
	ln.left.Store(2)
	g.server.ConnState = func(nc net.Conn, _ http.ConnState) {
		if s, ok := nc.(*socket); !ok {
			t.Errorf("net/http got a %T", nc)
		} else if _, twice := s.Conn.(*socket); twice {
			t.Error("a socket in a socket")
		}
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+inner.Addr().String()+"/v1/open", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
	g.Stop()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil || !strings.Contains(strings.ReplaceAll(fmt.Sprint(families), " ", ""), `value:"no_descriptors"}counter:{value:2`) {
		t.Errorf("not counted twice: %v %v", families, err)
	}
	if n := strings.Count(logs.String(), "No socket can be accepted"); n != 1 {
		t.Errorf("told %d times: %s", n, &logs)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil)
	ctx := t.Context()
	c, _, err := websocket.Dial(ctx, d.url+"/v1/connect?token=good", nil) //nolint:bodyclose // upgraded
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(ctx); err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- d.Drain(ctx, time.Millisecond) }()
	_, _, err = c.Read(ctx)
	if got := websocket.CloseStatus(err); got != websocket.StatusCode(conn.CloseReconnect) {
		t.Fatalf("closed with %v", err)
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if _, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.addr); err == nil {
		t.Fatal("it still accepts")
	}
	rec := httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "GET", "/v1/open", nil))
	resp := rec.Result()
	defer resp.Body.Close()
	wantProblem(t, resp, rec.Body.String(), 503, petrel.CodeDraining)
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

// TestShapes: a loop recognises what is hot as the mux would.
func TestShapes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, method, path string
		want                  bool
	}{
		{"GET /v1/connect", "GET", "/v1/connect", true},
		{"GET /v1/connect", "GET", "/v1/connect/", false},
		{"GET /v1/connect", "HEAD", "/v1/connect", false},
		{"GET /v1/connect", "GET", "/v1", false},
		{"GET /app/{key}", "GET", "/app/k", true},
		{"GET /app/{key}", "GET", "/app/", false},
		{"GET /app/{key}", "GET", "/app/k/x", false},
		{"POST /apps/{id}/events", "POST", "/apps/1/events", true},
		{"POST /apps/{id}/events", "POST", "/apps//events", false},
		{"POST /apps/{id}/events", "POST", "/apps/1/event", false},
		{"POST /pusher/app/{key}/{server}/{session}/xhr", "POST", "/pusher/app/k/1/s/xhr", true},
		{"POST /pusher/app/{key}/{server}/{session}/xhr", "POST", "/pusher/app/k/1/s/xhr_send", false},
		{"POST /pusher/app/{key}/{server}/{session}/xhr", "POST", "/pusher/app/k/1/xhr", false},
		{"OPTIONS /pusher/", "OPTIONS", "/pusher/app/k/1/s/xhr", true},
		{"OPTIONS /pusher/", "OPTIONS", "/pusher/", true},
		{"OPTIONS /pusher/", "OPTIONS", "/pusher", false},
		{"OPTIONS /pusher/", "OPTIONS", "/other/x", false},
	} {
		s := newShape(c.pattern)
		if got := s.matches(c.method, c.path); got != c.want {
			t.Errorf("%s and %s %s: %v", c.pattern, c.method, c.path, got)
		}
	}
}
