package web

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

func get(t *testing.T, h http.Handler, target string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPageAndWhatItNames(t *testing.T) {
	t.Parallel()
	h := Handler()
	page := get(t, h, "/")
	html := body(t, page.Body)
	if page.StatusCode != http.StatusOK || page.Header.Get("Content-Type") != "text/html; charset=utf-8" || page.Header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("/ answers %d %v", page.StatusCode, page.Header)
	}
	if regexp.MustCompile(`<script[^>]*>[^<]|<style|\son\w+=|\sstyle=`).MatchString(html) {
		t.Errorf("the page has something inline, which its policy forbids:\n%s", html)
	}
	names := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(html, -1)
	if len(names) < 3 {
		t.Fatalf("the page names %d files, want its script, style and icon", len(names))
	}
	kinds := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
	for _, m := range names {
		res := get(t, h, m[1])
		ext := m[1][strings.LastIndex(m[1], "."):]
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != kinds[ext] {
			t.Errorf("%s answers %d %q", m[1], res.StatusCode, res.Header.Get("Content-Type"))
		}
		if immutable := strings.Contains(res.Header.Get("Cache-Control"), "immutable"); immutable != strings.HasPrefix(m[1], "/assets/") {
			t.Errorf("%s has Cache-Control %q", m[1], res.Header.Get("Cache-Control"))
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	res := get(t, Handler(), "/")
	csp := res.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy %q lacks %q", csp, want)
		}
	}
	for _, never := range []string{"unsafe", "*", "http:", "data:"} {
		if strings.Contains(csp, never) {
			t.Errorf("the policy %q has %q", csp, never)
		}
	}
	if got := res.Header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("X-Content-Type-Options is %q", got)
	}
}

func TestGzipIsTheSamePage(t *testing.T) {
	t.Parallel()
	h := Handler()
	plain := body(t, get(t, h, "/").Body)
	res := get(t, h, "/", "Accept-Encoding", "gzip, br")
	if res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("headers %v", res.Header)
	}
	r, err := gzip.NewReader(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, r); got != plain {
		t.Errorf("gzip holds %d bytes, want the page's %d", len(got), len(plain))
	}
}

func TestNotModified(t *testing.T) {
	t.Parallel()
	h := Handler()
	etag := get(t, h, "/").Header.Get("ETag")
	res := get(t, h, "/", "If-None-Match", "W/"+etag)
	if res.StatusCode != http.StatusNotModified || body(t, res.Body) != "" {
		t.Errorf("answers %d to its own ETag", res.StatusCode)
	}
	if res := get(t, h, "/", "If-None-Match", `"other"`); res.StatusCode != http.StatusOK {
		t.Errorf("answers %d to another ETag", res.StatusCode)
	}
}

func TestNothingElse(t *testing.T) {
	t.Parallel()
	h := Handler()
	for _, target := range []string{"/index.htm", "/assets/", "/assets", "/../embed.go", "/dist/index.html", "/nothing"} {
		if res := get(t, h, target); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d", target, res.StatusCode)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader("x"))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST answers %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

func TestLoadRefusesAFolderWithoutAPage(t *testing.T) {
	t.Parallel()
	if _, err := load(fstest.MapFS{"dist/x.txt": {Data: []byte("x")}}); err == nil {
		t.Error("no error")
	}
}
