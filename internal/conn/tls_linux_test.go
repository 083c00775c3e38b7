package conn

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// withTLS is a server on loops behind TLS, as one of the engines: what a test says in the clear goes through a door that makes TLS of it.
var withTLS engine = func(t testing.TB, tab *Table, cfg Config, handler func() Handler) string {
	t.Helper()
	s := serveTLS(t, tab, cfg, handler)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var doors sync.WaitGroup
	doors.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			doors.Go(func() { throughTLS(nc.(*net.TCPConn), s.addr, s.client) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); tab.Stop(); doors.Wait() })
	return ln.Addr().String()
}

// throughTLS carries bytes between a socket in the clear and a server behind TLS, in both directions until each ends.
func throughTLS(nc *net.TCPConn, addr string, cfg *tls.Config) {
	defer nc.Close()
	out, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return
	}
	defer out.Close()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(nc, out)
		_ = nc.CloseWrite()
	})
	if _, err := io.Copy(out, nc); err != nil {
		_ = out.NetConn().Close() // cut, not ended
	} else {
		_ = out.CloseWrite()
	}
	back.Wait()
}

// secured is a server on loops behind TLS, for tests.
type secured struct {
	*looping
	client *tls.Config
}

// serveTLS serves a WebSocket per handler at /ws.
func serveTLS(t testing.TB, tab *Table, cfg Config, handler func() Handler, with ...func(*tls.Config)) *secured {
	t.Helper()
	certs := httptest.NewUnstartedServer(nil)
	certs.StartTLS()
	pair := certs.TLS.Certificates
	certs.Close()
	server := &tls.Config{Certificates: pair, MinVersion: tls.VersionTLS12}
	for _, w := range with {
		w(server)
	}
	s := &secured{client: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // its own
	s.looping = serveLoops(t, tab, cfg, handler, noHot, func(o *ServerOptions) {
		o.Hot, o.ringLeast = func(string, string) bool { return false }, 1
	}, func(ln net.Listener) net.Listener {
		return tls.NewListener(ln, server)
	})
	return s
}

// dial makes both handshakes.
func (s *secured) dial(t testing.TB, cfg *tls.Config) *tls.Conn {
	t.Helper()
	nc, err := tls.Dial("tcp", s.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write([]byte(openingHandshake)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(&oneByte{nc}, 16), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the handshake was answered %v, %v", resp, err)
	}
	return nc
}

// TestTLSOnLoops: with each version, with an io_uring or without, whatever pieces records come in, what a client says is heard, and answered from a loop.
func TestTLSOnLoops(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version uint16
		ring    bool
	}{"1.2": {tls.VersionTLS12, false}, "1.3": {tls.VersionTLS13, false}, "1.3 with io_uring": {tls.VersionTLS13, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns := make(chan *Conn, 1)
			rec := newRecorder()
			rec.onOpen = func(c *Conn) { conns <- c }
			rec.onText = func(c *Conn, p []byte) { _ = c.Send(TextFrame(p)) }
			s := serveTLS(t, NewTable(Options{MessageBytes: 1 << 20, IOUring: c.ring}), Config{}, func() Handler { return rec })
			cfg := s.client.Clone()
			cfg.MinVersion, cfg.MaxVersion = c.version, c.version
			nc := s.dial(t, cfg)
			k, ok := within(t, conns).stream.(*sock)
			if !ok || k.tls == nil {
				t.Fatal("it is not served by a loop")
			}
			on(t, k.l, func() { // whatever crypto/tls may come to ask of its socket
				if err := k.tls.conn.SetDeadline(time.Now()); err != nil {
					t.Error(err)
				}
				if err := k.tls.conn.SetReadDeadline(time.Now()); err != nil {
					t.Error(err)
				}
				if here, there := k.tls.conn.LocalAddr(), k.tls.conn.RemoteAddr(); here.String() != s.addr || there == nil {
					t.Errorf("from %v to %v", there, here)
				}
			})
			for _, size := range []int{0, 1, 128, 20_000, 1 << 20} {
				said := strings.Repeat("x", size)
				go func() { _, _ = nc.Write(clientFrame(true, ws.OpText, []byte(said))) }()
				if _, p, err := readServerFrame(nc); err != nil || string(p) != said {
					t.Fatalf("%d bytes were answered by %d, %v", size, len(p), err)
				}
			}
			if _, err := nc.Write(clientFrame(true, ws.OpClose, []byte{3, 232})); err != nil {
				t.Fatal(err)
			}
			if got := readClose(t, nc); got != CloseNormal {
				t.Fatal(got.format())
			}
			if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if got := rec.code(soon(t), t); got != CloseNormal {
				t.Fatal(got.format())
			}
		})
	}
}

// TestTLSEnds: however a client leaves, its connection ends.
func TestTLSEnds(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(nc *tls.Conn) error{
		"close_notify": (*tls.Conn).CloseWrite,
		"the end":      func(nc *tls.Conn) error { return nc.NetConn().Close() },
		"half of it":   func(nc *tls.Conn) error { return nc.NetConn().(*net.TCPConn).CloseWrite() },
		"a reset": func(nc *tls.Conn) error {
			return errors.Join(nc.NetConn().(*net.TCPConn).SetLinger(0), nc.NetConn().Close())
		},
		"no record": func(nc *tls.Conn) error { _, err := nc.NetConn().Write([]byte("GET / HTTP/1.1\r\n\r\n")); return err },
		"a bad record": func(nc *tls.Conn) error {
			_, err := nc.NetConn().Write(append([]byte{23, 3, 3, 0, 32}, make([]byte, 32)...))
			return err
		},
		"a huge record": func(nc *tls.Conn) error { _, err := nc.NetConn().Write([]byte{23, 3, 3, 255, 255}); return err },
		"half a record": func(nc *tls.Conn) error {
			_, err := nc.NetConn().Write([]byte{23, 3, 3, 0, 32, 1})
			return errors.Join(err, nc.NetConn().(*net.TCPConn).CloseWrite())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			s := serveTLS(t, NewTable(Options{CloseWait: time.Hour, WriteTimeout: time.Hour}), Config{}, func() Handler { return rec })
			nc := s.dial(t, s.client)
			if err := leave(nc); err != nil {
				t.Fatal(err)
			}
			if got := rec.code(soon(t), t); got != CloseAbnormal {
				t.Fatal(got.format())
			}
		})
	}
}

// TestTLSSlow: who does not read costs no more than a queue, and is closed as slow; who reads late has everything, in order.
func TestTLSSlow(t *testing.T) {
	t.Parallel()
	conns := make(chan *Conn, 2)
	handler := func() Handler {
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { conns <- c }
		return rec
	}
	tab := NewTable(Options{QueueFrames: 1 << 20, QueueBytes: 64 << 20, WriteTimeout: time.Hour, CloseWait: time.Hour})
	s := serveTLS(t, tab, Config{}, handler)
	nc := s.dial(t, s.client)
	c := within(t, conns)
	const frames, size = 1000, 20_000 // more than sockets hold
	for i := range frames {
		if err := c.Send(TextFrame([]byte(fmt.Sprintf("%0*d", size, i)))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range frames {
		if _, p, err := readServerFrame(nc); err != nil || string(p) != fmt.Sprintf("%0*d", size, i) {
			t.Fatalf("frame %d: %.10q, %v", i, p, err)
		}
	}

	s.dial(t, s.client)
	c = within(t, conns)
	for {
		if err := c.Send(TextFrame(make([]byte, 1<<20))); errors.Is(err, ErrSlow) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	c.stream.cut() // as the sweeper would
	if got := c.handler.(*recorder).code(soon(t), t); got != CloseSlow {
		t.Fatal(got.format())
	}
}

// TestTLSPaused: what is read while a connection is paused is heard later, all of it, in order.
func TestTLSPaused(t *testing.T) {
	t.Parallel()
	conns := make(chan *Conn, 1)
	heard := make(chan string, 100)
	rec := newRecorder()
	rec.onOpen = func(c *Conn) { conns <- c }
	rec.onText = func(c *Conn, p []byte) { c.Pause(); heard <- string(p) }
	s := serveTLS(t, NewTable(Options{}), Config{}, func() Handler { return rec })
	nc := s.dial(t, s.client)
	c := within(t, conns)
	for i := range 100 { // a record each
		if _, err := nc.Write(clientFrame(true, ws.OpText, []byte(fmt.Sprint(i)))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if got := within(t, heard); got != fmt.Sprint(i) {
			t.Fatalf("%q came as number %d", got, i)
		}
		c.Resume()
	}
}

// TestTLSStorm: connections come while the table stops, and none is forgotten: their places are given back, and each handler hears of the end, once.
func TestTLSStorm(t *testing.T) {
	t.Parallel()
	tab := NewTable(Options{})
	var mu sync.Mutex
	var all []*recorder
	s := serveTLS(t, tab, Config{}, func() Handler {
		rec := newRecorder()
		rec.onOpen = func(c *Conn) { _ = c.Send(TextFrame([]byte("hello"))) }
		mu.Lock()
		all = append(all, rec)
		mu.Unlock()
		return rec
	})
	var clients sync.WaitGroup
	some := make(chan bool, 1)
	for range 20 {
		clients.Go(func() {
			nc, err := tls.Dial("tcp", s.addr, s.client)
			if err != nil {
				return
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(patience))
			_, _ = nc.Write([]byte(openingHandshake))
			select {
			case some <- true:
			default:
			}
			_, _ = io.Copy(io.Discard, nc)
		})
	}
	<-some
	tab.Stop()
	s.Stop()
	clients.Wait()
	mu.Lock()
	defer mu.Unlock()
	for _, rec := range all {
		rec.code(soon(t), t)
	}
	for i, rec := range all {
		rec.mu.Lock()
		if len(rec.closes) != 1 {
			t.Errorf("handler %d of %d was told %v", i, len(all), rec.closes)
		}
		rec.mu.Unlock()
	}
}

// teller writes records of TLS 1.3 by hand, as a client that has shaken hands: crypto/tls itself never asks for new keys.
type teller struct {
	nc     net.Conn
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// expand is HKDF-Expand-Label (RFC 8446 §7.1).
func expand(t testing.TB, secret []byte, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	b, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *teller) use(t testing.TB, secret []byte) {
	t.Helper()
	block, err := aes.NewCipher(expand(t, secret, "key", 16))
	if err == nil {
		c.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.secret, c.iv, c.seq = secret, expand(t, secret, "iv", 12), 0
}

func (c *teller) record(kind byte, data []byte) []byte {
	nonce := slices.Clone(c.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(c.seq >> (56 - 8*i))
	}
	c.seq++
	n := len(data) + 1 + c.aead.Overhead()
	head := []byte{23, 3, 3, byte(n >> 8), byte(n)}
	return c.aead.Seal(head, nonce, append(slices.Clone(data), kind), head)
}

// update asks for new keys, and uses them from then on.
func (c *teller) update(t testing.TB) []byte {
	t.Helper()
	b := c.record(22, []byte{24, 0, 0, 1, 1})
	c.use(t, expand(t, c.secret, "traffic upd", 32))
	return b
}

// tell dials and goes on by hand.
func tell(t testing.TB, s *secured) (*tls.Conn, *teller) {
	t.Helper()
	var keys bytes.Buffer
	cfg := s.client.Clone()
	cfg.KeyLogWriter = &keys
	nc := s.dial(t, cfg)
	if got := nc.ConnectionState().CipherSuite; got != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("this processor prefers %s", tls.CipherSuiteName(got))
	}
	_, line, _ := strings.Cut(keys.String(), "CLIENT_TRAFFIC_SECRET_0 ")
	_, secret, _ := strings.Cut(strings.SplitN(line, "\n", 2)[0], " ")
	b, err := hex.DecodeString(secret)
	if err != nil || len(b) != 32 {
		t.Fatalf("%q, %v", keys.String(), err)
	}
	c := &teller{nc: nc.NetConn()}
	c.use(t, b)
	c.seq = 1 // the opening handshake
	return nc, c
}

// TestTLSNewKeys: a client may ask for new keys, in pieces too, and both sides go on with them.
func TestTLSNewKeys(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	rec.onText = func(c *Conn, p []byte) { _ = c.Send(TextFrame(p)) }
	s := serveTLS(t, NewTable(Options{}), Config{}, func() Handler { return rec })
	nc, c := tell(t, s)
	for i := range 5 {
		said := fmt.Sprint(i)
		b := append(c.update(t), c.record(23, clientFrame(true, ws.OpText, []byte(said)))...)
		for len(b) > 0 {
			n := min(len(b), 1+i*10)
			if _, err := c.nc.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		if _, p, err := readServerFrame(nc); err != nil || string(p) != said {
			t.Fatalf("%q was answered %q, %v", said, p, err)
		}
	}
}

// TestTLSAsksTooMuch: who asks for new keys again and again and takes no answer is ended.
func TestTLSAsksTooMuch(t *testing.T) {
	t.Parallel()
	conns := make(chan *Conn, 1)
	rec := newRecorder()
	rec.onOpen = func(c *Conn) { conns <- c }
	s := serveTLS(t, NewTable(Options{QueueBytes: 64 << 20, MessageBytes: 64 << 20, WriteTimeout: time.Hour, CloseWait: time.Hour}), Config{}, func() Handler { return rec })
	_, c := tell(t, s)
	if err := within(t, conns).Send(TextFrame(make([]byte, 32<<20))); err != nil { // nobody reads it
		t.Fatal(err)
	}
	pong := clientFrame(true, ws.OpPong, nil)
	for i := range 10_000 {
		b := c.update(t)
		if i%10 == 9 {
			b = append(b, c.record(23, pong)...)
		}
		if _, err := c.nc.Write(b); err != nil {
			break
		}
	}
	if got := rec.code(soon(t), t); got != CloseAbnormal && got != CloseOverloaded {
		t.Fatal(got.format())
	}
}

// on runs fn on a loop and waits for it.
func on(t testing.TB, l *loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.post(func() { defer close(done); fn() }) {
		t.Fatal("the loop has ended")
	}
	within(t, done)
}

// arrives writes to a socket so that its loop finds b in one piece, if it reads so much at once.
func arrives(t *testing.T, k *sock, nc net.Conn, b []byte) error {
	t.Helper()
	in, gate := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	defer open()
	if !k.l.post(func() { close(in); <-gate }) {
		t.Fatal("the loop has ended")
	}
	within(t, in)
	if k.fd < 0 {
		return net.ErrClosed
	}
	if _, err := nc.Write(b); err != nil {
		return err
	}
	until(t, func() bool {
		n, err := unix.IoctlGetInt(int(k.fd), unix.SIOCINQ)
		return err != nil || n >= len(b)
	})
	return nil
}

// TestTLSAsksAllTheTime: who asks for new keys all the time is ended, even if it takes every answer and says something now and then.
func TestTLSAsksAllTheTime(t *testing.T) {
	t.Parallel()
	conns, heard := make(chan *Conn, 1), make(chan string, 1)
	rec := newRecorder()
	rec.onOpen = func(c *Conn) { conns <- c }
	rec.onText = func(_ *Conn, p []byte) { heard <- string(p) }
	s := serveTLS(t, NewTable(Options{WriteTimeout: time.Hour, CloseWait: time.Hour}), Config{}, func() Handler { return rec })
	nc, c := tell(t, s)
	k := within(t, conns).stream.(*sock)
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, nc.NetConn()) })
	defer reading.Wait()
	defer nc.NetConn().Close()
	const burst = 32 << 10 // fits into a socket
	var b []byte
	for _, said := range clientFrame(true, ws.OpText, bytes.Repeat([]byte("x"), 200)) {
		for range 16 { // one more in a row is what crypto/tls does not bear
			b = append(b, c.update(t)...)
		}
		b = append(b, c.record(23, []byte{said})...)
	}
	for err := error(nil); err == nil && len(b) > 0; {
		n := min(len(b), burst)
		err, b = arrives(t, k, c.nc, b[:n]), b[n:]
	}
	select {
	case <-heard:
		t.Fatal("it was heard out")
	case <-rec.closed:
	case <-soon(t).Done():
		t.Fatal("nothing comes of it")
	}
	if got := rec.code(soon(t), t); got != CloseAbnormal {
		t.Fatal(got.format())
	}
}

// TestTLSEndsWhilePaused: what a client said before its end is heard, also when both came while the connection was paused.
func TestTLSEndsWhilePaused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		last []byte
		want CloseCode
	}{
		"with a close frame":    {clientFrame(true, ws.OpClose, []byte{3, 232}), CloseNormal},
		"without a close frame": {nil, CloseAbnormal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns, heard := make(chan *Conn, 1), make(chan string, 2)
			rec := newRecorder()
			rec.onOpen = func(c *Conn) { conns <- c }
			rec.onText = func(c *Conn, p []byte) { c.Pause(); heard <- string(p) }
			s := serveTLS(t, NewTable(Options{WriteTimeout: time.Hour, CloseWait: time.Hour}), Config{}, func() Handler { return rec })
			nc, by := tell(t, s)
			conn := within(t, conns)
			k := conn.stream.(*sock)
			var b []byte
			for _, said := range [][]byte{clientFrame(true, ws.OpText, []byte("1")), clientFrame(true, ws.OpText, []byte("2")), c.last} {
				b = append(b, by.record(23, said)...)
			}
			b = append(b, by.record(21, []byte{1, 0})...) // close_notify
			if err := arrives(t, k, by.nc, b); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				if got := within(t, heard); got != fmt.Sprint(i+1) {
					t.Fatalf("%q came as number %d", got, i+1)
				}
				on(t, k.l, func() {}) // all that was read has been seen
				conn.Resume()
			}
			if c.last != nil {
				if got := readClose(t, nc); got != c.want {
					t.Fatal(got.format())
				}
			}
			if got := rec.code(soon(t), t); got != c.want {
				t.Fatal(got.format())
			}
		})
	}
}

// TestTLSOwnWordsHaveAClock: what TLS itself has to say is bound to the time that a write may take, for as long as it is not out, and no longer.
func TestTLSOwnWordsHaveAClock(t *testing.T) {
	t.Parallel()
	conns := make(chan *Conn, 1)
	rec := newRecorder()
	rec.onOpen = func(c *Conn) { conns <- c }
	s := serveTLS(t, NewTable(Options{}), Config{}, func() Handler { return rec }) // whose sweeper does not run
	nc := s.dial(t, s.client)
	conn := within(t, conns)
	k := conn.stream.(*sock)
	on(t, k.l, func() {
		for rest := make([]byte, 64<<10); k.fd >= 0 && k.stuck == nil; {
			for {
				if _, errno := rawWrite(k.fd, rest); errno != 0 { // it is full
					break
				}
			}
			k.l.sealed = append(k.l.sealed, "told"...)
			k.l.reply(k)
		}
		if k.fd < 0 || conn.writing.Load() == 0 || k.tls.owed == 0 {
			t.Errorf("stuck since %d, with %d bytes", conn.writing.Load(), k.tls.owed)
		}
	})
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, nc.NetConn()) })
	defer reading.Wait()
	defer nc.NetConn().Close()
	until(t, func() bool { return conn.writing.Load() == 0 })
	on(t, k.l, func() {
		if k.stuck != nil || k.tls.owed != 0 {
			t.Errorf("%d bytes are owed when all is out", k.tls.owed)
		}
	})
}

// TestTLSStaysWhereItIs: a WebSocket whose socket cannot be moved to a loop, as when the process may open no more files, is served by a goroutine, and
// the log says so.
func TestTLSStaysWhereItIs(t *testing.T) {
	t.Parallel()
	log := &lines{}
	rec := newRecorder()
	rec.onText = func(c *Conn, p []byte) { _ = c.Send(TextFrame(p)) }
	s := serveTLS(t, NewTable(Options{Logger: slog.New(slog.NewTextHandler(log, nil))}), Config{}, func() Handler { return rec }, func(cfg *tls.Config) {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			r := hello.Conn.(*replayed)
			r.Conn = struct{ net.Conn }{r.Conn} // something without a descriptor
			return nil, nil                     //nolint:nilnil // the one there is
		}
	})
	nc := s.dial(t, s.client)
	if _, err := nc.Write(clientFrame(true, ws.OpText, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if _, p, err := readServerFrame(nc); err != nil || string(p) != "x" {
		t.Fatalf("%q, %v", p, err)
	}
	if n := strings.Count(log.String(), "stays in a goroutine"); n != 1 {
		t.Errorf("told %d times: %s", n, log)
	}
}

// TestSizesOnLoops: what there is one of for each socket stays small. Each is a size that the allocator has.
func TestSizesOnLoops(t *testing.T) {
	t.Parallel()
	if got := unsafe.Sizeof(sock{}); got > 128 {
		t.Errorf("a socket takes %d bytes", got)
	}
	if got := unsafe.Sizeof(layer{}); got > 48 {
		t.Errorf("TLS of a socket takes %d bytes", got)
	}
}
