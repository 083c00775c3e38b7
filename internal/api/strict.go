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
	if petrel.LoneSurrogate(b) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The JSON has an escape that is half of a character (a lone surrogate).")
	}
	return nil
}
