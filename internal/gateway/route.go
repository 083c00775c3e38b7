package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Access says who may ask.
type Access uint8

// Kinds of access.
const (
	// Private needs credentials in the Authorization header.
	Private Access = iota
	// Stream also takes a user token as the query parameter `token`, because browsers cannot set headers on a WebSocket or an
	// EventSource. Such addresses stand in logs of proxies: tokens should live short.
	Stream
	// Late is Stream, but may come without any: the first frame brings the token.
	Late
	// Public asks nobody, and charges the address.
	Public
	// Own leaves it to the handler: it finds out who asks, and charges the app (Charge) or the stranger (ChargeStranger).
	Own
)

// Route says how a pattern is guarded.
type Route struct {
	Access   Access
	MaxBody  int64 // bytes; 0: the gateway's; < 0: the handler reads the body itself
	LongLife bool  // no deadline, and it ends when who asked has left: a stream
	Loop     bool  // the handler waits for nothing, or calls conn.Again before: it is answered on a loop of connections
	Away     bool  // the handler waits before it answers or opens a stream: likewise, after it has run in a goroutine for so long
	Repeats  bool  // the handler reads the query itself: parameters may come several times
	Leaving  bool  // goes on while the node leaves: the handler sees to it that nothing new begins (Admit refuses it)
}

// Handle registers a handler for a pattern of net/http ("GET /v1/rooms/{room}"). Call it before Serve.
func (g *Gateway) Handle(pattern string, route Route, h http.Handler) {
	g.routes[pattern] = route
	if route.Loop || route.Away {
		g.hot = append(g.hot, newShape(pattern))
	}
	g.mux.Handle(pattern, h)
}

// shape is a pattern as a loop recognises it.
type shape struct {
	method string
	parts  []string // "": anything
	below  bool     // and all paths below
}

func newShape(pattern string) shape {
	method, path, _ := strings.Cut(pattern, " ")
	s := shape{method: method, below: strings.HasSuffix(path, "/")}
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if strings.HasPrefix(part, "{") {
			part = ""
		}
		s.parts = append(s.parts, part)
	}
	return s
}

func (s *shape) matches(method, path string) bool {
	if method != s.method {
		return false
	}
	rest, more := strings.TrimPrefix(path, "/"), true
	for _, want := range s.parts {
		var part string
		if !more {
			return false
		}
		part, rest, more = strings.Cut(rest, "/")
		if part == "" || want != "" && part != want {
			return false
		}
	}
	return more == s.below
}

// isHot says whether a request is answered on a loop.
func (g *Gateway) isHot(method, path string) bool {
	for i := range g.hot {
		if g.hot[i].matches(method, path) {
			return true
		}
	}
	return false
}

type requestKey struct{}

// request is what the gateway knows of a request, in its context.
type request struct {
	id   petrel.RequestID
	cred Credential
	ip   netip.Addr
}

// RequestID is the id of the request that ctx belongs to, "" outside of one.
func RequestID(ctx context.Context) petrel.RequestID {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r.id
	}
	return ""
}

// CredentialOf is who asks; its Actor.Kind is 0 on Public routes, and on Late ones without a token.
func CredentialOf(ctx context.Context) Credential {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r.cred
	}
	return Credential{}
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	handler, pattern := g.find(r)
	if g.routes[pattern].Away && conn.Again(rw) {
		return
	}
	start := g.opt.Now()
	w := &writer{ResponseWriter: rw}
	req := &request{id: requestID(r), ip: g.clientIP(r)}
	h := w.Header()
	h.Set("X-Request-Id", string(req.id))
	if len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) {
		// It may have said a length besides, which net/http drops without a word: somebody before us may have believed that, and what comes behind
		// this request is not to be trusted (RFC 9112 §6.1, §6.3).
		h.Set("Connection", "close")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	g.opt.Logger.LogAttrs(r.Context(), slog.LevelDebug, "request at the door", slog.String("request", string(req.id)), slog.String("route", pattern))
	defer func() {
		v := recover()
		abort := v == http.ErrAbortHandler //nolint:errorlint // net/http compares the panic's value like this
		if v != nil && !abort {
			g.panicked(w, r, req, v)
		}
		g.metrics.request.WithLabelValues(pattern, class(w.status)).Observe(g.opt.Now().Sub(start).Seconds())
		g.opt.Logger.LogAttrs(r.Context(), slog.LevelDebug, "request answered",
			slog.String("request", string(req.id)), slog.String("route", pattern), slog.Int("status", w.status),
			slog.String("app", string(req.cred.Actor.App)), slog.Duration("took", g.opt.Now().Sub(start)))
		if abort {
			panic(v) // net/http breaks the answer off
		}
	}()
	if err := g.serve(w, r, req, handler, pattern); err != nil {
		g.Refuse(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, req)), err)
	}
}

// Refuse answers with a problem, counts it, and logs what callers are not shown.
func (g *Gateway) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	code := petrel.CodeOf(err)
	g.metrics.refused.WithLabelValues(string(code)).Inc()
	if code == petrel.CodeInternal && r.Context().Err() == nil {
		g.opt.Logger.ErrorContext(r.Context(), "A request failed for a reason of ours.",
			"request", RequestID(r.Context()), "method", r.Method, "path", r.URL.Path, "error", err)
	}
	WriteProblem(w, err)
}

// serve takes a request through every check, in the order of the package comment.
func (g *Gateway) serve(w *writer, r *http.Request, req *request, handler http.Handler, pattern string) error {
	if err := wellFormed(r, g.routes[pattern].Repeats); err != nil {
		return err
	}
	route := g.routes[pattern]
	if g.draining.Load() && !route.LongLife {
		w.Header().Set("Connection", "close")
	}
	if g.closing.Load() && !route.Leaving {
		return petrel.Errorf(petrel.CodeDraining, "This node is leaving. Repeat the request: another one answers.")
	}
	if handler == nil || isAPI(r.URL.Path) {
		if done, err := g.apiRoute(w, r, handler); done || err != nil {
			return err
		}
	}
	if err := g.identify(r, req, route.Access); err != nil {
		return err
	}
	ctx := context.WithValue(r.Context(), requestKey{}, req)
	if !route.LongLife {
		var cancel context.CancelFunc
		if ctx.Done() != nil { // on a loop nothing ends it, and the gateway's life need not be asked by every request
			ctx = lasting{g.life, ctx}
		}
		ctx, cancel = context.WithTimeout(ctx, g.opt.RequestTimeout)
		defer cancel()
	}
	r = r.WithContext(ctx)
	if route.MaxBody >= 0 {
		if err := g.readBody(w, r, route.MaxBody); err != nil {
			return err
		}
	}
	g.mux.ServeHTTP(w, r) // not handler: only the mux fills in the path's values
	return nil
}

// lasting is the context of a request that is answered whether or not who sent it has left: a client may end its side of the connection once it has asked
// (net/http takes either for the same), and what is written is written. It ends with the gateway.
type lasting struct {
	context.Context // the gateway's life
	request         context.Context
}

// Value implements context.Context.
func (c lasting) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.request.Value(key)
}

// isAPI says whether a path belongs to the API, where even what is unknown is answered as a problem.
func isAPI(path string) bool { return path == "/v1" || strings.HasPrefix(path, "/v1/") }

// find looks the request's route up; nil when there is none.
func (g *Gateway) find(r *http.Request) (h http.Handler, pattern string) {
	h, pattern = g.mux.Handler(r)
	if _, ours := g.routes[pattern]; !ours {
		return nil, "none" // the mux's own 404, 405 or redirect
	}
	if isAPI(r.URL.Path) && !isAPI(pattern[strings.IndexByte(pattern, '/'):]) {
		return nil, "none" // a page's catch-all is not for the API
	}
	return h, pattern
}

// methods in the order in which Allow lists them.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// apiRoute answers what the API has no route for, and preflights.
func (g *Gateway) apiRoute(w http.ResponseWriter, r *http.Request, handler http.Handler) (done bool, err error) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "Petrel-Position, Petrel-Stale, Retry-After, X-Request-Id")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	if handler != nil {
		return false, nil
	}
	allow := g.allowed(r)
	switch {
	case len(allow) == 0:
		return true, petrel.Errorf(petrel.CodeNotFound, "There is nothing at this address. /v1/openapi.json lists what there is.")
	case r.Method == http.MethodOptions:
		h.Set("Allow", strings.Join(allow, ", ")+", OPTIONS")
		h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Petrel-Position, Petrel-Retry, Petrel-User, X-Request-Id")
		h.Set("Access-Control-Max-Age", "7200") // what browsers take at most
		w.WriteHeader(http.StatusNoContent)
		return true, nil
	}
	h.Set("Allow", strings.Join(allow, ", ")+", OPTIONS")
	return true, petrel.Errorf(petrel.CodeMethodNotAllowed, "This address does not take %s, but %s.", shortMethod(r.Method), strings.Join(allow, ", "))
}

func shortMethod(m string) string { return m[:min(len(m), 20)] }

// allowed lists the methods that the request's path has a route for.
func (g *Gateway) allowed(r *http.Request) (out []string) {
	probe := *r
	for _, m := range methods {
		probe.Method = m
		if h, _ := g.find(&probe); h != nil {
			out = append(out, m)
		}
	}
	return out
}

// wellFormed refuses what no route could read: bytes that are not UTF-8, queries that do not parse, and paths that
// net/http would redirect elsewhere.
func wellFormed(r *http.Request, repeats bool) error {
	if !utf8.ValidString(r.URL.Path) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The path is not UTF-8.")
	}
	if clean := path.Clean("/" + r.URL.Path); clean != r.URL.Path && clean+"/" != r.URL.Path {
		return petrel.Errorf(petrel.CodeInvalidID, "The path has an empty part, or one that is . or .. alone.")
	}
	if repeats {
		return nil // the handler reads the query itself
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return petrel.Errorf(petrel.CodeInvalidField, "The query cannot be read. Encode every name and value.")
	}
	for name, values := range q {
		if !utf8.ValidString(name) || slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }) {
			return petrel.Errorf(petrel.CodeInvalidUTF8, "The query is not UTF-8.")
		}
		if len(values) > 1 {
			return petrel.Errorf(petrel.CodeInvalidField, "A query parameter comes twice.")
		}
	}
	return nil
}

// readBody reads the whole body within limits, so that nothing deeper waits for a slow sender, and checks that it is UTF-8.
func (g *Gateway) readBody(w http.ResponseWriter, r *http.Request, limit int64) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if limit == 0 {
		limit = g.opt.MaxBodyBytes
	}
	tooLarge := petrel.Errorf(petrel.CodeTooLarge, "The body is larger than %d bytes.", limit)
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close") // rather than read it to keep the connection
		return tooLarge
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		if mbe := (*http.MaxBytesError)(nil); errors.As(err, &mbe) {
			return tooLarge
		}
		return NotWhole(w, err)
	}
	if !utf8.Valid(buf.Bytes()) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The body is not UTF-8.")
	}
	r.Body = io.NopCloser(&buf)
	return nil
}

// NotWhole refuses a request whose body cannot be read to its end, because of err.
func NotWhole(w http.ResponseWriter, err error) error {
	w.Header().Set("Connection", "close") // what comes now is still the body
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
		return petrel.Errorf(petrel.CodeBodyTimeout, "The body did not come in time.").Because(err)
	}
	return petrel.Errorf(petrel.CodeInvalidJSON, "The body did not arrive whole.").Because(err)
}

func (g *Gateway) panicked(w *writer, r *http.Request, req *request, v any) {
	g.metrics.panics.Inc()
	g.opt.Logger.ErrorContext(r.Context(), "A request's handler panicked. This is a bug: please report it.",
		"request", req.id, "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	if w.status == 0 {
		WriteProblem(w, petrel.Errorf(petrel.CodeInternal, "Something went wrong on our side. It is in our logs under this request's id."))
	}
}

// requestID takes a sane X-Request-Id over, so that one id goes through a caller's systems and ours.
func requestID(r *http.Request) petrel.RequestID {
	if id, err := petrel.ParseCommandID(r.Header.Get("X-Request-Id")); err == nil {
		return petrel.RequestID(id)
	}
	return petrel.RequestID(petrel.NewName())
}

// clientIP is the peer's address, or the last one in X-Forwarded-For that is not a trusted proxy's.
func (g *Gateway) clientIP(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	addr = addr.Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && g.trusted(addr); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap()
	}
	return addr
}

func (g *Gateway) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(g.opt.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// writer remembers what was answered. http.ResponseController finds everything else through Unwrap.
type writer struct {
	http.ResponseWriter
	status int
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func class(status int) string {
	switch {
	case status == 0:
		return "upgraded"
	case status < 300:
		return "2xx"
	case status < 400:
		return "3xx"
	case status < 500:
		return "4xx"
	}
	return "5xx"
}

// retryIn is what a caller who must wait is told at least.
const retryIn = time.Second
