package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestSentences: whatever is wrong with a body or query is said in a plain sentence, with the names that were sent.
func TestSentences(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	const post, sync = "POST /v1/rooms/r/messages", "POST /v1/sync"
	for _, c := range []struct{ where, body, want string }{
		{sync, `{"rooms":{"lobby":-1}}`, `The field "rooms.lobby" must be at least 0.`},
		{sync, `{"rooms":{"lobby":1.5}}`, `The field "rooms.lobby" must be a whole number.`},
		{sync, `{"rooms":{"lobby":1e30}}`, `The field "rooms" has a number that is too large, or one that is not written as the whole number it must be.`},
		{sync, `{"rooms":{"lobby":1e2}}`, `The field "rooms" has a number that is too large, or one that is not written as the whole number it must be.`},
		{sync, `{"rooms":{}}`, `The field "rooms" must have entries, at least 1.`},
		{sync, `{"rooms":[]}`, `The field "rooms" must be an object.`},
		{sync, `{}`, `The field "rooms" is missing.`},
		{sync, ``, `This request needs a body: one JSON object.`},
		{sync, `{"rooms":{"lobby":0},"limit":0}`, `The field "limit" must be at least 1.`},
		{sync, `{"rooms":{"lobby":0},"limit":1e40}`, `The field "limit" must be at most 1000.`},
		{post, `{"text":"x","custom":{"a":1e999}}`, `The body has a number that is too large, or one that is not written as the whole number it must be.`},
		{post, `{"text":"x","custom":[]}`, `The field "custom" must be an object.`},
		{post, `{"text":"x","Foo":1,"bar":2}`, `The field "Foo" is not known here. The field "bar" is not known here.`},
		{post, `{"a":1,"b":1,"c":1,"d":1}`, `The field "a" is not known here. The field "b" is not known here. The field "c" is not known here.`},
		{post, `{"text":"x","` + strings.Repeat("y", 1000) + `":1}`, `The field "` + strings.Repeat("y", 60) + `" is not known here.`},
		{post, `{"text":7}`, `The field "text" must be a string.`},
		{post, `{"id":"","text":"x"}`, `The field "id" must not be empty.`},
		{post, `{"id":"` + strings.Repeat("a", 65) + `","text":"x"}`, `The field "id" is too long: at most 64 characters are allowed.`},
		{post, `{"text":"x","mentions":["a",7]}`, `The field "mentions[1]" must be a string.`},
		{"POST /v1/rooms", `{"kind":"king"}`, `The field "kind" must be one of open, private, direct.`},
		{"POST /v1/rooms", `{"kind":"open","members":[{"user":"x","role":"king"}]}`, `The field "members[0]" has none of the forms that /v1/openapi.json describes.`},
		{"POST /v1/rooms", `{"kind":"open","members":7}`, `The field "members" must be a list.`},
		{"GET /v1/rooms/r/messages?limit=0", ``, `The query parameter "limit" must be at least 1.`},
		{"GET /v1/rooms/r/messages?limit=x", ``, `The query parameter "limit" must be a whole number, neither negative nor beyond 64 bits.`},
		{"GET /v1/rooms/r/messages?colour=red", ``, `The query parameter "colour" is not known here.`},
		{"GET /v1/rooms?open=maybe", ``, `The query parameter "open" must be true or false.`},
	} {
		method, path, _ := strings.Cut(c.where, " ")
		r := s.ask(method, path, c.body, s.as("ann"))
		var p gateway.Problem
		if err := json.Unmarshal([]byte(r.body), &p); err != nil || r.StatusCode != 400 {
			t.Fatalf("%s %.80s: %d %s", c.where, c.body, r.StatusCode, r.body)
		}
		if p.Detail != c.want {
			t.Errorf("%s %.80s:\n got %s\nwant %s", c.where, c.body, p.Detail, c.want)
		}
	}
}

// TestUnknownMessagesAreNotShown: what huma may say one day is not passed on.
func TestUnknownMessagesAreNotShown(t *testing.T) {
	t.Parallel()
	for _, message := range []string{"", "cannot set reflect.Value of type uint64"} {
		p := problemOf(422, "validation failed", []error{&huma.ErrorDetail{Location: "body.a", Message: message}})
		if want := `The field "a" is not as /v1/openapi.json describes it.`; p.Detail != want || p.Code != petrel.CodeInvalidField {
			t.Errorf("%q: %s %q", message, p.Code, p.Detail)
		}
	}
	if p := problemOf(400, "strange", nil); noSentence(p.Detail) != "" {
		t.Errorf("%q", p.Detail)
	}
}
