package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// socket is one native connection that may have many sends under way.
type socket struct {
	nc net.Conn
	rw *bufio.ReadWriter

	mu      sync.Mutex // guards what follows, and writing
	next    int
	waiting map[int]chan error
	broken  error

	event func(a answer, at time.Time) // of each event frame; nil: they are ignored
}

// dialSocket opens /v1/connect of a node at addr with a user's token, and waits for hello.
func dialSocket(ctx context.Context, addr, token string) (*socket, error) {
	return dialSocketFor(ctx, addr, token, nil)
}

// dialSocketFor also hands on events, from the goroutine that reads.
func dialSocketFor(ctx context.Context, addr, token string, event func(a answer, at time.Time)) (*socket, error) {
	nc, br, _, err := ws.Dialer{Timeout: 30 * time.Second}.Dial(ctx, "ws://"+addr+"/v1/connect?token="+token)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	if br == nil {
		br = bufio.NewReaderSize(nc, 16<<10)
	}
	s := &socket{nc: nc, rw: bufio.NewReadWriter(br, bufio.NewWriterSize(nc, 4096)), waiting: map[int]chan error{}, event: event}
	hello, err := s.read()
	if err == nil && hello.Op != "hello" {
		err = errors.New("the first frame is no hello")
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	go s.loop()
	return s, nil
}

func (s *socket) close() { _ = s.nc.Close() }

type answer struct {
	Op     string `json:"op"`
	ID     int    `json:"id"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Type   string `json:"type"`
	Data   struct {
		ID string `json:"id"`
	} `json:"data"`
}

func (s *socket) read() (a answer, err error) {
	for {
		payload, op, err := wsutil.ReadServerData(struct {
			*bufio.Reader
			*socketWriter
		}{s.rw.Reader, (*socketWriter)(s)})
		if err != nil {
			return a, err
		}
		if op == ws.OpText {
			err = json.Unmarshal(payload, &a)
			return a, err
		}
	}
}

// socketWriter lets the library answer control frames without tearing a send apart.
type socketWriter socket

func (w *socketWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nc.Write(p)
}

func (s *socket) loop() {
	for {
		a, err := s.read()
		if err != nil {
			s.mu.Lock()
			s.broken = err
			for id, c := range s.waiting {
				c <- err
				delete(s.waiting, id)
			}
			s.mu.Unlock()
			return
		}
		switch a.Op {
		case "event":
			if s.event != nil {
				s.event(a, time.Now())
			}
		case "ping":
			_ = s.write([]byte(`{"op":"pong"}`))
		case "ok", "error":
			s.mu.Lock()
			c := s.waiting[a.ID]
			delete(s.waiting, a.ID)
			s.mu.Unlock()
			if c == nil {
				continue
			}
			if a.Op == "error" {
				c <- fmt.Errorf("%s: %s", a.Code, a.Detail)
			} else {
				c <- nil
			}
		}
	}
}

func (s *socket) write(payload []byte) error {
	f := ws.MaskFrameInPlace(ws.NewTextFrame(payload))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if err := ws.WriteFrame(s.rw.Writer, f); err != nil {
		return err
	}
	return s.rw.Flush()
}

// send posts a message and waits for its ok.
func (s *socket) send(ctx context.Context, room, id, text string) error {
	// The ids and texts of this benchmark need no escaping.
	return s.ask(ctx, `"op":"send","room":"`+room+`","message":{"id":"`+id+`","text":"`+text+`"}`)
}

// ask sends a frame, given without its braces and its id, and waits for its ok.
func (s *socket) ask(ctx context.Context, fields string) error {
	c := make(chan error, 1)
	s.mu.Lock()
	s.next++
	n := s.next
	s.waiting[n] = c
	s.mu.Unlock()
	frame := `{"id":` + strconv.Itoa(n) + `,` + fields + `}`
	if err := s.write([]byte(frame)); err != nil {
		return err
	}
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
