package bustest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Loopback returns an IP address of this machine that no other test has, 127.x.y.z, for as long as the test runs. Nobody
// else listens on it, and the kernel takes no port of it for connections: so a node may be told there which ports it
// has, and have them again after a restart. The test is skipped where only 127.0.0.1 exists.
func Loopback(tb testing.TB) string {
	tb.Helper()
	for {
		ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
		l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", ip+":7999") // whoever has this port has the address
		if err != nil {
			if l, err = (&net.ListenConfig{}).Listen(tb.Context(), "tcp", ip+":0"); err != nil {
				tb.Skipf("this machine has no address %s: %v", ip, err)
			}
			_ = l.Close()
			continue
		}
		tb.Cleanup(func() { _ = l.Close() })
		return ip
	}
}
