package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxDepth is how deep objects and arrays may nest: what custom fields may have (chat.MaxCustomDepth), and the envelope around them.
const maxDepth = 24

// strictJSON refuses what is not exactly one JSON object as everybody reads it (RFC 8259, RFC 7493): bytes that are not UTF-8, keys
// that come twice, bytes after the end, escapes that are half of a character, and nesting that costs more than it says.
func strictJSON(b []byte) error {
	if !utf8.Valid(b) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The JSON is not UTF-8.")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	type level struct {
		keys map[string]struct{} // nil in an array
		key  bool                // the next token is a key
	}
	var stack []level
	for first := true; ; first = false {
		tok, err := d.Token()
		if err != nil {
			return petrel.Errorf(petrel.CodeInvalidJSON, "This is not JSON, or it ends too early.").Because(err)
		}
		if first && tok != json.Delim('{') {
			return petrel.Errorf(petrel.CodeInvalidJSON, "A JSON object is expected.")
		}
		if n := len(stack); n > 0 && stack[n-1].keys != nil && tok != json.Delim('}') {
			top := &stack[n-1]
			if top.key = !top.key; !top.key {
				if key, ok := tok.(string); ok {
					if _, twice := top.keys[key]; twice {
						return petrel.Errorf(petrel.CodeInvalidJSON, "The key %.40q comes twice in one object.", key)
					}
					top.keys[key] = struct{}{}
				}
			}
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]struct{}{}, key: true})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if len(stack) > maxDepth {
			return petrel.Errorf(petrel.CodeInvalidJSON, "The JSON is nested more than %d deep.", maxDepth)
		}
		if len(stack) == 0 {
			break
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return petrel.Errorf(petrel.CodeInvalidJSON, "Something follows the JSON object.")
	}
	if loneSurrogate(b) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The JSON has an escape that is half of a character (a lone surrogate).")
	}
	return nil
}

// loneSurrogate looks for \uD800 to \uDFFF outside of a pair in valid JSON. Decoders replace them silently, so that what is kept
// would not be what was sent.
func loneSurrogate(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 {
			return false
		}
		b = b[i+1:]
		if b[0] != 'u' {
			b = b[1:]
			continue
		}
		unit := hex4(b[1:5])
		b = b[5:]
		switch {
		case unit < 0xD800 || unit > 0xDFFF:
		case unit >= 0xDC00, len(b) < 6 || b[0] != '\\' || b[1] != 'u':
			return true
		default:
			if low := hex4(b[2:6]); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			b = b[6:]
		}
	}
}

func hex4(b []byte) (v int) {
	for _, c := range b {
		v <<= 4
		switch {
		case c >= 'a':
			v |= int(c-'a') + 10
		case c >= 'A':
			v |= int(c-'A') + 10
		default:
			v |= int(c - '0')
		}
	}
	return v
}
