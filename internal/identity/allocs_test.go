//go:build !race

package identity

import (
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestVerifyAllocatesNothing: a signature is checked for every call, and for every subscription to a channel that needs one. It does not run beside others,
// whose allocations would be counted too, nor under the race detector, which has pools forget things.
func TestVerifyAllocatesNothing(t *testing.T) {
	c := worked[0]
	d := NewDirectory(DirectoryOptions{})
	d.current.Store(&snapshot{apps: map[petrel.AppID]bool{"1": false}, keys: map[string]signer{c.key: newSigner("1", c.secret)}})
	message := []byte(c.message)
	if got := testing.AllocsPerRun(1_000, func() {
		if _, err := d.Verify(c.key, message, c.mac); err != nil {
			t.Fatal(err)
		}
	}); got > 0 {
		t.Errorf("a good signature allocates %v times", got)
	}
}
