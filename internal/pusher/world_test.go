package pusher

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) {
	// net/http lets a refused sender read the answer for half a second before it closes.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// The apps of every world; 1001 and 1002 are there, 1003 is suspended.
const (
	testKey    = "petrel-key"
	testSecret = "petrel-secret"
)

// shard is the directory of apps, fed by a real projection.
type shard struct {
	t     testing.TB
	store *projection.Store
	loop  *apply.Loop
	dir   *identity.Directory

	mu sync.Mutex // guards n
	n  uint64
}

func newShard(t testing.TB, changed func(petrel.AppID)) *shard {
	t.Helper()
	s := &shard{t: t}
	var err error
	s.store, err = projection.Open(t.Context(), projection.Options{
		Path: filepath.Join(t.TempDir(), "p.db"), Modules: []projection.Module{apply.Module(), identity.Module()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.store.Close() })
	s.dir = identity.NewDirectory(identity.DirectoryOptions{OnChange: changed})
	s.loop, err = apply.New(apply.Options{Store: s.store, Domains: []apply.Domain{{
		Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(), Fold: identity.Fold, Version: identity.Version, Publish: s.dir.Publish,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.dir.Load(t.Context(), s.store); err != nil {
		t.Fatal(err)
	}
	for _, app := range []petrel.AppID{"1001", "1002", "1003"} {
		n := string(app[3:])
		if n == "1" {
			n = ""
		}
		s.fold(event.AppCreated{App: app}, event.AppKeyAdded{App: app, Key: testKey + n, Secret: testSecret + n})
	}
	s.fold(event.AppSuspended{App: "1003"})
	return s
}

// fold makes one entry of events.
func (s *shard) fold(events ...event.Event) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	e := &event.Entry{ID: petrel.NewEntryID(), Actor: petrel.Actor{Kind: petrel.ActorOperator}, At: 1, Events: events}
	payload, err := event.Encode(e)
	if err != nil {
		s.t.Fatal(err)
	}
	hash := sha256.Sum256(binary.BigEndian.AppendUint64(payload, s.n))
	if err := s.loop.Apply(s.t.Context(), []petrel.Record{{Index: s.n, Hash: hash, Payload: payload[:len(payload):len(payload)]}}, s.n); err != nil {
		s.t.Fatal(err)
	}
}

// configure replaces the settings of app 1001.
func (s *shard) configure(settings map[string]int64) {
	ev := event.AppConfigured{App: "1001"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		ev.Settings = append(ev.Settings, event.AppSetting{Name: name, Value: settings[name]})
	}
	s.fold(ev)
}

// site is one node's public side.
type site struct {
	t testing.TB
	*shard
	url    string
	hub    *hub.Hub
	door   *gateway.Gateway
	server atomic.Pointer[Server]
	client *http.Client
}

// newSite starts a node with the usual apps.
func newSite(t testing.TB, change func(*Options, *gateway.Options)) *site {
	t.Helper()
	w := &site{t: t}
	w.shard = newShard(t, func(app petrel.AppID) {
		if s := w.server.Load(); s != nil {
			s.AppChanged(app)
		}
	})
	w.start(change)
	return w
}

func (w *site) start(change func(*Options, *gateway.Options)) {
	w.t.Helper()
	logger := slog.New(slog.DiscardHandler)
	nothing := func(*petrel.Publication) []byte { return nil }
	w.hub = hub.New(HubOptions(hub.Options{
		Encoders: []func(*petrel.Publication) []byte{nothing, nothing, nothing},
		Rosters:  make([]func(*hub.Roster) []byte, 3),
		History:  func(context.Context, hub.Want) (hub.Page, error) { return hub.Page{}, nil },
		Last:     channel.NewCache(channel.CacheOptions{TTL: func(app petrel.AppID) time.Duration { return time.Duration(w.dir.Settings(app).CacheTTL) * time.Second }}),
		Logger:   logger,
	}))
	w.hub.OnTell(hub.TopicTerminate, func(ctx context.Context, app petrel.AppID, user []byte) ([]byte, error) {
		return w.server.Load().Terminate(ctx, app, user)
	})
	w.hub.Start()
	o, door := Options{}, gateway.Options{Auth: nobody{}, Conns: conn.NewTable(conn.Options{Logger: logger}), RequestTimeout: patience, Logger: logger}
	if change != nil {
		change(&o, &door)
	}
	w.door = gateway.New(door)
	o.Gateway, o.Hub, o.Apps, o.Logger = w.door, w.hub, w.dir, logger
	w.server.Store(Register(o))
	ln, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.url = "http://" + ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.door.Serve(ln) }()
	door.Conns.Start()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	w.client = &http.Client{Transport: transport, Timeout: patience}
	w.t.Cleanup(func() {
		transport.CloseIdleConnections()
		w.door.Stop()
		if err := <-served; err != nil {
			w.t.Error(err)
		}
		w.server.Load().Stop()
		w.hub.Stop()
	})
}

// everywhere runs a test on one node, where both sites are the same, and on two that are joined.
func everywhere(t *testing.T, change func(*Options, *gateway.Options), fn func(t *testing.T, a, b *site)) {
	t.Run("one node", func(t *testing.T) {
		t.Parallel()
		w := newSite(t, change)
		fn(t, w, w)
	})
	t.Run("two nodes", func(t *testing.T) {
		t.Parallel()
		net := bus.NewNetwork(1)
		a, b := newSite(t, change), newSite(t, change)
		meet(t, net, a, b)
		fn(t, a, b)
	})
}

// meet makes two nodes one cell.
func meet(t *testing.T, net *bus.Network, a, b *site) {
	t.Helper()
	for _, met := range []chan struct{}{a.join(net, "n1"), b.join(net, "n2")} {
		select {
		case <-met:
		case <-time.After(patience):
			t.Fatal("the nodes do not meet")
		}
	}
}

// cable is a hub.Relay over a Bus, as node makes one.
type cable struct {
	*bus.Bus
	node petrel.NodeID
}

func (c cable) Node() petrel.NodeID { return c.node }

func (cable) Bucket(ch petrel.Channel) hub.Bucket { return hub.Bucket(bus.BucketOf(ch.App, ch.Name)) }

func (c cable) Publish(b hub.Bucket, p []byte) error { return c.Bus.Publish(bus.Bucket(b), 1, p) }

func (c cable) Listen(b hub.Bucket) (stop func(), err error) { return c.Bus.Listen(bus.Bucket(b)) }

func (c cable) Ask(ctx context.Context, node petrel.NodeID, p []byte) ([]byte, error) {
	return c.Request(ctx, node, 1, p)
}

// join makes the site a node of a cell; what it returns is closed when it has met another.
func (w *site) join(net *bus.Network, name petrel.NodeID) chan struct{} {
	w.t.Helper()
	b, err := bus.New(bus.Options{Node: name, Heartbeat: 50 * time.Millisecond}, net.Join())
	if err != nil {
		w.t.Fatal(err)
	}
	met := make(chan struct{})
	once := sync.OnceFunc(func() { close(met) })
	b.Handle(1, func(m bus.Message) { w.hub.Receive(m.Origin, m.Incarnation, m.Payload) })
	b.Serve(1, w.hub.Answer)
	b.OnChange(func(all []bus.Peer) {
		var alive []hub.Peer
		for _, p := range all {
			if p.Alive {
				alive = append(alive, hub.Peer{Node: p.Node, Incarnation: p.Incarnation})
			}
		}
		if w.hub.Peers(alive); len(alive) > 0 {
			once()
		}
	})
	w.hub.Join(cable{b, name})
	if err := b.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(b.Stop)
	return met
}

type nobody struct{}

func (nobody) Token(context.Context, string) (gateway.Credential, error) {
	return gateway.Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "No.")
}

func (nobody) Key(context.Context, string, string, petrel.UserID) (gateway.Credential, error) {
	return gateway.Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "No.")
}

// frame is what a client reads.
type frame struct {
	Event   string          `json:"event"`
	Channel string          `json:"channel"`
	Data    json.RawMessage `json:"data"`
	UserID  string          `json:"user_id"`
}

// text is data that must be a string.
func (f frame) text(t testing.TB) (s string) {
	t.Helper()
	if err := json.Unmarshal(f.Data, &s); err != nil {
		t.Fatalf("the data of %s is no string: %s", f.Event, f.Data)
	}
	return s
}

// code is that of a pusher:error, 0 when there is none.
func (f frame) code() int {
	var e struct{ Code int }
	_ = json.Unmarshal(f.Data, &e)
	return e.Code
}

// peer is a client's connection.
type peer struct {
	t  testing.TB
	ws *websocket.Conn
	id string
}

const query = "?protocol=7&client=js&version=8.6.0&flash=false"

// open opens a connection at a path, whatever becomes of it.
func (w *site) open(path string) *peer { return w.openWith(path, websocket.CompressionDisabled) }

func (w *site) openWith(path string, mode websocket.CompressionMode) *peer {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	ws, res, err := websocket.Dial(ctx, w.url+path, &websocket.DialOptions{HTTPClient: w.client, CompressionMode: mode})
	if err != nil {
		w.t.Fatalf("%s: %v", path, err)
	}
	if res.Body != nil {
		res.Body.Close()
	}
	ws.SetReadLimit(1 << 20)
	w.t.Cleanup(func() { ws.CloseNow() })
	return &peer{t: w.t, ws: ws}
}

// dial opens a connection that is let in.
func (w *site) dial() *peer {
	w.t.Helper()
	p := w.open("/app/" + testKey + query)
	var hello struct {
		SocketID        string `json:"socket_id"`
		ActivityTimeout int    `json:"activity_timeout"`
	}
	if err := json.Unmarshal([]byte(p.want("pusher:connection_established").text(w.t)), &hello); err != nil || !isSocketID(hello.SocketID) || hello.ActivityTimeout != 120 {
		w.t.Fatalf("%+v, %v", hello, err)
	}
	p.id = hello.SocketID
	return p
}

// read reads a frame, or how the connection ended.
func (p *peer) read() (f frame, end websocket.StatusCode) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	_, b, err := p.ws.Read(ctx)
	if err != nil {
		if end = websocket.CloseStatus(err); end < 0 {
			p.t.Fatalf("no frame and no close code: %v", err)
		}
		return frame{}, end
	}
	if err := json.Unmarshal(b, &f); err != nil {
		p.t.Fatalf("%s: %v", b, err)
	}
	return f, 0
}

// want reads the next frame, which must be of that event.
func (p *peer) want(event string) frame {
	p.t.Helper()
	f, end := p.read()
	if f.Event != event {
		p.t.Fatalf("%s on %q with %s (closed: %d); want %s", f.Event, f.Channel, f.Data, end, event)
	}
	return f
}

// wantError reads a pusher:error with a code.
func (p *peer) wantError(code int) {
	p.t.Helper()
	if f := p.want("pusher:error"); f.code() != code {
		p.t.Fatalf("%s; want code %d", f.Data, code)
	}
}

// quiet checks that nothing has come: what was sent before a ping is read before its pong.
func (p *peer) quiet() {
	p.t.Helper()
	p.say(`{"event":"pusher:ping","data":{}}`)
	p.want("pusher:pong")
}

func (p *peer) say(text string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := p.ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) sayf(format string, args ...any) {
	p.t.Helper()
	p.say(fmt.Sprintf(format, args...))
}

// auth signs a subscription as an app's backend does.
func (p *peer) auth(name, data string) string {
	text := p.id + ":" + name
	if data != "" {
		text += ":" + data
	}
	return testKey + ":" + sign(testSecret, text)
}

func sign(secret, text string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// ask sends a subscription with what the channel needs.
func (p *peer) ask(name, data string) {
	p.t.Helper()
	m := map[string]string{"channel": name, "auth": ""}
	if strings.HasPrefix(name, "pr") {
		m["auth"] = p.auth(name, data)
	}
	if data != "" {
		m["channel_data"] = data
	}
	b, err := json.Marshal(map[string]any{"event": "pusher:subscribe", "data": m})
	if err != nil {
		p.t.Fatal(err)
	}
	p.say(string(b))
}

// join subscribes and returns the data of subscription_succeeded.
func (p *peer) join(name, data string) string {
	p.t.Helper()
	p.ask(name, data)
	f := p.want("pusher_internal:subscription_succeeded")
	if f.Channel != name {
		p.t.Fatalf("joined %s instead of %s", f.Channel, name)
	}
	return f.text(p.t)
}

// signedCall is a call of the HTTP API that may be bent before it is sent.
type signedCall struct {
	method, path, body, key, secret string
	query                           url.Values
	at                              time.Time
	bend                            func(q url.Values)
	seen                            func(h http.Header) // is given the answer's
}

// call signs and sends, and returns status and body.
func (w *site) call(c signedCall) (int, string) {
	w.t.Helper()
	if c.key == "" {
		c.key, c.secret = testKey, testSecret
	}
	if c.at.IsZero() {
		c.at = time.Now()
	}
	q := url.Values{}
	maps.Copy(q, c.query)
	q.Set("auth_key", c.key)
	q.Set("auth_timestamp", fmt.Sprint(c.at.Unix()))
	q.Set("auth_version", "1.0")
	if c.body != "" {
		sum := md5.Sum([]byte(c.body))
		q.Set("body_md5", hex.EncodeToString(sum[:]))
	}
	var pairs []string
	for _, k := range slices.SortedFunc(maps.Keys(q), func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }) {
		for _, v := range q[k] {
			pairs = append(pairs, strings.ToLower(k)+"="+v)
		}
	}
	q.Set("auth_signature", sign(c.secret, c.method+"\n"+c.path+"\n"+strings.Join(pairs, "&")))
	if c.bend != nil {
		c.bend(q)
	}
	u := url.URL{Path: c.path}
	req, err := http.NewRequestWithContext(w.t.Context(), c.method, w.url+u.EscapedPath()+"?"+q.Encode(), strings.NewReader(c.body))
	if err != nil {
		w.t.Fatal(err)
	}
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if c.seen != nil {
		c.seen(res.Header)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode >= 400 {
		var p gateway.Problem
		if json.Unmarshal(b, &p) != nil || p.Status != res.StatusCode || p.Detail == "" || res.Header.Get("Content-Type") != "application/problem+json" {
			w.t.Errorf("%s %s: %d without a problem: %s", c.method, c.path, res.StatusCode, b)
		}
		if strings.Contains(string(b), testSecret) {
			w.t.Errorf("%s %s tells a secret: %s", c.method, c.path, b)
		}
	}
	return res.StatusCode, string(bytes.TrimSpace(b))
}

// trigger publishes an event, and must succeed.
func (w *site) trigger(body string) {
	w.t.Helper()
	if status, text := w.call(signedCall{method: "POST", path: "/apps/1001/events", body: body}); status != 200 || text != "{}" {
		w.t.Fatalf("%d %s", status, text)
	}
}

// signedURL is the address of a call that publishes body.
func (w *site) signedURL(body string) string {
	sum := md5.Sum([]byte(body))
	q := fmt.Sprintf("auth_key=%s&auth_timestamp=%d&auth_version=1.0&body_md5=%s", testKey, time.Now().Unix(), hex.EncodeToString(sum[:]))
	return "/apps/1001/events?" + q + "&auth_signature=" + sign(testSecret, "POST\n/apps/1001/events\n"+q)
}
