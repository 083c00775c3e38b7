package api

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// described is one operation of the API's description: the tests below go through all of them, so a new one is covered
// the day it is registered.
type described struct {
	method, path string
	params       map[string]string // query parameters: name to JSON type
	body         string            // a body that its schema takes; "" for none
	responses    []string
}

// describedOperations reads /v1/openapi.json as a stranger would.
func describedOperations(t *testing.T, s *stack) []described {
	t.Helper()
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Schemas map[string]json.RawMessage }
	}
	r := s.ask("GET", "/v1/openapi.json", "")
	if err := json.Unmarshal([]byte(r.body), &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("%d %v %.200s", r.StatusCode, err, r.body)
	}
	var out []described
	for path, item := range doc.Paths {
		for method, raw := range item {
			var op struct {
				OperationID, Summary string
				Parameters           []struct {
					Name, In string
					Schema   struct{ Type any }
				}
				RequestBody *struct{}
				Responses   map[string]json.RawMessage
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			d := described{method: strings.ToUpper(method), path: path, params: map[string]string{}}
			for _, p := range op.Parameters {
				if kind, ok := p.Schema.Type.(string); ok && p.In == "query" {
					d.params[p.Name] = kind
				}
			}
			if op.RequestBody != nil {
				body, ok := bodies[op.OperationID]
				if !ok {
					t.Errorf("%s %s takes a body: give the test one in bodies", d.method, path)
				}
				d.body = body
			}
			for status := range op.Responses {
				d.responses = append(d.responses, status)
			}
			if op.Summary == "" {
				t.Errorf("%s %s has no summary", d.method, path)
			}
			out = append(out, d)
		}
	}
	if len(out) < 18 {
		t.Fatalf("only %d operations are described", len(out))
	}
	return out
}

// bodies that each operation takes, by its id.
var bodies = map[string]string{
	"createRoom": `{"id":"other","kind":"open"}`, "updateRoom": `{"name":"changed"}`, "putMember": `{"role":"member"}`,
	"postMessage": `{"text":"changed"}`, "editMessage": `{"text":"changed"}`, "sync": `{"rooms":{"r":0}}`,
	"setHook": `{"url":"https://shop.example/","events":["*"]}`, "repeatJob": `{}`,
	"setSchedule": `{"when":"every 30s"}`,
}

// address fills an operation's path.
func (d described) address(room, user, message string) string {
	job := room
	if room == "r" {
		job = "1.0.0"
	}
	path := strings.NewReplacer("{room}", room, "{user}", user, "{message}", message, "{hook}", room, "{schedule}", room, "{job}", job).Replace(d.path)
	if d.path == "/v1/events" {
		path += "?rooms=" + room
	}
	return path
}

func with(path, query string) string {
	if strings.Contains(path, "?") {
		return path + "&" + query
	}
	return path + "?" + query
}

// TestEveryEndpointRefuses is "It must show" 5: whatever is wrong, every endpoint answers 4xx with a whole problem and a stable
// code, nothing has changed afterwards, and nothing panicked.
func TestEveryEndpointRefuses(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(_ *Options, g *gateway.Options, _ *conn.Options) {
		g.IPRate = limit.Rate{PerSecond: 1e6, Burst: 1e6}
		g.UserRate = g.IPRate
	})
	s.room("ann", `{"id":"r","kind":"open","members":["bob"]}`)
	s.post("ann", "r", "m", "as it was")
	before := s.store.Applied()

	pair := s.keys["1"]
	part := func(v string) string { return base64.RawURLEncoding.EncodeToString([]byte(v)) }
	claims := part(`{"iss":"` + pair.Key + `","sub":"ann","exp":9999999999}`)
	mint := func(p identity.KeyPair, ttl time.Duration, at time.Time) string {
		token, _, err := identity.MintToken(p, "ann", at, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	credentials := map[string]struct {
		header string
		codes  []petrel.Code
	}{
		"no token":        {"", []petrel.Code{petrel.CodeUnauthenticated}},
		"foreign token":   {"Bearer " + mint(identity.KeyPair{Key: "stranger", Secret: "x"}, time.Hour, time.Now()), []petrel.Code{petrel.CodeInvalidToken}},
		"wrong secret":    {"Bearer " + mint(identity.KeyPair{Key: pair.Key, Secret: "x"}, time.Hour, time.Now()), []petrel.Code{petrel.CodeInvalidToken}},
		"alg none":        {"Bearer " + part(`{"alg":"none","typ":"JWT"}`) + "." + claims + ".", []petrel.Code{petrel.CodeInvalidToken}},
		"alg None":        {"Bearer " + part(`{"alg":"None"}`) + "." + claims + "." + part("x"), []petrel.Code{petrel.CodeInvalidToken}},
		"alg RS256":       {"Bearer " + part(`{"alg":"RS256"}`) + "." + claims + "." + part("x"), []petrel.Code{petrel.CodeInvalidToken}},
		"expired":         {"Bearer " + mint(pair, time.Hour, time.Now().Add(-2*time.Hour)), []petrel.Code{petrel.CodeTokenExpired}},
		"no token at all": {"Bearer nonsense", []petrel.Code{petrel.CodeInvalidToken}},
		"wrong basic":     {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair.Key+":wrong")), []petrel.Code{petrel.CodeInvalidToken}},
		// A token of another app is a good token: it just sees nothing of this one.
		"wrong app": {"Bearer " + mint(s.keys["2"], time.Hour, time.Now()), []petrel.Code{petrel.CodeRoomNotFound}},
	}
	ann := s.as("ann")
	for _, d := range describedOperations(t, s) {
		t.Run(d.method+" "+d.path, func(t *testing.T) {
			good := d.address("r", "bob", "m")
			refuse := func(what, path, body string, codes []petrel.Code, headers ...string) {
				t.Helper()
				r := s.ask(d.method, path, body, headers...)
				status, code := r.problem(t)
				if status < 400 || status > 499 || !slices.Contains(codes, code) {
					t.Errorf("%s: %d %s, want 4xx %v", what, status, code, codes)
				}
				if want := gateway.Meanings()[code].Status; status != want {
					t.Errorf("%s: %s came as %d, documented as %d", what, code, status, want)
				}
				if r.Header.Get("X-Request-Id") == "" {
					t.Errorf("%s: no request id", what)
				}
			}
			for what, c := range credentials {
				if what == "wrong app" && (d.path == "/v1/rooms" || d.path == "/v1/sync") {
					continue // these are about the caller's own app: they succeed there, and show nothing of this one
				}
				headers := []string{}
				if c.header != "" {
					headers = append(headers, "Authorization: "+c.header)
				}
				codes := c.codes
				if what == "wrong app" && (strings.HasPrefix(d.path, "/v1/hooks") || strings.HasPrefix(d.path, "/v1/jobs") || strings.HasPrefix(d.path, "/v1/schedules")) {
					codes = []petrel.Code{petrel.CodeForbidden} // whatever the app, no user's business
				}
				if d.path == "/v1/connect" { // without an upgrade it is refused before, or for, the token
					codes = append(slices.Clone(codes), petrel.CodeInvalidField)
				}
				refuse(what, good, d.body, codes, headers...)
			}
			invalidField, invalidID := []petrel.Code{petrel.CodeInvalidField}, []petrel.Code{petrel.CodeInvalidID}
			refuse("oversize body", good, `{"text":"`+strings.Repeat("x", 70_000)+`"}`, []petrel.Code{petrel.CodeTooLarge}, ann)
			refuse("bad UTF-8 in the body", good, "{\"text\":\"\xff\"}", []petrel.Code{petrel.CodeInvalidUTF8}, ann)
			refuse("bad UTF-8 in the query", with(good, "x=%ff"), d.body, []petrel.Code{petrel.CodeInvalidUTF8}, ann)
			refuse("unknown parameter", with(good, "colour=red"), d.body, invalidField, ann)
			if d.path != "/v1/connect" && d.path != "/v1/events" {
				refuse("bad JSON", good, `{"text":`, []petrel.Code{petrel.CodeInvalidJSON}, ann)
				refuse("no JSON", good, `text`, []petrel.Code{petrel.CodeInvalidJSON}, ann)
				refuse("other media type", good, `text=x`, []petrel.Code{petrel.CodeUnsupportedType}, ann, "Content-Type: application/x-www-form-urlencoded")
				refuse("unknown field", good, `{"colour":"red"}`, invalidField, ann)
				refuse("an array", good, `[]`, []petrel.Code{petrel.CodeInvalidJSON}, ann)
			}
			if strings.Contains(d.path, "{") {
				refuse("bad UTF-8 in the path", strings.ReplaceAll(d.address("%ff", "%ff", "%ff"), "/v1/events", "/v1/events"), d.body, []petrel.Code{petrel.CodeInvalidUTF8}, ann)
				for _, id := range []string{"a%20b", "%00", "a%2Fb", "%C3%BC", "a~b", strings.Repeat("a", 200), "%2e%2e", "."} {
					refuse("ids "+id, d.address(id, id, id), d.body, invalidID, ann)
				}
				if strings.Contains(d.path, "{user}") {
					refuse("a user id", d.address("r", "a%20b", "m"), d.body, invalidID, ann)
				}
				if strings.Contains(d.path, "{message}") {
					refuse("a message id", d.address("r", "bob", "a%20b"), d.body, invalidID, ann)
				}
			}
			for name, kind := range d.params {
				if kind == "integer" {
					for _, v := range []string{"-1", "x", "1.5", "99999999999999999999", ""} {
						refuse(name+"="+v, with(good, name+"="+v), d.body, invalidField, ann)
					}
				}
				if name == "limit" {
					refuse("limit=0", with(good, "limit=0"), d.body, invalidField, ann)
					refuse("limit=1001", with(good, "limit=1001"), d.body, invalidField, ann)
				}
			}
			refuse("Petrel-User", good, d.body, invalidID, "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte(pair.Key+":"+string(pair.Secret))), "Petrel-User: a b")
			for _, status := range []string{"400", "401", "403", "413", "415", "429", "500", "503"} {
				if !slices.Contains(d.responses, status) {
					t.Errorf("%s is not described", status)
				}
			}
			if slices.Contains(d.responses, "422") {
				t.Error("422 is described and never answered")
			}
		})
	}
	if after := s.store.Applied(); after.Digest != before.Digest || after.Index != before.Index {
		t.Errorf("something changed: index %d became %d", before.Index, after.Index)
	}
	if r := s.ask("GET", "/v1/rooms/r/events?after=0", "", ann); !strings.Contains(r.body, `"head":2`) || !strings.Contains(r.body, "as it was") {
		t.Errorf("the room changed: %s", r.body)
	}
	if s.logs.Len() > 0 {
		t.Errorf("errors of ours were logged: %s", s.logs)
	}
}

func TestDescriptionIsWhole(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	r := s.ask("GET", "/v1/openapi.json", "")
	if r.Header.Get("Content-Type") != "application/openapi+json" || strings.Contains(r.body, "$schema") {
		t.Fatalf("%v", r.Header)
	}
	for _, want := range []string{`"title":"Petrel"`, `"user_token"`, `"app_key"`, `"Petrel-Position"`, `"Idempotency-Key"`, `"/v1/connect"`, `"/v1/events"`, `"Retry-After"`, "`id_reused`"} {
		if !strings.Contains(r.body, want) {
			t.Errorf("the description lacks %s", want)
		}
	}
	for _, path := range []string{"/docs", "/openapi.json", "/schemas/Room.json", "/v1/docs"} {
		if r := s.ask("GET", path, ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s is there: %d", path, r.StatusCode)
		}
	}
}
