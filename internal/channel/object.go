package channel

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Field is a key of a JSON object that is wanted, and where its value goes: a *string, a *[]string, or a *json.RawMessage for what is read later.
// What it points to stays as it is when the key is not there, or its value is null.
type Field struct {
	Key  string
	Into any
}

// ReadObject reads one JSON object as everybody reads it: a wanted key counts in its own spelling alone and comes once, and no text is changed on the
// way, if b is UTF-8: that is for who has it from outside to check, before. Other keys are left alone, as Pusher's servers do. what begins the sentence of
// a refusal, which is CodeInvalidJSON or CodeInvalidUTF8: "The body".
func ReadObject(what string, b []byte, fields ...Field) error {
	if !json.Valid(b) {
		return petrel.Errorf(petrel.CodeInvalidJSON, "%s is not JSON, or ends too early.", what)
	}
	if b = skipSpace(b); b[0] != '{' {
		return petrel.Errorf(petrel.CodeInvalidJSON, "%s is %s: it must be a JSON object.", what, kindOf(b))
	}
	var seen uint64 // fields, a bit each
	for b = skipSpace(b[1:]); b[0] != '}'; {
		if b[0] == ',' {
			b = skipSpace(b[1:])
		}
		var key, value []byte
		key, b = cutValue(b)
		value, b = cutValue(skipSpace(b[1:])) // behind the colon
		key = unquote(key)
		for i, f := range fields {
			if string(key) != f.Key {
				continue
			}
			if seen&(1<<i) != 0 {
				return petrel.Errorf(petrel.CodeInvalidJSON, "%s has the key %s twice.", what, f.Key)
			}
			seen |= 1 << i
			if err := f.Read(what, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// cutValue cuts the value, or the key, with which valid JSON begins off what is behind it.
func cutValue(b []byte) (value, rest []byte) {
	n := valueLen(b)
	return b[:n], skipSpace(b[n:])
}

func valueLen(b []byte) int {
	switch b[0] {
	case '"':
		for i := 1; ; i++ {
			switch b[i] {
			case '\\':
				i++
			case '"':
				return i + 1
			}
		}
	case '{', '[':
		for i, depth := 0, 0; ; i++ {
			switch b[i] {
			case '"':
				i += valueLen(b[i:]) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	if n := bytes.IndexAny(b, ",]} \t\r\n"); n >= 0 {
		return n
	}
	return len(b)
}

// unquote is what a key, as it is written, stands for.
func unquote(key []byte) []byte {
	if bytes.IndexByte(key, '\\') < 0 {
		return key[1 : len(key)-1]
	}
	var text string
	_ = json.Unmarshal(key, &text) // it is valid
	return []byte(text)
}

// Read puts a value, which is valid JSON, where it goes, as ReadObject does. what is what has it: "The body".
func (f Field) Read(what string, value []byte) error {
	if string(value) == "null" {
		return nil
	}
	var kind string
	switch into := f.Into.(type) {
	case *json.RawMessage:
		*into = bytes.Clone(value)
		return nil
	case *string:
		if value[0] == '"' && bytes.IndexByte(value, '\\') < 0 && utf8.Valid(value) {
			*into = string(value[1 : len(value)-1])
			return nil
		}
		kind = "a string"
	case *[]string:
		kind = "a list of strings"
	default:
		panic("channel: a field goes nowhere") // a mistake of whoever reads
	}
	if err := json.Unmarshal(value, f.Into); err != nil {
		return petrel.Errorf(petrel.CodeInvalidJSON, "The %s of %s is %s: it must be %s.", f.Key, lower(what), kindOf(value), kind).Because(err)
	}
	if petrel.LoneSurrogate(value) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The %s of %s has an escape that is half of a character (a lone surrogate).", f.Key, lower(what))
	}
	return nil
}

// lower is what begins a sentence, inside of one.
func lower(what string) string { return string(what[0]|0x20) + what[1:] }

// kindOf says in words what a value is.
func kindOf(value []byte) string {
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	return "a number"
}
