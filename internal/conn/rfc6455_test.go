package conn

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gobwas/ws"
	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// engine is one of the ways in which connections are served, as a server for tests: a connection per handler, a WebSocket at /ws, a stream of events at /events.
type engine func(t testing.TB, tab *Table, cfg Config, handler func() Handler) (addr string)

// engines are all there are on this system.
func engines() map[string]engine {
	all := map[string]engine{"goroutines": func(t testing.TB, tab *Table, cfg Config, handler func() Handler) string {
		t.Helper()
		srv := httptest.NewServer(accept(t, tab, cfg, handler))
		t.Cleanup(func() { tab.Stop(); srv.Close() })
		return srv.Listener.Addr().String()
	}}
	if withLoops != nil {
		all["loops"], all["loops with io_uring"], all["loops over TLS"] = withLoops, withRing, withTLS
	}
	return all
}

// accept opens connections.
func accept(t testing.TB, tab *Table, cfg Config, handler func() Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("X-Of-The-Door", "kept")
			tab.ServeSSE(w, r, cfg, handler())
			return
		}
		switch err := CheckUpgrade(r); {
		case petrel.CodeOf(err) == petrel.CodeUpgradeRequired:
			http.Error(w, err.Error(), http.StatusUpgradeRequired)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		default:
			if err := tab.Open(w, r, cfg, handler()); err != nil {
				t.Error(err)
			}
		}
	}
}

const openingHandshake = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// shakeHands dials and makes the handshake by hand. behind goes out with it.
func shakeHands(t testing.TB, addr, request string, behind ...byte) (net.Conn, http.Header) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := nc.Write(append([]byte(request), behind...)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(&oneByte{nc}, 16), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455 §1.3
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	return nc, resp.Header
}

// oneByte keeps a bufio.Reader from reading past the head.
type oneByte struct{ io.Reader }

func (o *oneByte) Read(b []byte) (int, error) { return o.Reader.Read(b[:1]) }

// Bits of a frame's first byte, for cases that get them wrong.
const (
	fin  = 0x80
	rsv1 = 0x40
	rsv2 = 0x20
	rsv3 = 0x10
)

// framed is a masked frame whose first byte is first and whose length is written in extra bytes behind the second: 0, 2 or 8; < 0: as few as it takes.
func framed(first byte, payload string, mask [4]byte, extra int) []byte {
	n := len(payload)
	if extra < 0 {
		switch {
		case n < 126:
			extra = 0
		case n < 1<<16:
			extra = 2
		default:
			extra = 8
		}
	}
	b := []byte{first}
	switch extra {
	case 0:
		b = append(b, 0x80|byte(n))
	case 2:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	case 8:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, mask[:]...)
	for i := range n {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

// Frames of the cases.
func raw(first byte, payload string) []byte {
	return framed(first, payload, [4]byte{0x37, 0xfa, 0x21, 0x3d}, -1)
}
func text(s string) []byte   { return raw(fin|1, s) }
func begun(s string) []byte  { return raw(1, s) }
func more(s string) []byte   { return raw(0, s) }
func last(s string) []byte   { return raw(fin, s) }
func pinged(s string) []byte { return raw(fin|9, s) }
func ponged(s string) []byte { return raw(fin|10, s) }
func closed(code CloseCode, reason string) []byte {
	return raw(fin|8, string([]byte{byte(code >> 8), byte(code)})+reason)
}

// shown is a frame of the server as the cases write it.
func shown(op ws.OpCode, p []byte) string {
	if len(p) > 200 {
		p = fmt.Appendf(nil, "%d bytes, %08x", len(p), crc32.ChecksumIEEE(p))
	}
	switch op {
	case ws.OpText:
		return "text " + string(p)
	case ws.OpPong:
		return "pong " + string(p)
	case ws.OpClose:
		if len(p) == 0 {
			return "close"
		}
		return fmt.Sprintf("close %d", binary.BigEndian.Uint16(p))
	}
	return fmt.Sprintf("op %d %q", op, p)
}

func echo(s string) string { return shown(ws.OpText, []byte(s)) }

// frameCase is what a client sends, and all that the server answers: every text is sent back.
type frameCase struct {
	name string // the paragraph of RFC 6455, and what is tried
	in   []byte
	want []string
}

const mostBytes = 70_000 // of a message, in the cases

// frameCases are what RFC 6455 says of frames, in the manner of the Autobahn test suite.
func frameCases() (all []frameCase) {
	add := func(name string, want []string, in ...[]byte) {
		all = append(all, frameCase{name, bytes.Join(in, nil), want})
	}
	good := func(name string, want []string, in ...[]byte) { // still open afterwards
		add(name, append(want, echo("still here"), "close 1000"), append(in, text("still here"), closed(CloseNormal, ""))...)
	}
	fails := func(name string, code CloseCode, want []string, in ...[]byte) { // nothing of what follows is heard
		add(name, append(want, fmt.Sprintf("close %d", code)), append(in, text("not heard"), pinged("not answered"), closed(CloseNormal, ""))...)
	}
	broken := func(name string, in ...[]byte) { fails(name, CloseProtocol, nil, in...) }
	none := []string(nil)

	for _, n := range []int{0, 1, 125, 126, 127, 128, 65_535, 65_536, mostBytes} {
		s := strings.Repeat("*", n)
		good(fmt.Sprintf("5.2 a message of %d bytes", n), []string{echo(s)}, text(s))
	}
	broken("5.2 length 1 in two bytes", framed(fin|1, "a", [4]byte{1}, 2))
	broken("5.2 length 125 in two bytes", framed(fin|1, strings.Repeat("a", 125), [4]byte{1}, 2))
	broken("5.2 length 126 in eight bytes", framed(fin|1, strings.Repeat("a", 126), [4]byte{1}, 8))
	broken("5.2 length 65535 in eight bytes", framed(fin|1, strings.Repeat("a", 65_535), [4]byte{1}, 8))
	broken("5.2 the highest bit of a length is set", []byte{fin | 1, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 'a'})
	for _, bits := range []byte{rsv1, rsv2, rsv3, rsv1 | rsv2, rsv1 | rsv3, rsv2 | rsv3, rsv1 | rsv2 | rsv3} {
		broken(fmt.Sprintf("5.2 reserved bits %03b on a text", bits>>4), raw(fin|bits|1, "a"))
		broken(fmt.Sprintf("5.2 reserved bits %03b on a ping", bits>>4), raw(fin|bits|9, "a"))
		broken(fmt.Sprintf("5.2 reserved bits %03b on a close frame", bits>>4), raw(fin|bits|8, ""))
		broken(fmt.Sprintf("5.2 reserved bits %03b on a fragment", bits>>4), begun("a"), raw(fin|bits, "b"))
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		broken(fmt.Sprintf("5.2 reserved opcode %d", op), raw(fin|op, ""))
		broken(fmt.Sprintf("5.2 reserved opcode %d with a payload, in a message", op), begun("a"), raw(fin|op, "b"), last("c"))
		fails(fmt.Sprintf("5.2 reserved opcode %d after a message", op), CloseProtocol, []string{echo("a")}, text("a"), raw(fin|op, "b"))
	}
	for _, mask := range [][4]byte{{}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1}, {'m', 'a', 's', 'k'}, {0x80, 0, 0, 0}} {
		s := "What a mask hides: é€𝄞."
		good(fmt.Sprintf("5.3 the mask %x", mask), []string{echo(s)}, framed(fin|1, s, mask, -1))
	}
	good("5.3 every fragment has its own mask", []string{echo("abcdef")}, framed(1, "abc", [4]byte{1, 2, 3, 4}, -1), framed(fin, "def", [4]byte{9, 8, 7, 6}, -1))
	broken("5.1 a text that is not masked", ws.MustCompileFrame(ws.NewTextFrame([]byte("a"))))
	broken("5.1 a ping that is not masked", ws.MustCompileFrame(ws.NewPingFrame([]byte("a"))))
	broken("5.1 a close frame that is not masked", ws.MustCompileFrame(ws.NewCloseFrame([]byte{3, 232})))
	broken("5.1 an empty text that is not masked", []byte{fin | 1, 0})

	good("5.4 two fragments", []string{echo("ab")}, begun("a"), last("b"))
	good("5.4 three fragments, then a message, then two", []string{echo("abc"), echo("d"), echo("ef")}, begun("a"), more("b"), last("c"), text("d"), begun("e"), last("f"))
	good("5.4 empty fragments only", []string{echo("")}, begun(""), more(""), last(""))
	good("5.4 empty fragments around one", []string{echo("a")}, begun(""), more("a"), last(""))
	var many [][]byte
	for i := range 500 {
		many = append(many, more(string(rune('a'+i%26))))
	}
	good("5.4 five hundred fragments of a byte", []string{echo(strings.Repeat("abcdefghijklmnopqrstuvwxyz", 20)[:500])}, append(append([][]byte{begun("")}, many...), last(""))...)
	good("5.4 fragments as large as the largest message", []string{echo(strings.Repeat("a", mostBytes))}, begun(strings.Repeat("a", mostBytes/2)), last(strings.Repeat("a", mostBytes-mostBytes/2)))
	broken("5.4 a fragment of nothing", last("a"))
	broken("5.4 a fragment of nothing, with more to come", more("a"), last("b"))
	fails("5.4 a fragment behind the last one", CloseProtocol, []string{echo("ab")}, begun("a"), last("b"), last("c"))
	broken("5.4 a message within a message", begun("a"), text("b"))
	broken("5.4 a message begins within a message", begun("a"), begun("b"), last("c"))
	broken("5.4 a binary message within a message", begun("a"), raw(fin|2, "b"))

	good("5.4 pings between fragments are answered at once", []string{"pong 1", "pong 2", echo("abc")}, begun("a"), pinged("1"), more("b"), pinged("2"), last("c"))
	good("5.4 a pong between fragments", []string{echo("ab")}, begun("a"), ponged("x"), last("b"))
	add("5.4 a close frame between fragments", []string{"close 1000"}, begun("a"), closed(CloseNormal, ""), last("b"))
	good("5.5.2 a ping", []string{"pong hello"}, pinged("hello"))
	good("5.5.2 an empty ping", []string{"pong "}, pinged(""))
	good("5.5.2 a ping of 125 bytes, not UTF-8", []string{"pong " + strings.Repeat("\xfe", 125)}, pinged(strings.Repeat("\xfe", 125)))
	good("5.5.2 ten pings are answered in order", strings.Split("pong 0,pong 1,pong 2,pong 3,pong 4,pong 5,pong 6,pong 7,pong 8,pong 9", ","),
		pinged("0"), pinged("1"), pinged("2"), pinged("3"), pinged("4"), pinged("5"), pinged("6"), pinged("7"), pinged("8"), pinged("9"))
	good("5.5.3 pongs that nobody asked for", none, ponged(""), ponged("x"), ponged(strings.Repeat("x", 125)))
	broken("5.5 a ping of 126 bytes", pinged(strings.Repeat("x", 126)))
	broken("5.5 a pong of 126 bytes", ponged(strings.Repeat("x", 126)))
	broken("5.5 a close frame of 126 bytes", closed(CloseNormal, strings.Repeat("x", 124)))
	broken("5.5 a ping of 65536 bytes", pinged(strings.Repeat("x", 65_536)))
	broken("5.5 a ping in fragments", raw(9, "a"), last("b"))
	broken("5.5 a pong in fragments", raw(10, "a"), last("b"))
	broken("5.5 a close frame in fragments", raw(8, "\x03"), last("\xe8"))
	broken("5.5 a ping in fragments, between fragments", begun("a"), raw(9, "a"), last("b"))

	all = append(all, closeCases()...)
	all = append(all, textCases()...)

	fails("7.4.1 a binary message", CloseUnsupported, nil, raw(fin|2, "a"))
	fails("7.4.1 an empty binary message", CloseUnsupported, nil, raw(fin|2, ""))
	fails("7.4.1 a binary message in fragments", CloseUnsupported, nil, raw(2, "a"), last("b"))
	fails("7.4.1 a message one byte too large", CloseTooBig, nil, text(strings.Repeat("a", mostBytes+1)))
	fails("7.4.1 fragments one byte too large", CloseTooBig, nil, begun(strings.Repeat("a", mostBytes)), last("a"))
	fails("7.4.1 a message of two exbibytes, by its head", CloseTooBig, nil, []byte{fin | 1, 0xff, 0x20, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	fails("10.4 more fragments than a message may have", CloseTooBig, nil, begun(""), bytes.Repeat(more(""), maxPieces))
	return all
}

// closeCases are those of the close handshake.
func closeCases() (all []frameCase) {
	add := func(name string, want string, in ...[]byte) {
		all = append(all, frameCase{name, bytes.Join(in, nil), []string{want}})
	}
	add("5.5.1 an empty close frame", "close", raw(fin|8, ""))
	add("5.5.1 a close frame with half a code", "close 1002", raw(fin|8, "\x03"))
	add("5.5.1 a code alone", "close 1000", closed(CloseNormal, ""))
	add("5.5.1 a code and a reason", "close 1001", closed(CloseGoingAway, "goodbye"))
	add("5.5.1 the longest reason", "close 1000", closed(CloseNormal, strings.Repeat("é", 61)+"x"))
	add("8.1 a reason that is not UTF-8", "close 1002", closed(CloseNormal, "a\xff"))
	add("8.1 a reason that ends within a character", "close 1002", closed(CloseNormal, "a\xc3"))
	add("5.5.1 messages and pings behind a close frame", "close 1000", closed(CloseNormal, ""), text("a"), pinged("b"), begun("c"))
	add("5.5.1 a second close frame", "close 1000", closed(CloseNormal, ""), closed(CloseGoingAway, ""))
	add("5.5.1 what is no frame, behind a close frame", "close 1000", closed(CloseNormal, ""), []byte("\xff\xff\xff\xff"))
	for _, code := range []CloseCode{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		add(fmt.Sprintf("7.4 close with %d", code), fmt.Sprintf("close %d", code), closed(code, "why"))
	}
	for _, code := range []CloseCode{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		add(fmt.Sprintf("7.4 close with %d, which nobody may send", code), "close 1002", closed(code, ""))
	}
	return all
}

// textCases are those of UTF-8 (§8.1, RFC 3629).
func textCases() (all []frameCase) {
	add := func(name string, want []string, in ...[]byte) {
		all = append(all, frameCase{name, bytes.Join(in, nil), want})
	}
	bye := closed(CloseNormal, "")
	for i, s := range []string{
		"κόσμε", "Hello-µ@ßöäüàá-UTF-8!!", "\x00", "\u0080", "\u0800", "\U00010000", "\x7f", "\u07ff", "\uffff", "\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "\ufdd0", "\U0001fffe",
	} {
		add(fmt.Sprintf("8.1 text %d", i), []string{echo(s), "close 1000"}, text(s), bye)
		cut := [][]byte{begun("")} // every byte in a frame of its own, with a ping between two
		for _, b := range []byte(s) {
			cut = append(cut, more(string([]byte{b})))
		}
		add(fmt.Sprintf("8.1 text %d cut within its characters", i), []string{echo(s), "close 1000"}, append(cut, last(""), bye)...)
	}
	for i, s := range []string{
		"\x80", "\xbf", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xe0\x9f\xbf", "\xf0\x80\x80\xaf", "\xf0\x8f\xbf\xbf", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80", "\xfe", "\xff",
		"\xed\xa0\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
		"\xc3", "\xe2\x82", "\xf0\x9d\x84", "\xc3(", "\xe2(\xa1", "\xe2\x82(", "\xf0\x9d\x84(", "a\x80",
	} {
		add(fmt.Sprintf("8.1 not UTF-8 %d", i), []string{"close 1007"}, text("x"+s), bye)
		add(fmt.Sprintf("8.1 not UTF-8 %d, in fragments", i), []string{"close 1007"}, begun("x"), more(s), last(""), bye)
	}
	// Nothing more is sent: the server must not wait for the message's end to see what it is.
	add("8.1 not UTF-8 is refused before the message is whole", []string{"close 1007"}, begun("κόσμε\xed\xa0"))
	add("8.1 not UTF-8 is refused before the frame is whole", []string{"close 1007"}, text("\xf4\x90" + strings.Repeat("a", 100))[:10])
	add("8.1 not UTF-8 across two fragments", []string{"close 1007"}, begun("κ\xf4"), more("\x90"))
	return all
}

// TestRFC6455: both engines, over real sockets, with the bytes cut in any way.
func TestRFC6455(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(6455, 0))
	salt := rng.Uint64()
	cuts := map[string]func(r *rand.Rand, n int) int{
		"whole":     func(_ *rand.Rand, n int) int { return n },
		"bytes":     func(_ *rand.Rand, n int) int { return 1 + n/1000 },
		"in pieces": func(r *rand.Rand, n int) int { return 1 + r.IntN(1+r.IntN(n)) },
	}
	for engine, start := range engines() {
		for cutting, cut := range cuts {
			t.Run(engine+"/"+cutting, func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(salt, uint64(len(cutting))))
				var rec atomic.Pointer[recorder]
				addr := start(t, NewTable(Options{MessageBytes: mostBytes, CloseWait: time.Hour}), Config{}, func() Handler { return rec.Load() })
				for _, c := range frameCases() {
					next := newRecorder()
					next.onText = func(c *Conn, p []byte) { _ = c.Send(TextFrame(p)) }
					rec.Store(next)
					early := 0
					if cutting == "in pieces" {
						early = r.IntN(min(len(c.in), 8) + 1)
					}
					t.Run(c.name, func(t *testing.T) {
						nc, _ := shakeHands(t, addr, openingHandshake, c.in[:early]...)
						holdTo(t, c, nc, next, c.in[early:], func(n int) int { return cut(r, n) })
					})
				}
			})
		}
	}
}

// holdTo plays a case: the server answers as it must, ends its side, and its handler has heard what was answered.
func holdTo(t *testing.T, c frameCase, nc net.Conn, rec *recorder, in []byte, cut func(n int) int) {
	t.Helper()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for size := len(in); len(in) > 0; {
			n := min(len(in), cut(size))
			if _, err := nc.Write(in[:n]); err != nil {
				return // the server need not read on after it has failed the connection
			}
			in = in[n:]
		}
	}()
	var got, heard []string
	br := bufio.NewReader(nc)
	for {
		op, p, err := readServerFrame(br)
		if err != nil {
			break // how it ends, when bytes were left unread, is TCP's: what was said before is what counts
		}
		s := shown(op, p)
		got = append(got, s)
		if op == ws.OpText {
			heard = append(heard, s)
		}
	}
	<-wrote
	nc.Close()
	if diff := cmp.Diff(c.want, got); diff != "" {
		t.Fatalf("answered (-want +got):\n%s", diff)
	}
	want := CloseNoStatus
	_, _ = fmt.Sscanf(got[len(got)-1], "close %d", &want)
	if code := rec.code(t.Context(), t); code != want {
		t.Fatalf("OnClose %s, the peer was told %s", code.format(), want.format())
	}
	var told []string
	for _, m := range rec.heard() {
		told = append(told, echo(m))
	}
	if diff := cmp.Diff(heard, told); diff != "" {
		t.Fatalf("the handler heard (-answered +heard):\n%s", diff)
	}
}

// TestHalfClose: a client may end its side of the socket as soon as it has said what it had to say (§7.1.1), and no sooner (§7.1.5: 1006).
func TestHalfClose(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var rec atomic.Pointer[recorder]
			addr := start(t, NewTable(Options{CloseWait: time.Hour}), Config{}, func() Handler { return rec.Load() })
			for round := range 50 {
				for last, want := range map[string]CloseCode{string(closed(4321, "")): 4321, string(text("bye")): CloseAbnormal, string(begun("by")): CloseAbnormal, "": CloseAbnormal} {
					next := newRecorder()
					rec.Store(next)
					nc, _ := shakeHands(t, addr, openingHandshake)
					if _, err := io.WriteString(nc, last); err != nil {
						t.Fatal(err)
					}
					if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(nc)
					if answered := bytes.Equal(b, closeFrame(want, "")); err != nil || answered != (want == 4321) {
						t.Fatalf("round %d: %q was answered %q, %v", round, last, b, err)
					}
					nc.Close()
					if code := next.code(t.Context(), t); code != want {
						t.Fatalf("OnClose %s", code.format())
					}
				}
			}
		})
	}
}

// TestHandshake: §4.2, over both engines.
func TestHandshake(t *testing.T) {
	t.Parallel()
	head := func(change ...string) string { // of the good one, with lines replaced by their name, and others added
		lines := []string{"Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
		out := "GET /ws HTTP/1.1\r\n"
	next:
		for _, line := range lines {
			name, _, _ := strings.Cut(line, ":")
			for _, c := range change {
				if strings.HasPrefix(c, name+":") || c == "no "+name {
					continue next
				}
			}
			out += line + "\r\n"
		}
		for _, c := range change {
			if !strings.HasPrefix(c, "no ") {
				out += c + "\r\n"
			}
		}
		return out + "\r\n"
	}
	cases := []struct {
		name   string
		in     string
		status int
	}{
		{"1.3 the good one", head(), 101},
		{"4.2.1 names and values in other cases", strings.NewReplacer("Upgrade: websocket", "upgrade: WebSocket", "Connection: Upgrade", "CONNECTION: uPGRADE", "Sec-WebSocket-Key", "sec-websocket-key").Replace(head()), 101},
		{"4.2.1 Connection is a list", head("Connection: keep-alive, Upgrade"), 101},
		{"4.2.1 Connection comes twice", head("Connection: keep-alive", "Connection: upgrade"), 101},
		{"4.2.1 Upgrade is a list", head("Upgrade: h2c, websocket"), 101},
		{"4.1 subprotocols are offered, none is chosen", head("Sec-WebSocket-Protocol: chat, superchat"), 101},
		{"4.1 extensions are offered, none is chosen", head("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-unknown"), 101},
		{"10.2 any origin may come: whoever comes shows a token", head("Origin: https://elsewhere.example"), 101},
		{"4.2.1 unknown headers", head("X-Unknown: 1", "Cookie: a=b"), 101},
		{"4.2.1 a query", strings.Replace(head(), "/ws", "/ws?token=1", 1), 101},
		{"4.2.1 no Upgrade", head("no Upgrade"), 400},
		{"4.2.1 another Upgrade", head("Upgrade: h2c"), 400},
		{"4.2.1 no Connection", head("no Connection"), 400},
		{"4.2.1 another Connection", head("Connection: keep-alive"), 400},
		{"4.2.1 no key", head("no Sec-WebSocket-Key"), 400},
		{"4.2.1 an empty key", head("Sec-WebSocket-Key: "), 400},
		{"4.2.1 a key of 15 bytes", head("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA"), 400},
		{"4.2.1 a key of 17 bytes", head("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA="), 400},
		{"4.2.1 a key that is not base64", head("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400},
		{"11.3.1 two keys", head("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400},
		{"4.4 no version", head("no Sec-WebSocket-Version"), 426},
		{"4.4 version 8", head("Sec-WebSocket-Version: 8"), 426},
		{"4.4 version 14", head("Sec-WebSocket-Version: 14"), 426},
		{"4.4 a list of versions", head("Sec-WebSocket-Version: 13, 8"), 426},
		{"4.4 a version that is none", head("Sec-WebSocket-Version: x"), 426},
		{"4.1 HTTP/1.0", strings.Replace(head(), "HTTP/1.1", "HTTP/1.0", 1), 400},
		{"4.1 POST", strings.Replace(head(), "GET", "POST", 1), 400},
		{"4.1 HEAD", strings.Replace(head(), "GET", "HEAD", 1), 400},
		{"4.2.1 a body", head("Content-Length: 3") + "abc", 400},
		{"4.2.1 a body in chunks", head("Transfer-Encoding: chunked") + "0\r\n\r\n", 400},
		{"4.2.1 no Host", head("no Host"), 400},
		{"4.2.1 two Hosts", head("Host: x", "Host: y"), 400},
		{"4.2.1 a line that is no header", head("nonsense"), 400},
		{"4.2.1 a name with a space", head("Up grade: x"), 400},
		{"4.2.1 a name with a space behind", head("X : x"), 400},
		{"4.2.1 a control character", head("X: \x01"), 400},
		{"4.2.1 a bare line feed ends a line", head("X: y\nSec-WebSocket-Version: 8", "no Sec-WebSocket-Version"), 426},
	}
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := start(t, NewTable(Options{CloseWait: time.Hour}), Config{}, func() Handler { return newRecorder() })
			for _, c := range cases {
				for _, piece := range []int{1, 1 << 20} {
					nc, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					in := c.in + string(closed(CloseNormal, "")) // what is behind the handshake is not lost
					go func() {
						for rest := in; rest != ""; {
							n := min(piece, len(rest))
							if _, err := io.WriteString(nc, rest[:n]); err != nil {
								return
							}
							rest = rest[n:]
						}
					}()
					br := bufio.NewReader(nc)
					method, _, _ := strings.Cut(c.in, " ")
					resp, err := http.ReadResponse(br, &http.Request{Method: method})
					if err != nil {
						t.Fatalf("%s: %v", c.name, err)
					}
					if resp.StatusCode != c.status {
						t.Errorf("%s, in pieces of %d: %s, want %d", c.name, piece, resp.Status, c.status)
					}
					if resp.StatusCode == http.StatusSwitchingProtocols {
						want := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Accept": {"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}}
						if diff := cmp.Diff(want, resp.Header); diff != "" {
							t.Errorf("%s (-want +got):\n%s", c.name, diff)
						}
						if got := readClose(t, br); got != CloseNormal {
							t.Errorf("%s: closed with %s", c.name, got.format())
						}
					}
					resp.Body.Close()
					nc.Close()
				}
			}
		})
	}
}

// TestStrictClient: coder/websocket agrees with both engines.
func TestStrictClient(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			rec := newRecorder()
			rec.onText = func(c *Conn, p []byte) {
				if err := c.Send(TextFrame(bytes.ToUpper(p))); err != nil {
					t.Error(err)
				}
			}
			c := dial(ctx, t, "http://"+start(t, NewTable(Options{}), Config{}, func() Handler { return rec })+"/ws")
			c.SetReadLimit(1 << 20)
			for _, s := range []string{"hello", "", strings.Repeat("a", 126), strings.Repeat("b", 40_000), strings.Repeat("c", 64<<10)} {
				if err := c.Write(ctx, websocket.MessageText, []byte(s)); err != nil {
					t.Fatal(err)
				}
				_, got, err := c.Read(ctx)
				if err != nil || string(got) != strings.ToUpper(s) {
					t.Fatalf("sent %d bytes, got %d, %v", len(s), len(got), err)
				}
			}
			go func() { _, _, _ = c.Read(ctx) }() // pongs are read by a reader
			if err := c.Ping(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(websocket.StatusGoingAway, "bye"); err != nil {
				t.Fatalf("close handshake: %v", err)
			}
			if code := rec.code(ctx, t); code != CloseGoingAway {
				t.Fatalf("ended with %v", code.format())
			}
		})
	}
}

// TestCloseIsAHandshakeAfterTheQueue: what was accepted before is written, and nothing after.
func TestCloseIsAHandshakeAfterTheQueue(t *testing.T) {
	t.Parallel()
	const n = 500
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			rec := newRecorder()
			rec.onOpen = func(c *Conn) {
				for i := range n {
					_ = c.Send(TextFrame(fmt.Append(nil, i)))
				}
				c.Close(CloseTokenExpired, "Come back with a new token.")
				c.Close(CloseInternal, "never seen")
				if err := c.Send(TextFrame(nil)); err != ErrClosed { //nolint:errorlint // it is returned as it is
					t.Errorf("Send after Close: %v", err)
				}
			}
			c := dial(ctx, t, "http://"+start(t, NewTable(Options{}), Config{}, func() Handler { return rec })+"/ws")
			for i := range n {
				if _, got, err := c.Read(ctx); err != nil || string(got) != fmt.Sprint(i) {
					t.Fatalf("frame %d: %q, %v", i, got, err)
				}
			}
			_, _, err := c.Read(ctx)
			if got := websocket.CloseStatus(err); got != websocket.StatusCode(CloseTokenExpired) {
				t.Fatalf("close status %v (%v)", got, err)
			}
			if code := rec.code(ctx, t); code != CloseTokenExpired {
				t.Fatalf("OnClose %v", code.format())
			}
		})
	}
}

func dial(ctx context.Context, t *testing.T, url string) *websocket.Conn {
	t.Helper()
	c, resp, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		resp.Body.Close()
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}
