package pusher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// The HTTP fallbacks of pusher-js (F1 to F17): what a client that gets no WebSocket receives comes in the answers to requests, what it sends goes in
// the bodies of others, and the session that both belong to has an id that the client made up. Such a session is a connection like
// any other: the same handler, limits, places and presence.

// Bounds of bodies: of one send, the largest message with its escapes as a string of JSON; of a request that waits for frames, nothing that matters.
const (
	maxSend    = 132 << 10
	maxReceive = 1 << 10
)

// SessionName is what a client calls its session: key, server and session of the path, with slashes between.
type SessionName string

// Elsewhere knows the sessions of the other nodes of a cell.
type Elsewhere interface {
	// Find names the living node that has a session, "" when none is known. With ask, every one is asked; without, only what is remembered counts.
	Find(ctx context.Context, name SessionName, ask bool) petrel.NodeID
	// Forward hands a request to the node that has the session and answers with what that says, while it says it.
	Forward(w http.ResponseWriter, r *http.Request, name SessionName, node petrel.NodeID)
}

// fallback is the sessions over HTTP of this node.
type fallback struct {
	s        *Server
	public   *url.URL   // nil: clients stay where they are
	opening  sync.Mutex // held while a session begins: two requests may come for one. Lock order: before everything
	mu       sync.Mutex // guards sessions
	sessions map[SessionName]*overHTTP

	forwarded http.Handler
}

// overHTTP is a session and its connection.
type overHTTP struct {
	*session
	x *conn.XHR
}

// mountFallback adds the routes.
func (s *Server) mountFallback() {
	s.fallback = &fallback{s: s, sessions: map[SessionName]*overHTTP{}}
	if u, err := url.Parse(s.opt.PublicURL); err == nil && u.Hostname() != "" && !strings.Contains(u.Hostname(), ":") {
		s.fallback.public = u // pusher-js cannot be sent to an address of IPv6
	}
	s.fallback.forwarded = s.fallback.answerNodes()
	const base = "/pusher/app/{key}/{server}/{session}/"
	receive := gateway.Route{Access: gateway.Own, LongLife: true, Repeats: true, Leaving: true, MaxBody: -1, Loop: true}
	send := gateway.Route{Access: gateway.Own, Repeats: true, Leaving: true, MaxBody: -1, Away: true}
	preflight := gateway.Route{Access: gateway.Own, Repeats: true, Loop: true} // or its socket would be net/http's for good
	other := gateway.Route{Access: gateway.Own, Repeats: true}
	g := s.opt.Gateway
	g.Handle("POST "+base+"xhr_streaming", receive, s.fallback.anyOrigin(s.fallback.receive))
	g.Handle("POST "+base+"xhr", receive, s.fallback.anyOrigin(s.fallback.receive))
	g.Handle("POST "+base+"xhr_send", send, s.fallback.anyOrigin(s.fallback.send))
	g.Handle("OPTIONS /pusher/", preflight, s.fallback.anyOrigin(s.fallback.preflight))
	g.Handle("/pusher/", other, s.fallback.anyOrigin(s.nothing))
}

// anyOrigin lets pages of every origin read the answer: whoever asks shows a key, and no browser sends one along by itself.
func (f *fallback) anyOrigin(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Cross-Origin-Resource-Policy", "cross-origin")
		h.Set("Cache-Control", "no-store")
		next(w, r)
	})
}

// preflight answers what browsers ask before every request of pusher-js, because its Content-Type is JSON (F8).
func (f *fallback) preflight(w http.ResponseWriter, r *http.Request) {
	f.s.metrics.fallback.WithLabelValues("preflight", "ok").Inc()
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Content-Type, X-Requested-With")
	h.Set("Access-Control-Max-Age", "7200") // what browsers take at most
	w.WriteHeader(http.StatusNoContent)
}

// nameOf reads a session's name from the path. pusher-js draws a number below 1000 and eight characters of base 32.
func nameOf(r *http.Request) (name SessionName, ok bool) {
	server, id := r.PathValue("server"), r.PathValue("session")
	plain := func(s string) bool {
		return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
			return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && c != '-'
		})
	}
	key := r.PathValue("key")
	return SessionName(key + "/" + server + "/" + id), plain(server) && plain(id) && len(key) <= 128
}

// find returns the session of that name, nil when this node has none.
func (f *fallback) find(name SessionName) *overHTTP {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[name]
}

// receive serves a request that waits for frames, and opens the session when there is none of its name.
func (f *fallback) receive(w http.ResponseWriter, r *http.Request) {
	kind := "poll"
	if strings.HasSuffix(r.URL.Path, "xhr_streaming") {
		kind = "stream"
	}
	name, ok := nameOf(r)
	if !ok {
		f.refuse(w, kind, closeNoPath, "There is nothing at this path: server and session are short names.")
		return
	}
	if !f.body(w, r, kind, maxReceive) || f.serve(w, r, kind, name) || conn.Again(w) || f.forward(w, r, kind, name, false) {
		return
	}
	key := r.PathValue("key")
	app, end := f.s.greet(r, key)
	if end != nil {
		f.refuse(w, kind, end.code, end.text)
		return
	}
	if f.forward(w, r, kind, name, true) {
		return
	}
	if err := f.open(r, name, key, app); err != nil {
		code, text := closeFor(err)
		f.refuse(w, kind, code, text)
		return
	}
	if !f.serve(w, r, kind, name) {
		f.refuse(w, kind, conn.CloseReconnect, "The session ended as it began. Come back.")
	}
}

// body reads the whole body within limits, so that nothing deeper waits for a slow sender. False: it was answered already.
func (f *fallback) body(w http.ResponseWriter, r *http.Request, kind string, limit int64) bool {
	var buf bytes.Buffer
	if err := readBody(w, r, &buf, limit); err != nil {
		f.count(kind, "refused")
		f.s.opt.Gateway.Refuse(w, r, err)
		return false
	}
	r.Body, r.ContentLength = io.NopCloser(&buf), int64(buf.Len())
	return true
}

// serve answers with frames of a session of this node, if there is one.
func (f *fallback) serve(w http.ResponseWriter, r *http.Request, kind string, name SessionName) bool {
	h := f.find(name)
	if h == nil {
		return false
	}
	serve := h.x.ServePoll
	if kind == "stream" {
		serve = h.x.ServeStream
	}
	over := false
	defer func() {
		if !over {
			f.count(kind, "ok") // also what breaks off, by a panic
		}
	}()
	over = serve(w, r) != nil // then it is about to leave the table
	return !over
}

func (f *fallback) forward(w http.ResponseWriter, r *http.Request, kind string, name SessionName, ask bool) bool {
	if f.s.opt.Elsewhere == nil {
		return false
	}
	node := f.s.opt.Elsewhere.Find(r.Context(), name, ask)
	if node == "" {
		return false
	}
	if conn.Rest(w) { // its answer comes piece by piece, and must end when the client leaves
		return true
	}
	f.count(kind, "forwarded")
	f.s.opt.Elsewhere.Forward(w, r, name, node)
	return true
}

// open begins a session, unless somebody else just did.
func (f *fallback) open(r *http.Request, name SessionName, key string, app petrel.AppID) error {
	f.opening.Lock()
	defer f.opening.Unlock()
	if f.find(name) != nil {
		return nil
	}
	if err := f.s.opt.Gateway.Enter(app, f.s.opt.Apps.Settings(app).MaxConnections); err != nil {
		return err
	}
	cfg, c := f.s.newSession(f.s.entranceOf(key, app))
	cfg.Hostname = f.hostname(r)
	h := &overHTTP{session: c}
	c.left = func() { f.remove(name, h) }
	h.x = f.s.opt.Gateway.Conns().OpenXHR(cfg, c)
	f.mu.Lock()
	f.sessions[name] = h
	f.mu.Unlock()
	if c.isGone() { // before it was in the table
		f.remove(name, h)
	}
	return nil
}

func (f *fallback) remove(name SessionName, h *overHTTP) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sessions[name] == h {
		delete(f.sessions, name)
	}
}

// hostname is where the client shall send its further requests, so that they reach the node that has its session (F10): this node's own name, where
// it has one. A client keeps the port and the scheme it came with, so they must be those of the name.
func (f *fallback) hostname(r *http.Request) string {
	if f.public == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = r.Host, ""
	}
	want := f.public.Port()
	if port == "" || want == "" { // the usual port of one of the schemes
		usual := map[string]string{"http": "80", "https": "443"}[f.public.Scheme]
		if port == "" {
			port = usual
		}
		if want == "" {
			want = usual
		}
	}
	if port != want || strings.EqualFold(host, f.public.Hostname()) {
		return ""
	}
	return f.public.Hostname()
}

// send hands what a client says to its session. pusher-js does not read the answer (F7).
func (f *fallback) send(w http.ResponseWriter, r *http.Request) {
	name, ok := nameOf(r)
	if !ok {
		f.nobody(w, r)
		return
	}
	if !f.body(w, r, "send", maxSend) || f.take(w, r, name) || f.forward(w, r, "send", name, false) {
		return
	}
	app, err := f.s.opt.Apps.AppOfKey(r.PathValue("key"))
	if err == nil {
		if ok, _ := f.s.handshakes.Take(app, f.s.opt.Now(), 1); ok && f.forward(w, r, "send", name, true) {
			return
		}
	}
	f.nobody(w, r)
}

// take hands the body to a session of this node, if there is one.
func (f *fallback) take(w http.ResponseWriter, r *http.Request, name SessionName) bool {
	h := f.find(name)
	if h == nil {
		return false
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = h.x.Receive(r.Context(), body)
	}
	switch {
	case errors.Is(err, conn.ErrClosed):
		return false
	case err != nil:
		f.count("send", "refused")
		f.s.opt.Gateway.Refuse(w, r, err)
	default:
		f.count("send", "ok")
		w.WriteHeader(http.StatusNoContent)
	}
	return true
}

// nobody answers for a session that nobody has: whoever asks makes up names, or its session has ended.
func (f *fallback) nobody(w http.ResponseWriter, r *http.Request) {
	f.count("send", "refused")
	err := f.s.opt.Gateway.ChargeStranger(r.Context())
	if err == nil {
		err = petrel.Errorf(petrel.CodeNotFound, "There is no such session here: it has ended, or never began.")
	}
	f.s.opt.Gateway.Refuse(w, r, err)
}

// refuse says no in the frame that clients understand. It stands after an opening one: pusher-js reads the code of a session alone
// that has begun, and would else try again for ever.
func (f *fallback) refuse(w http.ResponseWriter, kind string, code conn.CloseCode, text string) {
	f.count(kind, "refused")
	f.s.turnAway(&ending{code, text})
	w.Header().Set("Content-Type", "application/javascript; charset=UTF-8")
	_, _ = w.Write(append([]byte("o\n"), conn.XHRClose(code, text)...)) // the client may be gone
}

func (f *fallback) count(kind, result string) {
	f.s.metrics.fallback.WithLabelValues(kind, result).Inc()
}

// HasSession says whether a session over HTTP lives on this node.
func (s *Server) HasSession(name SessionName) bool { return s.fallback.find(name) != nil }

// Forwarded answers requests that another node forwarded: for sessions of this node, and no others. That node has looked at the
// request already, and puts the headers of its own listener on the answer.
func (s *Server) Forwarded() http.Handler { return s.fallback.forwarded }

func (f *fallback) answerNodes() http.Handler {
	mux := http.NewServeMux()
	serve := func(kind string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name, _ := nameOf(r)
			served := false
			if kind == "send" {
				r.Body = http.MaxBytesReader(w, r.Body, maxSend)
				served = f.take(w, r, name)
			} else {
				served = f.serve(w, r, kind, name)
			}
			if !served {
				gateway.WriteProblem(w, petrel.Errorf(petrel.CodeNotFound, "The session has ended."))
			}
		}
	}
	const base = "POST /pusher/app/{key}/{server}/{session}/"
	mux.HandleFunc(base+"xhr_streaming", serve("stream"))
	mux.HandleFunc(base+"xhr", serve("poll"))
	mux.HandleFunc(base+"xhr_send", serve("send"))
	return mux
}
