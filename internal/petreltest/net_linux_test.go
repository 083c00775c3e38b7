package petreltest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNet holds the network of the fault tests to what it says: three servers reach each other's public port through it, and a
// link that is cut, one way or both, lossy, slow or doubling is just that, while clients beside a server notice nothing.
func TestNet(t *testing.T) {
	t.Parallel()
	const hosts = 3
	nw := NewNet(t, hosts, 1)
	leavesNoThread(t, nw)
	for i := range hosts {
		serveHello(t, nw.Host(i))
	}
	ask := func(from, to int, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := &http.Client{Transport: &http.Transport{DialContext: nw.Host(from).DialContext}}
		defer c.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+nw.Host(to).Addr+":8080/", nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return err
	}
	reach := func(from, to int) {
		t.Helper()
		if err := ask(from, to, Patience); err != nil {
			t.Errorf("host %d does not reach host %d: %v", from, to, err)
		}
	}
	cut := func(from, to int) {
		t.Helper()
		if err := ask(from, to, 100*time.Millisecond); err == nil {
			t.Errorf("host %d reaches host %d through a cut link", from, to)
		}
	}
	for from := range hosts {
		for to := range hosts {
			reach(from, to)
		}
	}

	nw.Split([]int{0, 1}, []int{2})
	reach(0, 1)
	reach(1, 0)
	for _, i := range []int{0, 1} {
		cut(i, 2)
		cut(2, i)
	}
	reach(2, 2)
	nw.Heal()
	reach(2, 0)

	nw.Set(0, 1, Link{Cut: true}) // one way: what is asked never arrives, or its answer does not
	cut(0, 1)
	cut(1, 0)
	reach(0, 2)
	nw.Heal()

	nw.Set(0, 1, Link{Delay: 60 * time.Millisecond, Jitter: 20 * time.Millisecond})
	began := time.Now()
	reach(0, 1)
	if took := time.Since(began); took < 120*time.Millisecond { // the handshake's first packet and the request
		t.Errorf("two packets of 60 ms each took %s", took)
	}

	nw.Set(1, 2, Link{Loss: 0.1, Double: 0.5})
	c := &http.Client{Transport: &http.Transport{DialContext: nw.Host(1).DialContext}}
	defer c.CloseIdleConnections()
	Until(t, "packets were lost and doubled, and all requests answered", func() bool {
		resp, err := c.Get("http://" + nw.Host(2).Addr + ":8080/")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		c := nw.Count(1, 2)
		return c.Lost > 0 && c.Doubled > 0
	})
	if c := nw.Count(2, 1); c.Doubled != 0 {
		t.Errorf("the other direction did %+v", c)
	}
}

// leavesNoThread: when the network is down, no thread of this process is in one of its hosts, where other tests would find
// themselves in a network without anybody.
func leavesNoThread(t *testing.T, nw *Net) {
	t.Helper()
	spaces := map[uint64]bool{}
	for _, h := range nw.hosts {
		var st unix.Stat_t
		if err := unix.Fstat(h.space, &st); err != nil {
			t.Fatal(err)
		}
		spaces[st.Ino] = true
	}
	t.Cleanup(func() {
		nw.Close()
		poll(context.Background(), Patience, func() bool { return threadsIn(spaces) == 0 }) // they are ending
		if n := threadsIn(spaces); n > 0 {
			t.Errorf("%d threads stayed in a host that is gone", n)
		}
	})
}

func threadsIn(spaces map[uint64]bool) (n int) {
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat(task, &st) == nil && spaces[st.Ino] { // else it has ended
			n++
		}
	}
	return n
}

// TestOnThread: what runs on a thread of its own runs on none that stays: not on the first of the process, and on none that
// anybody is given afterwards.
func TestOnThread(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	used := map[int]bool{}
	var all sync.WaitGroup
	for range 500 {
		all.Add(1)
		onThread(func() {
			defer all.Done()
			mu.Lock()
			defer mu.Unlock()
			used[unix.Gettid()] = true
		})
	}
	all.Wait()
	if used[unix.Getpid()] {
		t.Error("it ran on the first thread of the process, which cannot end")
	}
	Until(t, "every thread that was used has ended", func() bool {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(tasks, func(e os.DirEntry) bool {
			tid, _ := strconv.Atoi(e.Name())
			return used[tid]
		})
	})
}

func serveHello(t *testing.T, h *Host) {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, h.Addr) })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// TestServersInNet: real processes in a network, each on its own, reached by clients beside them and by each other.
func TestServersInNet(t *testing.T) {
	t.Parallel()
	nw := NewNet(t, 2, 1)
	a := Start(t, Options{Dir: t.TempDir(), Host: nw.Host(0)})
	b := Start(t, Options{Dir: t.TempDir(), Host: nw.Host(1)})
	nw.Split() // clients stand beside their server
	for i, s := range []*Server{a, b} {
		if _, err := Call(t.Context(), s.HTTP, s.URL, "", http.MethodPost, "/v1/rooms", map[string]any{"id": "r", "kind": "open"}, nil); err != nil {
			t.Fatal(err)
		}
		m, _, err := Post(t.Context(), s.HTTP, s.URL, "ada", "r", fmt.Sprintf("m-%d", i), "hello")
		if err != nil || m.Seq == 0 {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	nw.Heal()
	if events, err := History(t.Context(), a.HTTP, b.URL, "r"); err != nil || len(events) != 3 {
		t.Errorf("the history of b, read from a's machine: %d events, %v", len(events), err)
	}
	a.Terminate(t)
	b.Terminate(t)
}
