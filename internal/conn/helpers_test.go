package conn

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// recorder is a Handler that keeps what it heard.
type recorder struct {
	mu       sync.Mutex
	messages []string
	closes   []CloseCode
	closed   chan struct{}
	onOpen   func(*Conn)
	onText   func(*Conn, []byte)
	onDrain  func(*Conn)
}

func newRecorder() *recorder { return &recorder{closed: make(chan struct{})} }

func (r *recorder) OnOpen(c *Conn) {
	if r.onOpen != nil {
		r.onOpen(c)
	}
}

func (r *recorder) OnMessage(c *Conn, p []byte) {
	r.mu.Lock()
	r.messages = append(r.messages, string(p))
	r.mu.Unlock()
	if r.onText != nil {
		r.onText(c, p)
	}
}

func (r *recorder) OnClose(_ *Conn, code CloseCode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closes = append(r.closes, code)
	if len(r.closes) == 1 {
		close(r.closed)
	}
}

func (r *recorder) OnDrain(c *Conn) {
	if r.onDrain != nil {
		r.onDrain(c)
	}
}

// code waits for the end and returns how it came.
func (r *recorder) code(ctx context.Context, t testing.TB) CloseCode {
	t.Helper()
	select {
	case <-r.closed:
	case <-ctx.Done():
		t.Fatal("the connection did not end")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closes[0]
}

func (r *recorder) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.messages...)
}

// clientFrame builds a masked frame as a client sends it; every part can be wrong on purpose.
func clientFrame(fin bool, op ws.OpCode, payload []byte) []byte {
	f := ws.NewFrame(op, fin, append([]byte(nil), payload...))
	return ws.MustCompileFrame(ws.MaskFrameInPlaceWith(f, [4]byte{1, 2, 3, 4}))
}

// serverFrames reads frames of the server from r until it ends.
func readServerFrame(r io.Reader) (ws.OpCode, []byte, error) {
	h, err := ws.ReadHeader(r)
	if err != nil {
		return 0, nil, err
	}
	p := make([]byte, h.Length)
	_, err = io.ReadFull(r, p)
	return h.OpCode, p, err
}

// readClose reads until the close frame and returns its code.
func readClose(t testing.TB, r io.Reader) CloseCode {
	t.Helper()
	for {
		op, p, err := readServerFrame(r)
		if err != nil {
			t.Fatalf("the stream ended without a close frame: %v", err)
		}
		if op == ws.OpClose {
			if len(p) < 2 {
				return CloseNoStatus
			}
			return CloseCode(binary.BigEndian.Uint16(p))
		}
	}
}

// tcpPair is a real loopback connection.
func tcpPair(t testing.TB) (server, client net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		nc  net.Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		nc, err := ln.Accept()
		got <- result{nc, err}
	}()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { client.Close(); r.nc.Close() })
	return r.nc, client
}

// pass lets d go by on a bubble's clock.
func pass(d time.Duration) { <-time.After(d) }

// patience is how long a test waits for what comes at once: far beyond what it takes on any machine.
const patience = 2 * time.Minute

// soon ends when patience does.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// within receives what comes soon.
func within[T any](t testing.TB, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-soon(t).Done():
		t.Fatal("it does not come")
	}
	return v
}

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	log bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.String()
}
