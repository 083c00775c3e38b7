package petreltest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOneMessage is house.md §4 as a script: a client posts over HTTP, a subscriber on a socket receives it, and
// the log for people shows the one request id at every step in between. testdata/one_message.txt holds the steps.
func TestOneMessage(t *testing.T) {
	t.Parallel()
	server := Start(t, Options{Dir: t.TempDir(), Args: []string{"--log-level", "debug"}})
	createRoom(t, server.URL, "lobby")
	s, err := Dial(t.Context(), server.URL, "bob")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	head, _, err := s.Subscribe(t.Context(), "lobby", 1, "")
	if err != nil || head != 1 {
		t.Fatalf("subscribe: head %d, %v", head, err)
	}

	const id = "one-message-request"
	body := strings.NewReader(`{"id":"hello-1","text":"a text that no log may hold"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/rooms/lobby/messages", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+Token("ada"))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("post: %s %s %v", resp.Status, b, err)
	}
	if got := resp.Header.Get("X-Request-Id"); got != id {
		t.Errorf("the request id came back as %q", got)
	}
	for _, want := range []string{"member.added", "message.new"} { // posting joins
		f, err := s.Read(t.Context())
		if err != nil || f.Op != "event" || f.Type != want {
			t.Fatalf("got %s (%v), want %s", f.Raw, err, want)
		}
	}

	wantFile := filepath.Join("testdata", "one_message.txt")
	want, err := os.ReadFile(wantFile)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	Until(t, "the log shows the request at every step", func() bool {
		got = steps(t, server.LogLines(func(l map[string]any) bool { return l["request"] == id }))
		return got != "" && got == string(want) || strings.Count(got, "\n") > strings.Count(string(want), "\n")
	})
	if got != string(want) {
		t.Errorf("the steps of one message are\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(server.Log(), "no log may hold") || strings.Contains(server.Log(), Token("ada")[:40]) {
		t.Error("the log for people holds a message's text or a token")
	}
	server.Terminate(t)
}

// steps renders log lines without what differs from run to run. "applied, answering" and the offering to
// subscribers may come in either order (the waiter is released first, and wakes when it wakes), so lines are sorted.
func steps(t *testing.T, lines []map[string]any) string {
	t.Helper()
	var out []string
	for _, l := range lines {
		fields := []string{}
		for _, k := range []string{"kind", "events", "index", "channel", "seq", "type", "route", "status"} {
			if v, ok := l[k]; ok {
				fields = append(fields, fmt.Sprintf("%s=%v", k, v))
			}
		}
		out = append(out, fmt.Sprintf("%s %s\n", l["msg"], strings.Join(fields, " ")))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// TestMetricsOfTheWay: every step of a message's way has a histogram that counted it.
func TestMetricsOfTheWay(t *testing.T) {
	t.Parallel()
	server := Start(t, Options{Dir: t.TempDir()})
	createRoom(t, server.URL, "lobby")
	s, err := Dial(t.Context(), server.URL, "bob")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Subscribe(t.Context(), "lobby", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Post(t.Context(), http.DefaultClient, server.URL, "ada", "lobby", "m", "text"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	var missing []string
	Until(t, "every step was counted", func() bool {
		text := get(t, server.Admin+"/metrics")
		missing = nil
		for _, pkg := range []string{"gateway", "command", "commit", "raftlog", "apply", "projection", "hub", "conn"} {
			if !countedStep(text, "petrel_"+pkg+"_") {
				missing = append(missing, pkg)
			}
		}
		return len(missing) == 0
	})
	for _, path := range []string{"/healthz", "/readyz", "/debug/pprof/"} {
		get(t, server.Admin+path)
	}
	for _, path := range []string{"/healthz", "/metrics", "/debug/pprof/", "/admin/apps"} {
		if status := statusOf(t, server.URL+path); status == http.StatusOK && path != "/" {
			if body := get(t, server.URL+path); strings.Contains(body, "petrel_") || strings.Contains(body, `"status"`) || strings.Contains(body, "goroutine") {
				t.Errorf("the public listener answers %s: %.200s", path, body)
			}
		}
	}
	server.Terminate(t)
}

// countedStep looks for a histogram of seconds with the prefix that counted something.
func countedStep(metrics, prefix string) bool {
	for line := range strings.Lines(metrics) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, labels, _ := strings.Cut(name, "{")
		if _, v, ok := strings.Cut(labels, "} "); ok {
			value = v
		}
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, "_seconds_count") && value != "0" {
			return true
		}
	}
	return false
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(bytes.TrimSpace(b))
}

func statusOf(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestAdminUnderLoad: the admin listener answers within a second while every processor and the public side are busy.
func TestAdminUnderLoad(t *testing.T) {
	t.Parallel()
	server := Start(t, Options{Dir: t.TempDir()})
	place := &Place{}
	place.Set(server)
	for r := range crashRooms {
		createRoom(t, server.URL, crashRoom(r))
	}
	stop := make(chan struct{})
	crew := newCrew(place.URL)
	done := make(chan struct{})
	go func() {
		defer close(done)
		crew.run(t.Context(), 256, stop)
	}()
	Until(t, "the load was on", func() bool { return crew.acked.Load() > 500 || crew.failed() != nil })
	worst := time.Duration(0)
	for range 50 {
		began := time.Now()
		if status := server.status(t.Context(), "/healthz"); status != http.StatusOK {
			t.Errorf("/healthz says %d", status)
		}
		worst = max(worst, time.Since(began))
	}
	close(stop)
	<-done
	if err := crew.failed(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d messages meanwhile; the slowest answer took %s", crew.acked.Load(), worst)
	if worst > 30*time.Second { // a second is the promise on a machine of its own; a test shares its machine
		t.Errorf("an answer of the admin listener took %s", worst)
	}
	server.Terminate(t)
}

// TestOperatorAPIGuarded: the admin listener's operator calls need the token of the data folder, and no browser's.
func TestOperatorAPIGuarded(t *testing.T) {
	t.Parallel()
	server := Start(t, Options{Dir: t.TempDir()})
	token, err := os.ReadFile(filepath.Join(server.Dir, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(server.Dir, "admin-token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin-token has mode %v, %v", info.Mode(), err)
	}
	good := "Bearer " + strings.TrimSpace(string(token))
	for _, tt := range []struct {
		name, auth, origin, method, path, body string
		status                                 int
		code                                   string
	}{
		{"no token", "", "", "GET", "/admin/apps", "", 401, "unauthenticated"},
		{"wrong token", "Bearer x", "", "GET", "/admin/apps", "", 401, "unauthenticated"},
		{"browser", good, "https://example.com", "GET", "/admin/apps", "", 403, "forbidden"},
		{"list", good, "", "GET", "/admin/apps", "", 200, ""},
		{"no such app", good, "", "GET", "/admin/apps/nobody", "", 404, "app_not_found"},
		{"no such call", good, "", "GET", "/admin/nothing", "", 404, "not_found"},
		{"bad id", good, "", "POST", "/admin/apps", `{"id":"a b"}`, 400, "invalid_id"},
		{"unknown field", good, "", "POST", "/admin/apps", `{"nam":"x"}`, 400, "invalid_json"},
		{"too long a life", good, "", "POST", "/admin/apps/" + AppID + "/tokens", `{"user":"ada","ttl_seconds":9223372036854775807}`, 400, "invalid_field"},
		{"negative life", good, "", "POST", "/admin/apps/" + AppID + "/tokens", `{"user":"ada","ttl_seconds":-1}`, 400, "invalid_field"},
		{"oversize", good, "", "POST", "/admin/apps", `{"name":"` + strings.Repeat("x", 100_000) + `"}`, 400, "invalid_json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, server.Admin+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if tt.auth != "" {
				req.Header.Set("Authorization", tt.auth)
			}
			if tt.origin != "" {
				req.Header.Set("Origin", tt.origin)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var p Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || resp.StatusCode != tt.status || p.Code != tt.code {
				t.Errorf("%s %+v %v; want %d %s", resp.Status, p, err, tt.status, tt.code)
			}
		})
	}
	server.Terminate(t)
}
