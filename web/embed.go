// Package web holds the page at "/": the chat as a browser sees it, built from src into dist and compiled into the binary.
//
// It serves files and nothing else. What the page shows it asks of the public API, as any other client would.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
)

//go:embed all:dist
var dist embed.FS

// policy lets the page load its own files and talk to its own server, and nothing else; 'self' covers
// the socket of the same host (CSP 3 §6.7.2.8). Nothing inline runs.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// file is one file of the page, in both forms that it is served in.
type file struct {
	kind  string // Content-Type
	cache string // Cache-Control
	etag  string
	plain []byte
	gzip  []byte // nil when it would not be smaller
}

// Handler serves the page: "/" and the files that it names, 404 for everything else. Files whose names
// hold a hash of their content may be kept for ever, the rest is asked about each time and answered 304. It panics
// when dist is not what `make ui` makes, which the first test of any binary shows.
func Handler() http.Handler {
	files, err := load(dist)
	if err != nil {
		panic("web: " + err.Error())
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, files)
	})
}

func serve(w http.ResponseWriter, r *http.Request, files map[string]file) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "The page is only read.", http.StatusMethodNotAllowed)
		return
	}
	f, ok := files[r.URL.Path]
	if !ok {
		http.Error(w, "There is nothing here. The chat is at /, the API at /v1.", http.StatusNotFound)
		return
	}
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", f.cache)
	h.Set("ETag", f.etag)
	h.Set("Vary", "Accept-Encoding")
	if strings.Contains(r.Header.Get("If-None-Match"), f.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", f.kind)
	body := f.plain
	if f.gzip != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = f.gzip
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // the peer may be gone
	}
}

// load reads the folder dist of fsys into what serve needs, by the path it is asked for.
func load(fsys fs.FS) (map[string]file, error) {
	files := map[string]file{}
	err := fs.WalkDir(fsys, "dist", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		plain, err := fs.ReadFile(fsys, name)
		if err != nil {
			return fmt.Errorf("read the page: %w", err)
		}
		sum := sha256.Sum256(plain)
		f := file{kind: kindOf(name), cache: "no-cache", plain: plain, etag: `"` + hex.EncodeToString(sum[:12]) + `"`}
		if strings.HasPrefix(name, "dist/assets/") { // Vite puts a hash into every name here
			f.cache = "public, max-age=31536000, immutable"
		}
		if f.gzip, err = squeeze(plain); err != nil {
			return fmt.Errorf("compress %s: %w", name, err)
		}
		files[strings.TrimPrefix(name, "dist")] = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	index, ok := files["/index.html"]
	if !ok {
		return nil, fmt.Errorf("dist has no index.html: run make ui")
	}
	files["/"] = index
	return files, nil
}

// kindOf does not ask the machine's own list of types, which differs from one to the next.
func kindOf(name string) string {
	switch ext := path.Ext(name); ext {
	case ".woff2":
		return "font/woff2"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".txt":
		return "text/plain; charset=utf-8"
	default:
		return mime.TypeByExtension(ext) // html, css and svg are built in
	}
}

func squeeze(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if out.Len() >= len(plain)*95/100 {
		return nil, nil
	}
	return out.Bytes(), nil
}
