package gateway

import (
	"bytes"
	"errors"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/internal/limit"
)

// listener counts accepted sockets and refuses beyond the limit with an answer, before the kernel would refuse without one.
type listener struct {
	net.Listener
	g    *Gateway
	mu   sync.Mutex
	told time.Time // when the lack of descriptors was told last; guarded by mu
}

// take asks for a place for a socket.
func (l *listener) take() bool {
	if l.g.sockets.Take(struct{}{}) == limit.Granted {
		return true
	}
	l.g.metrics.refused.WithLabelValues("sockets_full").Inc()
	return false
}

func (l *listener) release() { l.g.sockets.Release(struct{}{}) }

// placed hands on sockets that have their place already, with answers that are problems.
type placed struct{ net.Listener }

func (p placed) Accept() (net.Conn, error) {
	nc, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &socket{Conn: nc, release: func() {}}, nil
}

// full is the whole answer to a socket that finds no place.
var full = rawProblem("503 Service Unavailable", "Retry-After: 5\r\n",
	`{"type":"urn:petrel:error:overloaded","title":"Overloaded","status":503,"detail":"This node has as many sockets open as it takes. Come back in a moment.","code":"overloaded"}`)

func rawProblem(status, headers, body string) []byte {
	return []byte("HTTP/1.1 " + status + "\r\nContent-Type: application/problem+json\r\nConnection: close\r\n" + headers +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			l.failed(err)
			return nil, err
		}
		if l.take() {
			return &socket{Conn: nc, release: sync.OnceFunc(l.release)}, nil
		}
		_ = nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // an empty send buffer takes it at once
		_, _ = nc.Write(full)
		_ = nc.Close()
	}
}

// failed tells of a socket that the kernel would not hand over; net/http pauses and tries again, in silence.
func (l *listener) failed(err error) {
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		return // closed, or a peer that gave up
	}
	l.g.metrics.refused.WithLabelValues("no_descriptors").Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.g.opt.Now()
	if now.Sub(l.told) < sayAgain {
		return
	}
	l.told = now
	l.g.opt.Logger.Warn("No socket can be accepted: the process may not open more files. Callers wait until others leave. Raise the limit (ulimit -n, LimitNOFILE).",
		"sockets", l.g.sockets.Used(), "error", err)
}

// sayAgain is how often a lack of descriptors is told at most: while it lasts, it is met several times a second.
const sayAgain = 10 * time.Second

// socket gives its place back when it is closed.
type socket struct {
	net.Conn
	release func()
}

func (s *socket) Close() error {
	s.release()
	return s.Conn.Close()
}

// CloseWrite lets net/http end an answer so that a peer that is still sending can read it.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// What net/http answers by itself when it cannot read a request, in plain text.
var (
	plainStart = []byte("HTTP/1.1 ")
	plainEnd   = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")
	unexpected = []byte("HTTP/1.1 417 ") // to an Expect that is not 100-continue; without a body
)

// Write turns net/http's own plain refusals of unreadable heads into problems. No answer of ours
// looks like them, and no WebSocket frame begins with an H.
func (s *socket) Write(b []byte) (int, error) {
	if len(b) < 512 && bytes.HasPrefix(b, plainStart) && (bytes.Contains(b, plainEnd) || bytes.HasPrefix(b, unexpected)) {
		status := string(b[len("HTTP/1.1 "):bytes.IndexByte(b, '\r')])
		code, title, detail := "invalid_field", "Invalid field", "The head of the request cannot be read as HTTP."
		switch status[:3] {
		case "417":
			detail = "The only expectation that this server meets is 100-continue."
		case "431":
			code, title, detail = "too_large", "Too large", "The head of the request is larger than this server takes."
		case "501":
			detail = "The only transfer encoding that this server takes is chunked."
		case "505":
			detail = "This server speaks HTTP/1.1."
		}
		if _, err := s.Conn.Write(rawProblem(status, "", `{"type":"urn:petrel:error:`+code+`","title":"`+title+`","status":`+status[:3]+`,"detail":"`+detail+`","code":"`+code+`"}`)); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return s.Conn.Write(b)
}
