package pusher

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/channel"
)

// clientFrame is one frame of a client (docs/pusher.md, "client to server").
type clientFrame struct {
	Event   string          `json:"event"`
	Channel string          `json:"channel"`
	Data    json.RawMessage `json:"data"`
}

// pingFrame is how pusher-js asks whether the server is there: nearly all that idle connections say.
const pingFrame = `{"event":"pusher:ping","data":{}}`

// pongPayload answers a ping.
const pongPayload = `{"event":"pusher:pong","data":{}}`

// parseFrame reads one frame: an object with an event (P3).
func parseFrame(payload []byte) (f clientFrame, err error) {
	if err := channel.ReadObject("The frame", payload,
		channel.Field{Key: "event", Into: &f.Event}, channel.Field{Key: "channel", Into: &f.Channel}, channel.Field{Key: "data", Into: &f.Data}); err != nil {
		return f, err
	}
	if f.Event == "" {
		return f, refuse(0, "The frame names no event.")
	}
	return f, nil
}

// readData reads the data of a frame of the protocol's own. pusher-js sends an object; some clients send it as a string of JSON.
func readData(raw json.RawMessage, fields ...channel.Field) error {
	if len(raw) == 0 {
		return refuse(0, "The frame has no data, which its event needs.")
	}
	if raw[0] == '"' {
		var text string
		if err := (channel.Field{Key: "data", Into: &text}).Read("The frame", raw); err != nil {
			return err
		}
		raw = json.RawMessage(text)
	}
	return channel.ReadObject("The data", raw, fields...)
}

// appendEvent appends the frame of an event: {"event":…,"channel":…,"data":…} and, on presence channels, who sent it. data is a JSON string,
// because a client reads nothing else everywhere.
func appendEvent(b []byte, event, name string, data []byte, user string) []byte {
	b = appendQuoted(append(b, `{"event":`...), event)
	b = appendQuoted(append(b, `,"channel":`...), name)
	b = append(append(b, `,"data":`...), data...)
	if user != "" {
		b = appendQuoted(append(b, `,"user_id":`...), user)
	}
	return append(b, '}')
}

// asString returns JSON as a JSON string: what is one already as it is, anything else as its text.
func asString(raw []byte) []byte {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '"' {
		return raw
	}
	return appendQuoted(make([]byte, 0, len(raw)+len(raw)/4+2), raw)
}

// appendQuoted appends a JSON string (RFC 8259 §7) of s, which is UTF-8, with no more escapes than it needs.
func appendQuoted[T ~string | ~[]byte](b []byte, s T) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// stringLen is how many bytes of UTF-8 a JSON string stands for. It must be one that a decoder took.
func stringLen(token []byte) (n int) {
	if len(token) < 2 {
		return 0
	}
	token = token[1 : len(token)-1]
	for i := bytes.IndexByte(token, '\\'); i >= 0; i = bytes.IndexByte(token, '\\') {
		n += i
		token = token[i:]
		if token[1] != 'u' {
			n, token = n+1, token[2:]
			continue
		}
		r := hex4(token[2:6])
		token = token[6:]
		if r >= 0xd800 && r < 0xdc00 && len(token) >= 6 && token[0] == '\\' && token[1] == 'u' {
			if low := hex4(token[2:6]); low >= 0xdc00 && low < 0xe000 {
				n, token = n+4, token[6:]
				continue
			}
		}
		if r >= 0xd800 && r < 0xe000 { // half of a pair
			r = utf8.RuneError
		}
		n += utf8.RuneLen(r)
	}
	return n + len(token)
}

func hex4(b []byte) (r rune) {
	for _, c := range b {
		r <<= 4
		switch {
		case '0' <= c && c <= '9':
			r |= rune(c - '0')
		case 'a' <= c && c <= 'f':
			r |= rune(c - 'a' + 10)
		case 'A' <= c && c <= 'F':
			r |= rune(c - 'A' + 10)
		}
	}
	return r
}
