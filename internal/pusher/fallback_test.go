package pusher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// distant is a client that gets no WebSocket and does what pusher-js does then.
type distant struct {
	t      testing.TB
	w      *site
	base   string
	kind   string // xhr or xhr_streaming
	id     string
	frames chan frame
	end    chan string // how it ended, once
	leave  context.CancelFunc
}

// far opens a session and reads its first frame.
func (w *site) far(kind, session string) *distant {
	w.t.Helper()
	d := w.farOff(kind, "/pusher/app/"+testKey+"/17/"+session)
	var hello struct {
		SocketID string `json:"socket_id"`
	}
	if err := json.Unmarshal([]byte(d.want("pusher:connection_established").text(w.t)), &hello); err != nil || !isSocketID(hello.SocketID) {
		w.t.Fatalf("%+v, %v", hello, err)
	}
	d.id = hello.SocketID
	return d
}

// farOff begins to ask for frames below a path, whatever comes of it.
func (w *site) farOff(kind, base string) *distant {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	d := &distant{t: w.t, w: w, base: base, kind: kind, frames: make(chan frame, 10_000), end: make(chan string, 1), leave: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.end <- d.run(ctx)
		close(d.frames)
	}()
	w.t.Cleanup(func() { cancel(); <-done })
	return d
}

// run asks again and again, as the transport does, until the session has ended.
func (d *distant) run(ctx context.Context) string {
	opened := false
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.w.url+d.base+"/"+d.kind+query, nil)
		if err != nil {
			return err.Error()
		}
		res, err := d.w.client.Transport.RoundTrip(req)
		if err != nil {
			return "1006 " + err.Error()
		}
		size, end := d.read(res, &opened)
		res.Body.Close()
		if end != "" {
			return end
		}
		if d.kind == "xhr_streaming" && size <= 256<<10 {
			return "1006 Connection interrupted (200)"
		}
	}
}

// read reads the lines of one answer. end says how the session ended, "" when it goes on.
func (d *distant) read(res *http.Response, opened *bool) (size int, end string) {
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Sprintf("1006 Connection interrupted (%d)", res.StatusCode)
	}
	if got := res.Header["Access-Control-Allow-Origin"]; len(got) != 1 || got[0] != "*" {
		d.t.Errorf("Access-Control-Allow-Origin: %q", got)
	}
	for r := bufio.NewReader(res.Body); ; {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return size, ""
		}
		if err != nil {
			return size, "1006 " + err.Error()
		}
		size += len(line) // these tests send ASCII
		switch line[0] {
		case 'o':
			if *opened {
				return size, "1006 Server lost session"
			}
			*opened = true
		case 'c':
			return size, strings.TrimSpace(line)
		case 'a':
			var list []string
			if err := json.Unmarshal([]byte(line[1:]), &list); err != nil {
				return size, err.Error()
			}
			for _, s := range list {
				var f frame
				if err := json.Unmarshal([]byte(s), &f); err != nil {
					return size, err.Error()
				}
				d.frames <- f
			}
		}
	}
}

// want reads the next frame, which must be of that event.
func (d *distant) want(event string) frame {
	d.t.Helper()
	select {
	case f, ok := <-d.frames:
		if !ok {
			d.t.Fatalf("ended with %s; want %s", <-d.end, event)
		}
		if f.Event != event {
			d.t.Fatalf("%s on %q with %s; want %s", f.Event, f.Channel, f.Data, event)
		}
		return f
	case <-time.After(patience):
		d.t.Fatalf("no %s", event)
	}
	return frame{}
}

// wantEnd waits for the end.
func (d *distant) wantEnd(prefix string) {
	d.t.Helper()
	for range d.frames { //nolint:revive // what came before
	}
	if end := <-d.end; !strings.HasPrefix(end, prefix) {
		d.t.Fatalf("ended with %s, want %s", end, prefix)
	}
}

// post sends a body as it is and returns the answer's status and body.
func (d *distant) post(body string) (int, string) {
	d.t.Helper()
	res, err := d.w.client.Post(d.w.url+d.base+"/xhr_send?t=1&n=2", "application/json", strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	if res.Header.Get("Access-Control-Allow-Origin") != "*" {
		d.t.Errorf("%d without Access-Control-Allow-Origin", res.StatusCode)
	}
	return res.StatusCode, string(b)
}

// say sends one message.
func (d *distant) say(text string) {
	d.t.Helper()
	b, err := json.Marshal([]string{text})
	if err != nil {
		d.t.Fatal(err)
	}
	if status, answer := d.post(string(b)); status != http.StatusNoContent {
		d.t.Fatalf("%d %s", status, answer)
	}
}

// join subscribes, with what the channel needs.
func (d *distant) join(name, data string) string {
	d.t.Helper()
	m := map[string]string{"channel": name, "auth": ""}
	if strings.HasPrefix(name, "pr") {
		p := peer{id: d.id}
		m["auth"] = p.auth(name, data)
	}
	if data != "" {
		m["channel_data"] = data
	}
	b, err := json.Marshal(map[string]any{"event": "pusher:subscribe", "data": m})
	if err != nil {
		d.t.Fatal(err)
	}
	d.say(string(b))
	return d.want("pusher_internal:subscription_succeeded").text(d.t)
}

// eachKind runs a test for both ways to receive.
func eachKind(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"xhr_streaming", "xhr"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

// TestFallback: a session over HTTP is a connection like any other: events, client events, pings, errors, the count of places.
func TestFallback(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind string) {
		w := newSite(t, nil)
		d := w.far(kind, "abcdefgh")
		if used, _ := w.door.Connections(); used != 1 {
			t.Errorf("%d places", used)
		}
		d.join("a", "")
		d.join("private-a", "")
		p := w.dial()
		p.join("private-a", "")
		w.trigger(`{"name":"n","channels":["a"],"data":"{\"é\":\"\\u2028\"}"}`)
		if f := d.want("n"); f.text(t) != "{\"é\":\"\u2028\"}" && f.text(t) != `{"é":"\u2028"}` {
			t.Errorf("%s", f.Data)
		}
		d.say(`{"event":"client-x","channel":"private-a","data":{"from":"far"}}`)
		p.want("client-x")
		p.say(`{"event":"client-y","channel":"private-a","data":{"from":"near"}}`)
		d.want("client-y")
		d.say(`{"event":"pusher:ping","data":{}}`)
		d.want("pusher:pong")
		d.say(`{"event":"pusher:subscribe","data":{"channel":"private-b","auth":"x:y"}}`)
		d.want("pusher:subscription_error")
		if f := d.want("pusher:error"); f.code() != 4009 {
			t.Errorf("%s", f.Data)
		}
		if status, _ := d.post(`[]`); status != 204 {
			t.Errorf("heartbeat: %d", status)
		}
		for body, want := range map[string]int{``: 400, `{}`: 400, `[1]`: 400, "[\"\xff\"]": 400, `["` + strings.Repeat("x", maxSend) + `"]`: 413} {
			if status, _ := d.post(body); status != want {
				t.Errorf("%.20s: %d, want %d", body, status, want)
			}
		}
		w.trigger(`{"name":"n","channels":["a"],"data":"x"}`) // none of that ended the session
		d.want("n")
		w.door.Conns().Each(func(c *conn.Conn) {
			if c.Wire() == conn.WireXHR {
				c.Close(4100, "Over capacity.")
			}
		})
		d.wantEnd(`c[4100,"Over capacity."]`)
		w.eventually(func() bool { // the place of p is left
			used, _ := w.door.Connections()
			return used == 1 && !w.server.Load().HasSession(testKey+"/17/abcdefgh")
		})
		if status, _ := d.post(`[]`); status != 404 {
			t.Errorf("after the end: %d", status)
		}
	})
}

// eventually waits for what comes by itself.
func (w *site) eventually(ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(patience); ; {
		if ok() {
			return
		}
		select {
		case <-end:
			w.t.Fatal("it did not come about")
		case <-tick.C:
		}
	}
}

// TestFallbackLosesNothing: thousands of events through recycled streams and polls: each once, in order.
func TestFallbackLosesNothing(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind string) {
		w := newSite(t, nil)
		d := w.far(kind, "lossless")
		d.join("a", "")
		const n, batch = 600, 6
		data := strings.Repeat("x", 3_000)
		read := make(chan struct{})
		go func() {
			defer close(read)
			for i := range n {
				if f, ok := <-d.frames; !ok || f.Event != fmt.Sprint(i) {
					t.Errorf("event %d: %s", i, f.Event)
					return
				}
			}
		}()
		for i := range n {
			if i%batch == 0 { // never more than the queue takes
				w.eventually(func() bool {
					room := true
					w.door.Conns().Each(func(c *conn.Conn) {
						_, bytes := c.Queued()
						room = room && bytes < 256<<10
					})
					return room
				})
			}
			w.trigger(fmt.Sprintf(`{"name":"%d","channels":["a"],"data":"%s"}`, i, data))
		}
		select {
		case <-read:
		case <-time.After(patience):
			t.Fatal("events are missing")
		}
	})
}

// TestFallbackRefusals: what is refused is told in a frame that pusher-js understands, with 200 (F9).
func TestFallbackRefusals(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	for _, c := range []struct {
		path string
		want string
	}{
		{"nobody/1/abcdefgh/xhr" + query, "o\nc[4001,"},
		{"nobody/1/abcdefgh/xhr_streaming" + query, "o\nc[4001,"},
		{testKey + "3/1/abcdefgh/xhr_streaming" + query, "o\nc[4003,"},
		{testKey + "/1/abcdefgh/xhr_streaming", "o\nc[4008,"},
		{testKey + "/1/abcdefgh/xhr?protocol=1", "o\nc[4007,"},
		{testKey + "/1/abc.defgh/xhr" + query, "o\nc[4005,"},
		{testKey + "/1/" + strings.Repeat("a", 65) + "/xhr" + query, "o\nc[4005,"},
	} {
		res, err := w.client.Post(w.url+"/pusher/app/"+c.path, "application/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != 200 || !bytes.HasPrefix(b, []byte(c.want)) || res.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d %s, %v", c.path, res.StatusCode, b, err)
		}
	}
	for _, path := range []string{"/pusher/", "/pusher/info", "/pusher/app/" + testKey + "/1/abcdefgh/websocket", "/pusher/app/" + testKey + "/1/abcdefgh/xhr_send"} {
		res, err := w.client.Post(w.url+path, "application/json", strings.NewReader(`["a"]`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 404 || res.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, w.url+"/pusher/app/"+testKey+"/1/abcdefgh/xhr_send", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Access-Control-Request-Headers", "content-type")
	res, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	h := res.Header
	if res.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Content-Type") ||
		!strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") || h.Get("Access-Control-Max-Age") == "" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %d %v", res.StatusCode, h)
	}
	if used, _ := w.door.Connections(); used != 0 {
		t.Errorf("%d places for nobody", used)
	}
}

// TestFallbackIsBounded: sessions count as connections of the app.
func TestFallbackIsBounded(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.configure(map[string]int64{"max_connections": 2})
	w.far("xhr", "first")
	w.far("xhr_streaming", "second")
	w.farOff("xhr", "/pusher/app/"+testKey+"/1/third").wantEnd("c[4004,")
}

// TestFallbackLeavesWithItsNode: a node that leaves tells streams and polls where they stand, and begins nothing new.
func TestFallbackLeavesWithItsNode(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	poll, stream := w.far("xhr", "first"), w.far("xhr_streaming", "second")
	left := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		left <- w.door.Drain(ctx, 300*time.Millisecond)
	}()
	poll.wantEnd("c[4200,")
	stream.wantEnd("c[4200,")
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	w.farOff("xhr", "/pusher/app/"+testKey+"/1/third").wantEnd("1006 ")
}

// TestNewcomersOfALeavingNode: as long as polling clients must be told, the listener is open; who comes meanwhile is told to come back in a way
// that pusher-js understands at once, where it would wait for a refused request for many seconds.
func TestNewcomersOfALeavingNode(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.far("xhr", "first")
	w.far("xhr", "second") // told at the end of the time
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() { left <- w.door.Drain(ctx, time.Hour) }()
	w.eventually(func() bool {
		place, err := w.door.Admit("1001")
		if err == nil {
			place.Release()
		}
		return petrel.CodeOf(err) == petrel.CodeDraining
	})
	w.farOff("xhr", "/pusher/app/"+testKey+"/1/third").wantEnd("c[4100,")
	w.farOff("xhr_streaming", "/pusher/app/"+testKey+"/1/fourth").wantEnd("c[4100,")
	w.open("/app/" + testKey + query).wantError(4100)
	w.trigger(`{"name":"still","channel":"news","data":"answered"}`)
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestFallbackRevoked: who would not be let in now is sent away, wherever it is between two polls.
func TestFallbackRevoked(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind string) {
		w := newSite(t, nil)
		d := w.far(kind, "abcdefgh")
		w.suspend()
		d.wantEnd("c[4003,")
	})
}

// TestFallbackAbruptEnds: clients that reset, vanish or send half a request cost no more than their own session. The times are long enough for a
// slow machine to read what is there.
func TestFallbackAbruptEnds(t *testing.T) {
	t.Parallel()
	w := newSite(t, func(_ *Options, o *gateway.Options) {
		o.HeaderTimeout, o.ReadTimeout = 2*time.Second, 3*time.Second
	})
	d := w.far("xhr_streaming", "stays")
	d.join("a", "")
	address := strings.TrimPrefix(w.url, "http://")
	head := func(path string, length int) string {
		return fmt.Sprintf("POST /pusher/app/%s/1/%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", testKey, path, length)
	}
	rows := map[string]struct{ send, status string }{
		"a head that never ends":           {head("slow1/xhr_streaming"+query, 0), ""},
		"a body that never comes":          {head("slow2/xhr_send", 100) + "\r\n[", ""}, // a loop waits for the whole of it
		"a receiver's body never comes":    {head("slow3/xhr"+query, 100) + "\r\n", ""},
		"a receiver with a large body":     {head("slow4/xhr"+query, 1<<20) + "\r\n", "413"},
		"a call's body never comes":        {"POST /apps/1001/events?auth_key=" + testKey + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", ""},
		"a handshake that never ends":      {"GET /app/" + testKey + query + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n", ""},
		"a stream whose client then reads": {head("slow5/xhr_streaming"+query, 0) + "\r\n", "200"},
	}
	var asking sync.WaitGroup
	for name, c := range rows {
		asking.Go(func() {
			nc, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(name, err)
				return
			}
			defer nc.Close()
			if _, err := io.WriteString(nc, c.send); err != nil {
				t.Error(name, err)
			}
			_ = nc.SetReadDeadline(time.Now().Add(patience))
			line, err := bufio.NewReader(nc).ReadString('\n')
			if _, status, _ := strings.Cut(line, " "); !strings.HasPrefix(status, c.status) || c.status == "" && !errors.Is(err, io.EOF) && !strings.HasPrefix(status, "408") {
				t.Errorf("%s: %q, %v", name, line, err)
			}
			if c.status == "200" {
				_ = nc.(*net.TCPConn).SetLinger(0) // a reset
			}
		})
	}
	asking.Wait()
	w.trigger(`{"name":"n","channels":["a"],"data":"x"}`)
	d.want("n")
	d.leave()
}

// TestFallbackHostname: where the node has a name of its own, clients are sent there, if they can follow.
func TestFallbackHostname(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ public, host, want string }{
		{"", "petrel.example", ""},
		{"https://n1.petrel.example", "petrel.example", "n1.petrel.example"},
		{"https://n1.petrel.example", "petrel.example:443", "n1.petrel.example"},
		{"https://n1.petrel.example:8443", "petrel.example:8443", "n1.petrel.example"},
		{"https://n1.petrel.example:8443", "petrel.example", ""},
		{"http://n1.petrel.example", "petrel.example:8080", ""},
		{"http://n1.petrel.example", "N1.petrel.example", ""},
		{"http://[::1]:80", "petrel.example", ""},
	} {
		w := newSite(t, func(o *Options, _ *gateway.Options) { o.PublicURL = c.public })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/pusher/app/"+testKey+"/1/abcdefgh/xhr"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(res.Body).ReadString('\n')
		res.Body.Close()
		want := "o\n"
		if c.want != "" {
			want = fmt.Sprintf("o{\"hostname\":%q}\n", c.want)
		}
		if err != nil || line != want {
			t.Errorf("%+v: %q, %v", c, line, err)
		}
	}
}

// neighbour is another node of the cell, asked directly.
type neighbour struct{ server func() *Server }

func (n neighbour) Find(_ context.Context, name SessionName, ask bool) petrel.NodeID {
	if s := n.server(); !ask || s == nil || !s.HasSession(name) {
		return ""
	}
	return "home"
}

func (n neighbour) Forward(w http.ResponseWriter, r *http.Request, _ SessionName, _ petrel.NodeID) {
	n.server().Forwarded().ServeHTTP(w, r)
}

// TestFallbackForwards: requests for a session of another node reach it, and no second session begins.
func TestFallbackForwards(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind string) {
		home := newSite(t, nil)
		door := newSite(t, func(o *Options, _ *gateway.Options) {
			o.Elsewhere = neighbour{func() *Server { return home.server.Load() }}
		})
		res, err := home.client.Post(home.url+"/pusher/app/"+testKey+"/17/abcdefgh/xhr"+query, "application/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		d := door.farOff(kind, "/pusher/app/"+testKey+"/17/abcdefgh")
		d.join("a", "")
		home.trigger(`{"name":"n","channels":["a"],"data":"x"}`)
		d.want("n")
		if used, _ := door.door.Connections(); used != 0 {
			t.Errorf("%d sessions at the door", used)
		}
		other := door.far(kind, "other") // this one is nobody's yet
		other.join("a", "")
		if used, _ := door.door.Connections(); used != 1 {
			t.Errorf("%d sessions at the door", used)
		}
	})
}

var _ Elsewhere = neighbour{}

// suspend suspends app 1001.
func (w *site) suspend() { w.fold(event.AppSuspended{App: "1001"}) }
