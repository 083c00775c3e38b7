package projection

import (
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestAppendArg: equal bytes mean equal arguments as SQLite sees them, whatever their Go type; nothing runs into its neighbour.
func TestAppendArg(t *testing.T) {
	t.Parallel()
	type name string
	type number int16
	enc := func(args ...any) (b []byte) {
		for _, a := range args {
			b = appendArg(b, a)
		}
		return b
	}
	for _, same := range [][2][]byte{
		{enc("a"), enc(petrel.RoomID("a"))},
		{enc("a"), enc(name("a"))},
		{enc(int64(7)), enc(uint64(7))},
		{enc(7), enc(number(7))},
		{enc(true), enc(1)},
		{enc(false), enc(uint8(0))},
		{enc([]byte(nil)), enc(nil)},
		{enc(petrel.EntryID{1}), enc(append([]byte{1}, make([]byte, 15)...))},
	} {
		if string(same[0]) != string(same[1]) {
			t.Errorf("%x and %x differ", same[0], same[1])
		}
	}
	seen := map[string]int{}
	for i, b := range [][]byte{
		enc(nil), enc(""), enc([]byte{}), enc(0), enc("a"), enc([]byte("a")), enc("a", "b"), enc("ab"), enc("", "ab"),
		enc("ab", ""), enc(1), enc(-1), enc(nil, nil), enc(nil, 1), enc(1, nil),
	} {
		if j, ok := seen[string(b)]; ok {
			t.Errorf("%d and %d are encoded alike: %x", j, i, b)
		}
		seen[string(b)] = i
	}
}
