package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestSessionsOverHTTPAreForwarded: a client whose requests come by any node keeps its one session; when the node that has it
// dies, the client is told.
func TestSessionsOverHTTPAreForwarded(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	first.AppID, first.AppKey, first.AppSecret = "1001", "petrel-key", "petrel-secret"
	n1 := startNode(t, first)
	n2 := startNode(t, joining(cellConfig(t, "n2"), first, n1.cell.port.Addr()))
	until(t, "the nodes know of each other", func() bool {
		return n1.forward.address(n2.self.Member) != "" && n2.forward.address(n1.self.Member) != ""
	})
	until(t, "the second node knows the app", func() bool { _, err := n2.directory.AppOfKey("petrel-key"); return err == nil })
	n1.forward.within, n2.forward.within = time.Minute, time.Minute // a slow machine is no lost session
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	session := "abcdefgh"
	post := func(n *Node, path, body string) *http.Response {
		t.Helper()
		url := fmt.Sprintf("http://%s/pusher/app/petrel-key/7/%s/%s?protocol=7&client=js&version=8.6.0", n.Addr(), session, path)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if got := resp.Header["Access-Control-Allow-Origin"]; len(got) != 1 || got[0] != "*" {
			t.Fatalf("%s: Access-Control-Allow-Origin %q", path, got)
		}
		return resp
	}
	poll := func(n *Node) string {
		t.Helper()
		b, err := io.ReadAll(post(n, "xhr", "").Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := poll(n1); !strings.HasPrefix(got, "o\na[") || !strings.Contains(got, "connection_established") {
		t.Fatalf("opened with %q", got)
	}
	const ping = `["{\"event\":\"pusher:ping\",\"data\":{}}"]`
	const pong = `a["{\"event\":\"pusher:pong\",\"data\":{}}"]` + "\n"
	for _, n := range []*Node{n2, n1, n2} {
		if resp := post(n, "xhr_send", ping); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("a send answered %d", resp.StatusCode)
		}
		if got := poll(n2); got != pong {
			t.Fatalf("a poll by the other node brought %q", got)
		}
	}
	stream := bufio.NewReader(post(n2, "xhr_streaming", "").Body)
	for range 3 {
		post(n1, "xhr_send", ping)
		if got, err := stream.ReadString('\n'); err != nil || got != pong {
			t.Fatalf("a stream by the other node brought %q, %v", got, err)
		}
	}
	// Many streams at once, and the owner hears when their clients leave.
	var many []*http.Response
	for i := range 30 {
		session = fmt.Sprint("many", i)
		poll(n1)
		many = append(many, post(n2, "xhr_streaming", ""))
		post(n2, "xhr_send", ping)
	}
	for _, resp := range many {
		if got, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || got != pong {
			t.Fatalf("one stream of many brought %q, %v", got, err)
		}
		resp.Body.Close()
	}
	until(t, "the sessions whose clients left have ended", func() bool { return n1.public.conns.Len() == 1 })
	session = "abcdefgh"
	if used, _ := n2.public.gateway.Connections(); used != 0 {
		t.Fatalf("the other node opened %d sessions of its own", used)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n1.Drain(ctx) // nobody is waited for
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stream)
	if err == nil && !strings.Contains(string(rest), "c[") {
		t.Fatalf("the stream of a node that died ended in peace: %q", rest)
	}
	if resp := post(n2, "xhr_send", ping); resp.StatusCode != http.StatusNotFound {
		t.Fatalf("a send to a session that is gone: %d", resp.StatusCode)
	}
}
