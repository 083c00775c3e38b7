//go:build linux

package load

import (
	"bytes"
	"strings"
	"testing"
)

// TestFrames: what a server writes is cut where it was written, however much of it is there.
func TestFrames(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 100_000} {
		payload := bytes.Repeat([]byte{'x'}, size)
		frame := []byte{0x82}
		switch {
		case size < 126:
			frame = append(frame, byte(size))
		case size < 1<<16:
			frame = append(frame, 126, byte(size>>8), byte(size))
		default:
			frame = append(frame, 127, 0, 0, 0, 0, byte(size>>24), byte(size>>16), byte(size>>8), byte(size))
		}
		frame = append(frame, payload...)
		for cut := range min(len(frame), 12) {
			if _, _, n := serverFrame(frame[:cut]); n != 0 {
				t.Errorf("%d bytes of a frame of %d are one of %d", cut, len(frame), n)
			}
		}
		if _, _, n := serverFrame(frame[:len(frame)-1]); n != 0 {
			t.Errorf("a frame of %d without its last byte is one of %d", len(frame), n)
		}
		op, got, n := serverFrame(append(frame, 1, 2, 3))
		if op != 2 || !bytes.Equal(got, payload) || n != len(frame) {
			t.Errorf("a payload of %d: op %d, %d bytes, frame of %d", size, op, len(got), n)
		}
	}
}

// TestLoadStaysHere: no address of another machine is spoken to.
func TestLoadStaysHere(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"10.0.0.1:80", "192.168.1.1:80", "example.com:80", "[::1]:80", "0.0.0.0:80", "127.0.0.1"} {
		if _, err := sockaddr(addr); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := sockaddr("127.1.2.3:80"); err != nil {
		t.Error(err)
	}
}

// BenchmarkDeliver is what the load generator does itself for each message, beside the kernel.
func BenchmarkDeliver(b *testing.B) {
	l := &loop{job: Job{Payload: 128, Channels: 1}, dialect: plain{}, subs: make([]subscriber, 1), last: make([]uint32, 1), stride: 1, windowTo: 1 << 62}
	msg := make([]byte, 128)
	s := &l.subs[0]
	s.phase = listening
	var frame []byte
	b.ReportAllocs()
	for i := range b.N {
		message{seq: uint32(i + 1), due: int64(i)}.write(msg)
		frame = append(append(frame[:0], 0x81, 126, 0, 158), `{"event":"m","channel":"c0","data":"`...)
		frame = append(append(frame, msg...), `"}....`[:2]...)
		frame[3] = byte(len(frame) - 4)
		if rest, err := l.frames(0, s, frame); err != nil || len(rest) > 0 {
			b.Fatal(err, rest)
		}
	}
	if l.received != b.N || l.res.Gaps > 0 {
		b.Fatalf("%d received, %d gaps", l.received, l.res.Gaps)
	}
}
