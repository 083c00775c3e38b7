package conn

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// TestSizes: what there is one of for each connection stays small. Each is a size that the allocator has.
func TestSizes(t *testing.T) {
	t.Parallel()
	if got := unsafe.Sizeof(Conn{}); got > 144 {
		t.Errorf("a connection takes %d bytes", got)
	}
}

// TestQuietConnectionsKeepNoQueue: who had nothing to say for two seconds holds nothing to say it with, and may speak again.
func TestQuietConnectionsKeepNoQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable(Options{})
		defer tab.Stop()
		tab.Start()
		server, client := net.Pipe()
		c := tab.OpenWebSocket(server, nil, Config{}, newRecorder())
		for range 3 {
			if err := c.Send(TextFrame([]byte("x"))); err != nil {
				t.Fatal(err)
			}
			if _, p, err := readServerFrame(client); err != nil || string(p) != "x" {
				t.Fatalf("%q, %v", p, err)
			}
			synctest.Wait()
			c.mu.Lock()
			had := c.out != nil
			c.mu.Unlock()
			pass(3 * time.Second)
			c.mu.Lock()
			has := c.out != nil
			c.mu.Unlock()
			if !had || has {
				t.Fatalf("an outbox after a frame: %v; after a while: %v", had, has)
			}
		}
	})
}
