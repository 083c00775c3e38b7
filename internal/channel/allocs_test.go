//go:build !race

package channel

import (
	"strings"
	"testing"
)

// TestKeysAreDecodedOnce: an escaped key costs the same however many are wanted. It does not run beside others, whose allocations would be counted too, nor
// under the race detector, which has pools forget things.
func TestKeysAreDecodedOnce(t *testing.T) {
	body := []byte("{" + strings.Repeat(`"\u0061":1,`, 1_000) + `"b":1}`)
	allocs := func(keys ...string) float64 {
		var fields []Field
		for _, key := range keys {
			fields = append(fields, Field{key, new(string)})
		}
		return testing.AllocsPerRun(10, func() {
			if err := ReadObject("The body", body, fields...); err != nil {
				t.Fatal(err)
			}
		})
	}
	one, six := allocs("u"), allocs("u", "v", "w", "x", "y", "z")
	if six > one+100 {
		t.Errorf("%v allocations for six wanted keys, %v for one", six, one)
	}
}
