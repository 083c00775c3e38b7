package conn

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// TextFrame returns one unfragmented WebSocket text frame of payload, ready to be sent to any number of connections.
func TextFrame(payload []byte) []byte { return serverFrame(ws.OpText, payload) }

func serverFrame(op ws.OpCode, payload []byte) []byte {
	return frame(ws.Header{Fin: true, OpCode: op}, payload)
}

func frame(h ws.Header, payload []byte) []byte {
	h.Length = int64(len(payload))
	b := bytes.NewBuffer(make([]byte, 0, ws.HeaderSize(h)+len(payload)))
	_ = ws.WriteHeader(b, h) // a buffer takes every write
	b.Write(payload)
	return b.Bytes()
}

// closeFrame cuts the reason to what a control frame holds (RFC 6455 §5.5), at a character's border.
func closeFrame(code CloseCode, reason string) []byte {
	if code == CloseNoStatus {
		return serverFrame(ws.OpClose, nil)
	}
	reason = strings.ToValidUTF8(reason[:min(len(reason), ws.MaxControlFramePayloadSize-2)], "")
	return serverFrame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusCode(code), reason))
}

// SSEChunk returns one event of a text/event-stream (WHATWG HTML §9.2.6). Empty fields are left away; data is cut at line breaks
// as the format wants it.
func SSEChunk(id, event string, data []byte) []byte {
	b := make([]byte, 0, len(id)+len(event)+len(data)+32)
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	if event != "" {
		b = append(append(append(b, "event: "...), event...), '\n')
	}
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		b = append(append(append(b, "data: "...), line...), '\n')
	}
	return append(b, '\n')
}

// sseClose tells an SSE client what a WebSocket client reads in the close frame.
func sseClose(code CloseCode, reason string) []byte {
	quoted, err := json.Marshal(reason)
	if err != nil {
		quoted = []byte(`""`) // cannot happen: strings always encode
	}
	return SSEChunk("", "close", []byte(`{"code":`+strconv.Itoa(int(code))+`,"reason":`+string(quoted)+`}`))
}

// xhrHeartbeat is the frame that says nothing but that the connection lives.
const xhrHeartbeat = "h\n"

// XHRFrame returns one message as the HTTP fallbacks of pusher-js read it: a line with an array of strings (SockJS).
func XHRFrame(payload []byte) []byte {
	b := bytes.NewBuffer(make([]byte, 0, len(payload)+len(payload)/4+8))
	b.WriteString("a[")
	writeString(b, string(payload))
	b.WriteString("]\n")
	return b.Bytes()
}

// XHRClose is the last frame of a connection over HTTP, and the only one of a connection that was refused.
func XHRClose(code CloseCode, reason string) []byte {
	b := bytes.NewBufferString("c[" + strconv.Itoa(int(code)) + ",")
	writeString(b, reason)
	b.WriteString("]\n")
	return b.Bytes()
}

// xhrOpen is the first frame. With a hostname the client sends its further requests there.
func xhrOpen(hostname string) []byte {
	if hostname == "" {
		return []byte("o\n")
	}
	b := bytes.NewBufferString(`o{"hostname":`)
	writeString(b, hostname)
	b.WriteString("}\n")
	return b.Bytes()
}

// xhrReplaced ends a response whose place another took, with the number that SockJS has for it.
func xhrReplaced() []byte { return XHRClose(2010, "Another connection still open") }

// writeString writes a JSON string.
func writeString(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)         // a buffer takes every write, and strings always encode
	b.Truncate(b.Len() - 1) // the encoder's line break
}

// failure is how a connection that breaks the protocol ends.
type failure struct {
	code   CloseCode
	reason string
}

// sink is told what a parser found. Payloads are valid until the call returns.
type sink interface {
	text(payload []byte) (more bool) // false: nothing more is to be parsed now
	control(op ws.OpCode, payload []byte)
}

// parser reads client frames (RFC 6455 §5) from bytes that come in any pieces. It holds nothing but what is unfinished,
// so that an idle connection holds nothing, and never allocates by a length that a peer only declared.
type parser struct {
	limit  int        // bytes of a message
	z      *inflaters // nil: messages come as they are
	head   [ws.MaxHeaderSize]byte
	nhead  int
	h      ws.Header
	inside bool  // the header is complete, the payload is not
	got    int64 // bytes of the payload so far
	frag   bool  // a fragmented message is open
	packed bool  // the message at hand is compressed
	pieces int   // frames of it
	msg    []byte
	sound  int    // bytes of msg that are known to be UTF-8: whole characters
	ctl    []byte // payload of an unfinished control frame
	rd     bytes.Reader
	buf    [ws.MaxHeaderSize]byte // scratch of ws.ReadHeaderBuffer
}

// maxPieces is how many frames one message may come in: empty ones would never reach its limit in bytes.
const maxPieces = 4096

// keepMessage is the largest buffer a parser keeps for the next message.
const keepMessage = 2 << 10

// feed reads b, which it may change in place, and returns what is left of it when the sink wants no more. After a failure the parser
// is not fed again.
func (p *parser) feed(b []byte, out sink) (rest []byte, fail *failure) {
	for len(b) > 0 {
		if !p.inside {
			n, fail := p.header(b)
			if fail != nil {
				return nil, fail
			}
			b = b[n:]
			if !p.inside {
				return nil, nil // needs more bytes
			}
		}
		n := int(min(int64(len(b)), p.h.Length-p.got))
		piece := b[:n]
		b = b[n:]
		ws.Cipher(piece, p.h.Mask, int(p.got))
		more, fail := p.payload(piece, out)
		if fail != nil {
			return nil, fail
		}
		if !more {
			return b, nil
		}
	}
	return nil, nil
}

// midway says that a frame or a message has begun and not ended.
func (p *parser) midway() bool { return p.inside || p.nhead > 0 || p.frag || len(p.msg) > 0 }

// header collects a header and checks it as soon as it is whole. It returns how many bytes of b it used.
func (p *parser) header(b []byte) (used int, fail *failure) {
	for p.nhead < 2 && used < len(b) {
		p.head[p.nhead] = b[used]
		p.nhead++
		used++
	}
	if p.nhead < 2 {
		return used, nil
	}
	want := 2
	switch p.head[1] & 0x7f {
	case 126:
		want += 2
	case 127:
		want += 8
	}
	if p.head[1]&0x80 != 0 {
		want += 4
	}
	n := copy(p.head[p.nhead:want], b[used:])
	p.nhead += n
	used += n
	if p.nhead < want {
		return used, nil
	}
	p.rd.Reset(p.head[:want])
	h, err := ws.ReadHeaderBuffer(&p.rd, p.buf[:0])
	if err != nil {
		return used, &failure{CloseProtocol, "The frame's length is malformed."}
	}
	p.h, p.nhead, p.got, p.inside = h, 0, 0, true
	return used, p.check(want)
}

func (p *parser) check(size int) *failure {
	state := ws.StateServerSide
	if p.frag {
		state = state.Set(ws.StateFragmented)
	}
	h := p.h
	if p.z != nil && h.Rsv1() && !p.frag && (h.OpCode == ws.OpText || h.OpCode == ws.OpBinary) { // RFC 7692 §6: on the first frame of a message only
		_, rsv2, rsv3 := ws.RsvBits(h.Rsv)
		h.Rsv, p.packed = ws.Rsv(false, rsv2, rsv3), true
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return &failure{CloseProtocol, "Protocol error: " + err.Error() + "."}
	}
	if ws.HeaderSize(p.h) != size { // RFC 6455 §5.2: the minimal number of bytes MUST be used
		return &failure{CloseProtocol, "Protocol error: the length is not in its shortest form."}
	}
	if p.h.OpCode == ws.OpBinary {
		return &failure{CloseUnsupported, "Only text frames are spoken here."}
	}
	if !p.h.OpCode.IsControl() && p.h.Length > int64(p.most()-len(p.msg)) {
		return tooBig(p.limit)
	}
	if !p.h.OpCode.IsControl() {
		if p.pieces++; p.pieces > maxPieces {
			return &failure{CloseTooBig, "A message may come in at most " + strconv.Itoa(maxPieces) + " frames."}
		}
	}
	return nil
}

// most is how many bytes of a message may come: what cannot be compressed grows a little.
func (p *parser) most() int {
	if p.packed {
		return p.limit + p.limit>>8 + 16
	}
	return p.limit
}

func tooBig(limit int) *failure {
	return &failure{CloseTooBig, "A message may have at most " + strconv.Itoa(limit) + " bytes."}
}

// payload takes the next unmasked piece of the frame at hand, which is empty for an empty frame.
func (p *parser) payload(piece []byte, out sink) (more bool, fail *failure) {
	whole := p.got == 0 && int64(len(piece)) == p.h.Length
	p.got += int64(len(piece))
	done := p.got == p.h.Length
	if p.h.OpCode.IsControl() {
		if !whole {
			p.ctl = append(p.ctl, piece...)
			piece = p.ctl
		}
		if done {
			p.inside, p.ctl = false, nil
			out.control(p.h.OpCode, piece)
		}
		return true, nil
	}
	if !whole || !p.h.Fin || p.frag {
		p.msg = append(p.msg, piece...)
		piece = p.msg
		if !p.packed {
			n, ok := characters(p.msg[p.sound:])
			if !ok {
				return false, notUTF8()
			}
			p.sound += n
		}
	}
	if done {
		p.inside, p.frag = false, !p.h.Fin
	}
	if !done || p.frag {
		return true, nil
	}
	packed, sound := p.packed, p.sound
	p.pieces, p.sound, p.packed = 0, 0, false
	if p.msg = p.msg[:0]; cap(p.msg) > keepMessage {
		p.msg = nil
	}
	switch {
	case packed:
		return p.z.text(piece, p.limit, out)
	case !utf8.Valid(piece[sound:]):
		return false, notUTF8()
	}
	return out.text(piece), nil
}

func notUTF8() *failure { return &failure{CloseInvalidUTF8, "A text message must be UTF-8."} }

// characters is how many bytes of b are whole characters, when a piece of one may follow them at its end. It says no as soon as nothing that
// follows could make UTF-8 of b (RFC 6455 §8.1).
func characters(b []byte) (n int, ok bool) {
	n = len(b)
	for i := n - 1; i >= max(0, n-utf8.UTFMax+1); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				n = i
			}
			break
		}
	}
	return n, utf8.Valid(b[:n])
}

// pingFrame is the wire's own ping, for connections without one of their protocol.
func pingFrame() []byte { return serverFrame(ws.OpPing, nil) }
