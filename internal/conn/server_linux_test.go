package conn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// looping is a server on loops for tests.
type looping struct {
	*Server
	tab  *Table
	addr string
	open atomic.Int64 // places taken
	none bool         // the loops are to do without an io_uring, though there is one
}

// serveLoops serves h for what begins with /hot, and a WebSocket per handler at /ws. Everything else goes to net/http and is answered "rest".
func serveLoops(t testing.TB, tab *Table, cfg Config, handler func() Handler, hot http.HandlerFunc, with func(*ServerOptions), over ...func(net.Listener) net.Listener) *looping {
	t.Helper()
	if tab.opt.IOUring {
		r, err := newRing(1)
		if err != nil {
			t.Skipf("This kernel gives no io_uring, so that nothing is tested of it: %v", err)
		}
		r.close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &looping{tab: tab}
	o := ServerOptions{
		Loops: 2,
		Hot: func(_, path string) bool {
			return path == "/ws" || path == "/events" || strings.HasPrefix(path, "/hot")
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/hot") {
				hot(w, r)
				return
			}
			accept(t, tab, cfg, handler)(w, r)
		}),
		Take:    func() bool { s.open.Add(1); return true },
		Release: func() { s.open.Add(-1) },
		Failed:  func(err error) { t.Errorf("accept: %v", err) },
	}
	if with != nil {
		with(&o)
	}
	if s.Server, err = tab.NewServer(ln, o); err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	rest := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" || r.URL.Path == "/events" {
			accept(t, tab, cfg, handler)(w, r)
			return
		}
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "rest %s %s %s", r.Method, r.URL, b)
	})}
	ln = s.Rest()
	for _, o := range over {
		ln = o(ln)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = rest.Serve(ln) }()
	t.Cleanup(func() {
		tab.Stop()
		s.Stop()
		_ = rest.Close()
		<-served
		for end := time.Now().Add(time.Minute); s.open.Load() != 0 && time.Now().Before(end); { // net/http does not tell when its last handler has returned
			<-time.After(time.Millisecond)
		}
		if n := s.open.Load(); n != 0 {
			t.Errorf("%d places were not given back", n)
		}
		for _, l := range s.loops {
			if want := tab.opt.IOUring && !s.none; (l.ring != nil) != want {
				t.Errorf("a loop wrote by an io_uring to its end: %v; it was to: %v", l.ring != nil, want)
			}
		}
	})
	return s
}

// withLoops is a server on loops, as one of the engines.
var withLoops engine = func(t testing.TB, tab *Table, cfg Config, handler func() Handler) string {
	t.Helper()
	return serveLoops(t, tab, cfg, handler, noHot, nil).addr
}

// withRing is one whose frames go out by an io_uring, all of them.
var withRing engine = func(t testing.TB, tab *Table, cfg Config, handler func() Handler) string {
	t.Helper()
	tab.opt.IOUring = true
	return serveLoops(t, tab, cfg, handler, noHot, func(o *ServerOptions) { o.ringLeast = 1 }).addr
}

// raw dials and makes the handshake by hand.
func (s *looping) raw(t testing.TB, behind ...byte) net.Conn {
	t.Helper()
	nc, _ := shakeHands(t, s.addr, openingHandshake, behind...)
	return nc
}

func noHot(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }

// TestLoopsHearAlike: whatever a client sends, in whatever pieces, the loops hear and answer as the other engine does.
func TestLoopsHearAlike(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	var current atomic.Pointer[recorder]
	s := serveLoops(t, NewTable(Options{CloseWait: time.Minute}), Config{}, func() Handler { return current.Load() }, noHot, nil)
	other := NewTable(Options{CloseWait: time.Minute})
	defer other.Stop()
	for round := range 200 {
		in := randomFrames(rng)
		cuts := rng.Uint64()
		hear := func(nc net.Conn, rec *recorder, in []byte) ([]string, CloseCode, CloseCode) {
			go func() {
				r := rand.New(rand.NewPCG(cuts, 0))
				for rest := in; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(1+r.IntN(200)))
					if _, err := nc.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}()
			sent := readClose(t, nc)
			nc.Close()
			return rec.heard(), rec.code(t.Context(), t), sent
		}
		a := newRecorder()
		current.Store(a)
		early := min(rng.IntN(10), len(in))
		var gotA, gotB []string
		var codeA, codeB, sentA, sentB CloseCode
		gotA, codeA, sentA = hear(s.raw(t, in[:early]...), a, in[early:])
		b := newRecorder()
		server, client := tcpPair(t)
		other.OpenWebSocket(server, append([]byte(nil), in[:early]...), Config{}, b)
		gotB, codeB, sentB = hear(client, b, in[early:])
		if diff := cmp.Diff(gotB, gotA); diff != "" || codeA != codeB || sentA != sentB {
			t.Fatalf("round %d: closed %d/%d and %d/%d, messages:\n%s", round, codeA, sentA, codeB, sentB, diff)
		}
	}
}

// randomFrames is what a client may send, right or wrong, with a close frame at its end.
func randomFrames(rng *rand.Rand) (in []byte) {
	for range rng.IntN(12) {
		p := bytes.Repeat([]byte("é"), rng.IntN(1+rng.IntN(400)))
		switch rng.IntN(14) {
		case 0:
			in = append(in, clientFrame(true, ws.OpPing, p[:min(len(p), 100)])...)
		case 1, 2:
			cut := rng.IntN(len(p) + 1)
			in = append(in, clientFrame(false, ws.OpText, p[:cut])...)
			if rng.IntN(2) == 0 {
				in = append(in, clientFrame(true, ws.OpPong, nil)...)
			}
			in = append(in, clientFrame(true, ws.OpContinuation, p[cut:])...)
		case 3:
			if rng.IntN(6) == 0 {
				in = append(in, clientFrame(true, ws.OpBinary, p)...)
			}
		case 4:
			if rng.IntN(6) == 0 {
				in = append(in, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()))
			}
		default:
			in = append(in, clientFrame(true, ws.OpText, p)...)
		}
	}
	return append(in, clientFrame(true, ws.OpClose, []byte{3, 232})...)
}

func TestLoopsPauseAndResume(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	conns := make(chan *Conn, 1)
	rec.onOpen = func(c *Conn) { conns <- c }
	rec.onText = func(c *Conn, p []byte) {
		if string(p) == "stop" {
			c.Pause()
			_ = c.Send(TextFrame([]byte("paused")))
		}
		if string(p) == "last" {
			_ = c.Send(TextFrame([]byte("done")))
		}
	}
	s := serveLoops(t, NewTable(Options{}), Config{}, func() Handler { return rec }, noHot, nil)
	nc := s.raw(t)
	c := <-conns
	var want []string
	for round := range 20 {
		var in []byte
		for _, m := range []string{"a", "stop", "b", strings.Repeat("c", 50_000), strings.Repeat("d", 60_000)} {
			in = append(in, clientFrame(true, ws.OpText, []byte(m))...)
			want = append(want, m)
		}
		last := clientFrame(true, ws.OpText, []byte("last"))
		want = append(want, "last")
		go func() { _, _ = nc.Write(append(in, last...)) }()
		if _, p, err := readServerFrame(nc); err != nil || string(p) != "paused" {
			t.Fatalf("%q %v", p, err)
		}
		if got := rec.heard(); got[len(got)-1] != "stop" {
			t.Fatalf("round %d: heard %d bytes while paused", round, len(got[len(got)-1]))
		}
		c.Resume()
		if _, p, err := readServerFrame(nc); err != nil || string(p) != "done" {
			t.Fatalf("%q %v", p, err)
		}
	}
	if diff := cmp.Diff(want, rec.heard()); diff != "" {
		t.Fatal(diff)
	}
}

// TestLoopsSlowReader: a reader that takes nothing fills its queue and is closed as slow; what was accepted before is not torn.
func TestLoopsSlowReader(t *testing.T) {
	t.Parallel()
	for _, ring := range []bool{false, true} {
		t.Run(fmt.Sprintf("ring %v", ring), func(t *testing.T) { t.Parallel(); slowReader(t, ring) })
	}
}

func slowReader(t *testing.T, ring bool) {
	t.Helper()
	rec := newRecorder()
	conns := make(chan *Conn, 1)
	rec.onOpen = func(c *Conn) { conns <- c }
	s := serveLoops(t, NewTable(Options{QueueFrames: 100, QueueBytes: 1 << 20, IOUring: ring}), Config{}, func() Handler { return rec }, noHot,
		func(o *ServerOptions) { o.ringLeast = 1 })
	nc := s.raw(t)
	c := <-conns
	if err := c.Send(TextFrame(fmt.Appendf(nil, "%07d%s", 0, strings.Repeat("x", 5000)))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readServerFrame(nc); err != nil { // what comes later may be dropped, all of it
		t.Fatal(err)
	}
	var err error
	sent := 1
	for ; err == nil && sent < 1_000_000; sent++ {
		err = c.Send(TextFrame(fmt.Appendf(nil, "%07d%s", sent, strings.Repeat("x", 5000))))
	}
	if !errors.Is(err, ErrSlow) {
		t.Fatalf("%d frames: %v", sent, err)
	}
	got := 1
	for {
		op, p, err := readServerFrame(nc)
		if err != nil {
			t.Fatalf("after %d frames: %v", got, err)
		}
		if op == ws.OpClose {
			if code := CloseCode(uint16(p[0])<<8 | uint16(p[1])); code != CloseSlow {
				t.Fatalf("closed with %s", code.format())
			}
			break
		}
		if string(p[:7]) != fmt.Sprintf("%07d", got) || len(p) != 5007 {
			t.Fatalf("frame %d is %q, %d bytes", got, p[:7], len(p))
		}
		got++
	}
	if got >= sent {
		t.Fatalf("%d of %d frames", got, sent)
	}
	nc.Close()
	if code := rec.code(t.Context(), t); code != CloseSlow {
		t.Fatalf("OnClose %s", code.format())
	}
}

// TestLoopsResetWhoDoesNotRead: what a peer did not take in all the time it had is not left to the kernel, which would keep it for minutes.
func TestLoopsResetWhoDoesNotRead(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	conns := make(chan *Conn, 1)
	rec.onOpen = func(c *Conn) { conns <- c }
	tab := NewTable(Options{QueueFrames: 100, QueueBytes: 1 << 20, CloseWait: 50 * time.Millisecond})
	tab.Start()
	s := serveLoops(t, tab, Config{}, func() Handler { return rec }, noHot, nil)
	nc := s.raw(t)
	c := <-conns
	for err := error(nil); err == nil; {
		err = c.Send(TextFrame([]byte(strings.Repeat("x", 5000))))
	}
	if code := rec.code(t.Context(), t); code != CloseSlow {
		t.Fatalf("OnClose %s", code.format())
	}
	if _, err := io.Copy(io.Discard, nc); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the peer's connection ends with %v", err)
	}
}

// TestLoopsEverybodyHearsEverything: many connections, frames from several goroutines; each gets each in order.
func TestLoopsEverybodyHearsEverything(t *testing.T) {
	t.Parallel()
	for _, ring := range []bool{false, true} {
		t.Run(fmt.Sprintf("ring %v", ring), func(t *testing.T) { t.Parallel(); everybodyHears(t, ring) })
	}
}

func everybodyHears(t *testing.T, ring bool) {
	t.Helper()
	const n, frames = 50, 400
	var mu sync.Mutex
	var conns []*Conn
	opened := make(chan struct{}, n)
	s := serveLoops(t, NewTable(Options{QueueFrames: 10_000, IOUring: ring}), Config{}, func() Handler {
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { mu.Lock(); conns = append(conns, c); mu.Unlock(); opened <- struct{}{} }
		return rec
	}, noHot, func(o *ServerOptions) { o.ringLeast = 1 })
	var done sync.WaitGroup
	for range n {
		nc := s.raw(t)
		done.Go(func() {
			next := [4]int{}
			r := bufio.NewReader(nc)
			for range 4 * frames {
				h, err := ws.ReadHeader(r)
				if err != nil {
					t.Error(err)
					return
				}
				p := make([]byte, h.Length)
				if _, err := io.ReadFull(r, p); err != nil {
					t.Error(err)
					return
				}
				var who, i int
				if _, err := fmt.Sscanf(string(p), "%d %d", &who, &i); err != nil || i != next[who] {
					t.Errorf("%q, wanted %d (%v)", p, next[who], err)
					return
				}
				next[who]++
			}
		})
	}
	for range n {
		<-opened
	}
	for who := range 4 {
		done.Go(func() {
			for i := range frames {
				f := TextFrame(fmt.Appendf(nil, "%d %d", who, i))
				for _, c := range conns {
					if err := c.Send(f); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	done.Wait()
}

// TestLoopsWithoutARing: where the kernel gives no io_uring, or takes it back, a line says so and everything works as without.
func TestLoopsWithoutARing(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"refused": 1 << 20, "broken": 64} { // the kernel gives 32,768 at most
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &lines{}
			conns := make(chan *Conn, 1)
			rec := newRecorder()
			rec.onOpen = func(c *Conn) { conns <- c }
			s := serveLoops(t, NewTable(Options{IOUring: true, Logger: slog.New(slog.NewTextHandler(log, nil))}), Config{}, func() Handler { return rec }, noHot, func(o *ServerOptions) {
				o.Loops, o.ringLeast, o.ringSize = 1, 1, size
			})
			s.none = true
			nc := s.raw(t)
			if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			c := within(t, conns)
			for i := range 5 {
				if i == 2 && name == "broken" {
					breakRing(t, s.loops[0])
				}
				if err := c.Send(TextFrame([]byte(fmt.Sprint(i)))); err != nil {
					t.Fatal(err)
				}
				if _, p, err := readServerFrame(nc); err != nil || string(p) != fmt.Sprint(i) {
					t.Fatalf("frame %d is %q, %v", i, p, err)
				}
			}
			if n := strings.Count(log.String(), "every frame is written by a call of its own"); n != 1 {
				t.Errorf("told %d times: %s", n, log)
			}
		})
	}
}

// breakRing puts something else in the place of a loop's io_uring.
func breakRing(t *testing.T, l *loop) {
	t.Helper()
	on(t, l, func() {
		if l.ring == nil {
			t.Error("there was none")
			return
		}
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Dup3(fd, l.ring.fd, unix.O_CLOEXEC), unix.Close(fd))
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// TestLoopsWriteForEachOther: what a handler on one loop, or a goroutine beside them, sends to connections of all loops is written at
// once, whoever sleeps: no sweep comes to its help.
func TestLoopsWriteForEachOther(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 20, 2 * helpMost, 2*helpMost + 1} { // with an io_uring where n is even
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var conns []*Conn
			opened := make(chan struct{}, n)
			sendAll := func(p []byte) {
				mu.Lock()
				defer mu.Unlock()
				f := TextFrame(p)
				for _, c := range conns {
					if err := c.Send(f); err != nil {
						t.Error(err)
					}
				}
			}
			s := serveLoops(t, NewTable(Options{IOUring: n%2 == 0}), Config{}, func() Handler {
				rec := newRecorder()
				rec.onOpen = func(c *Conn) { mu.Lock(); conns = append(conns, c); mu.Unlock(); opened <- struct{}{} }
				rec.onText = func(_ *Conn, p []byte) { sendAll(p) }
				return rec
			}, noHot, func(o *ServerOptions) { o.Loops, o.sweepEvery = 3, time.Hour })
			clients := make([]net.Conn, n)
			for i := range clients {
				clients[i] = s.raw(t)
				if err := clients[i].SetDeadline(time.Now().Add(2 * time.Minute)); err != nil { // far beyond what it takes
					t.Fatal(err)
				}
				<-opened
			}
			for round := range 60 {
				want := fmt.Sprint(round)
				if from := round % (n + 1); from == n {
					sendAll([]byte(want))
				} else if _, err := clients[from].Write(clientFrame(true, ws.OpText, []byte(want))); err != nil {
					t.Fatal(err)
				}
				for i, nc := range clients {
					if _, p, err := readServerFrame(nc); err != nil || string(p) != want {
						t.Fatalf("round %d: client %d got %q, %v", round, i, p, err)
					}
				}
			}
		})
	}
}

func TestLoopsDrainAndPanic(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	tab.Start()
	var all []*recorder
	var mu sync.Mutex
	s := serveLoops(t, tab, Config{}, func() Handler {
		rec := newRecorder()
		rec.onDrain = func(c *Conn) { _ = c.Send(TextFrame([]byte("go"))) }
		rec.onText = func(*Conn, []byte) { panic("bug") }
		mu.Lock()
		all = append(all, rec)
		mu.Unlock()
		return rec
	}, noHot, nil)
	broken := s.raw(t, clientFrame(true, ws.OpText, []byte("x"))...)
	if got := readClose(t, broken); got != CloseInternal {
		t.Fatalf("closed with %s", got.format())
	}
	broken.Close()
	var done sync.WaitGroup
	for range 20 {
		nc := s.raw(t)
		done.Go(func() {
			if _, p, err := readServerFrame(nc); err != nil || string(p) != "go" {
				t.Errorf("%q %v", p, err)
			}
			if op, p, err := readServerFrame(nc); err != nil || op != ws.OpClose {
				t.Errorf("%v %q %v", op, p, err)
			}
			_, _ = nc.Write(clientFrame(true, ws.OpClose, []byte{0x10, 0x68}))
		})
	}
	if err := tab.Drain(t.Context(), 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	done.Wait()
	for _, rec := range all {
		rec.code(t.Context(), t)
	}
}

// TestLoopsHTTP: hot requests are answered on the loop, alone, pipelined, in pieces; everything else by net/http, with no byte lost.
func TestLoopsHTTP(t *testing.T) {
	t.Parallel()
	s := serveLoops(t, NewTable(Options{}), Config{}, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("wait") && Again(w) {
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Peer", r.RemoteAddr)
		fmt.Fprintf(w, "hot %s %s %s %s", r.Method, r.URL, r.Host, b)
	}, func(o *ServerOptions) { o.MaxBody = 10_000 })
	big := strings.Repeat("y", 9_000)
	requests := []struct{ in, want string }{
		{"GET /hot?a=1 HTTP/1.1\r\nHost: h\r\n\r\n", "hot GET /hot?a=1 h "},
		{"POST /hot HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", "hot POST /hot h hello"},
		{"POST /hot?wait HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n\r\nhi", "hot POST /hot?wait h hi"},
		{"POST /hot HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n" + big, "hot POST /hot h " + big},
	}
	leaving := []struct{ in, want string }{
		{"GET /cold HTTP/1.1\r\nHost: h\r\n\r\n", "rest GET /cold "},
		{"POST /hot HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "rest POST /hot abc"},
		{"POST /hot HTTP/1.1\r\nHost: h\r\nContent-Length: 10001\r\n\r\n" + strings.Repeat("z", 10_001), "rest POST /hot " + strings.Repeat("z", 10_001)},
		{"GET /hot HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", "rest GET /hot "},
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		var in string
		var want []string
		for range rng.IntN(6) {
			q := requests[rng.IntN(len(requests))]
			in, want = in+q.in, append(want, q.want)
		}
		if rng.IntN(2) == 0 {
			q := leaving[rng.IntN(len(leaving))]
			in, want = in+q.in, append(want, q.want)
		}
		piece := 1 + rng.IntN(1+rng.IntN(20_000))
		go func() {
			for rest := in; rest != ""; {
				n := min(len(rest), piece)
				if _, err := io.WriteString(nc, rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}()
		br := bufio.NewReader(nc)
		for i, w := range want {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("answer %d of %d, pieces of %d: %v", i, len(want), piece, err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || string(b) != w || resp.StatusCode != 200 || resp.Header.Get("Date") == "" {
				t.Fatalf("answer %d: %s %.100q, %v; want %.100q", i, resp.Status, b, err, w)
			}
			resp.Body.Close()
			if strings.HasPrefix(w, "hot") && resp.Header.Get("X-Peer") != nc.LocalAddr().String() {
				t.Fatalf("peer %q", resp.Header.Get("X-Peer"))
			}
		}
		nc.Close()
	}
}

func TestLoopsHTTPEnds(t *testing.T) {
	t.Parallel()
	s := serveLoops(t, NewTable(Options{}), Config{}, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hot/panic" {
			panic("bug")
		}
		fmt.Fprint(w, "ok")
	}, func(o *ServerOptions) { o.ReadTimeout, o.IdleTimeout = 10*time.Millisecond, 10*time.Millisecond })
	read := func(in string) string {
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, in); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(nc) // until the server ends it
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(b), "\r\n")
		return line
	}
	for in, want := range map[string]string{
		"GET /hot HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n": "HTTP/1.1 200 OK",
		"GET /hot/panic HTTP/1.1\r\nHost: h\r\n\r\n":                "HTTP/1.1 500 Internal Server Error",
		"GET /hot HTTP/1.1\r\nHost: h\r\n\r\n":                      "HTTP/1.1 200 OK", // and idle too long
		"GET /hot HTTP/1.1\r\nHo":                                   "",                // too slow
		"":                                                          "",
		"GET /hot HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n":           "HTTP/1.1 400 Bad Request", // by net/http
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			if got := read(in); got != want {
				t.Errorf("%q was answered %q", in, got)
			}
		})
	}
}

func TestLoopsPlaces(t *testing.T) {
	t.Parallel()
	var places atomic.Int64
	s := serveLoops(t, NewTable(Options{}), Config{}, func() Handler { return newRecorder() }, noHot, func(o *ServerOptions) {
		o.Take = func() bool { return places.Add(1) <= 3 || places.Add(-1) < 0 }
		o.Release = func() { places.Add(-1) }
		o.Full = []byte("HTTP/1.1 503 Full\r\n\r\n")
	})
	var in []net.Conn
	for range 3 {
		in = append(in, s.raw(t))
	}
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if b, err := io.ReadAll(nc); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 503")) {
		t.Fatalf("%q %v", b, err)
	}
	in[0].Close()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for places.Load() >= 3 { // the place is free once the loop has seen the end
		if ctx.Err() != nil {
			t.Fatal("the place was not given back")
		}
		runtime.Gosched()
	}
	s.raw(t)
}

// TestLoopsEndBehindData: the peer's end is met also when it came together with the last bytes, for which there is one edge only.
func TestLoopsEndBehindData(t *testing.T) {
	t.Parallel()
	recs := make(chan *recorder, 1)
	s := serveLoops(t, NewTable(Options{}), Config{}, func() Handler {
		rec := newRecorder()
		recs <- rec
		return rec
	}, noHot, nil)
	for range 20 {
		nc := s.raw(t)
		rec := <-recs
		gate := make(chan struct{})
		for _, l := range s.loops {
			l.post(func() { <-gate })
		}
		if _, err := nc.Write(clientFrame(true, ws.OpText, []byte("bye"))); err != nil {
			t.Fatal(err)
		}
		if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		close(gate)
		rec.code(t.Context(), t)
		if diff := cmp.Diff([]string{"bye"}, rec.heard()); diff != "" {
			t.Fatal(diff)
		}
		nc.Close()
	}
}

// TestLoopsStopTellsWhoOpensLate: a request that was worked on when the loops ended opens nothing, and its handler hears so: else the place that
// it took would be gone for good.
func TestLoopsStopTellsWhoOpensLate(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/hot/ws", "/hot/events"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			entered, gate := make(chan struct{}), make(chan struct{})
			tab := NewTable(Options{})
			s := serveLoops(t, tab, Config{}, nil, func(w http.ResponseWriter, r *http.Request) {
				if Again(w) {
					return
				}
				close(entered)
				<-gate
				if r.URL.Path == "/hot/events" {
					tab.ServeSSE(w, r, Config{}, rec)
				} else if err := tab.Open(w, r, Config{}, rec); err != nil {
					t.Error(err)
				}
			}, nil)
			_, br := ask(t, s.addr, strings.Replace(openingHandshake, "/ws", path, 1))
			within(t, entered)
			stopped := make(chan struct{})
			go func() { defer close(stopped); tab.Stop(); s.Stop() }()
			if b, err := io.ReadAll(br); err != nil || len(b) > 0 { // it ends with the loop
				t.Errorf("read %q, %v", b, err)
			}
			close(gate)
			within(t, stopped)
			select {
			case <-rec.closed:
			default:
				t.Error("nobody was told that the connection did not come to be")
			}
		})
	}
}

// TestLoopsSayGoodbyeBehindTheHandshake: who is drained as soon as there is a connection was let in first.
func TestLoopsSayGoodbyeBehindTheHandshake(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	s := serveLoops(t, tab, Config{}, func() Handler { return newRecorder() }, noHot, nil)
	var draining sync.WaitGroup
	var over atomic.Bool
	draining.Go(func() {
		for !over.Load() {
			for _, c := range tab.all() {
				tab.drainOne(c)
			}
			runtime.Gosched()
		}
	})
	defer draining.Wait()
	defer over.Store(true)
	for i := range 40 {
		path, want := "/ws", "HTTP/1.1 101 Switching Protocols\r\n"
		if i%2 == 0 {
			path, want = "/events", "HTTP/1.1 200 OK\r\n"
		}
		nc, br := ask(t, s.addr, strings.Replace(openingHandshake, "/ws", path, 1))
		if line, err := br.ReadString('\n'); line != want {
			t.Fatalf("connection %d begins with %q, %v", i, line, err)
		}
		nc.Close()
	}
}

// TestLoopsPingFlood: who sends nothing but pings is sent away, whether they come all at once or each after the answer to the one before.
func TestLoopsPingFlood(t *testing.T) {
	t.Parallel()
	ping := clientFrame(true, ws.OpPing, nil)
	for name, flood := range map[string]func(nc net.Conn) CloseCode{
		"at once": func(nc net.Conn) CloseCode {
			go func() { _, _ = nc.Write(bytes.Repeat(ping, 100*maxControls)) }()
			return readClose(t, nc)
		},
		"one by one": func(nc net.Conn) CloseCode {
			for range 1000 * maxControls {
				if _, err := nc.Write(ping); err != nil {
					t.Fatal(err)
				}
				op, p, err := readServerFrame(nc)
				if err != nil {
					t.Fatal(err)
				}
				if op == ws.OpClose {
					return CloseCode(uint16(p[0])<<8 | uint16(p[1]))
				}
			}
			return CloseNormal
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			s := serveLoops(t, NewTable(Options{}), Config{}, func() Handler { return rec }, noHot, nil)
			nc := s.raw(t)
			if got := flood(nc); got != CloseOverloaded {
				t.Fatalf("closed with %s", got.format())
			}
			nc.Close()
			if got := rec.code(t.Context(), t); got != CloseOverloaded {
				t.Fatalf("OnClose %s", got.format())
			}
		})
	}
}
