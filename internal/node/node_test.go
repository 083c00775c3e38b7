package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// openNode starts a whole node on a folder, on free ports.
func openNode(t *testing.T, change func(*Config)) (*Node, *logSink) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	if change != nil {
		change(&cfg)
	}
	notice := &logSink{}
	n, err := Open(t.Context(), Options{Config: cfg, Notice: notice, Logger: NewLogger(io.Discard, "debug", "json")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n, notice
}

func fetch(t *testing.T, method, url, body string, header ...string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestNotice: what the first start prints works as it is pasted.
func TestNotice(t *testing.T) {
	t.Parallel()
	n, notice := openNode(t, nil)
	text := notice.String()
	_, after, ok := strings.Cut(text, "Authorization: Bearer ")
	token, _, ok2 := strings.Cut(after, "'")
	if !ok || !ok2 {
		t.Fatalf("the notice has no call to paste:\n%s", text)
	}
	status, body := fetch(t, "POST", "http://"+n.Addr()+"/v1/rooms", `{"id":"lobby","kind":"open"}`,
		"Authorization", "Bearer "+token, "Content-Type", "application/json")
	if status != http.StatusCreated {
		t.Errorf("the call in the notice was answered %d %s", status, body)
	}
}

// TestDemo: the contract with the page, and that a second start adds nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	heads := map[string]string{}
	for start := range 2 {
		n, _ := openNode(t, func(c *Config) { c.Data, c.Demo = dir, true })
		base := "http://" + n.Addr()
		status, body := fetch(t, "GET", base+"/demo", "")
		var about struct {
			Demo   bool
			App    string
			People []string
		}
		if err := json.Unmarshal([]byte(body), &about); err != nil || status != 200 || !about.Demo || about.App != "1000" || len(about.People) < 3 || about.People[0] != "Ada" {
			t.Fatalf("GET /demo: %d %s", status, body)
		}
		status, body = fetch(t, "POST", base+"/demo/token", `{"name":"  Grace   Hopper "}`, "Content-Type", "application/json")
		var token Token
		if err := json.Unmarshal([]byte(body), &token); err != nil || status != 200 || token.User != "grace-hopper" || token.ExpiresAt.Before(time.Now()) {
			t.Fatalf("POST /demo/token: %d %s", status, body)
		}
		for _, room := range demoRooms {
			status, body := fetch(t, "GET", fmt.Sprintf("%s/v1/rooms/%s/events?limit=1", base, room.id), "", "Authorization", "Bearer "+token.Token)
			var page struct{ Head int }
			if err := json.Unmarshal([]byte(body), &page); err != nil || status != 200 || page.Head <= len(room.lines) {
				t.Fatalf("room %s: %d %s", room.id, status, body)
			}
			if start == 0 {
				heads[string(room.id)] = fmt.Sprint(page.Head)
			} else if heads[string(room.id)] != fmt.Sprint(page.Head) {
				t.Errorf("the second start moved the head of %s from %s to %d", room.id, heads[string(room.id)], page.Head)
			}
		}
		for name, wantCode := range map[string]string{`{"name":""}`: "invalid_field", `{"name":"` + strings.Repeat("x", 41) + `"}`: "invalid_field", `{}x`: "invalid_json"} {
			status, body := fetch(t, "POST", base+"/demo/token", name, "Content-Type", "application/json")
			if status != 400 || !strings.Contains(body, wantCode) {
				t.Errorf("POST /demo/token %.40s: %d %s, want 400 %s", name, status, body, wantCode)
			}
		}
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDemoOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	n, _ := openNode(t, nil)
	for _, path := range []string{"/demo", "/demo/token"} {
		status, body := fetch(t, "POST", "http://"+n.Addr()+path, `{"name":"Ada"}`, "Content-Type", "application/json")
		if status != http.StatusNotFound || !strings.Contains(body, `"code":"not_found"`) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestDemoUser(t *testing.T) {
	t.Parallel()
	got := map[string]petrel.UserID{}
	for _, name := range []string{"Ada", "ada lovelace", " J. R.  R. Tolkien ", "日本", "Zoë", "--", "a/b"} {
		id, err := demoUser(name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		got[name] = id
	}
	want := map[string]petrel.UserID{
		"Ada": "ada", "ada lovelace": "ada-lovelace", " J. R.  R. Tolkien ": "j.-r.-r.-tolkien",
		"日本": "guest-0cc2d1dd", "Zoë": "zo", "--": "guest-cc63edbc", "a/b": "ab",
	}
	for _, odd := range []string{"日本", "--"} { // of these only the form matters
		if !strings.HasPrefix(string(got[odd]), "guest-") || len(got[odd]) != len("guest-")+8 {
			t.Errorf("%q makes %q", odd, got[odd])
		}
		want[odd] = got[odd]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestHealthTellsTheTruth walks through a node's life.
func TestHealthTellsTheTruth(t *testing.T) {
	t.Parallel()
	n, _ := openNode(t, nil)
	admin := "http://" + n.AdminAddr()
	check := func(when string, health, ready int, word string) {
		t.Helper()
		if status, body := fetch(t, "GET", admin+"/healthz", ""); status != health || !strings.Contains(body, `"status":"`+word+`"`) {
			t.Errorf("%s: /healthz %d %s, want %d %s", when, status, body, health, word)
		}
		if status, body := fetch(t, "GET", admin+"/readyz", ""); status != ready {
			t.Errorf("%s: /readyz %d %s, want %d", when, status, body, ready)
		}
	}
	check("serving", 200, 200, "ok")
	n.health.ready.Store(false)
	check("catching up", 200, 503, "starting")
	n.health.ready.Store(true)

	n.fail(errors.New("a fold failed")) // what apply and the log do when they cannot go on
	<-n.Failed()
	check("failed", 503, 503, "failed")
	if !errors.Is(n.Err(), ErrFatal) || n.Err().Error() != "a fold failed" {
		t.Errorf("Err() is %q", n.Err())
	}
	if status, body := fetch(t, "GET", "http://"+n.Addr()+"/v1/openapi.json", ""); status != 200 {
		t.Errorf("the listener is up until the process stops: %d %.100s", status, body)
	}
}

// TestDrain: a socket is told to come back elsewhere, new requests are refused, and the node stops in time.
func TestDrain(t *testing.T) {
	t.Parallel()
	n, _ := openNode(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("draining an empty node took all the time it was given")
	}
	if status, body := fetch(t, "GET", "http://"+n.AdminAddr()+"/readyz", ""); status != 503 || !strings.Contains(body, "draining") {
		t.Errorf("/readyz: %d %s", status, body)
	}
}

func TestSocketLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ wanted, files, sockets, conns int }{
		{10_000, 1_000_000, 16_024, 10_000},
		{10_000, 0, 16_024, 10_000},
		{10_000, 1024, 768, 768},
		{10_000, 100, 64, 64},
		{50, 1_000_000, 1_099, 50},
	} {
		if s, c := socketLimits(tt.wanted, tt.files); s != tt.sockets || c != tt.conns {
			t.Errorf("socketLimits(%d, %d) = %d, %d; want %d, %d", tt.wanted, tt.files, s, c, tt.sockets, tt.conns)
		}
	}
}

func TestAppRate(t *testing.T) {
	t.Parallel()
	if !appRate(0).Unlimited() {
		t.Error("0 limits something")
	}
	if r := appRate(7); r.PerSecond != 7 || r.Burst != 7 {
		t.Errorf("%+v", r)
	}
}

// TestWebhookThatIsNeverCalled: an address that may not be called is refused when it is set, whichever way.
func TestWebhookThatIsNeverCalled(t *testing.T) {
	t.Parallel()
	h := Hook{URL: "http://10.1.2.3/in", Events: []string{"*"}}
	for allow, want := range map[string]petrel.Code{"": petrel.CodeInvalidField, "10.1.0.0/16": ""} {
		n, _ := openNode(t, func(c *Config) { c.WebhookAllow = allow })
		a, err := n.CreateApp(t.Context(), NewApp{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.SetHook(t.Context(), a.ID, h); codeOf(err) != want {
			t.Errorf("allowed %q: SetHook: %v", allow, err)
		}
		if _, err := n.CreateApp(t.Context(), NewApp{Hook: &h}); codeOf(err) != want {
			t.Errorf("allowed %q: CreateApp: %v", allow, err)
		}
	}
}

// codeOf is the code of a refusal; "" of none.
func codeOf(err error) petrel.Code {
	if err == nil {
		return ""
	}
	return petrel.CodeOf(err)
}

// TestSettingText: in JSON a setting may be the number or the switch that it stands for.
func TestSettingText(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPatch, "/", strings.NewReader(`{"a":5,"b":"6","c":true,"d":false,"e":"","f":-1.5,"g":null}`))
	got, err := readBody[map[string]settingText](r)
	if d := cmp.Diff(map[string]settingText{"a": "5", "b": "6", "c": "on", "d": "off", "e": "", "f": "-1.5", "g": ""}, got); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, body := range []string{`{"a":[5]}`, `{"a":{}}`, `["a"]`, `5`} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPatch, "/", strings.NewReader(body))
		if got, err := readBody[map[string]settingText](r); petrel.CodeOf(err) != petrel.CodeInvalidJSON {
			t.Errorf("%s: %v, %v", body, got, err)
		}
	}
}

// TestFirstAppsWebhook: it is set when the app is made, and not again when somebody removed it.
func TestFirstAppsWebhook(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func() *Node {
		n, _ := openNode(t, func(c *Config) {
			c.Data, c.AppID, c.AppKey, c.AppSecret, c.AppWebhook = dir, "1001", "key", "a-secret-of-the-app", "https://shop.example/hooks"
		})
		return n
	}
	n := start()
	hooks, err := n.Hooks(t.Context(), "1001")
	if err != nil || len(hooks) != 1 || hooks[0].URL != "https://shop.example/hooks" || len(hooks[0].Events) != 10 || hooks[0].Batch {
		t.Fatalf("%+v, %v", hooks, err)
	}
	if _, err := n.Hooks(t.Context(), "404"); petrel.CodeOf(err) != petrel.CodeAppNotFound {
		t.Errorf("of an app that is not there: %v", err)
	}
	if _, err := n.RemoveHook(t.Context(), "1001", hooks[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if hooks, err := start().Hooks(t.Context(), "1001"); err != nil || len(hooks) != 0 {
		t.Errorf("it came back: %+v, %v", hooks, err)
	}
}
