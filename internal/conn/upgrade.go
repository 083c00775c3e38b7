package conn

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/gobwas/ws"

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

// Upgrade finishes a handshake that CheckUpgrade found right, and takes the connection out of net/http.
// No extension is negotiated: compression per message costs memory per connection that a chat line does not pay back.
func Upgrade(w http.ResponseWriter, r *http.Request) (nc net.Conn, early []byte, err error) {
	nc, rw, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		if nc != nil {
			_ = nc.Close()
		}
		return nil, nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	early, err = rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		_ = nc.Close()
		return nil, nil, fmt.Errorf("read what came with the handshake: %w", err)
	}
	return nc, early, nil
}
