package channel

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Field is a key of a JSON object that is wanted, and where its value goes: a *string, a *[]string, or a *json.RawMessage for what is read later.
// What it points to stays as it is when the key is not there, or its value is null.
type Field struct {
	Key  string
	Into any
}

// ReadObject reads one JSON object as everybody reads it: a wanted key counts in its own spelling alone and comes once, and no text is changed on the
// way. Other keys are left alone, as Pusher's servers do. what begins the sentence of a refusal, which is CodeInvalidJSON or CodeInvalidUTF8: "The body".
func ReadObject(what string, b []byte, fields ...Field) error {
	notJSON := func(err error) error {
		return petrel.Errorf(petrel.CodeInvalidJSON, "%s is not JSON, or ends too early.", what).Because(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	switch first, err := d.Token(); {
	case err != nil:
		return notJSON(err)
	case first != json.Delim('{'):
		return petrel.Errorf(petrel.CodeInvalidJSON, "%s is %s: it must be a JSON object.", what, kindOf(bytes.TrimSpace(b)))
	}
	seen := make([]bool, len(fields))
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return notJSON(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return notJSON(err)
		}
		for i, f := range fields {
			if f.Key != key {
				continue
			}
			if seen[i] {
				return petrel.Errorf(petrel.CodeInvalidJSON, "%s has the key %s twice.", what, f.Key)
			}
			seen[i] = true
			if err := f.read(what, value); err != nil {
				return err
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return notJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return petrel.Errorf(petrel.CodeInvalidJSON, "%s is a JSON object with something behind it.", what)
	}
	return nil
}

// read puts a value, which is valid JSON, where it goes.
func (f Field) read(what string, value json.RawMessage) error {
	if string(value) == "null" {
		return nil
	}
	var kind string
	switch into := f.Into.(type) {
	case *json.RawMessage:
		*into = value
		return nil
	case *string:
		kind = "a string"
	case *[]string:
		kind = "a list of strings"
	default:
		panic("channel: a field goes nowhere") // a mistake of whoever reads
	}
	if err := json.Unmarshal(value, f.Into); err != nil {
		return petrel.Errorf(petrel.CodeInvalidJSON, "The %s of %s is %s: it must be %s.", f.Key, lower(what), kindOf(value), kind).Because(err)
	}
	if loneSurrogate(value) {
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

// loneSurrogate looks for \uD800 to \uDFFF outside of a pair in valid JSON. A decoder makes U+FFFD of each: two different texts would be one.
func loneSurrogate(b []byte) bool {
	high := false // the escape before was the first half of a pair
	for {
		i := bytes.IndexByte(b, '\\')
		if high && i != 0 {
			return true
		}
		if i < 0 {
			return false
		}
		b = b[i+1:]
		size, second := 1, false
		if b[0] == 'u' {
			half := b[1] == 'd' || b[1] == 'D'
			second = half && b[2] >= 'c' || half && b[2] >= 'C' && b[2] <= 'F'
			first := half && !second && b[2] >= '8'
			size = 5
			if second != high {
				return true
			}
			high = first
		} else if high {
			return true
		}
		b = b[size:]
	}
}
