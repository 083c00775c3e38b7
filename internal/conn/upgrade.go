package conn

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 §4.2.2
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// CheckUpgrade says what is wrong with a WebSocket handshake (RFC 6455 §4.2.1), as a *petrel.Error, while it can still be answered
// as a plain request.
//
// Origin is not looked at: it protects sites that recognise their users by cookies, which a browser sends along by
// itself. Here a connection is whose token it shows, and a foreign page has none.
func CheckUpgrade(r *http.Request) error {
	wrong := func(what string) error {
		return petrel.Errorf(petrel.CodeInvalidField, "This address speaks WebSocket: %s.", what)
	}
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	switch {
	case r.Method != http.MethodGet:
		return wrong("use GET")
	case !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1:
		return wrong("use HTTP/1.1")
	case !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return wrong("send the headers Connection: Upgrade and Upgrade: websocket")
	case !slices.Equal(r.Header.Values("Sec-WebSocket-Version"), []string{"13"}):
		return petrel.Errorf(petrel.CodeUpgradeRequired, "This address speaks version 13 of WebSocket: send the header Sec-WebSocket-Version: 13, once.")
	case err != nil || len(key) != 16 || len(r.Header.Values("Sec-WebSocket-Key")) != 1:
		return wrong("send the header Sec-WebSocket-Key with 16 random bytes in base64")
	case r.ContentLength > 0 || len(r.TransferEncoding) > 0:
		return wrong("send no body")
	}
	return nil
}

func hasToken(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// upgrade finishes a handshake that CheckUpgrade found right, and takes the connection out of net/http.
func upgrade(w http.ResponseWriter, r *http.Request, deflate bool) (nc net.Conn, early []byte, err error) {
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	if early, err = rw.Reader.Peek(rw.Reader.Buffered()); err == nil {
		if err = nc.SetDeadline(time.Time{}); err == nil { // net/http's own
			_, err = nc.Write(handshake(r.Header.Get("Sec-WebSocket-Key"), deflate))
		}
	}
	if err != nil {
		_ = nc.Close()
		return nil, nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	return nc, early, nil
}

// handshake accepts a WebSocket (RFC 6455 §4.2.2). No subprotocol is chosen: both protocols spoken here are known by their paths.
func handshake(key string, deflate bool) []byte {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // the RFC's, and no secret
	b := []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		base64.StdEncoding.EncodeToString(sum[:]) + "\r\n")
	if deflate {
		b = append(b, "Sec-WebSocket-Extensions: "+deflateAnswer+"\r\n"...)
	}
	return append(b, "\r\n"...)
}
