package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// ourErrors makes huma speak of its own refusals as we do, and take "Text" for a field it does not know. huma keeps both as package
// variables and reads them for every request, so they are set once and for all.
var ourErrors = sync.OnceFunc(func() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError { return problemOf(status, msg, errs) }
})

// maxSentences is how many mistakes of one request are told at once.
const maxSentences = 3

// problemOf translates a refusal of huma's. Of what was sent only the names of fields are echoed, cut short.
func problemOf(status int, msg string, errs []error) *gateway.Problem {
	for _, err := range errs {
		if p := (*gateway.Problem)(nil); errors.As(err, &p) {
			return p
		}
	}
	c := petrel.CodeInvalidField
	detail := "The request is not as /v1/openapi.json describes it."
	switch {
	case status == 0: // huma asks for the type only
		return &gateway.Problem{}
	case status >= 500:
		return gateway.NewProblem(errors.Join(errs...))
	case status == http.StatusRequestEntityTooLarge:
		c, detail = petrel.CodeTooLarge, "The body is too large."
	case status == http.StatusUnsupportedMediaType, status == http.StatusNotAcceptable:
		c, detail = petrel.CodeUnsupportedType, "Send the body as Content-Type: application/json."
	case status == http.StatusBadRequest:
		c = petrel.CodeInvalidJSON
		if msg == "request body is required" {
			detail = "This request needs a body: one JSON object."
		}
	}
	var said []string
	for _, err := range errs {
		if d, ok := err.(huma.ErrorDetailer); ok { //nolint:errorlint // huma's own, never wrapped
			said = append(said, sentence(d.ErrorDetail()))
		}
	}
	if len(said) > 0 {
		slices.Sort(said) // huma ranges over maps: the same mistakes are told in the same words
		said = slices.Compact(said)
		detail = strings.Join(said[:min(maxSentences, len(said))], " ")
	}
	return gateway.NewProblem(petrel.Errorf(c, "%s", detail))
}

// phrases say of huma's messages what we say of the field instead. "%" stands for a part that is taken over.
var phrases = []struct{ theirs, ours string }{
	{"unexpected property", "is not known here"},
	{"unknown query parameter", "is not known here"},
	{"required % parameter is missing", "is missing"},
	{"expected boolean", "must be true or false"},
	{"invalid boolean", "must be true or false"},
	{"expected integer", "must be a whole number"},
	{"invalid integer", "must be a whole number, neither negative nor beyond 64 bits"},
	{"expected number >= %", "must be at least %"},
	{"expected number <= %", "must be at most %"},
	{"expected string", "must be a string"},
	{"expected array", "must be a list"},
	{"expected object", "must be an object"},
	{"expected object with at least % properties", "must have entries, at least %"},
	{"expected object with at most % properties", "has too many entries: at most % are allowed"},
	{"expected array length >= %", "must have items, at least %"},
	{"expected array length <= %", "has too many items: at most % are allowed"},
	{"expected length >= 1", "must not be empty"},
	{"expected length >= %", "must have at least % characters"},
	{"expected length <= %", "is too long: at most % characters are allowed"},
	{`expected value to be one of "%"`, "must be one of %"},
	{"expected value to match exactly one schema but matched none", "has none of the forms that /v1/openapi.json describes"},
}

// sentence says in our words what huma found wrong. A message that is not known here is not shown: it may speak of Go.
func sentence(d *huma.ErrorDetail) string {
	if name, ok := middle(d.Message, "expected required property % to be present"); ok {
		return named(d.Location+"."+name) + " is missing."
	}
	if strings.HasPrefix(d.Message, "json: ") { // huma has checked the types: only numbers are left
		where := "The body"
		if _, rest, ok := strings.Cut(d.Message, "Go struct field "); ok {
			field, _, _ := strings.Cut(rest, " of type ")
			_, field, _ = strings.Cut(field, ".") // after the name of the type
			where = named(d.Location + "." + field)
		}
		return where + " has a number that is too large, or one that is not written as the whole number it must be."
	}
	for _, p := range phrases {
		if part, ok := middle(d.Message, p.theirs); ok {
			return named(d.Location) + " " + strings.Replace(p.ours, "%", part, 1) + "."
		}
	}
	return named(d.Location) + " is not as /v1/openapi.json describes it."
}

// middle returns what stands in s for the "%" of pattern.
func middle(s, pattern string) (part string, ok bool) {
	head, tail, wild := strings.Cut(pattern, "%")
	if !wild {
		return "", s == head
	}
	if len(s) < len(head)+len(tail) || !strings.HasPrefix(s, head) || !strings.HasSuffix(s, tail) {
		return "", false
	}
	return s[len(head) : len(s)-len(tail)], true
}

// named is a place in a request as a reader knows it, with the name as it was sent.
func named(location string) string {
	where, name, _ := strings.Cut(location, ".")
	if name == "" {
		return "The body"
	}
	switch where {
	case "query":
		return fmt.Sprintf("The query parameter %.60q", name)
	case "path":
		return fmt.Sprintf("The part %.60q of the address", name)
	case "header":
		return fmt.Sprintf("The header %.60q", name)
	}
	return fmt.Sprintf("The field %.60q", name)
}
