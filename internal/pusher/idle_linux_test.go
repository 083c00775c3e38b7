package pusher

import (
	"bytes"
	"fmt"
	"net/url"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"github.com/gobwas/ws"
)

// TestSizes: what there is one of for each connection stays small. It is a size that the allocator has.
func TestSizes(t *testing.T) {
	t.Parallel()
	if got := unsafe.Sizeof(session{}); got > 96 {
		t.Errorf("a session takes %d bytes", got)
	}
}

// maxIdleHeap is what an idle connection with one subscription, to a channel of its own, may hold of the heap, in bytes. It holds about 700.
const maxIdleHeap = 1_000

// TestIdleConnectionIsSmall: it does not run beside others, whose memory would be counted too. Its clients are bare sockets, which have no memory here.
func TestIdleConnectionIsSmall(t *testing.T) {
	n := 2_000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < 5_000 {
		n = int(files.Cur) / 4 //nolint:gosec // less than 5,000
	}
	w := newSite(t, nil)
	at, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(at.Port())
	if err != nil {
		t.Fatal(err)
	}
	server := &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	buf := make([]byte, 4<<10)
	sockets := make([]int, 0, 100+n)
	defer func() {
		for _, fd := range sockets {
			_ = syscall.Close(fd)
		}
	}()
	come := func(i int) {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, fd)
		if err := syscall.Connect(fd, server); err != nil {
			t.Fatal(err)
		}
		subscribe := fmt.Appendf(nil, `{"event":"pusher:subscribe","data":{"channel":"channel-%d"}}`, i)
		hello := append([]byte("GET /app/"+testKey+"?protocol=7 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n"),
			ws.MustCompileFrame(ws.MaskFrameInPlace(ws.NewTextFrame(subscribe)))...)
		if _, err := syscall.Write(fd, hello); err != nil {
			t.Fatal(err)
		}
		for got := 0; !bytes.Contains(buf[:got], []byte("subscription_succeeded")); {
			k, err := syscall.Read(fd, buf[got:])
			if err != nil || k == 0 {
				t.Fatalf("connection %d: %v after %q", i, err, buf[:got])
			}
			got += k
		}
	}
	heap := func() int64 {
		for range 3 { // pools let go of what they have had for two
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) //nolint:gosec // less than 2^63
	}
	for i := range 100 { // what the first ones make is there for all
		come(i)
	}
	before, each := heap(), int64(0)
	defer func() { t.Logf("an idle connection holds %d bytes of the heap", each) }()
	for i := range n {
		come(100 + i)
	}
	w.eventually(func() bool { // what they said hello with is given back soon
		each = (heap() - before) / int64(n)
		return each <= maxIdleHeap
	})
	if _, subs := w.hub.Counts(); subs != 100+n {
		t.Errorf("%d subscriptions of %d", subs, 100+n)
	}
}
