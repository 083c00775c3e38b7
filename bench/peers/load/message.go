package load

// A message looks the same inside every envelope: the mark, a lane (2 hexadecimal digits), its number there (8), when it
// was due in nanoseconds of the run (16), and dots up to its size. None of it needs escaping in JSON.
const mark = "@@"

type message struct {
	lane uint32
	seq  uint32
	due  int64
}

const digits = "0123456789abcdef"

func putHex(dst []byte, v uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = digits[v&15]
		v >>= 4
	}
}

// write fills dst, which is as long as the payload.
func (m message) write(dst []byte) {
	copy(dst, mark)
	putHex(dst[2:4], uint64(m.lane))
	putHex(dst[4:12], uint64(m.seq))
	putHex(dst[12:28], uint64(m.due))
	for i := MinPayload; i < len(dst); i++ {
		dst[i] = '.'
	}
}

// readMessage reads what write wrote, from its mark on. p is at least MinPayload long.
func readMessage(p []byte) (m message, ok bool) {
	lane, ok1 := unhex(p[2:4])
	seq, ok2 := unhex(p[4:12])
	due, ok3 := unhex(p[12:MinPayload])
	return message{lane: uint32(lane), seq: uint32(seq), due: int64(due)}, ok1 && ok2 && ok3 //nolint:gosec // as many bits as digits
}

func unhex(p []byte) (v uint64, ok bool) {
	var bad byte
	for _, c := range p {
		d := values[c]
		bad |= d
		v = v<<4 | uint64(d&15)
	}
	return v, bad < 16
}

// values of digits, 16 for what is none.
var values = func() (t [256]byte) {
	for i := range t {
		t[i] = 16
	}
	for i, c := range []byte(digits) {
		t[c] = byte(i)
	}
	return t
}()
