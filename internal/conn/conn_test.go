package conn

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/gobwas/ws"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPingFlood: pings are answered, and a peer that sends nothing else, and much of it, is sent away. One that does not read the
// answers costs no more than its queue.
func TestPingFlood(t *testing.T) {
	t.Parallel()
	for name, reads := range map[string]bool{"reads": true, "does not read": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tab := NewTable(Options{})
				defer tab.Stop()
				tab.Start()
				server, client := net.Pipe()
				rec := newRecorder()
				c := tab.OpenWebSocket(server, nil, Config{}, rec)
				go func() {
					for _, op := range []ws.OpCode{ws.OpPing, ws.OpPong} {
						for range 10 { // as often as is allowed
							if _, err := client.Write(bytes.Repeat(clientFrame(true, op, []byte("p")), maxControls)); err != nil {
								return
							}
							pass(time.Second)
						}
					}
					for range 10 * maxControls {
						if _, err := client.Write(clientFrame(true, ws.OpPing, bytes.Repeat([]byte("x"), 125))); err != nil {
							return
						}
					}
				}()
				if reads {
					if got := readClose(t, client); got != CloseOverloaded {
						t.Errorf("closed with %s", got.format())
					}
				} else {
					pass(time.Minute)
				}
				if n, _ := c.Queued(); n > 11*maxControls+1 {
					t.Errorf("%d frames wait", n)
				}
				client.Close()
				if got := rec.code(t.Context(), t); got != CloseOverloaded && (reads || got != CloseAbnormal) {
					t.Errorf("OnClose %s", got.format())
				}
			})
		})
	}
}

func TestSlowReaderIsClosedAsSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{QueueFrames: 10})
		tab.Start()
		server, client := net.Pipe()
		rec := newRecorder()
		c := tab.OpenWebSocket(server, nil, Config{}, rec)
		var err error
		n := 0
		for ; err == nil; n++ {
			err = c.Send(TextFrame([]byte("x")))
		}
		if err != ErrSlow || n != 11 {
			t.Fatalf("send %d: %v", n, err)
		}
		if err := c.Send(TextFrame(nil)); err != ErrClosed {
			t.Fatalf("after that: %v", err)
		}
		if got := readClose(t, client); got != CloseSlow { // a client that wakes up is told
			t.Fatalf("closed with %s", got.format())
		}
		synctest.Wait()
		pass(tab.opt.CloseWait + 2*time.Second) // bubble time: nothing comes back from the client
		synctest.Wait()
		if got := rec.code(t.Context(), t); got != CloseSlow {
			t.Fatalf("OnClose %s", got.format())
		}
		tab.Stop()
	})
}

func TestStuckSocketIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{WriteTimeout: 10 * time.Second})
		tab.Start()
		server, _ := net.Pipe()
		rec := newRecorder()
		c := tab.OpenWebSocket(server, nil, Config{}, rec)
		_ = c.Send(TextFrame([]byte("never read")))
		pass(9 * time.Second)
		synctest.Wait()
		if tab.Len() != 1 {
			t.Fatal("cut before its time")
		}
		pass(3 * time.Second)
		synctest.Wait()
		if got := rec.code(t.Context(), t); got != CloseAbnormal || tab.Len() != 0 {
			t.Fatalf("OnClose %s, %d left", got.format(), tab.Len())
		}
		tab.Stop()
	})
}

func TestTrySendLeavesRoomAndNotifies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{QueueFrames: 40})
		server, client := net.Pipe()
		rec := newRecorder()
		c := tab.OpenWebSocket(server, nil, Config{}, rec)
		frame := TextFrame([]byte("x"))
		n := 0
		for {
			ok, err := c.TrySend(frame)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			n++
		}
		if n != 20 {
			t.Fatalf("TrySend filled %d of 40", n)
		}
		if err := c.Send(frame); err != nil {
			t.Fatalf("a live frame had no room: %v", err)
		}
		told := 0
		c.NotifyRoom(func() { told++ })
		synctest.Wait()
		if told != 0 {
			t.Fatal("told of room while the queue is full")
		}
		for range 21 {
			if _, _, err := readServerFrame(client); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if told != 1 {
			t.Fatalf("told %d times", told)
		}
		c.NotifyRoom(func() { told++ })
		if told != 2 {
			t.Fatal("not told at once although the queue is empty")
		}
		tab.Stop()
		c.NotifyRoom(func() { told++ })
		if told != 3 {
			t.Fatal("a caller waits for ever on a connection that is gone")
		}
	})
}

// TestHeartbeatContract: pings come each interval, and only interval+grace of silence ends a connection.
func TestHeartbeatContract(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		tab.Start()
		beat := Heartbeat{Interval: 25 * time.Second, Grace: 10 * time.Second, Epoch: 1}
		ping := TextFrame([]byte(`{"op":"ping"}`))
		talk, silent, long := newRecorder(), newRecorder(), newRecorder()
		s1, c1 := net.Pipe()
		s2, c2 := net.Pipe()
		s3, c3 := net.Pipe()
		tab.OpenWebSocket(s1, nil, Config{Heartbeat: beat, Ping: ping}, talk)
		tab.OpenWebSocket(s2, nil, Config{Heartbeat: beat, Ping: ping}, silent)
		// This one was promised more: whatever the others were told, its own contract holds.
		tab.OpenWebSocket(s3, nil, Config{Heartbeat: Heartbeat{Interval: 25 * time.Second, Grace: time.Hour}, Ping: ping}, long)
		pings := 0
		go func() {
			for {
				if _, _, err := readServerFrame(c1); err != nil {
					return
				}
				pings++
				_, _ = c1.Write(clientFrame(true, ws.OpText, []byte(`{"op":"pong"}`)))
			}
		}()
		drain := func(c net.Conn) {
			for {
				if _, _, err := readServerFrame(c); err != nil {
					return
				}
			}
		}
		go drain(c2)
		go drain(c3)
		pass(35 * time.Second)
		synctest.Wait()
		if tab.Len() != 3 {
			t.Fatal("closed for silence before interval and grace were over")
		}
		pass(8 * time.Second) // grace over, close frame unanswered for CloseWait
		synctest.Wait()
		if got := silent.code(t.Context(), t); got != CloseSilent {
			t.Fatalf("silent: %s", got.format())
		}
		pass(60 * time.Second)
		synctest.Wait()
		if tab.Len() != 2 || pings != 4 {
			t.Fatalf("%d connections, %d pings after 103 s", tab.Len(), pings)
		}
		tab.Stop()
	})
}

func TestReaperPausesWhenTooManyAreSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{CloseWait: time.Second})
		tab.Start()
		for range 100 {
			s, c := net.Pipe()
			tab.OpenWebSocket(s, nil, Config{Heartbeat: Heartbeat{Interval: 5 * time.Second, Grace: time.Second}}, newRecorder())
			go func() {
				for {
					if _, _, err := readServerFrame(c); err != nil {
						return
					}
				}
			}()
		}
		pass(30 * time.Second)
		synctest.Wait()
		if n := tab.Len(); n != 90 || !tab.paused {
			t.Fatalf("%d of 100 left (90 expected: 10 %% in a minute), paused %v", n, tab.paused)
		}
		tab.Stop()
	})
}

func TestPauseHoldsMessagesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		tab.Start()
		s, client := net.Pipe()
		rec := newRecorder()
		rec.onText = func(c *Conn, p []byte) {
			if string(p) == "b" {
				c.Pause()
			}
		}
		c := tab.OpenWebSocket(s, nil, Config{Heartbeat: Heartbeat{Interval: time.Second, Grace: time.Second}}, rec)
		var in []byte
		for _, m := range []string{"a", "b", "c"} {
			in = append(in, clientFrame(true, ws.OpText, []byte(m))...)
		}
		go func() {
			for {
				if _, _, err := readServerFrame(client); err != nil {
					return
				}
			}
		}()
		_, _ = client.Write(in)
		pass(time.Minute) // silence is not held against a paused connection
		synctest.Wait()
		if diff := cmp.Diff([]string{"a", "b"}, rec.heard()); diff != "" {
			t.Fatalf("while paused:\n%s", diff)
		}
		c.Resume()
		synctest.Wait()
		if diff := cmp.Diff([]string{"a", "b", "c"}, rec.heard()); diff != "" {
			t.Fatalf("after resuming:\n%s", diff)
		}
		tab.Stop()
	})
}

func TestCloseAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		tab.Start()
		s, client := net.Pipe()
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { c.CloseAt(time.Now().Add(time.Hour), CloseTokenExpired, "old") }
		tab.OpenWebSocket(s, nil, Config{}, rec)
		start := time.Now()
		if got := readClose(t, client); got != CloseTokenExpired {
			t.Fatalf("closed with %s", got.format())
		}
		if d := time.Since(start); d < time.Hour || d > time.Hour+2*time.Second {
			t.Fatalf("after %v", d)
		}
		tab.Stop()
	})
}

func TestDrainSpreadsAndWritesEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		tab.Start()
		const n = 50
		ends := make(chan time.Duration, n)
		start := time.Now()
		for range n {
			s, client := net.Pipe()
			rec := newRecorder()
			rec.onDrain = func(c *Conn) { _ = c.Send(TextFrame([]byte("bye"))) }
			tab.OpenWebSocket(s, nil, Config{}, rec)
			go func() {
				last := ""
				for {
					op, p, err := readServerFrame(client)
					if err != nil {
						return
					}
					if op == ws.OpClose {
						if last != "bye" {
							t.Error("closed without the order to reconnect")
						}
						ends <- time.Since(start)
						_, _ = client.Write(clientFrame(true, ws.OpClose, p))
						return
					}
					last = string(p)
				}
			}()
		}
		if err := tab.Drain(t.Context(), 10*time.Second); err != nil {
			t.Fatal(err)
		}
		early := 0
		for range n {
			if <-ends < 5*time.Second {
				early++
			}
		}
		if early != n/2 {
			t.Fatalf("%d of %d left in the first half of the window", early, n)
		}
		tab.Stop()
	})
}

func TestHandlerPanicCostsOneConnection(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	defer tab.Stop()
	server, client := tcpPair(t)
	rec := newRecorder()
	rec.onText = func(*Conn, []byte) { panic("bug") }
	tab.OpenWebSocket(server, clientFrame(true, ws.OpText, []byte("x")), Config{}, rec)
	if got := readClose(t, client); got != CloseInternal {
		t.Fatalf("closed with %s", got.format())
	}
}

func TestSSE(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			rec.onOpen = func(c *Conn) {
				for i := range 3 {
					_ = c.Send(SSEChunk(fmt.Sprint(i), "", []byte("{}")))
				}
				c.Close(CloseReconnect, "later")
			}
			resp := get(t.Context(), t, start(t, NewTable(Options{}), Config{}, func() Handler { return rec }))
			var b bytes.Buffer
			if _, err := b.ReadFrom(resp.Body); err != nil {
				t.Fatal(err)
			}
			want := "id: 0\ndata: {}\n\nid: 1\ndata: {}\n\nid: 2\ndata: {}\n\nevent: close\ndata: {\"code\":4200,\"reason\":\"later\"}\n\n"
			if diff := cmp.Diff(want, b.String()); diff != "" {
				t.Fatal(diff)
			}
			h := resp.Header
			if h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" || h.Get("X-Of-The-Door") != "kept" || h.Get("Date") == "" {
				t.Fatal(h)
			}
			if got := rec.code(t.Context(), t); got != CloseReconnect {
				t.Fatal(got.format())
			}
		})
	}
}

// TestSSESaysNothing: whatever a client sends behind its request is not heard, and its end is noticed.
func TestSSESaysNothing(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			conns := make(chan *Conn, 1)
			rec.onOpen = func(c *Conn) { conns <- c }
			nc, err := net.Dial("tcp", start(t, NewTable(Options{}), Config{}, func() Handler { return rec }))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := io.WriteString(nc, "GET /events HTTP/1.1\r\nHost: x\r\n\r\nGET /events HTTP/1.1\r\n"); err != nil {
				t.Fatal(err)
			}
			c := <-conns
			resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
			for i := range 200 {
				p := []byte(strings.Repeat(fmt.Sprint(i), 1000))
				if err := c.Send(SSEChunk("", "", p)); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, len(SSEChunk("", "", p)))
				if _, err := io.ReadFull(resp.Body, b); err != nil || !bytes.Equal(b, SSEChunk("", "", p)) {
					t.Fatalf("%.50q %v", b, err)
				}
			}
			if got := rec.heard(); len(got) != 0 {
				t.Errorf("%q was heard", got)
			}
			if err := nc.Close(); err != nil {
				t.Fatal(err)
			}
			if got := rec.code(t.Context(), t); got != CloseAbnormal {
				t.Fatal(got.format())
			}
		})
	}
}

func TestSSEClientGoesAway(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			ctx, cancel := context.WithCancel(t.Context())
			resp := get(ctx, t, start(t, NewTable(Options{}), Config{}, func() Handler { return rec }))
			cancel()
			resp.Body.Close()
			if got := rec.code(t.Context(), t); got != CloseAbnormal {
				t.Fatal(got.format())
			}
		})
	}
}

// get asks an engine for a stream of events.
func get(ctx context.Context, t *testing.T, addr string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestOpenAfterStop(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	tab.Stop()
	s, _ := net.Pipe()
	rec := newRecorder()
	tab.OpenWebSocket(s, nil, Config{}, rec)
	if got := rec.code(t.Context(), t); got != CloseAbnormal {
		t.Fatal(got.format())
	}
	tab.Stop()
}

// TestCodesHaveAdvice: every code's range says what to do.
func TestCodesHaveAdvice(t *testing.T) {
	t.Parallel()
	for code, name := range Codes() {
		advice := code.Advice()
		switch {
		case code >= 4000 && code < 4100 && advice != "do not come back unchanged",
			code >= 4100 && code < 4200 && advice != "come back after a pause",
			code >= 4200 && code < 4300 && advice != "come back at once and resume":
			t.Errorf("%d %s: %s", code, name, advice)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	tab := NewTable(Options{QueueFrames: 1 << 20, QueueBytes: 1 << 30})
	defer tab.Stop()
	server, client := tcpPair(b)
	go func() {
		buf := make([]byte, 1<<20)
		for {
			if _, err := client.Read(buf); err != nil {
				return
			}
		}
	}()
	c := tab.OpenWebSocket(server, nil, Config{}, newRecorder())
	frame := TextFrame(bytes.Repeat([]byte("a"), 128))
	b.ReportAllocs()
	for b.Loop() {
		for {
			err := c.Send(frame)
			if err == nil {
				break
			}
			b.Fatal(err)
		}
	}
}

// TestSampledSendIsMeasured: of what was committed, the time to the end of its write; of everything else, nothing.
func TestSampledSendIsMeasured(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	tab := NewTable(Options{Registerer: reg})
	rec := newRecorder()
	rec.onText = func(c *Conn, p []byte) {
		_ = c.Send(TextFrame([]byte("plain")))
		if err := c.SendSampled(TextFrame(p), time.Now().Add(-time.Minute)); err != nil {
			t.Error(err)
		}
	}
	c := dial(t.Context(), t, "http://"+engines()["goroutines"](t, tab, Config{}, func() Handler { return rec })+"/ws")
	for _, text := range []string{"one", "two"} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, _, err := c.Read(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	rec.code(t.Context(), t)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if h := f.GetMetric()[0].GetHistogram(); f.GetName() == "petrel_conn_delivery_seconds" {
			if h.GetSampleCount() != 2 || h.GetSampleSum() < 120 {
				t.Fatalf("%d samples, %v s", h.GetSampleCount(), h.GetSampleSum())
			}
			return
		}
	}
	t.Fatal("the metric is not there")
}

// TestEmptyFrames: a frame without a byte is said to nobody, and harms nobody, alone or behind others.
func TestEmptyFrames(t *testing.T) {
	t.Parallel()
	for engine, start := range engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			large := strings.Repeat("x", 100_000) // does not share a write with others
			rec := newRecorder()
			rec.onOpen = func(c *Conn) {
				_ = c.Send(TextFrame([]byte(large)))
				_ = c.Send(nil)
			}
			rec.onText = func(c *Conn, p []byte) {
				if string(p) == "nothing" {
					_ = c.Send(nil)
					return
				}
				_ = c.Send(TextFrame(p))
			}
			nc, _ := shakeHands(t, start(t, NewTable(Options{}), Config{}, func() Handler { return rec }), openingHandshake)
			if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{large, "a", "b"} {
				if _, p, err := readServerFrame(nc); err != nil || string(p) != want {
					t.Fatalf("%d bytes instead of %d, %v", len(p), len(want), err)
				}
				next := map[string]string{large: "a", "a": "b"}[want]
				if _, err := nc.Write(append(clientFrame(true, ws.OpText, []byte("nothing")), clientFrame(true, ws.OpText, []byte(next))...)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
