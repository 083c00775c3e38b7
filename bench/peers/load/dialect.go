package load

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// dialect is how one kind of server is spoken to. Methods are called by the one thread of a run.
type dialect interface {
	// upgrade is the path of a subscriber's WebSocket, and further header lines, each with its line end.
	upgrade(subscriber, channel int) (path, headers string)
	// greet answers what a subscriber hears before it is one: nil after the upgrade, then each frame. ready says that it
	// hears its channel now; a reply is sent in either case.
	greet(channel int, frame []byte) (reply []byte, ready bool, err error)
	// answer to a frame without a message that comes later, such as a server's heartbeat; nil: none is due.
	answer(frame []byte) []byte
	// beat is the frame that a client sends so that its connection lives, and how often; 0: the server asks.
	beat() (frame []byte, every time.Duration)
	// binary says that frames of the client are binary ones.
	binary() bool
	// publication appends the request that publishes a message.
	publication(dst []byte, channel int, msg []byte) []byte
	// open is what a publisher's connection sends first, and after which of the server's lines it may publish; most need nothing.
	open() (send, until string)
	// done says whether in holds a whole answer to one publication, how long it is, whether the server closes the connection
	// after it, and whether it refused.
	done(in []byte) (n int, closes bool, err error)
}

// errMore says that an answer is not complete.
var errMore = errors.New("more is to come")

func newDialect(t Target) (dialect, error) {
	web := http{addr: t.Addr}
	if t.Publish != "" {
		web.addr = t.Publish
	}
	switch t.Dialect {
	case "plain":
		return plain{web, 25 * time.Second}, nil
	case "nchan":
		return plain{web, 0}, nil
	case "pusher":
		return newPusher(web, t), nil
	case "petrel":
		return newNative(web, t), nil
	case "nats":
		return nats{}, nil
	case "centrifugo":
		return centrifugo{web, t.Key}, nil
	}
	return nil, fmt.Errorf("no such dialect: %q", t.Dialect)
}

// Channel is the name of one.
func Channel(i int) string { return "c" + strconv.Itoa(i) }

// http are the dialects whose publications are HTTP requests, answered by status, on connections that are kept where the server keeps them.
type http struct{ addr string }

func (http) answer([]byte) []byte          { return nil }
func (http) beat() ([]byte, time.Duration) { return nil, 0 }
func (http) binary() bool                  { return false }
func (http) open() (send, until string)    { return "", "" }

// post appends a request with a JSON body, whose headers each end their line.
func (h http) post(dst []byte, target, headers string, body []byte) []byte {
	dst = append(dst, "POST "...)
	dst = append(dst, target...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, h.addr...)
	dst = append(dst, "\r\nContent-Type: application/json\r\n"...)
	dst = append(dst, headers...)
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(body)), 10)
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, body...)
}

func (http) done(in []byte) (n int, closes bool, err error) {
	end := bytes.Index(in, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false, errMore
	}
	head, body := in[:end+2], in[end+4:]
	size, chunked, closes := headers(head)
	if chunked {
		last := bytes.Index(body, []byte("0\r\n\r\n")) // no answer to a publication has this within
		if last < 0 {
			return 0, false, errMore
		}
		size = last + 5
	}
	if len(body) < size {
		return 0, false, errMore
	}
	if len(head) < 12 || head[9] != '2' {
		return end + 4 + size, closes, fmt.Errorf("publish: %.200s", in[9:end+4+size])
	}
	return end + 4 + size, closes, nil
}

// headers reads from a head what says how long its body is, and whether the connection ends after it.
func headers(head []byte) (size int, chunked, closes bool) {
	for line := range bytes.Lines(head) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("content-length")):
			size, _ = strconv.Atoi(string(value))
		case len(name) == 17 && bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case len(name) == 10 && bytes.EqualFold(name, []byte("connection")):
			closes = bytes.EqualFold(value, []byte("close"))
		}
	}
	return size, chunked, closes
}

// plain is the protocol of the bare servers, which send no heartbeats, and of nchan as it is set up here, which does: a path per channel.
type plain struct {
	http
	every time.Duration
}

func (p plain) beat() ([]byte, time.Duration) { return nil, p.every }

func (plain) upgrade(_, channel int) (path, headers string) { return "/sub/" + Channel(channel), "" }

func (plain) greet(_ int, frame []byte) ([]byte, bool, error) { return nil, frame == nil, nil }

func (p plain) publication(dst []byte, channel int, msg []byte) []byte {
	return p.post(dst, "/pub/"+Channel(channel), "", msg)
}

// centrifugo speaks its JSON protocol; a publication carries the API key.
type centrifugo struct {
	http
	key string
}

func (centrifugo) upgrade(int, int) (path, headers string) { return "/connection/websocket", "" }

func (centrifugo) greet(channel int, frame []byte) (reply []byte, ready bool, err error) {
	switch {
	case frame == nil:
		return []byte(`{"id":1,"connect":{}}`), false, nil
	case bytes.Contains(frame, []byte(`"error"`)):
		return nil, false, fmt.Errorf("%.200s", frame)
	case bytes.Contains(frame, []byte(`"id":2`)):
		return nil, true, nil
	case bytes.Contains(frame, []byte(`"id":1`)):
		return []byte(`{"id":2,"subscribe":{"channel":"` + Channel(channel) + `"}}`), false, nil
	}
	return nil, false, nil
}

func (centrifugo) answer(frame []byte) []byte {
	if string(bytes.TrimSpace(frame)) == "{}" {
		return []byte("{}")
	}
	return nil
}

func (c centrifugo) publication(dst []byte, channel int, msg []byte) []byte {
	return c.post(dst, "/api/publish", "X-API-Key: "+c.key+"\r\n", []byte(`{"channel":"`+Channel(channel)+`","data":"`+string(msg)+`"}`))
}

// nats subscribes over its WebSocket and publishes over TCP, where verbose answers every publication.
type nats struct{}

func (nats) upgrade(int, int) (path, headers string) { return "/", "" }

func (nats) greet(channel int, frame []byte) (reply []byte, ready bool, err error) {
	switch {
	case bytes.HasPrefix(frame, []byte("INFO")):
		return []byte("CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\nSUB " + Channel(channel) + " 1\r\nPING\r\n"), false, nil
	case bytes.Contains(frame, []byte("-ERR")):
		return nil, false, fmt.Errorf("%.200s", frame)
	case bytes.Contains(frame, []byte("PONG\r\n")):
		return nil, true, nil
	}
	return nats{}.answer(frame), false, nil
}

func (nats) answer(frame []byte) []byte {
	if bytes.Contains(frame, []byte("PING\r\n")) {
		return []byte("PONG\r\n")
	}
	return nil
}

func (nats) beat() ([]byte, time.Duration) { return nil, 0 }
func (nats) binary() bool                  { return true }

func (nats) publication(dst []byte, channel int, msg []byte) []byte {
	dst = append(dst, "PUB "...)
	dst = append(dst, Channel(channel)...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(len(msg)), 10)
	dst = append(dst, "\r\n"...)
	dst = append(dst, msg...)
	return append(dst, "\r\n"...)
}

func (nats) open() (send, until string) {
	return "CONNECT {\"verbose\":true,\"pedantic\":false,\"protocol\":1}\r\n", "+OK\r\n"
}

func (nats) done(in []byte) (n int, closes bool, err error) {
	end := bytes.IndexByte(in, '\n')
	switch {
	case end < 0:
		return 0, false, errMore
	case bytes.HasPrefix(in, []byte("+OK")):
		return end + 1, false, nil
	case bytes.HasPrefix(in, []byte("PING")), bytes.HasPrefix(in, []byte("INFO")): // a heartbeat, which a run is too short to answer
		n, closes, err = nats{}.done(in[end+1:])
		return end + 1 + n, closes, err
	}
	return end + 1, false, errors.New("publish: " + strings.TrimSpace(string(in[:end])))
}
