package petreltest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/node"
)

// backend is the receiver of an app's webhooks: it checks every call, and takes each event once, as its documentation says.
type backend struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	events []hookEvent
	seen   map[string]bool
	again  int            // events that came more than once
	answer map[string]int // status by path; 200 where none
}

type hookEvent struct {
	ID      string          `json:"event_id"`
	Name    string          `json:"name"`
	Channel string          `json:"channel"`
	User    string          `json:"user_id"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"data"`
	Socket  string          `json:"socket_id"`
	Count   *int            `json:"subscription_count"`
	Room    string          `json:"room"`
	Seq     uint64          `json:"seq"`

	Schedule string `json:"schedule"`
	Due      string `json:"due_at"`
	Missed   int    `json:"missed"`
	path     string
}

func (e hookEvent) String() string {
	s := e.Name + " " + e.Channel + e.Room
	for _, part := range []string{e.User, e.Event} {
		if part != "" {
			s += " " + part
		}
	}
	if e.Seq > 0 {
		s += fmt.Sprint(" ", e.Seq)
	}
	return s
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{t: t, seen: map[string]bool{}, answer: map[string]int{}}
	b.Server = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever sent it died
	}
	if key, sig := r.Header.Get("X-Pusher-Key"), r.Header.Get("X-Pusher-Signature"); key != AppKey || sig != macOf(string(body)) {
		b.t.Errorf("a call is signed %s by %s: %s", sig, key, body)
	}
	var call struct {
		Time   int64       `json:"time_ms"`
		Events []hookEvent `json:"events"`
	}
	if err := json.Unmarshal(body, &call); err != nil || len(call.Events) == 0 || call.Time == 0 {
		b.t.Errorf("a call says %s: %v", body, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if status := b.answer[r.URL.Path]; status != 0 {
		w.WriteHeader(status)
		return
	}
	for _, e := range call.Events {
		if e.ID == "" {
			b.t.Errorf("an event has no id: %s", body)
		}
		if b.seen[r.URL.Path+e.ID] {
			b.again++
			continue
		}
		b.seen[r.URL.Path+e.ID] = true
		e.path = r.URL.Path
		b.events = append(b.events, e)
	}
}

// got are the events that came to a path.
func (b *backend) got(path string) (events []hookEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if e.path == path {
			events = append(events, e)
		}
	}
	return events
}

func (b *backend) lines(path string) (lines []string) {
	for _, e := range b.got(path) {
		lines = append(lines, e.String())
	}
	slices.Sort(lines)
	return lines
}

// expect waits until just these events have come to a path, in whatever order.
func (b *backend) expect(path string, want ...string) {
	b.t.Helper()
	slices.Sort(want)
	if !poll(b.t.Context(), Patience, func() bool { return slices.Equal(b.lines(path), want) }) {
		b.t.Fatalf("at %s (-want +came):\n%s", path, cmp.Diff(want, b.lines(path)))
	}
}

// pusherClient is one connection of a Pusher client.
type pusherClient struct {
	ws     *websocket.Conn
	socket string
	frames chan map[string]any // closed with the connection
	told   told
}

func dialPusher(ctx context.Context, at string) (*pusherClient, error) {
	ws, resp, err := websocket.Dial(ctx, strings.Replace(at, "http", "ws", 1)+"/app/"+AppKey+"?protocol=7&client=test&version=1", nil)
	if err != nil {
		return nil, err
	}
	if resp.Body != nil {
		_ = resp.Body.Close()
	}
	c := &pusherClient{ws: ws, frames: make(chan map[string]any, 256)}
	go func() {
		defer close(c.frames)
		for {
			_, b, err := ws.Read(context.Background())
			if err != nil {
				return
			}
			var f map[string]any
			if json.Unmarshal(b, &f) != nil {
				continue
			}
			c.told.take(f)
			if f["event"] == "pusher:ping" {
				_ = c.send(context.Background(), "pusher:pong", "", map[string]any{}) // a connection that has ended is noticed by Read
			}
			select {
			case c.frames <- f:
			default: // nobody waits for it
			}
		}
	}()
	f, err := c.await(ctx, "pusher:connection_established")
	if err != nil {
		return nil, err
	}
	var hello struct {
		Socket string `json:"socket_id"`
	}
	if err := json.Unmarshal([]byte(f["data"].(string)), &hello); err != nil {
		return nil, err
	}
	c.socket = hello.Socket
	return c, nil
}

func (c *pusherClient) await(ctx context.Context, event string) (map[string]any, error) {
	for {
		select {
		case f, ok := <-c.frames:
			switch {
			case !ok:
				return nil, errors.New("the connection has ended")
			case f["event"] == event:
				return f, nil
			case f["event"] == "pusher:error":
				return nil, fmt.Errorf("%v", f["data"])
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *pusherClient) send(ctx context.Context, event, channel string, data any) error {
	b, err := json.Marshal(map[string]any{"event": event, "channel": channel, "data": data})
	if err != nil {
		return err
	}
	return c.ws.Write(ctx, websocket.MessageText, b)
}

// subscribe subscribes, as a member where user is not empty.
func (c *pusherClient) subscribe(ctx context.Context, channel, user string) error {
	data := map[string]any{"channel": channel}
	signed := c.socket + ":" + channel
	if user != "" {
		data["channel_data"] = `{"user_id":"` + user + `"}`
		signed += ":" + data["channel_data"].(string)
	}
	if strings.HasPrefix(channel, "private-") || user != "" {
		data["auth"] = AppKey + ":" + macOf(signed)
	}
	if err := c.send(ctx, "pusher:subscribe", "", data); err != nil {
		return err
	}
	_, err := c.await(ctx, "pusher_internal:subscription_succeeded")
	return err
}

func (c *pusherClient) close() { _ = c.ws.CloseNow() }

// macOf is a signature of the app's.
func macOf(text string) string {
	mac := hmac.New(sha256.New, []byte(AppSecret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// hookCell is a cell whose webhooks may call this machine, with shorter times.
func hookCell(t *testing.T, nodes int, settings ...string) *Cell {
	t.Helper()
	return StartCell(t, CellOptions{Nodes: nodes, Change: func(_ int, o *node.Options) {
		o.Config.AppSettings = strings.Join(settings, ",")
		o.Config.WebhookAllow = "127.0.0.0/8"
		o.WebhookTimes = node.WebhookTimes{HoldDown: time.Second, Settle: 2 * time.Second, Sweep: 3 * time.Second}
	}})
}

// ask calls the API as the app's backend.
func (c *Cell) ask(i int, method, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequestWithContext(c.tb.Context(), method, c.URL(i)+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.SetBasicAuth(AppKey, AppSecret)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if strings.HasPrefix(path, "/v1/rooms") {
		req.Header.Set("Petrel-User", "ada")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(bytes.TrimSpace(b)), err
}

func (c *Cell) mustAsk(i int, method, path, body string) string {
	c.tb.Helper()
	var status int
	var answer string
	var err error
	if !poll(c.tb.Context(), Patience, func() bool { // while there is no leader it is 503
		status, answer, err = c.ask(i, method, path, body)
		return err == nil && status < 300
	}) {
		c.tb.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
	}
	return answer
}

func (c *Cell) join(i int, channel, user string) *pusherClient {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), Patience)
	defer cancel()
	p, err := dialPusher(ctx, c.URL(i))
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(p.close)
	if err := p.subscribe(ctx, channel, user); err != nil {
		c.tb.Fatalf("subscribe to %s: %v", channel, err)
	}
	return p
}

// TestWebhooks is the life of an app's webhooks, on one node and on three.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", nodes), func(t *testing.T) {
			t.Parallel()
			testWebhooks(t, hookCell(t, nodes), newBackend(t), nodes-1)
		})
	}
}

func testWebhooks(t *testing.T, c *Cell, b *backend, last int) {
	c.mustAsk(last, "PUT", "/v1/hooks/channels", `{"url":"`+b.URL+`/channels","events":["channel_occupied","channel_vacated","member_added","member_removed"]}`)
	c.mustAsk(0, "PUT", "/v1/hooks/clients", `{"url":"`+b.URL+`/clients","events":["client_event","cache_miss"]}`)
	c.mustAsk(0, "PUT", "/v1/hooks/chat", `{"url":"`+b.URL+`/chat","events":["room.*","member.*","message.*"],"batch":true}`)
	c.mustAsk(0, "PUT", "/v1/hooks/gone", `{"url":"`+b.URL+`/gone","events":["room.created"]}`)
	b.mu.Lock()
	b.answer["/gone"] = 410
	b.mu.Unlock()
	moment(t.Context(), 3*time.Second) // owners have settled

	// Two nodes, one subscriber each, one leaves: the channel is not vacated.
	one, two := c.join(0, "room", ""), c.join(last, "room", "")
	b.expect("/channels", "channel_occupied room")
	one.close()
	moment(t.Context(), 4*time.Second)
	b.expect("/channels", "channel_occupied room")
	two.close()
	b.expect("/channels", "channel_occupied room", "channel_vacated room")

	// A member moves to another node: nothing. One with two connections leaves with the last.
	ada := c.join(0, "presence-p", "ada")
	bob, bob2 := c.join(0, "presence-p", "bob"), c.join(last, "presence-p", "bob")
	told := []string{"channel_occupied room", "channel_vacated room", "channel_occupied presence-p", "member_added presence-p ada", "member_added presence-p bob"}
	b.expect("/channels", told...)
	moved := c.join(last, "presence-p", "ada")
	ada.close()
	bob.close()
	moment(t.Context(), 4*time.Second)
	b.expect("/channels", told...)
	bob2.close()
	told = append(told, "member_removed presence-p bob")
	b.expect("/channels", told...)
	moved.close()
	b.expect("/channels", append(told, "member_removed presence-p ada", "channel_vacated presence-p")...)

	// Client events and cache misses.
	cy, dee := c.join(0, "private-c", ""), c.join(last, "private-c", "")
	if err := cy.send(t.Context(), "client-hi", "private-c", map[string]any{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := dee.await(t.Context(), "client-hi"); err != nil {
		t.Fatal(err)
	}
	b.expect("/clients", "client_event private-c client-hi")
	if e := b.got("/clients")[0]; string(e.Payload) != `"{\"a\":1}"` || e.Socket != cy.socket {
		t.Errorf("the client event says %s of %s", e.Payload, e.Socket)
	}

	// Chat: what replay shows, with its seq.
	c.mustAsk(last, "POST", "/v1/rooms", `{"id":"lobby","kind":"open"}`)
	c.mustAsk(0, "POST", "/v1/rooms/lobby/messages", `{"id":"m1","text":"hello"}`)
	c.mustAsk(last, "PATCH", "/v1/rooms/lobby/messages/m1", `{"text":"hello all"}`)
	b.expect("/chat", "room.created lobby 1", "message.new lobby 2", "message.updated lobby 3")
	for _, e := range b.got("/chat") {
		if e.Seq == 2 && !bytes.Contains(e.Payload, []byte(`"text":"hello"`)) || e.Seq == 2 && !bytes.Contains(e.Payload, []byte(`"seq":2`)) {
			t.Errorf("message.new says %s", e.Payload)
		}
	}

	// 410 ends a webhook, and only that one.
	if !poll(t.Context(), Patience, func() bool {
		status, _, err := c.ask(last, "GET", "/v1/hooks/gone", "")
		return err == nil && status == http.StatusNotFound
	}) {
		t.Error("the webhook whose receiver is gone is still there")
	}
	if list := c.mustAsk(0, "GET", "/v1/hooks", ""); strings.Count(list, `"url"`) != 3 {
		t.Errorf("left: %s", list)
	}
	c.mustAsk(0, "DELETE", "/v1/rooms/lobby", "")
	b.expect("/chat", "room.created lobby 1", "message.new lobby 2", "message.updated lobby 3", "room.deleted lobby 4")
}
