package conn

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gobwas/ws"
)

func BenchmarkTextFrame(b *testing.B) {
	payload := bytes.Repeat([]byte("a"), 128)
	b.ReportAllocs()
	for b.Loop() {
		if len(TextFrame(payload)) != 132 {
			b.Fatal("wrong frame")
		}
	}
}

// BenchmarkParserFragments is a message that comes in pieces, of frames and of reads.
func BenchmarkParserFragments(b *testing.B) {
	var whole []byte
	for i, op := range []ws.OpCode{ws.OpText, ws.OpContinuation, ws.OpContinuation} {
		whole = append(whole, clientFrame(i == 2, op, bytes.Repeat([]byte("a"), 100))...)
	}
	buf := make([]byte, len(whole))
	p := parser{limit: 1 << 16}
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, whole)
		for at := 0; at < len(buf); at += 37 {
			if _, fail := p.feed(buf[at:min(at+37, len(buf))], nothing{}); fail != nil {
				b.Fatal(fail)
			}
		}
	}
}

// TestWhatMayAllocate: a whole frame of a client is read without an allocation, whatever its size; a frame that is sent is one piece of memory
// and what builds it. It does not run beside others, whose allocations would be counted too.
func TestWhatMayAllocate(t *testing.T) {
	for _, size := range []int{0, 125, 126, 60_000} {
		frame := clientFrame(true, ws.OpText, bytes.Repeat([]byte("a"), size))
		buf := make([]byte, len(frame))
		p := parser{limit: 1 << 16}
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if n := testing.AllocsPerRun(1000, func() {
				copy(buf, frame)
				if _, fail := p.feed(buf, nothing{}); fail != nil {
					t.Error(fail)
				}
			}); n > 0 {
				t.Errorf("reading a frame of %d bytes allocates %v times", size, n)
			}
			payload := buf[:size]
			if n := testing.AllocsPerRun(1000, func() { TextFrame(payload) }); n > 3 {
				t.Errorf("making a frame of %d bytes allocates %v times", size, n)
			}
		})
	}
}
