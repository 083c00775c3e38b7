package conn

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/klauspost/compress/flate"
)

// packed is what a client compresses, without the tail that is left away.
func packed(t testing.TB, s string, level int) string {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err == nil {
		_, _ = io.WriteString(w, s)
		err = w.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), deflateTail[:4])
}

const offeringDeflate = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n" // as Chromium does

// deflateCases are what RFC 7692 says of frames.
func deflateCases(t *testing.T) (all []frameCase) {
	t.Helper()
	add := func(name string, want []string, in ...[]byte) {
		all = append(all, frameCase{name, bytes.Join(in, nil), want})
	}
	good := func(name string, want []string, in ...[]byte) {
		add(name, append(want, echo("still here"), "close 1000"), append(in, text("still here"), closed(CloseNormal, ""))...)
	}
	fails := func(name string, code CloseCode, in ...[]byte) {
		add(name, []string{fmt.Sprintf("close %d", code)}, append(in, text("not heard"), closed(CloseNormal, ""))...)
	}
	bin := func(s string) string {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const first, whole = rsv1 | 1, fin | rsv1 | 1
	hello := []string{echo("Hello")}
	good("7.2.3.1 one compressed block", hello, raw(whole, bin("f2 48 cd c9 c9 07 00")))
	good("7.2.3.1 the same in two fragments", hello, raw(first, bin("f2 48 cd")), last(bin("c9 c9 07 00")))
	good("7.2.3.1 the same byte by byte, with pings between", []string{"pong 1", "pong 2", echo("Hello")},
		raw(first, bin("f2")), more(bin("48")), pinged("1"), more(bin("cd")), more(bin("c9")), pinged("2"), more(bin("c9")), more(""), more(bin("07")), last(bin("00")))
	fails("7.2.3.2 a message that refers to the one before", CloseInvalidUTF8, raw(whole, bin("f2 00 11 00 00")))
	good("7.2.3.3 a block that is not compressed", hello, raw(whole, bin("00 05 00 fa ff 48 65 6c 6c 6f 00")))
	good("7.2.3.4 a last block", hello, raw(whole, bin("f3 48 cd c9 c9 07 00 00")))
	good("7.2.3.5 two blocks", hello, raw(whole, bin("f2 48 05 00 00 00 ff ff ca c9 c9 07 00")))
	good("7.2.3.6 an empty message", []string{echo("")}, raw(whole, bin("00")))
	good("6 messages that are not compressed, between", []string{echo("a"), echo("Hello"), echo("b")}, text("a"), raw(whole, bin("f2 48 cd c9 c9 07 00")), begun("b"), last(""))
	for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 5, 9} {
		s := strings.Repeat("What is packed: é€𝄞. ", 500)
		good(fmt.Sprintf("7.2.2 level %d", level), []string{echo(s)}, raw(whole, packed(t, s, level)))
		good(fmt.Sprintf("7.2.2 level %d, in two fragments", level), []string{echo(s)}, raw(first, packed(t, s, level)[:20]), last(packed(t, s, level)[20:]))
		most := strings.Repeat("x", mostBytes)
		good(fmt.Sprintf("7.2.2 level %d, the largest message", level), []string{echo(most)}, raw(whole, packed(t, most, level)))
		fails(fmt.Sprintf("7.2.2 level %d, a message one byte too large", level), CloseTooBig, raw(whole, packed(t, most+"x", level)))
	}
	rng := rand.New(rand.NewPCG(7692, 0))
	dense := make([]byte, mostBytes)
	for i := range dense {
		dense[i] = byte(rng.UintN(128))
	}
	good("8 the largest message, which compresses to nothing less", []string{echo(string(dense))}, raw(whole, packed(t, string(dense), flate.NoCompression)))
	fails("8 a message that is a thousand times as large as it looks", CloseTooBig, raw(whole, packed(t, strings.Repeat("a", 60<<20), 9)))
	fails("8 more compressed bytes than a message could have", CloseTooBig, raw(whole, strings.Repeat(bin("00 00 00 ff ff"), mostBytes/4)))
	fails("6.1 compressed, but not on the first frame", CloseProtocol, begun("a"), raw(fin|rsv1, "b"))
	fails("6.1 compressed again on the second frame", CloseProtocol, raw(first, bin("f2 48 cd")), raw(fin|rsv1, bin("c9 c9 07 00")))
	fails("6.1 a compressed ping", CloseProtocol, raw(fin|rsv1|9, ""))
	fails("6.1 a compressed pong", CloseProtocol, raw(fin|rsv1|10, ""))
	fails("6.1 a compressed close frame", CloseProtocol, raw(fin|rsv1|8, bin("03 e8")))
	fails("6.1 a compressed message within a message", CloseProtocol, begun("a"), raw(whole, bin("f2 48 cd c9 c9 07 00")))
	fails("6 another reserved bit beside", CloseProtocol, raw(whole|rsv2, bin("f2 48 cd c9 c9 07 00")))
	fails("6 another reserved bit alone", CloseProtocol, raw(fin|rsv3|1, "a"))
	fails("6 a compressed binary message", CloseUnsupported, raw(fin|rsv1|2, bin("f2 48 cd c9 c9 07 00")))
	fails("7.2.2 what is not compressed at all", CloseInvalidUTF8, raw(whole, "Hello, this is plain text"))
	fails("7.2.2 a block of no kind that there is", CloseInvalidUTF8, raw(whole, bin("ff ff ff ff")))
	fails("8.1 not UTF-8, compressed", CloseInvalidUTF8, raw(whole, packed(t, "a\xff", 1)))
	fails("8.1 not UTF-8, compressed in fragments", CloseInvalidUTF8, raw(first, packed(t, "a\xc3", 1)), last(""))
	return all
}

// TestRFC7692: both engines, over real sockets, with the bytes cut in any way.
func TestRFC7692(t *testing.T) {
	t.Parallel()
	cases := deflateCases(t)
	for engine, start := range engines() {
		for cutting, cut := range map[string]func(n int) int{"whole": func(n int) int { return n }, "bytes": func(n int) int { return 1 + n/1000 }} {
			t.Run(engine+"/"+cutting, func(t *testing.T) {
				t.Parallel()
				var rec atomic.Pointer[recorder]
				addr := start(t, NewTable(Options{MessageBytes: mostBytes, CloseWait: time.Hour, Deflate: true}), Config{}, func() Handler { return rec.Load() })
				for _, c := range cases {
					next := newRecorder()
					next.onText = func(c *Conn, p []byte) { _ = c.Send(TextFrame(p)) }
					rec.Store(next)
					t.Run(c.name, func(t *testing.T) {
						nc, h := shakeHands(t, addr, strings.TrimSuffix(openingHandshake, "\r\n")+offeringDeflate)
						if got := h.Get("Sec-WebSocket-Extensions"); got != deflateAnswer {
							t.Fatalf("agreed to %q", got)
						}
						holdTo(t, c, nc, next, bytes.Clone(c.in), cut)
					})
				}
			})
		}
	}
}

// TestDeflateIsAgreedTo: RFC 7692 §5 and §7.1, and nothing without the setting.
func TestDeflateIsAgreedTo(t *testing.T) {
	t.Parallel()
	for offer, want := range map[string]bool{
		"permessage-deflate":                                                         true,
		"permessage-deflate; client_max_window_bits":                                 true,
		"permessage-deflate; client_max_window_bits=10":                              true,
		"permessage-deflate; server_no_context_takeover; client_no_context_takeover": true,
		"permessage-deflate; server_max_window_bits=15":                              true,
		"permessage-deflate; server_max_window_bits=\"15\"":                          true,
		"permessage-deflate; server_max_window_bits=10":                              false, // our window has one size
		"permessage-deflate; server_max_window_bits=10, permessage-deflate":          true,
		"permessage-deflate; server_max_window_bits":                                 false,
		"permessage-deflate; server_max_window_bits=16":                              false,
		"permessage-deflate; server_no_context_takeover=1":                           false,
		"permessage-deflate; server_no_context_takeover; server_no_context_takeover": false,
		"permessage-deflate; unknown":                                                false,
		"x-webkit-deflate-frame":                                                     false,
		"x-first; a=\"b, permessage-deflate\"":                                       false,
		"x-first; a=1, permessage-deflate":                                           true,
		"":                                                                           false,
		",":                                                                          false,
	} {
		if got := offersDeflate(http.Header{"Sec-Websocket-Extensions": {offer}}); got != want {
			t.Errorf("%q: %v, want %v", offer, got, want)
		}
	}
	if !offersDeflate(http.Header{"Sec-Websocket-Extensions": {"x-first", "permessage-deflate"}}) {
		t.Error("the second header is not read")
	}
	for name, start := range engines() {
		addr := start(t, NewTable(Options{}), Config{}, func() Handler { return newRecorder() })
		if _, h := shakeHands(t, addr, strings.TrimSuffix(openingHandshake, "\r\n")+offeringDeflate); h.Get("Sec-WebSocket-Extensions") != "" {
			t.Errorf("%s: agreed to what is off: %v", name, h)
		}
	}
}

func TestDeflatedFrame(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 7692))
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(rng.UintN(256))
	}
	for name, c := range map[string]struct {
		in     string
		packed bool
	}{
		"empty": {"", false}, "short": {strings.Repeat("a", deflateFrom-1), false}, "from where it is worth it": {strings.Repeat("a", deflateFrom), true},
		"chat": {strings.Repeat(`{"op":"event","room":"lobby","data":{"text":"hello"}}`, 30), true}, "large": {strings.Repeat("0123456789abcdef", 20_000), true}, "noise": {string(noise), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := DeflatedFrame([]byte(c.in))
			if isPacked := f[0]&rsv1 != 0; isPacked != c.packed || f[0]|rsv1 != fin|rsv1|1 || isPacked && len(f) >= len(c.in) {
				t.Fatalf("first byte %x, %d bytes for %d", f[0], len(f), len(c.in))
			}
			_, p, err := readServerFrame(bytes.NewReader(f))
			if err == nil && c.packed {
				p, err = io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(p), strings.NewReader(deflateTail))))
			}
			if err != nil || string(p) != c.in {
				t.Fatalf("reads back as %d bytes of %d, %v", len(p), len(c.in), err)
			}
		})
	}
}

// TestDeflateStrictClient: coder/websocket agrees, with a window of its own or without, on many connections at once, which share the frames.
func TestDeflateStrictClient(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		for _, mode := range []websocket.CompressionMode{websocket.CompressionContextTakeover, websocket.CompressionNoContextTakeover} {
			t.Run(fmt.Sprintf("%s/mode %d", name, mode), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				frame := func(p []byte) []byte { return DeflatedFrame(bytes.ToUpper(p)) }
				addr := start(t, NewTable(Options{Deflate: true}), Config{}, func() Handler {
					rec := newRecorder()
					rec.onText = func(c *Conn, p []byte) {
						if !c.Deflates() {
							t.Error("nothing was agreed to")
						}
						if err := c.Send(frame(p)); err != nil {
							t.Error(err)
						}
					}
					return rec
				})
				var done sync.WaitGroup
				for i := range 8 {
					c, resp, err := websocket.Dial(ctx, "http://"+addr+"/ws", &websocket.DialOptions{CompressionMode: mode, CompressionThreshold: 1})
					if err != nil {
						t.Fatal(err)
					}
					if resp.Body != nil {
						resp.Body.Close()
					}
					t.Cleanup(func() { _ = c.CloseNow() })
					c.SetReadLimit(1 << 20)
					done.Go(func() {
						for _, s := range []string{"hello", "", strings.Repeat(fmt.Sprint("a", i), 200), strings.Repeat("b", 60_000), strings.Repeat("c", 64<<10), "end"} {
							if err := c.Write(ctx, websocket.MessageText, []byte(s)); err != nil {
								t.Error(err)
								return
							}
							if _, got, err := c.Read(ctx); err != nil || string(got) != strings.ToUpper(s) {
								t.Errorf("sent %d bytes, got %d, %v", len(s), len(got), err)
								return
							}
						}
						if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
							t.Error(err)
						}
					})
				}
				done.Wait()
			})
		}
	}
}

// TestDeflateHoldsNothing: a message is unpacked into memory that is lent, whatever it says of itself.
func TestDeflateHoldsNothing(t *testing.T) {
	t.Parallel()
	all := newInflaters()
	bomb := []byte(packed(t, strings.Repeat("a", 20<<20), 9))
	if _, fail := all.text(bomb, 1000, nothing{}); fail == nil || fail.code != CloseTooBig {
		t.Fatalf("a bomb of %d bytes: %v", len(bomb), fail)
	}
	if i := all.pool.Get().(*inflater); i.out.Cap() > keepInflated || cap(i.in) > keepInflated {
		t.Fatalf("%d and %d bytes are kept", i.out.Cap(), cap(i.in))
	}
}

// FuzzInflate: no panic, no more than the limit, and the same on every engine's memory.
func FuzzInflate(f *testing.F) {
	f.Add([]byte(packed(f, "hello", 1)))
	f.Add([]byte(packed(f, strings.Repeat("a", 5000), 9)))
	f.Add([]byte{0xff, 0xff})
	all := newInflaters()
	f.Fuzz(func(t *testing.T, in []byte) {
		var a, b found
		_, failA := all.text(in, 1000, &a)
		_, failB := newInflaters().text(in, 1000, &b)
		if (failA == nil) != (failB == nil) || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%v %v, %v %v", a, failA, b, failB)
		}
		for _, s := range a.Texts {
			if len(s) > 1000 {
				t.Fatalf("%d bytes", len(s))
			}
		}
	})
}

func BenchmarkDeflatedFrame(b *testing.B) {
	for _, n := range []int{256, 512, 2048, 16 << 10} {
		p := []byte(strings.Repeat(chatLine, 1+n/len(chatLine))[:n])
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				size = len(DeflatedFrame(p))
			}
			b.ReportMetric(float64(size), "B/frame")
		})
	}
}

func BenchmarkInflate(b *testing.B) {
	for _, n := range []int{256, 2048, 16 << 10} {
		in := []byte(packed(b, strings.Repeat(chatLine, 1+n/len(chatLine))[:n], 6))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			all := newInflaters()
			for b.Loop() {
				if _, fail := all.text(in, 1<<20, nothing{}); fail != nil {
					b.Fatal(fail)
				}
			}
		})
	}
}

const chatLine = `{"op":"event","room":"support-berlin","seq":48213,"type":"message.new","at":"2026-11-21T20:31:55.123Z","data":{"message":{"id":"0193f1c2-7b5e-7c3a-9f00-5d2f8b1a6e77","room":"support-berlin","user":"anna.schmidt","text":"Good morning everybody, the deployment of last night went well and the new dashboards are online. Please look at the latency before noon.","created_at":"2026-11-21T20:31:55.120Z","mentions":[],"reactions":{}}}}`
