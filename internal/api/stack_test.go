package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/commit"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

func TestMain(m *testing.M) {
	// net/http lets a refused sender read the answer for half a second before it closes.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// stack is everything from the listener to the log, in one process; only the log is the in-memory twin.
type stack struct {
	t       testing.TB
	url     string
	store   *projection.Store
	loop    *apply.Loop
	desk    *command.Desk
	hub     *hub.Hub
	gateway *gateway.Gateway
	api     atomic.Pointer[API] // set last; the directory may tell of changes before
	keys    map[petrel.AppID]identity.KeyPair
	client  *http.Client
	logs    *bytes.Buffer
	skew    atomic.Int64 // nanoseconds by which the clock that tokens are checked by is off
}

// applier fits apply.Loop to the log, as in node.
type applier struct{ *apply.Loop }

func (a applier) Snapshot(ctx context.Context) (raftlog.Snapshot, error) {
	s, err := a.Loop.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return s, nil
}

type doorman struct{ *identity.Directory }

func (d doorman) Token(_ context.Context, token string) (gateway.Credential, error) {
	actor, expires, err := d.AuthenticateToken(token)
	return gateway.Credential{Actor: actor, Expires: expires}, err
}

func (d doorman) Key(_ context.Context, key, secret string, user petrel.UserID) (gateway.Credential, error) {
	actor, err := d.AuthenticateKey(key, secret, user)
	return gateway.Credential{Actor: actor}, err
}

// patience is how long a test waits for what must come: a hang fails by itself, long before the binary's own timeout.
const patience = 30 * time.Second

// newStack starts a stack with the apps 1 and 2.
func newStack(t testing.TB, change func(*Options, *gateway.Options, *conn.Options)) *stack {
	t.Helper()
	ctx := t.Context()
	s := &stack{t: t, keys: map[petrel.AppID]identity.KeyPair{}, logs: &bytes.Buffer{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.store, err = projection.Open(ctx, projection.Options{
		Path: filepath.Join(t.TempDir(), "p.db"), Modules: []projection.Module{apply.Module(), identity.Module(), chat.Module()},
	})
	must(err)
	logger := slog.New(slog.NewTextHandler(&syncWriter{w: s.logs}, &slog.HandlerOptions{Level: slog.LevelError}))
	s.hub = hub.New(HubOptions(s.store.View, hub.Options{Logger: logger}))
	directory := identity.NewDirectory(identity.DirectoryOptions{Now: func() time.Time { return time.Now().Add(time.Duration(s.skew.Load())) }, OnChange: func(app petrel.AppID) {
		if api := s.api.Load(); api != nil {
			api.AppChanged(app)
		}
	}})
	s.loop, err = apply.New(apply.Options{
		Store: s.store, Publish: s.hub.Publish, Now: time.Now,
		Domains: []apply.Domain{
			{Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(), Fold: identity.Fold, Version: identity.Version, Publish: directory.Publish},
			{Name: "chat", Kinds: chat.Kinds(), Guards: chat.GuardKinds(), Fold: chat.Fold, Version: chat.Version, Publish: chat.Publish},
		},
	})
	must(err)
	log, err := raftlog.NewMemory(raftlog.MemoryOptions{Applier: applier{s.loop}})
	must(err)
	pipeline := commit.New(commit.Options{Appender: log})
	pipeline.Start()
	s.found(ctx, pipeline)
	must(directory.Load(ctx, s.store))
	s.loop.OnRestore(s.hub.OnRestore)
	s.desk = command.New(command.Options{Projection: s.store, Committer: pipeline, Waiting: s.loop, Settler: log, Gate: identity.Gate, MaxWait: patience})
	s.hub.Start()

	o := Options{CommandTimeout: patience} // a slow machine is no fault
	door, co := gateway.Options{RequestTimeout: patience}, conn.Options{}
	if change != nil {
		change(&o, &door, &co)
	}
	door.Conns, door.Logger = conn.NewTable(co), logger
	if door.Auth == nil {
		door.Auth = doorman{directory}
	}
	s.gateway = gateway.New(door)
	o.Gateway, o.Hub, o.Projection, o.Waiting, o.Node, o.Logger = s.gateway, s.hub, s.store, s.loop, "n1", logger
	if o.Desk == nil {
		o.Desk = s.desk
	}
	for _, app := range []petrel.AppID{"1", "2"} {
		cmd := identity.NewCreateApp(app, "", "", "")
		res, err := s.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, cmd)
		must(err)
		s.keys[app] = res.Answer.(identity.App).Keys[0]
	}
	s.api.Store(Register(o))
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	must(err)
	s.url = "http://" + ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.gateway.Serve(ln) }()
	door.Conns.Start()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	s.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.gateway.Stop()
		must(<-served)
		s.api.Load().Stop()
		s.hub.Stop()
		pipeline.Stop()
		must(log.Close())
		must(s.store.Close())
		if t.Failed() && s.logs.Len() > 0 {
			t.Log(s.logs.String()[:min(s.logs.Len(), 2000)])
		}
	})
	return s
}

func (s *stack) found(ctx context.Context, p *commit.Pipeline) {
	s.t.Helper()
	e := event.Entry{
		ID: petrel.NewEntryID(), Actor: petrel.Actor{Kind: petrel.ActorSystem}, At: time.Now().UnixMilli(),
		Events: []event.Event{event.ShardFounded{Epoch: petrel.NewEpoch()}},
	}
	payload, err := event.Encode(&e)
	if err != nil {
		s.t.Fatal(err)
	}
	w := s.loop.Expect(e.ID)
	defer w.Cancel()
	if _, err := p.Commit(ctx, payload); err != nil {
		s.t.Fatal(err)
	}
	if _, err := w.Wait(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// token mints a user token of app 1.
func (s *stack) token(user string) string { return s.tokenFor("1", user, time.Hour) }

func (s *stack) tokenFor(app petrel.AppID, user string, ttl time.Duration) string {
	s.t.Helper()
	token, _, err := identity.MintToken(s.keys[app], petrel.UserID(user), time.Now(), ttl)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// shortToken mints a token of app 1 that ends within a second, and lets it in however long the machine takes: who checks tokens
// lives an hour ago, only the connection knows what time it is.
func (s *stack) shortToken(user string) string {
	s.t.Helper()
	s.skew.Store(int64(-time.Hour))
	token, _, err := identity.MintToken(s.keys["1"], petrel.UserID(user), time.Now().Add(-time.Hour), time.Hour+time.Second)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// reply is an answer with its body read.
type reply struct {
	*http.Response
	body string
}

// problem decodes a refusal.
func (r reply) problem(t testing.TB) (status int, code petrel.Code) {
	t.Helper()
	var p gateway.Problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil || p.Detail == "" || p.Title == "" || p.Type == "" || p.Status != r.StatusCode ||
		r.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%d %s is not a whole problem: %q", r.StatusCode, r.Header.Get("Content-Type"), r.body)
	}
	if wrong := noSentence(p.Detail); wrong != "" {
		t.Errorf("the detail %q %s", p.Detail, wrong)
	}
	return p.Status, p.Code
}

// noSentence says why a detail is not a plain sentence for people; "" when it is one.
func noSentence(detail string) string {
	for _, bad := range []string{"json:", "Json", "Go ", "struct", "unmarshal", "uint", "float64", "int64", "schema", "propert", ": .", "  ", "%!"} {
		if strings.Contains(detail, bad) {
			return fmt.Sprintf("speaks of %q", bad)
		}
	}
	switch {
	case len(strings.Fields(detail)) < 3:
		return "is too short for a sentence"
	case !strings.HasSuffix(detail, "."):
		return "does not end as a sentence does"
	case !strings.ContainsAny(detail[:1], "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
		return "does not begin as a sentence does"
	}
	return ""
}

// ask sends a request; headers are "Name: value". JSON is assumed of a body unless a header says otherwise.
func (s *stack) ask(method, path, body string, headers ...string) reply {
	s.t.Helper()
	r, err := s.try(method, path, body, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *stack) try(method, path, body string, headers ...string) (reply, error) {
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, in)
	if err != nil {
		return reply{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp, string(b)}, err
}

// as is the header of a user's own token.
func (s *stack) as(user string) string { return "Authorization: Bearer " + s.token(user) }

// room creates a room and expects it to be new.
func (s *stack) room(user, body string) {
	s.t.Helper()
	if r := s.ask("POST", "/v1/rooms", body, s.as(user)); r.StatusCode != http.StatusCreated {
		s.t.Fatalf("create %s: %d %s", body, r.StatusCode, r.body)
	}
}

// post posts a message and returns its seq.
func (s *stack) post(user, room, id, text string) uint64 {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"id": id, "text": text})
	if err != nil {
		s.t.Fatal(err)
	}
	r := s.ask("POST", "/v1/rooms/"+room+"/messages", string(body), s.as(user))
	var out struct{ Message chat.Message }
	if err := json.Unmarshal([]byte(r.body), &out); err != nil || r.StatusCode != http.StatusCreated {
		s.t.Fatalf("post %s: %d %s", id, r.StatusCode, r.body)
	}
	return out.Message.Seq
}

// peer is the other end of a socket.
type peer struct {
	t  testing.TB
	ws *websocket.Conn
}

// heard is any frame of the server.
type heard struct {
	Op, Code, Detail, Room, Type, Reason, Epoch, User, Conn, Node, Position string
	ID, Seq, Head                                                           uint64
	Users                                                                   []presentUser
	Count                                                                   int
	ForMS                                                                   *int `json:"for_ms"`
	StaleMS                                                                 *int `json:"stale_ms"`
	Repeated                                                                bool
	Message                                                                 chat.Message
	Data                                                                    json.RawMessage
	RetryAfterMS                                                            int `json:"retry_after_ms"`
	Heartbeat                                                               struct {
		IntervalMS int `json:"interval_ms"`
		GraceMS    int `json:"grace_ms"`
		Epoch      int
	}
}

func (s *stack) dial(query string, headers http.Header) (*peer, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, s.url+"/v1/connect"+query, &websocket.DialOptions{HTTPHeader: headers})
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(1 << 20)
	s.t.Cleanup(func() { _ = ws.CloseNow() })
	return &peer{s.t, ws}, nil
}

// open dials as a user and reads hello.
func (s *stack) open(user string) *peer {
	s.t.Helper()
	p, err := s.dial("?token="+s.token(user), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if f := p.read(); f.Op != "hello" || f.User != user {
		s.t.Fatalf("the first frame is %+v", f)
	}
	return p
}

func (p *peer) write(frame string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := p.ws.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
		p.t.Fatal(err)
	}
}

// tryRead reads the next frame that is not a ping.
func (p *peer) tryRead() (f heard, err error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	for f.Op == "" || f.Op == "ping" { // on a slow machine a test is still at it when the first heartbeat is due
		_, b, err := p.ws.Read(ctx)
		if err != nil {
			return f, err
		}
		f = heard{}
		if err := json.Unmarshal(b, &f); err != nil {
			return f, errors.Join(err, errors.New(string(b)))
		}
	}
	if wrong := noSentence(f.Detail); f.Op == "error" && wrong != "" {
		return f, fmt.Errorf("the detail %q %s", f.Detail, wrong)
	}
	return f, nil
}

func (p *peer) read() heard {
	p.t.Helper()
	f, err := p.tryRead()
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// ends reads until the close frame and returns its code.
func (p *peer) ends() conn.CloseCode {
	p.t.Helper()
	for {
		if _, err := p.tryRead(); err != nil {
			code := websocket.CloseStatus(err)
			if code < 0 {
				p.t.Fatalf("ended without a close frame: %v", err)
			}
			return conn.CloseCode(code) //nolint:gosec // a close code has 16 bits
		}
	}
}

// syncWriter makes a buffer safe for many.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}
