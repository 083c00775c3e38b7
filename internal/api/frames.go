package api

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// frame is one frame of a client, read and checked.
type frame struct {
	op       string
	id       string // as sent, a whole number; "" for none
	token    string
	room     petrel.RoomID
	begin    begin // subscribe
	presence bool  // subscribe
	active   bool  // typing
	message  draft
}

// idField is what an answer echoes.
func (f *frame) idField() string {
	if f.id == "" {
		return ""
	}
	return `,"id":` + f.id
}

// fields of a frame by op; "!" marks those that must be there. Every frame may have op, id and token (which counts in the first one).
var fields = map[string][]string{
	"auth":        {"token!"},
	"subscribe":   {"room!", "after", "epoch", "position", "presence"},
	"unsubscribe": {"room!"},
	"send":        {"room!", "message!"},
	"ping":        {},
	"pong":        {},
	"typing":      {"room!", "active"},
	"read":        {"room", "seq"},
}

// maxID is the largest whole number that every JSON library reads exactly.
const maxID = 1 << 53

// parseFrame reads a frame strictly: what it does not know it refuses by name. With an error, the id is still given when it could be read.
func parseFrame(b []byte) (f frame, err error) {
	if err := strictJSON(b); err != nil {
		return f, err
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return f, petrel.Errorf(petrel.CodeInvalidJSON, "The frame is not a JSON object.").Because(err)
	}
	if id, ok := raw["id"]; ok {
		n, err := strconv.ParseUint(string(id), 10, 64)
		if err != nil || n > maxID {
			return f, petrel.Errorf(petrel.CodeInvalidField, "The field \"id\" must be a whole number from 0 to 2^53.")
		}
		f.id = string(id)
	}
	if err := into(raw, "op", &f.op); err != nil {
		return f, err
	}
	known, ok := fields[f.op]
	if !ok {
		return f, petrel.Errorf(petrel.CodeInvalidField, "The op %.40q is not known; there are auth, subscribe, unsubscribe, send, typing, ping and pong.", f.op)
	}
	if err := checkFields(raw, f.op, known); err != nil {
		return f, err
	}
	if err := into(raw, "token", &f.token); err != nil {
		return f, err
	}
	if f.op == "read" {
		return f, nil
	}
	return f, f.fill(raw)
}

// checkFields refuses what is missing and what is not known.
func checkFields(raw map[string]json.RawMessage, op string, known []string) error {
	allowed := map[string]bool{"op": true, "id": true, "token": true}
	for _, name := range known {
		must := name[len(name)-1] == '!'
		if must {
			name = name[:len(name)-1]
		}
		allowed[name] = true
		if _, ok := raw[name]; must && !ok {
			return petrel.Errorf(petrel.CodeInvalidField, "The field %q is missing: %s needs it.", name, op)
		}
	}
	for name := range raw {
		if !allowed[name] {
			return petrel.Errorf(petrel.CodeInvalidField, "The field %.60q is not known in %s.", name, op)
		}
	}
	return nil
}

func (f *frame) fill(raw map[string]json.RawMessage) error {
	f.active = true
	for name, v := range map[string]any{
		"after": &f.begin.after, "epoch": &f.begin.epoch, "position": &f.begin.position, "presence": &f.presence, "active": &f.active,
	} {
		if err := into(raw, name, v); err != nil {
			return err
		}
	}
	if _, ok := raw["position"]; ok && f.begin.position == "" {
		return petrel.Errorf(petrel.CodeInvalidPosition, "The position is empty. Leave it away to begin without waiting.")
	}
	if _, ok := raw["room"]; ok {
		if err := into(raw, "room", &f.room); err != nil {
			return err
		}
		if _, err := petrel.ParseRoomID(string(f.room)); err != nil {
			return err
		}
	}
	if m, ok := raw["message"]; ok {
		return f.message.read(m)
	}
	return nil
}

// read reads the message of a send frame as strictly as huma reads the body of a post.
func (d *draft) read(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil || raw == nil {
		return petrel.Errorf(petrel.CodeInvalidField, "The field \"message\" must be an object.")
	}
	if err := checkFields(raw, "a message", []string{"id", "text!", "custom", "mentions"}); err != nil {
		return err
	}
	for _, extra := range []string{"op", "token"} {
		if _, ok := raw[extra]; ok {
			return petrel.Errorf(petrel.CodeInvalidField, "The field %q is not known in a message.", extra)
		}
	}
	if err := into(raw, "id", &d.ID); err != nil {
		return err
	}
	if _, ok := raw["id"]; ok && d.ID == "" {
		return petrel.Errorf(petrel.CodeInvalidID, "The message id is empty.")
	}
	if err := into(raw, "text", &d.Text); err != nil {
		return err
	}
	if custom, ok := raw["custom"]; ok {
		if custom[0] != '{' && string(custom) != "null" {
			return petrel.Errorf(petrel.CodeInvalidField, "The field \"custom\" must be an object.")
		}
		d.Custom = object(custom)
	}
	return into(raw, "mentions", &d.Mentions)
}

// into reads one field if it is there. null is refused: a field is left away, not emptied.
func into(raw map[string]json.RawMessage, name string, v any) error {
	b, ok := raw[name]
	if !ok {
		return nil
	}
	if bytes.Equal(b, []byte("null")) || json.Unmarshal(b, v) != nil {
		return petrel.Errorf(petrel.CodeInvalidField, "The field %q is not of the type expected.", name)
	}
	return nil
}

// toJSON encodes an answer as events encode it: without escapes for HTML.
func toJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("api: encode an answer: " + err.Error()) // the domains' own types always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

func quote(s string) []byte { return toJSON(s) }
