package conn

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/google/go-cmp/cmp"
)

// found is what a parser made of its input.
type found struct {
	Texts    []string
	Controls []string
	Fail     CloseCode
}

func (f *found) text(p []byte) bool { f.Texts = append(f.Texts, string(p)); return true }
func (f *found) control(op ws.OpCode, p []byte) {
	f.Controls = append(f.Controls, string('0'+byte(op))+":"+string(p))
}

// parse feeds input in pieces of the given size.
func parse(input []byte, limit, piece int) found {
	var f found
	p := parser{limit: limit}
	for rest := append([]byte(nil), input...); len(rest) > 0; {
		n := min(piece, len(rest))
		if _, fail := p.feed(rest[:n], &f); fail != nil {
			f.Fail = fail.code
			return f
		}
		rest = rest[n:]
	}
	return f
}

func TestParser(t *testing.T) {
	t.Parallel()
	text := func(s string) []byte { return clientFrame(true, ws.OpText, []byte(s)) }
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	big := strings.Repeat("x", 300)
	mut := func(b []byte, fn func([]byte)) []byte { fn(b); return b }
	for name, c := range map[string]struct {
		in   []byte
		want found
	}{
		"one":              {text("hi"), found{Texts: []string{"hi"}}},
		"empty":            {join(text(""), text("a")), found{Texts: []string{"", "a"}}},
		"two-byte length":  {text(big), found{Texts: []string{big}}},
		"several":          {join(text("a"), text("b"), text(big)), found{Texts: []string{"a", "b", big}}},
		"fragments":        {join(clientFrame(false, ws.OpText, []byte("a")), clientFrame(false, ws.OpContinuation, []byte("b")), clientFrame(true, ws.OpContinuation, []byte("c")), text("d")), found{Texts: []string{"abc", "d"}}},
		"empty fragments":  {join(clientFrame(false, ws.OpText, nil), clientFrame(false, ws.OpContinuation, nil), clientFrame(true, ws.OpContinuation, []byte("z"))), found{Texts: []string{"z"}}},
		"ping in between":  {join(clientFrame(false, ws.OpText, []byte("a")), clientFrame(true, ws.OpPing, []byte("p")), clientFrame(true, ws.OpContinuation, []byte("b"))), found{Texts: []string{"ab"}, Controls: []string{"9:p"}}},
		"character cut":    {join(clientFrame(false, ws.OpText, []byte("é")[:1]), clientFrame(true, ws.OpContinuation, []byte("é")[1:])), found{Texts: []string{"é"}}},
		"empty ping":       {clientFrame(true, ws.OpPing, nil), found{Controls: []string{"9:"}}},
		"unmasked":         {ws.MustCompileFrame(ws.NewTextFrame([]byte("a"))), found{Fail: CloseProtocol}},
		"binary":           {clientFrame(true, ws.OpBinary, []byte("a")), found{Fail: CloseUnsupported}},
		"reserved op":      {clientFrame(true, ws.OpCode(3), []byte("a")), found{Fail: CloseProtocol}},
		"reserved control": {clientFrame(true, ws.OpCode(11), nil), found{Fail: CloseProtocol}},
		"rsv bit":          {mut(text("a"), func(b []byte) { b[0] |= 0x40 }), found{Fail: CloseProtocol}},
		"long ping":        {clientFrame(true, ws.OpPing, make([]byte, 126)), found{Fail: CloseProtocol}},
		"fragmented ping":  {clientFrame(false, ws.OpPing, nil), found{Fail: CloseProtocol}},
		"lone continue":    {clientFrame(true, ws.OpContinuation, nil), found{Fail: CloseProtocol}},
		"text in fragment": {join(clientFrame(false, ws.OpText, nil), text("a")), found{Fail: CloseProtocol}},
		"not utf-8":        {text("\xff"), found{Fail: CloseInvalidUTF8}},
		"surrogate":        {text("\xed\xa0\x80"), found{Fail: CloseInvalidUTF8}},
		"cut character":    {text("ab\xc3"), found{Fail: CloseInvalidUTF8}},
		"too big":          {text(strings.Repeat("x", 1001)), found{Fail: CloseTooBig}},
		"too big in parts": {join(clientFrame(false, ws.OpText, make([]byte, 600)), clientFrame(true, ws.OpContinuation, make([]byte, 600))), found{Fail: CloseTooBig}},
		"huge declared":    {[]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, found{Fail: CloseTooBig}},
		"length msb":       {[]byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4}, found{Fail: CloseProtocol}},
		"padded length":    {[]byte{0x81, 0xfe, 0, 1, 1, 2, 3, 4, 'a'}, found{Fail: CloseProtocol}},
		"too many pieces":  {join(clientFrame(false, ws.OpText, nil), bytes.Repeat(clientFrame(false, ws.OpContinuation, nil), maxPieces)), found{Fail: CloseTooBig}},
		"many pieces":      {join(bytes.Repeat(join(clientFrame(false, ws.OpText, []byte("a")), bytes.Repeat(clientFrame(false, ws.OpContinuation, nil), maxPieces-2), clientFrame(true, ws.OpContinuation, nil)), 2)), found{Texts: []string{"a", "a"}}},
		"exactly the most": {text(strings.Repeat("x", 1000)), found{Texts: []string{strings.Repeat("x", 1000)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, piece := range []int{1, 2, 3, 7, 1 << 20} {
				if diff := cmp.Diff(c.want, parse(c.in, 1000, piece)); diff != "" {
					t.Errorf("in pieces of %d (-want +got):\n%s", piece, diff)
				}
			}
		})
	}
}

// FuzzParser: no panic, the same result however the bytes are cut, and never more held than the limit.
func FuzzParser(f *testing.F) {
	f.Add(clientFrame(true, ws.OpText, []byte("hello")), uint8(3))
	f.Add(append(clientFrame(false, ws.OpText, []byte("é")[:1]), clientFrame(true, ws.OpContinuation, []byte("é")[1:])...), uint8(1))
	f.Add([]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, uint8(5))
	f.Add(clientFrame(true, ws.OpClose, []byte{3, 232}), uint8(2))
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		const limit = 512
		whole := parse(in, limit, max(1, len(in)))
		cut := parse(in, limit, int(piece)+1)
		if diff := cmp.Diff(whole, cut); diff != "" {
			t.Fatalf("cut differently, read differently:\n%s", diff)
		}
		for _, s := range whole.Texts {
			if len(s) > limit || !strings.HasPrefix(strings.ToValidUTF8(s, ""), s) {
				t.Fatalf("let through %q", s)
			}
		}
	})
}

func TestTextFrameReadsBack(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 125, 126, 65535, 65536} {
		op, p, err := readServerFrame(bytes.NewReader(TextFrame(bytes.Repeat([]byte("a"), n))))
		if err != nil || op != ws.OpText || len(p) != n {
			t.Fatalf("%d bytes: op %v, %d bytes, %v", n, op, len(p), err)
		}
	}
}

func TestCloseFrameReasonIsCutAtACharacter(t *testing.T) {
	t.Parallel()
	_, p, err := readServerFrame(bytes.NewReader(closeFrame(CloseSlow, strings.Repeat("é", 100))))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(p[2:]); got != strings.Repeat("é", 61) {
		t.Fatalf("reason of %d bytes: %q", len(got), got)
	}
}

func TestSSEChunk(t *testing.T) {
	t.Parallel()
	if got, want := string(SSEChunk("a~1", "event", []byte("{}\nx"))), "id: a~1\nevent: event\ndata: {}\ndata: x\n\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if got, want := string(sseClose(CloseReconnect, `say "hi"`)), "event: close\ndata: {\"code\":4200,\"reason\":\"say \\\"hi\\\"\"}\n\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func BenchmarkParser(b *testing.B) {
	frame := clientFrame(true, ws.OpText, bytes.Repeat([]byte("a"), 128))
	buf := make([]byte, len(frame))
	p := parser{limit: 1 << 16}
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, frame)
		if _, fail := p.feed(buf, nothing{}); fail != nil {
			b.Fatal("refused")
		}
	}
}

type nothing struct{}

func (nothing) text([]byte) bool          { return true }
func (nothing) control(ws.OpCode, []byte) {}
