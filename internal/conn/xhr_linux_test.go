package conn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// xhrPaths answers with frames of a connection: at /hot/… on the loop, at /hot/away/… after a while in a goroutine.
func xhrPaths(x func() *XHR) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/away/") && Again(w) {
			return
		}
		serve := x().ServePoll
		if strings.HasSuffix(r.URL.Path, "stream") {
			serve = x().ServeStream
		}
		if serve(w, r) != nil {
			w.WriteHeader(http.StatusGone)
		}
	}
}

const askPoll, askStream = "POST /hot/poll HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", "POST /hot/stream HTTP/1.1\r\nHost: x\r\n\r\n"

// ask sends a request and returns where its answer will come.
func ask(t testing.TB, addr, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(nc, request); err != nil {
		t.Fatal(err)
	}
	return nc, bufio.NewReader(nc)
}

// answered reads one whole answer.
func answered(t testing.TB, br *bufio.Reader) (body string, resp *http.Response) {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body) // one that another replaces in the middle of a write is cut
	return string(b), resp
}

// TestLoopsXHRLosesNothing: polls and streams, one after the other or each in place of the one before, on loops, in goroutines beside them, and both
// in turn: every message comes once, in order.
func TestLoopsXHRLosesNothing(t *testing.T) {
	t.Parallel()
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(round), 12)) //nolint:gosec // a few
			tab := NewTable(Options{QueueFrames: 100_000, QueueBytes: 1 << 30})
			x := tab.OpenXHR(Config{}, newRecorder())
			paths := xhrPaths(func() *XHR { return x })
			s := serveLoops(t, tab, Config{}, nil, paths, nil)
			var beside *httptest.Server
			if round >= 3 {
				beside = httptest.NewServer(paths)
				t.Cleanup(func() { tab.Stop(); beside.Close() })
			}
			const n = 3000
			go func() {
				r := rand.New(rand.NewPCG(uint64(round), 13)) //nolint:gosec // a few
				for i := range n {
					if err := x.Conn().Send(XHRFrame(fmt.Appendf(nil, "%d %s", i, strings.Repeat("é", r.IntN(1+r.IntN(2000)))))); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			next, cut, open := 0, false, []*bufio.Reader(nil)
			read := func() {
				br := open[0]
				open = open[1:]
				again := cut // what was on its way on a response that was cut may come again: to whom the connection belongs now, only this one counts
				if _, err := br.Peek(1); err != nil && beside != nil {
					cut = true // before it began
					return
				}
				body, resp := answered(t, br)
				whole := int64(len(body)) == resp.ContentLength || strings.HasSuffix(body, string(xhrReplaced()))
				cut = beside != nil || !whole // net/http may take a write for cut that was not
				for line := range strings.SplitSeq(strings.TrimSuffix(body, "\n"), "\n") {
					switch {
					case line == "", line == "o", line == "h", line == strings.TrimSuffix(string(xhrReplaced()), "\n"):
						continue
					case !strings.HasSuffix(line, "]"):
						continue // cut within a frame: it comes again
					}
					var i int
					_, err := fmt.Sscanf(line, `a["%d `, &i)
					if again && i < next {
						next = i
					}
					again = false
					if err != nil || i != next {
						t.Fatalf("%.40q (%v), wanted %d", line, err, next)
					}
					next++
				}
			}
			for next < n {
				addr := s.addr
				if beside != nil && rng.IntN(3) == 0 {
					addr = beside.Listener.Addr().String()
				}
				request := askPoll
				if rng.IntN(2) == 0 {
					request = strings.Replace(askStream, "\r\nHost", "\r\nConnection: close\r\nHost", 1)
				}
				if rng.IntN(2) == 0 {
					request = strings.Replace(request, "/hot/", "/hot/away/", 1)
				}
				before := x.c.heard.Load()
				_, br := ask(t, addr, request)
				until(t, func() bool { return x.c.heard.Load() != before }) // it has the place: they are served in the order in which they take it
				// The last one of all might wait for ever: so each is replaced by the next, or ends as a poll.
				open = append(open, br)
				if len(open) > 1 || request == askPoll {
					for len(open) > 1 {
						read()
					}
				}
				if rng.IntN(4) == 0 && next < n && strings.Contains(request, "poll") {
					read()
				}
			}
		})
	}
}

// TestLoopsXHRPoll: a poll is an answer that comes late; its socket lives on, also for what was sent behind it.
func TestLoopsXHRPoll(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	x := tab.OpenXHR(Config{}, newRecorder())
	s := serveLoops(t, tab, Config{}, nil, xhrPaths(func() *XHR { return x }), nil)
	nc, br := ask(t, s.addr, askPoll+askPoll+strings.Replace(askPoll, "/hot/", "/hot/away/", 1))
	if body, resp := answered(t, br); body != "o\n" || resp.Close || resp.Header.Get("Content-Type") != "application/javascript; charset=UTF-8" {
		t.Fatalf("%q %v", body, resp)
	}
	for i := range 2 {
		if err := x.Conn().Send(XHRFrame(fmt.Append(nil, i))); err != nil {
			t.Fatal(err)
		}
		if body, resp := answered(t, br); body != fmt.Sprintf("a[\"%d\"]\n", i) || resp.Close {
			t.Fatalf("%q %v", body, resp)
		}
	}
	for i := range 20 {
		if _, err := io.WriteString(nc, askPoll); err != nil {
			t.Fatal(err)
		}
		_ = x.Conn().Send(XHRFrame(fmt.Append(nil, i)))
		if body, _ := answered(t, br); body != fmt.Sprintf("a[\"%d\"]\n", i) {
			t.Fatalf("%q", body)
		}
	}
	if _, err := io.WriteString(nc, askPoll); err != nil {
		t.Fatal(err)
	}
	x.Conn().Close(CloseReconnect, "later")
	if body, _ := answered(t, br); body != "c[4200,\"later\"]\n" {
		t.Fatalf("%q", body)
	}
	if _, err := io.WriteString(nc, askPoll); err != nil {
		t.Fatal(err)
	}
	if _, resp := answered(t, br); resp.StatusCode != http.StatusGone {
		t.Fatal(resp)
	}
}

// TestLoopsXHRStream: a stream has its frames at once, and ends where pusher-js drops it; the next one goes on.
func TestLoopsXHRStream(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	tab := NewTable(Options{})
	x := tab.OpenXHR(Config{}, rec)
	s := serveLoops(t, tab, Config{}, nil, xhrPaths(func() *XHR { return x }), nil)
	for round := range 3 {
		_, br := ask(t, s.addr, askStream)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || !resp.Close || resp.ContentLength != -1 {
			t.Fatal(resp, err)
		}
		body := bufio.NewReader(resp.Body)
		if line, err := body.ReadString('\n'); round == 0 && (line != "o\n" || err != nil) {
			t.Fatalf("%q %v", line, err)
		}
		size := 0
		for i := 0; ; i++ {
			f := XHRFrame([]byte(fmt.Sprint(i, strings.Repeat("x", 10_000))))
			if err := x.Conn().Send(f); err != nil {
				t.Fatal(err)
			}
			if size > recycleAfter {
				break // it is for the next stream
			}
			line, err := body.ReadString('\n')
			if err != nil || line != string(f) {
				t.Fatalf("round %d, after %d: %.50q %v", round, size, line, err)
			}
			if size += len(line); round > 0 && i == 0 {
				size += 10_005 // the one before
			}
		}
		if line, err := body.ReadString('\n'); !errors.Is(err, io.EOF) || line != "" {
			t.Fatalf("%.50q behind the end, %v", line, err)
		}
	}
	_, br := ask(t, s.addr, askStream)
	x.Conn().Close(CloseReconnect, "later")
	if body, _ := answered(t, br); !strings.HasSuffix(body, "c[4200,\"later\"]\n") {
		t.Fatalf("%.100q", body)
	}
	if got := rec.code(t.Context(), t); got != CloseReconnect {
		t.Fatal(got.format())
	}
}

// TestLoopsXHRGoesAway: a client whose response broke off is noticed, whether it waits or does not read, and so is one whose response breaks when
// the server ends.
func TestLoopsXHRGoesAway(t *testing.T) {
	t.Parallel()
	for _, request := range []string{askPoll, askStream, strings.Replace(askPoll, "/hot/", "/hot/away/", 1)} {
		tab := NewTable(Options{WriteTimeout: time.Second, QueueBytes: 64 << 20})
		tab.Start()
		rec := newRecorder()
		x := tab.OpenXHR(Config{}, rec)
		s := serveLoops(t, tab, Config{}, nil, xhrPaths(func() *XHR { return x }), nil)
		_, br := ask(t, s.addr, askPoll)
		if body, _ := answered(t, br); body != "o\n" {
			t.Fatalf("%q", body)
		}
		nc, _ := ask(t, s.addr, request)
		until(t, func() bool { return x.present() })
		nc.Close()
		until(t, func() bool { return !x.present() })
		if request != askStream {
			continue // an answer is as long as what there was
		}

		_, _ = ask(t, s.addr, request) // nobody reads it
		until(t, func() bool { return x.present() })
		if err := x.Conn().Send(XHRFrame([]byte(strings.Repeat("x", 32<<20)))); err != nil { // one, or the stream would end well behind the first
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if got := rec.code(ctx, t); got != CloseAbnormal {
			t.Fatal(got.format())
		}
		cancel()
	}
	tab := NewTable(Options{})
	rec := newRecorder()
	x := tab.OpenXHR(Config{}, rec)
	s := serveLoops(t, tab, Config{}, nil, xhrPaths(func() *XHR { return x }), nil)
	_, br := ask(t, s.addr, askStream)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	}
	tab.Stop()
	if got := rec.code(t.Context(), t); got != CloseAbnormal {
		t.Fatal(got.format())
	}
}

// present says that a response receives.
func (x *XHR) present() bool {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	return x.c.extra().giveUp == 0
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("it does not come to pass")
		}
	}
}
