package conn

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// answer is a response in memory: what a client would have read, with writes that fail or get stuck on demand.
type answer struct {
	mu       sync.Mutex
	header   http.Header
	got      bytes.Buffer
	failing  func(n int) bool // says whether a write of n bytes fails; nothing of it arrives then
	stuck    chan struct{}    // not nil: writes wait until it is closed, or the deadline is over
	deadline chan struct{}
}

func newAnswer() *answer { return &answer{header: http.Header{}, deadline: make(chan struct{})} }

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(int) {}

func (a *answer) Write(b []byte) (int, error) {
	if a.stuck != nil {
		select {
		case <-a.stuck:
		case <-a.deadline:
			return 0, errors.New("deadline")
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failing != nil && a.failing(len(b)) {
		return 0, errors.New("cut")
	}
	return a.got.Write(b)
}

func (a *answer) FlushError() error { return nil }

func (a *answer) SetReadDeadline(time.Time) error { return nil }

func (a *answer) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case <-a.deadline:
		default:
			close(a.deadline)
		}
	}
	return nil
}

func (a *answer) body() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got.String()
}

// messages of a body, as pusher-js reads them.
func messages(t testing.TB, body string) (out []string) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSuffix(body, "\n"), "\n") {
		if !strings.HasPrefix(line, "a") {
			continue
		}
		var part []string
		if err := json.Unmarshal([]byte(line[1:]), &part); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		out = append(out, part...)
	}
	return out
}

func request(ctx context.Context) *http.Request {
	return httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
}

// receive is one poll or stream of a client that has patience.
func receive(ctx context.Context, t testing.TB, fn func(http.ResponseWriter, *http.Request) error) string {
	t.Helper()
	a := newAnswer()
	if err := fn(a, request(ctx)); err != nil {
		t.Fatal(err)
	}
	return a.body()
}

// streamOf is ServeStream as net/http calls it: a stream that is cut fails.
func streamOf(x *XHR) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = v.(error)
			}
		}()
		return x.ServeStream(w, r)
	}
}

func TestXHRFrames(t *testing.T) {
	t.Parallel()
	for want, got := range map[string][]byte{
		`a["{\"event\":\"x\",\"data\":\"<é>\"}"]` + "\n": XHRFrame([]byte(`{"event":"x","data":"<é>"}`)),
		`c[4001,"There is no \"app\"."]` + "\n":          XHRClose(4001, `There is no "app".`),
		"o\n":                                            xhrOpen(""),
		`o{"hostname":"n1.example"}` + "\n":              xhrOpen("n1.example"),
		`a["a\nb\u2028"]` + "\n":                         XHRFrame([]byte("a\nb\u2028")),
	} {
		if string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for s, want := range map[string]int{"": 0, "abc": 3, "é": 1, "日本": 2, "😀": 2, "a😀é": 4} {
		if got := units([]byte(s)); got != want {
			t.Errorf("%q has %d units, want %d", s, got, want)
		}
	}
}

// TestXHRPoll: each response carries what waits, or waits for what comes; o comes once.
func TestXHRPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { _ = c.Send(XHRFrame([]byte("hello"))) }
		x := tab.OpenXHR(Config{}, rec)
		if got, want := receive(t.Context(), t, x.ServePoll), "o\na[\"hello\"]\n"; got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		for i := range 3 {
			_ = x.Conn().Send(XHRFrame(fmt.Append(nil, i)))
		}
		if diff := cmp.Diff([]string{"0", "1", "2"}, messages(t, receive(t.Context(), t, x.ServePoll))); diff != "" {
			t.Fatal(diff)
		}
		a := newAnswer()
		done := make(chan error, 1)
		go func() { done <- x.ServePoll(a, request(t.Context())) }()
		synctest.Wait()
		_ = x.Conn().Send(XHRFrame([]byte("late")))
		if err := <-done; err != nil || a.body() != "a[\"late\"]\n" {
			t.Fatalf("%q, %v", a.body(), err)
		}
		if got := a.header.Get("Content-Length"); got != "10" {
			t.Errorf("Content-Length %q", got)
		}
		start := time.Now()
		if got := receive(t.Context(), t, x.ServePoll); got != "h\n" {
			t.Fatalf("a quiet poll ended with %q", got)
		}
		if took := time.Since(start); took > longPoll+time.Second {
			t.Fatalf("a quiet poll took %v", took)
		}
		tab.Stop()
		if err := x.ServePoll(newAnswer(), request(t.Context())); err != ErrClosed {
			t.Fatalf("after the end: %v", err)
		}
		if err := x.Receive(t.Context(), []byte(`["a"]`)); err != ErrClosed {
			t.Fatalf("after the end: %v", err)
		}
	})
}

// TestXHRLosesNothing: whatever response a client asks for, whichever writes fail and whenever a response is dropped or
// replaced: what arrived is everything that was sent, once and in order.
func TestXHRLosesNothing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { cuts(t, rand.New(rand.NewPCG(seed, 1))) }) //nolint:gosec // chance, not secrecy
		})
	}
}

func cuts(t *testing.T, rng *rand.Rand) {
	const n = 500
	tab := NewTable(Options{QueueFrames: n + 1, QueueBytes: 1 << 30})
	rec := newRecorder()
	x := tab.OpenXHR(Config{}, rec)
	pauses, sizes := make([]time.Duration, n), make([]int, n)
	var want []string
	for i := range n {
		pauses[i], sizes[i] = time.Duration(rng.IntN(3))*time.Millisecond, rng.IntN(3000)
		want = append(want, fmt.Sprint(i, strings.Repeat("ü", sizes[i])))
	}
	go func() {
		for i := range n {
			pass(pauses[i])
			if err := x.Conn().Send(XHRFrame([]byte(want[i]))); err != nil {
				t.Error(err)
			}
		}
	}()
	var got []string
	var answers []*answer
	for len(got) < n {
		a := newAnswer()
		if often := rng.IntN(4); often > 0 {
			own := rand.New(rand.NewPCG(rng.Uint64(), 2)) //nolint:gosec // chance, not secrecy
			a.failing = func(int) bool { return own.IntN(4*often) == 0 }
		}
		answers = append(answers, a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(200))*time.Millisecond)
		serve := x.ServePoll
		if rng.IntN(2) == 0 {
			serve = streamOf(x)
		}
		done := make(chan error, 1)
		go func() { done <- serve(a, request(ctx)) }()
		synctest.Wait()      // it has its place
		if rng.IntN(3) > 0 { // else the next one takes over
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		} else {
			pass(time.Duration(rng.IntN(50)) * time.Millisecond)
		}
		context.AfterFunc(ctx, cancel)
		if len(answers)%50 == 0 || len(answers) > 2000 {
			synctest.Wait()
			got = nil
			for _, a := range answers {
				body := a.body()
				if l := a.header.Get("Content-Length"); l != "" && l != fmt.Sprint(len(body)) {
					continue // a poll that broke off: clients throw it away
				}
				if units([]byte(body)) > recycleAfter+5000 {
					t.Fatal("a response grew on after the line")
				}
				got = append(got, messages(t, body)...)
			}
			if len(answers) > 4000 {
				break
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("sent and received differ:\n%.2000s", diff)
	}
	tab.Stop()
}

// TestXHRStreamEndsWherePusherDropsIt: a stream ends behind the frame that takes it over 256 KiB, counted as JavaScript counts, and
// the next one goes on.
func TestXHRStreamEndsWherePusherDropsIt(t *testing.T) {
	t.Parallel()
	for _, char := range []string{"a", "é", "日", "😀"} {
		t.Run(char, func(t *testing.T) {
			t.Parallel()
			tab := NewTable(Options{QueueFrames: 10_000, QueueBytes: 1 << 30})
			defer tab.Stop()
			x := tab.OpenXHR(Config{}, newRecorder())
			frame := XHRFrame([]byte(strings.Repeat(char, 500)))
			count := 2*recycleAfter/units(frame) + 10
			for range count {
				_ = x.Conn().Send(frame)
			}
			got := 0
			for i := range 2 {
				body := receive(t.Context(), t, streamOf(x))
				if n := units([]byte(body)); n <= recycleAfter || n > recycleAfter+units(frame) {
					t.Fatalf("stream %d ended at %d units", i, n)
				}
				got += len(messages(t, body))
			}
			got += len(messages(t, receive(t.Context(), t, x.ServePoll)))
			if got != count {
				t.Fatalf("%d of %d messages", got, count)
			}
		})
	}
}

// TestXHRNewerReceiverWins: the older response ends with SockJS's own number, the connection lives on.
func TestXHRNewerReceiverWins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		x := tab.OpenXHR(Config{}, newRecorder())
		receive(t.Context(), t, x.ServePoll)
		stuck := newAnswer()
		stuck.stuck = make(chan struct{}) // its client takes nothing any more
		serves := []func(http.ResponseWriter, *http.Request) error{x.ServePoll, streamOf(x), x.ServePoll}
		answers := []*answer{newAnswer(), newAnswer(), stuck, newAnswer()}
		done := make([]chan error, 4)
		for i, a := range answers {
			done[i] = make(chan error, 1)
			go func() { done[i] <- serves[min(i, 2)](a, request(t.Context())) }()
			synctest.Wait()
			if i == 1 {
				_ = x.Conn().Send(XHRFrame([]byte("one")))
				synctest.Wait()
			}
			if i == 2 {
				_ = x.Conn().Send(XHRFrame([]byte("two"))) // gets stuck in the third
				synctest.Wait()
			}
		}
		for i := range done {
			if err := <-done[i]; err != nil {
				t.Fatal(i, err)
			}
		}
		replaced := "c[2010,\"Another connection still open\"]\n"
		for i, want := range []string{replaced, "a[\"one\"]\n" + replaced, "", "a[\"two\"]\n"} {
			if got := answers[i].body(); got != want {
				t.Errorf("response %d: %q, want %q", i, got, want)
			}
		}
		if tab.Len() != 1 {
			t.Fatal("the connection died")
		}
		tab.Stop()
	})
}

// TestXHRAbsent: without a response to send by, a connection lives for a bounded time; less after one that broke off.
func TestXHRAbsent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		last func(t *testing.T, x *XHR)
		want time.Duration
	}{
		"never one":    {func(*testing.T, *XHR) {}, absentFor},
		"after a poll": {func(t *testing.T, x *XHR) { receive(t.Context(), t, x.ServePoll) }, absentFor},
		"after a cut poll": {func(t *testing.T, x *XHR) {
			a := newAnswer()
			a.failing = func(int) bool { return true }
			_ = x.ServePoll(a, request(t.Context()))
		}, absentGone},
		"after a stream that the client left": {func(t *testing.T, x *XHR) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			receive(ctx, t, streamOf(x))
		}, absentGone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tab := NewTable(Options{})
				tab.Start()
				rec := newRecorder()
				x := tab.OpenXHR(Config{}, rec)
				c.last(t, x)
				start := time.Now()
				if got := rec.code(t.Context(), t); got != CloseAbnormal {
					t.Fatalf("OnClose %s", got.format())
				}
				if d := time.Since(start); d < c.want-time.Second || d > c.want+2*time.Second {
					t.Fatalf("after %v, want about %v", d, c.want)
				}
				if err := streamOf(x)(newAnswer(), request(t.Context())); err != ErrClosed {
					t.Fatal(err)
				}
				tab.Stop()
			})
		})
	}
}

// TestXHRContract: silence is held against a client only by interval and grace, however quiet it is while it polls or streams.
func TestXHRContract(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		beat := Heartbeat{Interval: 120 * time.Second, Grace: 30 * time.Second}
		polls, streams, mute := newRecorder(), newRecorder(), newRecorder()
		xp, xs, xm := tab.OpenXHR(Config{Heartbeat: beat}, polls), tab.OpenXHR(Config{Heartbeat: beat}, streams), tab.OpenXHR(Config{Heartbeat: beat}, mute)
		go func() {
			for t.Context().Err() == nil && xp.ServePoll(newAnswer(), request(t.Context())) == nil { //nolint:revive // the calls are the body
			}
		}()
		stream := newAnswer()
		go func() { _ = streamOf(xs)(stream, request(t.Context())) }()
		quiet := newAnswer()
		begun := time.Now()
		go func() { _ = streamOf(xm)(quiet, request(t.Context())) }()
		var answers sync.WaitGroup
		defer answers.Wait()
		defer tab.Stop()
		answers.Go(func() { // pusher-js answers each heartbeat of a stream
			for beats := 0; ; pass(time.Second) {
				if n := strings.Count(stream.body(), "h\n"); n > beats {
					beats = n
					_ = xs.Receive(t.Context(), []byte(`[]`))
				}
				if tab.Len() == 0 || t.Context().Err() != nil {
					return
				}
			}
		})
		if got := mute.code(t.Context(), t); got != CloseSilent {
			t.Fatalf("OnClose %s", got.format())
		}
		if d := time.Since(begun); d < 150*time.Second || d > 153*time.Second {
			t.Fatalf("closed for silence after %v", d)
		}
		if body := quiet.body(); !strings.HasSuffix(body, "]\n") || !strings.Contains(body, "h\nc[4202,") {
			t.Fatalf("the stream ended with %q", body)
		}
		pass(10 * time.Minute)
		if tab.Len() != 2 {
			t.Fatal("a client that kept its contract was closed")
		}
		if n := strings.Count(stream.body(), "h\n"); n < 28 || n > 32 { // one each 25 s in 12.5 min, and none because of the answers
			t.Fatalf("%d heartbeats", n)
		}
		tab.Stop()
	})
}

// TestXHRHeartbeatIsAnswered: [] is answered by h where nothing else is on its way, and two who answer each other come to rest.
func TestXHRHeartbeatIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		x := tab.OpenXHR(Config{}, newRecorder())
		receive(t.Context(), t, x.ServePoll)
		for range 3 {
			if err := x.Receive(t.Context(), []byte(`[]`)); err != nil {
				t.Fatal(err)
			}
			if got := receive(t.Context(), t, x.ServePoll); got != "h\n" {
				t.Fatalf("a poll brought %q", got)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		a := newAnswer()
		go func() { _ = streamOf(x)(a, request(ctx)) }()
		synctest.Wait()
		for i := range 40 { // the client's ping, then its answers to ours
			synctest.Wait()
			if n := strings.Count(a.body(), "h\n"); i == 0 || n > i/2 {
				_ = x.Receive(t.Context(), []byte(`[]`))
			}
		}
		synctest.Wait()
		if n := strings.Count(a.body(), "h\n"); n != 1 {
			t.Fatalf("%d heartbeats for one ping", n)
		}
		cancel()
		tab.Stop()
	})
}

// TestXHRClose: a stream ends with c behind everything that was queued, a client between two polls finds it at the next.
func TestXHRClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		for name, streaming := range map[string]bool{"stream": true, "between polls": false} {
			rec := newRecorder()
			x := tab.OpenXHR(Config{}, rec)
			done := make(chan string, 1)
			if streaming {
				go func() { done <- receive(t.Context(), t, streamOf(x)) }()
				synctest.Wait()
			}
			_ = x.Conn().Send(XHRFrame([]byte("last")))
			x.Conn().Close(4009, "No.")
			if err := x.Conn().Send(XHRFrame([]byte("never"))); err != ErrClosed {
				t.Fatal(err)
			}
			if !streaming {
				pass(3 * time.Second)
				done <- receive(t.Context(), t, x.ServePoll)
			}
			if got, want := <-done, "o\na[\"last\"]\nc[4009,\"No.\"]\n"; got != want {
				t.Fatalf("%s: %q", name, got)
			}
			if got := rec.code(t.Context(), t); got != 4009 {
				t.Fatalf("%s: OnClose %s", name, got.format())
			}
		}
		rec := newRecorder()
		x := tab.OpenXHR(Config{}, rec)
		x.Conn().Close(4200, "Nobody hears this.")
		if got := rec.code(t.Context(), t); got != 4200 {
			t.Fatalf("OnClose %s", got.format())
		}
		tab.Stop()
	})
}

func TestXHRReceive(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{MessageBytes: 20})
	defer tab.Stop()
	rec := newRecorder()
	x := tab.OpenXHR(Config{}, rec)
	for _, body := range []string{``, `null`, `{}`, `"a"`, `[1]`, `[null]`, `["a",null]`, `["a"`, `[["a"]]`, `["a"]["b"]`} {
		if err := x.Receive(t.Context(), []byte(body)); petrel.CodeOf(err) != petrel.CodeInvalidJSON {
			t.Errorf("%s: %v", body, err)
		}
	}
	for _, body := range []string{`["a"]`, `["{\"b\":\"é\"}","c"]`, `["\ufffd"]`} {
		if err := x.Receive(t.Context(), []byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	if err := x.Receive(t.Context(), []byte(`["a","\ud800"]`)); petrel.CodeOf(err) != petrel.CodeInvalidUTF8 {
		t.Errorf("half of a character: %v", err)
	}
	if diff := cmp.Diff([]string{"a", `{"b":"é"}`, "c", "\ufffd"}, rec.heard()); diff != "" {
		t.Fatal(diff)
	}
	if err := x.Receive(t.Context(), []byte(`["123456789012345678901"]`)); err != ErrClosed {
		t.Fatal(err)
	}
	if body := receive(t.Context(), t, x.ServePoll); !strings.Contains(body, "c[1009,") {
		t.Fatalf("%q", body)
	}
}

// TestXHROneAtATime: bodies that come at once are handed on one after the other, a few wait, the rest is refused; a paused
// connection makes them wait, and its end lets them go.
func TestXHROneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		rec := newRecorder()
		rec.onText = func(c *Conn, _ []byte) { c.Pause() }
		x := tab.OpenXHR(Config{}, rec)
		results := make(chan error, 3*maxSends)
		for range 3 * maxSends {
			go func() { results <- x.Receive(t.Context(), []byte(`["a"]`)) }()
		}
		synctest.Wait()
		for range 2 * maxSends {
			if err := <-results; petrel.CodeOf(err) != petrel.CodeBusy {
				t.Fatal(err)
			}
		}
		if n := len(rec.heard()); n != 1 {
			t.Fatalf("%d messages while paused", n)
		}
		x.Conn().Resume()
		synctest.Wait()
		if n := len(rec.heard()); n != 2 {
			t.Fatalf("%d messages after one Resume", n)
		}
		if err := <-results; err != nil {
			t.Fatal(err)
		}
		tab.Stop()
		for range maxSends - 1 {
			<-results
		}
		if n := len(rec.heard()); n != 2 {
			t.Fatalf("%d messages after the end", n)
		}
	})
}

// TestXHRSlowReader: a full queue closes as on every wire, and a response that takes nothing is cut.
func TestXHRSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{QueueFrames: 10, WriteTimeout: 10 * time.Second})
		tab.Start()
		rec := newRecorder()
		x := tab.OpenXHR(Config{}, rec)
		var err error
		for err == nil {
			err = x.Conn().Send(XHRFrame([]byte("x")))
		}
		if body := receive(t.Context(), t, x.ServePoll); err != ErrSlow || !strings.HasPrefix(body, "c[4201,") {
			t.Fatalf("%v, %q", err, body)
		}
		if got := rec.code(t.Context(), t); got != CloseSlow {
			t.Fatalf("OnClose %s", got.format())
		}
		rec = newRecorder()
		x = tab.OpenXHR(Config{}, rec)
		stuck := newAnswer()
		stuck.stuck = make(chan struct{})
		start := time.Now()
		if err := streamOf(x)(stuck, request(t.Context())); err != http.ErrAbortHandler {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 10*time.Second || d > 12*time.Second {
			t.Fatalf("cut after %v", d)
		}
		if got := rec.code(t.Context(), t); got != CloseAbnormal {
			t.Fatalf("OnClose %s", got.format())
		}
		tab.Stop()
	})
}

func TestXHROpenAfterStop(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	tab.Stop()
	rec := newRecorder()
	x := tab.OpenXHR(Config{}, rec)
	if got := rec.code(t.Context(), t); got != CloseAbnormal {
		t.Fatal(got.format())
	}
	if err := x.ServePoll(newAnswer(), request(t.Context())); err != ErrClosed {
		t.Fatal(err)
	}
	tab.Stop()
}

// TestXHRDrain: streams and polls are told to come back, those who are away are given up.
func TestXHRDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		bodies := make(chan string, 2)
		for _, polling := range []bool{true, false} {
			x := tab.OpenXHR(Config{}, newRecorder())
			receive(t.Context(), t, x.ServePoll)
			serve := streamOf(x)
			if polling {
				serve = x.ServePoll
			}
			go func() { bodies <- receive(t.Context(), t, serve) }()
		}
		away := newRecorder()
		tab.OpenXHR(Config{}, away)
		synctest.Wait()
		if err := tab.Drain(t.Context(), 2*time.Second); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if body := <-bodies; !strings.HasPrefix(body, "c[4200,") {
				t.Fatalf("%q", body)
			}
		}
		if got := away.code(t.Context(), t); got != CloseReconnect {
			t.Fatalf("OnClose %s", got.format())
		}
		tab.Stop()
	})
}

// TestXHROverHTTP: a real server and client: a stream arrives as it is written, an abort is noticed, a reset too.
func TestXHROverHTTP(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	x := tab.OpenXHR(Config{Hostname: "localhost"}, newRecorder())
	ended := make(chan struct{}, 8)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve := x.ServeStream
		if r.URL.Path == "/xhr" {
			serve = x.ServePoll
		}
		if err := serve(w, r); err != nil {
			t.Error(err)
		}
		ended <- struct{}{}
	}))
	t.Cleanup(func() { tab.Stop(); srv.Close() })
	post := func(ctx context.Context, path string) *bufio.Reader {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	expect := func(r *bufio.Reader, want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); got != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := post(ctx, "/xhr_streaming")
	expect(r, "o{\"hostname\":\"localhost\"}\n")
	for i := range 3 {
		_ = x.Conn().Send(XHRFrame(fmt.Append(nil, i)))
		expect(r, fmt.Sprintf("a[\"%d\"]\n", i))
	}
	cancel()
	<-ended
	_ = x.Conn().Send(XHRFrame([]byte("kept")))
	r = post(t.Context(), "/xhr")
	expect(r, "a[\"kept\"]\n")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Fatalf("a poll goes on: %v", err)
	}
	<-ended
	r = post(t.Context(), "/xhr_streaming")
	x.Conn().Close(CloseForbidden, "Out.")
	expect(r, "c[4003,\"Out.\"]\n")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Fatalf("a closed stream goes on: %v", err)
	}
}

// TestXHRStreamIsCut: what ends without a goodbye does not look like an end that was meant.
func TestXHRStreamIsCut(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	t.Cleanup(tab.Stop)
	x := tab.OpenXHR(Config{}, newRecorder())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = x.ServeStream(w, r) }))
	t.Cleanup(srv.Close)
	resp, err := srv.Client().Post(srv.URL, "", nil) //nolint:noctx // the test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if got, err := r.ReadString('\n'); err != nil || got != "o\n" {
		t.Fatalf("read %q, %v", got, err)
	}
	tab.Stop()
	if rest, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) || len(rest) > 0 {
		t.Fatalf("the stream of a connection that was cut ended with %q, %v", rest, err)
	}
}
