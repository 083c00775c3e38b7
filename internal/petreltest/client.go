package petreltest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"
)

// Message is a message as the documentation describes it.
type Message struct {
	ID     string          `json:"id"`
	Room   string          `json:"room"`
	Seq    uint64          `json:"seq"`
	User   string          `json:"user"`
	Text   string          `json:"text"`
	At     time.Time       `json:"created_at"`
	Custom json.RawMessage `json:"custom,omitempty"`
}

// Event is one item of a room's history or one event frame.
type Event struct {
	Seq  uint64          `json:"seq"`
	Type string          `json:"type"`
	At   time.Time       `json:"at"`
	Data json.RawMessage `json:"data"`
}

// Problem is a refusal.
type Problem struct {
	Status     int    `json:"status"`
	Code       string `json:"code"`
	Detail     string `json:"detail"`
	RetryAfter string `json:"-"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%d %s: %s", p.Status, p.Code, p.Detail) }

// Token makes a user token as an app's backend would.
func Token(user string) string {
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": AppKey, "sub": user, "exp": time.Now().Add(24 * time.Hour).Unix(), // far beyond the clocks that tests set wrong
	})
	s, err := t.SignedString([]byte(AppSecret))
	if err != nil {
		panic(err) // HS256 with bytes cannot fail
	}
	return s
}

// Call sends one request as a user (or, with an empty user, as the app) and decodes the answer into out.
// A refusal comes back as *Problem; anything else means that the outcome is not known.
func Call(ctx context.Context, c *http.Client, base, user, method, path string, in, out any) (status int, err error) {
	status, _, err = Ask{User: user, Method: method, Path: path, In: in, Out: out}.Do(ctx, c, base)
	return status, err
}

// Ask is one request.
type Ask struct {
	User         string // empty: the app itself
	Method, Path string
	Key          string // Idempotency-Key
	Position     string // Petrel-Position that a read must show
	In, Out      any
}

// Do sends it; see Call. position is the answer's.
func (a Ask) Do(ctx context.Context, c *http.Client, base string) (status int, position string, err error) {
	var body io.Reader
	if a.In != nil {
		b, err := json.Marshal(a.In)
		if err != nil {
			return 0, "", err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, a.Method, base+a.Path, body)
	if err != nil {
		return 0, "", err
	}
	if a.In != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range map[string]string{"Petrel-User": a.User, "Idempotency-Key": a.Key, "Petrel-Position": a.Position} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	req.SetBasicAuth(AppKey, AppSecret)
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", err
	}
	position = resp.Header.Get("Petrel-Position")
	if resp.StatusCode >= 300 {
		p := &Problem{}
		if err := json.Unmarshal(b, p); err != nil || p.Code == "" {
			return 0, "", fmt.Errorf("status %d without a problem: %q", resp.StatusCode, b)
		}
		if p.Status != resp.StatusCode {
			return 0, "", fmt.Errorf("status %d with a problem of status %d", resp.StatusCode, p.Status)
		}
		p.RetryAfter = resp.Header.Get("Retry-After")
		return resp.StatusCode, position, p
	}
	if a.Out != nil {
		if err := json.Unmarshal(b, a.Out); err != nil {
			return 0, "", fmt.Errorf("decode %q: %w", b, err)
		}
	}
	return resp.StatusCode, position, nil
}

// Post posts a message and returns it; repeated says that it had been there.
func Post(ctx context.Context, c *http.Client, base, user, room, id, text string) (m Message, repeated bool, err error) {
	var out struct{ Message Message }
	status, err := Call(ctx, c, base, user, http.MethodPost, "/v1/rooms/"+url.PathEscape(room)+"/messages",
		map[string]any{"id": id, "text": text}, &out)
	return out.Message, status == http.StatusOK, err
}

// History reads every event of a room through the replay endpoint, and checks that seq is dense from 1.
func History(ctx context.Context, c *http.Client, base, room string) ([]Event, error) {
	return historyAt(ctx, c, base, room, "")
}

// historyAt is History as of a position.
func historyAt(ctx context.Context, c *http.Client, base, room, position string) ([]Event, error) {
	var all []Event
	for {
		var page struct {
			Events []Event
			Head   uint64
		}
		path := fmt.Sprintf("/v1/rooms/%s/events?after=%d&limit=500", url.PathEscape(room), len(all))
		if _, _, err := (Ask{Method: http.MethodGet, Path: path, Position: position, Out: &page}).Do(ctx, c, base); err != nil {
			return nil, err
		}
		for _, ev := range page.Events {
			if ev.Seq != uint64(len(all))+1 {
				return nil, &HoleError{Room: room, After: uint64(len(all)), Next: ev.Seq}
			}
			all = append(all, ev)
		}
		switch {
		case uint64(len(all)) == page.Head:
			return all, nil
		case len(page.Events) == 0:
			return nil, &HoleError{Room: room, After: uint64(len(all)), Head: page.Head}
		}
	}
}

// HoleError says that a history is not dense.
type HoleError struct {
	Room  string
	After uint64
	Next  uint64 // the seq that follows instead; 0: none
	Head  uint64
}

func (e *HoleError) Error() string {
	if e.Next == 0 {
		return fmt.Sprintf("room %s: the head is %d, yet nothing follows %d", e.Room, e.Head, e.After)
	}
	return fmt.Sprintf("room %s: seq %d follows %d", e.Room, e.Next, e.After)
}

// Socket is one native socket.
type Socket struct {
	ws   *websocket.Conn
	next int
}

// Frame is any frame of the server.
type Frame struct {
	Op       string          `json:"op"`
	ID       int             `json:"id"`
	Code     string          `json:"code"`
	Detail   string          `json:"detail"`
	Room     string          `json:"room"`
	Seq      uint64          `json:"seq"`
	Type     string          `json:"type"`
	At       time.Time       `json:"at"`
	Data     json.RawMessage `json:"data"`
	Message  Message         `json:"message"`
	Repeated bool            `json:"repeated"`
	Head     uint64          `json:"head"`
	Epoch    string          `json:"epoch"`
	Reason   string          `json:"reason"`
	Position string          `json:"position"`
	Users    []struct {
		User string `json:"user"`
	} `json:"users"`
	Raw string `json:"-"`
}

// Dial opens a socket as a user and waits for hello.
func Dial(ctx context.Context, base, user string) (*Socket, error) {
	return DialWith(ctx, nil, base, user)
}

// DialWith is Dial through a client of one's own; nil: the default one.
func DialWith(ctx context.Context, c *http.Client, base, user string) (*Socket, error) {
	ws, _, err := websocket.Dial(ctx, base+"/v1/connect?token="+url.QueryEscape(Token(user)), &websocket.DialOptions{HTTPClient: c})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(1 << 20)
	s := &Socket{ws: ws}
	f, err := s.Read(ctx)
	if err == nil && f.Op != "hello" {
		err = fmt.Errorf("the first frame is %s", f.Raw)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the socket at once.
func (s *Socket) Close() { _ = s.ws.CloseNow() }

// Read returns the next frame; pings are answered.
func (s *Socket) Read(ctx context.Context) (Frame, error) {
	for {
		_, b, err := s.ws.Read(ctx)
		if err != nil {
			return Frame{}, err
		}
		var f Frame
		if err := json.Unmarshal(b, &f); err != nil {
			return Frame{}, fmt.Errorf("frame %q: %w", b, err)
		}
		f.Raw = string(b)
		if f.Op == "ping" {
			if err := s.Write(ctx, map[string]any{"op": "pong"}); err != nil {
				return Frame{}, err
			}
			continue
		}
		return f, nil
	}
}

// Write sends a frame.
func (s *Socket) Write(ctx context.Context, frame any) error {
	b, err := json.Marshal(frame)
	if err != nil {
		return err
	}
	return s.ws.Write(ctx, websocket.MessageText, b)
}

// Send posts a message and waits for its answer. Use it only on sockets without subscriptions.
func (s *Socket) Send(ctx context.Context, room, id, text string) (Message, bool, error) {
	s.next++
	err := s.Write(ctx, map[string]any{
		"op": "send", "id": s.next, "room": room, "message": map[string]any{"id": id, "text": text},
	})
	if err != nil {
		return Message{}, false, err
	}
	f, err := s.Read(ctx)
	if err != nil {
		return Message{}, false, err
	}
	switch {
	case f.Op == "ok" && f.ID == s.next:
		return f.Message, f.Repeated, nil
	case f.Op == "error" && f.ID == s.next:
		return Message{}, false, &Problem{Code: f.Code, Detail: f.Detail}
	}
	return Message{}, false, fmt.Errorf("unexpected frame %s", f.Raw)
}

// Subscribe asks for a room from a position. It returns after the answer.
func (s *Socket) Subscribe(ctx context.Context, room string, after uint64, epoch string) (head uint64, newEpoch string, err error) {
	s.next++
	frame := map[string]any{"op": "subscribe", "id": s.next, "room": room, "after": after}
	if epoch != "" {
		frame["epoch"] = epoch
	}
	if err := s.Write(ctx, frame); err != nil {
		return 0, "", err
	}
	f, err := s.Read(ctx)
	if err != nil {
		return 0, "", err
	}
	if f.Op != "ok" || f.ID != s.next {
		return 0, "", errors.New("subscribe was answered " + f.Raw)
	}
	return f.Head, f.Epoch, nil
}

// mayRetry lists the refusals that a client is told to come back from.
func mayRetry(code string) bool {
	switch code {
	case "down", "busy", "no_leader", "unknown_outcome", "draining", "overloaded", "timeout", "disk_full", "read_budget":
		return true
	}
	return false
}

// pause waits for a moment before a retry: a client's backoff, not a test's wait.
func pause(ctx context.Context) {
	t := time.NewTimer(time.Duration(1+rand.IntN(20)) * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
