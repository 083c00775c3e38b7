package conn

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"unicode/utf8"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
	"github.com/klauspost/compress/flate"
)

// permessage-deflate (RFC 7692), where Options.Deflate allows it. Neither side keeps a window from one message to the next: so a frame is
// compressed once for everybody, and an idle connection holds nothing.

// deflateAnswer is what the server agrees to.
const deflateAnswer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// deflateFrom is the smallest message that is worth compressing: shorter ones grow, or shrink by less than a header of TCP.
const deflateFrom = 256

// offersDeflate says whether one of the client's offers can be agreed to. One that is malformed, or wants a smaller window, cannot.
func offersDeflate(h http.Header) bool {
	for _, line := range h.Values("Sec-WebSocket-Extensions") {
		offers, ok := httphead.ParseOptions([]byte(line), nil)
		if !ok {
			return false
		}
		for _, o := range offers {
			var p wsflate.Parameters
			if string(o.Name) == wsflate.ExtensionName && p.Parse(o) == nil && (!p.ServerMaxWindowBits.Defined() || p.ServerMaxWindowBits == 15) {
				return true
			}
		}
	}
	return false
}

// DeflatedFrame is TextFrame for connections that Deflates: compressed, where that makes it smaller.
func DeflatedFrame(payload []byte) []byte {
	if len(payload) < deflateFrom {
		return TextFrame(payload)
	}
	b := bytes.NewBuffer(make([]byte, 0, len(payload)))
	_ = flate.StatelessDeflate(b, payload, false, nil)                    // a buffer takes every write
	small, flushed := bytes.CutSuffix(b.Bytes(), []byte(deflateTail[:4])) // §7.2.1
	if !flushed || len(small) >= len(payload) {
		return TextFrame(payload)
	}
	return frame(ws.Header{Fin: true, Rsv: ws.Rsv(true, false, false), OpCode: ws.OpText}, small)
}

// deflateTail is what a sender leaves away (§7.2.2), and the end of a stream.
const deflateTail = "\x00\x00\xff\xff\x01\x00\x00\xff\xff"

// inflaters are what unpacks messages, lent for as long as a message is handed on.
type inflaters struct{ pool sync.Pool }

func newInflaters() *inflaters {
	return &inflaters{sync.Pool{New: func() any { return &inflater{from: flate.NewReader(bytes.NewReader(nil))} }}}
}

type inflater struct {
	in   []byte
	src  bytes.Reader
	from io.ReadCloser // and flate.Resetter
	out  bytes.Buffer
}

// keepInflated is the largest buffer that is kept for the next message.
const keepInflated = 64 << 10

// giveBack keeps an inflater for the next message, without what a large one made of it.
func (all *inflaters) giveBack(i *inflater) {
	i.src.Reset(nil)
	if cap(i.in) > keepInflated {
		i.in = nil
	}
	if i.out.Cap() > keepInflated {
		i.out = bytes.Buffer{}
	}
	all.pool.Put(i)
}

// text unpacks a message of at most limit bytes and hands it on.
func (all *inflaters) text(packed []byte, limit int, out sink) (more bool, fail *failure) {
	i := all.pool.Get().(*inflater)
	defer all.giveBack(i)
	i.in = append(append(i.in[:0], packed...), deflateTail...)
	i.src.Reset(i.in)
	i.out.Reset()
	_ = i.from.(flate.Resetter).Reset(&i.src, nil)                                    // says nothing
	if _, err := i.out.ReadFrom(io.LimitReader(i.from, int64(limit)+1)); err != nil { // a few bytes may stand for a thousand times as many
		return false, &failure{CloseInvalidUTF8, "The message is not compressed as RFC 7692 says."}
	}
	switch {
	case i.out.Len() > limit:
		return false, tooBig(limit)
	case !utf8.Valid(i.out.Bytes()):
		return false, notUTF8()
	}
	return out.text(i.out.Bytes()), nil
}
