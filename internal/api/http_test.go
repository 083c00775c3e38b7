package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestConversation(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"lobby","kind":"open","name":"Lobby","custom":{"a":1}}`)
	if r := s.ask("POST", "/v1/rooms", `{"id":"lobby","kind":"open","name":"Lobby","custom":{"a":1}}`, s.as("ann")); r.StatusCode != 200 {
		t.Fatalf("again: %d %s", r.StatusCode, r.body)
	}
	if seq := s.post("bob", "lobby", "m1", "hi <b> & ü"); seq != 3 { // room.created, member.added, message.new
		t.Fatalf("seq %d", seq)
	}
	r := s.ask("POST", "/v1/rooms/lobby/messages", `{"id":"m1","text":"hi <b> & ü"}`, s.as("bob"))
	if r.StatusCode != 200 || !strings.Contains(r.body, `"seq":3`) || !strings.Contains(r.body, "hi <b> & ü") {
		t.Fatalf("repeat: %d %s", r.StatusCode, r.body)
	}
	r = s.ask("POST", "/v1/rooms/lobby/messages", `{"id":"m1","text":"other"}`, s.as("bob"))
	if status, code := r.problem(t); status != 409 || code != petrel.CodeIDReused {
		t.Fatalf("%d %s", status, code)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"GET", "/v1/rooms/lobby", "", 200, `"role":"owner"`},
		{"GET", "/v1/rooms", "", 200, `"more":false`},
		{"PATCH", "/v1/rooms/lobby", `{"name":"Hall"}`, 200, `"name":"Hall"`},
		{"PUT", "/v1/rooms/lobby/members/cid", ``, 200, `"role":"member"`},
		{"PUT", "/v1/rooms/lobby/members/cid", `{"role":"moderator"}`, 200, `"role":"moderator"`},
		{"GET", "/v1/rooms/lobby/members/cid", "", 200, `"user":"cid"`},
		{"GET", "/v1/rooms/lobby/members?limit=2", "", 200, `"more":true`},
		{"DELETE", "/v1/rooms/lobby/members/cid", "", 200, `"user":"cid"`},
		{"GET", "/v1/rooms/lobby/messages", "", 200, `"id":"m1"`},
		{"GET", "/v1/rooms/lobby/messages?before=3", "", 200, `{"messages":[],"more":false}`},
		{"GET", "/v1/rooms/lobby/messages?after=0&limit=1", "", 200, `"id":"m1"`},
		{"GET", "/v1/rooms/lobby/messages/m1", "", 200, `{"message":{"id":"m1"`},
		{"GET", "/v1/rooms/lobby/events?after=2&limit=1", "", 200, `"type":"message.new"`},
		{"POST", "/v1/sync", `{"rooms":{"lobby":2,"nope":0}}`, 200, `"room_not_found"`},
		{"DELETE", "/v1/rooms/lobby/messages/m1", "", 200, `"deleted_at"`},
		{"DELETE", "/v1/rooms/lobby", "", 200, `"deleted_at"`},
	} {
		r := s.ask(c.method, c.path, c.body, s.as("ann"))
		if r.StatusCode != c.status || !strings.Contains(r.body, c.has) {
			t.Errorf("%s %s: %d %s; want %d with %s", c.method, c.path, r.StatusCode, r.body, c.status, c.has)
		}
		if _, err := petrel.ParsePosition(r.Header.Get("Petrel-Position")); err != nil {
			t.Errorf("%s %s: no position: %v", c.method, c.path, r.Header)
		}
		if strings.Contains(r.body, "$schema") {
			t.Errorf("%s %s leaks $schema", c.method, c.path)
		}
	}
	if s.logs.Len() > 0 {
		t.Fatalf("errors were logged: %s", s.logs)
	}
}

func TestMembersOfANewRoom(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	r := s.ask("POST", "/v1/rooms", `{"kind":"private","members":["bob",{"user":"cid","role":"moderator"}]}`, s.as("ann"))
	var out struct{ Room chat.Room }
	if err := json.Unmarshal([]byte(r.body), &out); err != nil || r.StatusCode != 201 {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
	got := []string{}
	for _, m := range out.Room.Members {
		got = append(got, fmt.Sprint(m.User, " ", m.Role))
	}
	if diff := cmp.Diff([]string{"ann owner", "bob member", "cid moderator"}, got); diff != "" {
		t.Fatal(diff)
	}
	direct := s.ask("POST", "/v1/rooms", `{"kind":"direct","members":["bob"]}`, s.as("ann"))
	again := s.ask("POST", "/v1/rooms", `{"kind":"direct","members":["ann"]}`, s.as("bob"))
	if direct.StatusCode != 201 || again.StatusCode != 200 {
		t.Fatalf("direct room: %d, then %d %s", direct.StatusCode, again.StatusCode, again.body)
	}
	for _, body := range []string{`{"kind":"private","members":[{"user":"a b"}]}`, `{"kind":"private","members":["a b"]}`, `{"kind":"private","members":["."]}`, `{"id":"..","kind":"open"}`} {
		if status, code := s.ask("POST", "/v1/rooms", body, s.as("ann")).problem(t); status != 400 || code != petrel.CodeInvalidID {
			t.Fatalf("%s: %d %s", body, status, code)
		}
	}
}

func TestServerCalls(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"den","kind":"private"}`)
	basic := func(r *http.Request) string { return "Authorization: " + r.Header.Get("Authorization") }
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "/", nil)
	req.SetBasicAuth(s.keys["1"].Key, string(s.keys["1"].Secret))
	app := basic(req)
	if r := s.ask("GET", "/v1/rooms/den", "", app); r.StatusCode != 200 {
		t.Fatalf("the app: %d %s", r.StatusCode, r.body)
	}
	if status, code := s.ask("GET", "/v1/rooms/den", "", app, "Petrel-User: bob").problem(t); status != 404 || code != petrel.CodeRoomNotFound {
		t.Fatalf("as a stranger: %d %s", status, code)
	}
	if status, code := s.ask("POST", "/v1/rooms/den/messages", `{"text":"x"}`, app).problem(t); status != 400 || code != petrel.CodeInvalidField {
		t.Fatalf("posting as nobody: %d %s", status, code)
	}
	if r := s.ask("POST", "/v1/rooms/den/messages", `{"text":"x"}`, app, "Petrel-User: ann"); r.StatusCode != 201 {
		t.Fatalf("posting as ann: %d %s", r.StatusCode, r.body)
	}
}

// TestCreationsAgain: a creation that came before gets the first answer, with the members that the room was made with, also without a key.
func TestCreationsAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	for name, body := range map[string]string{
		"open":    `{"id":"o","kind":"open","name":"Tea","custom":{"a":1}}`,
		"private": `{"id":"p","kind":"private","members":["bob",{"user":"cid","role":"moderator"}]}`,
		"direct":  `{"kind":"direct","members":["bob"]}`,
	} {
		first := s.ask("POST", "/v1/rooms", body, s.as("ann"))
		var made struct{ Room chat.Room }
		if err := json.Unmarshal([]byte(first.body), &made); err != nil || first.StatusCode != 201 || len(made.Room.Members) == 0 {
			t.Fatalf("%s: %d %s", name, first.StatusCode, first.body)
		}
		if name != "direct" { // what happens to it later does not change what it was made as
			if r := s.ask("PATCH", "/v1/rooms/"+string(made.Room.ID), `{"name":"Coffee"}`, s.as("ann")); r.StatusCode != 200 {
				t.Fatalf("%d %s", r.StatusCode, r.body)
			}
		}
		if again := s.ask("POST", "/v1/rooms", body, s.as("ann")); again.StatusCode != 200 || again.body != first.body {
			t.Errorf("%s:\nfirst %s\nagain %d %s", name, first.body, again.StatusCode, again.body)
		}
	}
	// The other of the two finds the direct room too, and is told who is in it.
	if r := s.ask("POST", "/v1/rooms", `{"kind":"direct","members":["ann"]}`, s.as("bob")); r.StatusCode != 200 || strings.Count(r.body, `"role":"member"`) != 2 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

// TestUnaddressable: nothing can be made that no address could name.
func TestUnaddressable(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	app := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(s.keys["1"].Key+":"+string(s.keys["1"].Secret)))
	part := func(v string) string { return base64.RawURLEncoding.EncodeToString([]byte(v)) }
	signed := func(sub string) string { // as an app's backend may sign: ours would refuse
		token := part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(`{"iss":"`+s.keys["1"].Key+`","sub":"`+sub+`","exp":9999999999}`)
		mac := hmac.New(sha256.New, []byte(s.keys["1"].Secret))
		mac.Write([]byte(token))
		return token + "." + part(string(mac.Sum(nil)))
	}
	for _, id := range []string{".", ".."} {
		for _, c := range []struct{ path, body, header string }{
			{"/v1/rooms", `{"id":"` + id + `","kind":"open"}`, ""},
			{"/v1/rooms", `{"kind":"open","members":["` + id + `"]}`, ""},
			{"/v1/rooms", `{"kind":"open","members":[{"user":"` + id + `","role":"owner"}]}`, ""},
			{"/v1/rooms/r/messages", `{"id":"` + id + `","text":"x"}`, ""},
			{"/v1/rooms/r/messages", `{"text":"x"}`, "Idempotency-Key: " + id},
			{"/v1/rooms/r/messages", `{"text":"x","mentions":["` + id + `"]}`, ""},
		} {
			if status, code := s.ask("POST", c.path, c.body, append([]string{s.as("ann")}, headers(c.header)...)...).problem(t); status != 400 || code != petrel.CodeInvalidID {
				t.Errorf("%s %s %s: %d %s", c.path, c.body, c.header, status, code)
			}
		}
		if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, app, "Petrel-User: "+id).problem(t); status != 400 || code != petrel.CodeInvalidID {
			t.Errorf("Petrel-User %s: %d %s", id, status, code)
		}
		if r := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, "Authorization: Bearer "+signed("b"+id)); r.StatusCode != 201 {
			t.Fatalf("a token of the test's own making: %d %s", r.StatusCode, r.body)
		}
		if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, "Authorization: Bearer "+signed(id)).problem(t); status != 401 || code != petrel.CodeInvalidToken {
			t.Errorf("sub %s: %d %s", id, status, code)
		}
		p := s.open("ann")
		p.write(`{"op":"send","id":1,"room":"r","message":{"id":"` + id + `","text":"x"}}`)
		if f := p.read(); f.Op != "error" || f.Code != string(petrel.CodeInvalidID) {
			t.Errorf("send %s: %+v", id, f)
		}
	}
}

func headers(h string) []string {
	if h == "" {
		return nil
	}
	return []string{h}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	key := "Idempotency-Key: k1"
	first := s.ask("POST", "/v1/rooms", `{"kind":"open","name":"X"}`, s.as("ann"), key)
	again := s.ask("POST", "/v1/rooms", `{"kind":"open","name":"X"}`, s.as("ann"), key)
	if first.StatusCode != 201 || again.StatusCode != 200 || first.body != again.body {
		t.Fatalf("%d %s\n%d %s", first.StatusCode, first.body, again.StatusCode, again.body)
	}
	if status, code := s.ask("POST", "/v1/rooms", `{"kind":"open","name":"Y"}`, s.as("ann"), key).problem(t); status != 409 || code != petrel.CodeIDReused {
		t.Fatalf("%d %s", status, code)
	}
	if status, code := s.ask("POST", "/v1/rooms", `{"kind":"open"}`, s.as("ann"), "Idempotency-Key: a b").problem(t); status != 400 || code != petrel.CodeInvalidID {
		t.Fatalf("%d %s", status, code)
	}
	s.room("ann", `{"id":"r","kind":"open"}`)
	a := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("ann"), "Idempotency-Key: m9")
	b := s.ask("POST", "/v1/rooms/r/messages", `{"id":"m9","text":"x"}`, s.as("ann"))
	if a.StatusCode != 201 || b.StatusCode != 200 || a.body != b.body {
		t.Fatalf("the key of a post is the message's id: %s %s", a.body, b.body)
	}
	if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"id":"m8","text":"x"}`, s.as("ann"), "Idempotency-Key: m9").problem(t); status != 400 || code != petrel.CodeInvalidField {
		t.Fatalf("%d %s", status, code)
	}
}

// TestFollowersWait: a node that is not alone cannot know how far the others are.
func TestFollowersWait(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(_ *Options, g *gateway.Options, _ *conn.Options) { g.RequestTimeout = 200 * time.Millisecond })
	far := petrel.Position{Epoch: s.store.Applied().Epoch, Index: 1 << 40}.String()
	if status, code := s.ask("GET", "/v1/rooms", "", s.as("ann"), "Petrel-Position: "+far).problem(t); status != 503 || code != petrel.CodeTimeout {
		t.Fatalf("%d %s", status, code)
	}
}

func TestPositions(t *testing.T) {
	t.Parallel()
	// What must come in time has all the time of a test; what must not come is waited for a moment.
	s := newStack(t, func(o *Options, g *gateway.Options, _ *conn.Options) {
		o.Alone, o.PositionWait, g.RequestTimeout = func() bool { return true }, 50*time.Millisecond, patience
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	w := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("ann"))
	pos := w.Header.Get("Petrel-Position")
	if r := s.ask("GET", "/v1/rooms/r/messages", "", s.as("ann"), "Petrel-Position: "+pos); r.StatusCode != 200 {
		t.Fatalf("%d %s", r.StatusCode, r.body)
	}
	p, err := petrel.ParsePosition(pos)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		position string
		status   int
		code     petrel.Code
	}{
		"forged":      {"no!", 400, petrel.CodeInvalidPosition},
		"other life":  {petrel.Position{Epoch: "x", Index: 1}.String(), 409, petrel.CodeEpoch},
		"other shard": {petrel.Position{Shard: 7, Epoch: p.Epoch, Index: 1}.String(), 409, petrel.CodeEpoch},
		"ahead":       {petrel.Position{Epoch: p.Epoch, Index: p.Index + 8_000}.String(), 503, petrel.CodeTimeout},
		"far ahead":   {petrel.Position{Epoch: p.Epoch, Index: 1 << 40}.String(), 400, petrel.CodeInvalidPosition},
		"the last":    {petrel.Position{Epoch: p.Epoch, Index: 1<<64 - 1}.String(), 400, petrel.CodeInvalidPosition},
	} {
		if status, code := s.ask("GET", "/v1/rooms/r", "", s.as("ann"), "Petrel-Position: "+c.position).problem(t); status != c.status || code != c.code {
			t.Errorf("%s: %d %s", name, status, code)
		}
		if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"text":"z"}`, s.as("ann"), "Petrel-Position: "+c.position).problem(t); status != c.status || code != c.code {
			t.Errorf("a command %s: %d %s", name, status, code)
		}
	}
}

// TestPositionsToCome: who is ahead of this node waits for it, and is answered from there.
func TestPositionsToCome(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(o *Options, g *gateway.Options, _ *conn.Options) {
		o.Alone, o.PositionWait, g.RequestTimeout = func() bool { return true }, patience, patience
	})
	s.room("ann", `{"id":"r","kind":"open"}`)
	p := s.store.Applied()
	next := petrel.Position{Epoch: p.Epoch, Index: p.Index + 1}.String()
	done := make(chan reply, 1)
	go func() {
		r, _ := s.try("GET", "/v1/rooms/r/messages", "", s.as("ann"), "Petrel-Position: "+next)
		done <- r
	}()
	s.post("ann", "r", "late", "y")
	if r := <-done; r.Response == nil || r.StatusCode != 200 || !strings.Contains(r.body, `"late"`) {
		t.Fatalf("a read of the next position: %+v", r)
	}
	// A command is decided on nothing older than its position: what another node acknowledged is there to be deleted.
	next = petrel.Position{Epoch: p.Epoch, Index: p.Index + 2}.String()
	go func() {
		r, _ := s.try("DELETE", "/v1/rooms/r/messages/later", "", s.as("ann"), "Petrel-Position: "+next)
		done <- r
	}()
	s.post("ann", "r", "later", "y")
	if r := <-done; r.Response == nil || r.StatusCode != 200 {
		t.Fatalf("a command at the next position: %+v", r)
	}
}

// TestBodies: what JSON decoders differ over is refused, by the same code everywhere.
func TestBodies(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	for name, c := range map[string]struct {
		body   string
		status int
		code   petrel.Code
	}{
		"empty":               {"", 400, petrel.CodeInvalidJSON},
		"not json":            {"{", 400, petrel.CodeInvalidJSON},
		"an array":            {"[]", 400, petrel.CodeInvalidJSON},
		"null":                {"null", 400, petrel.CodeInvalidJSON},
		"a string":            {`"x"`, 400, petrel.CodeInvalidJSON},
		"trailing":            {`{"text":"x"} {}`, 400, petrel.CodeInvalidJSON},
		"trailing bytes":      {`{"text":"x"}x`, 400, petrel.CodeInvalidJSON},
		"key twice":           {`{"text":"x","text":"y"}`, 400, petrel.CodeInvalidJSON},
		"deep key twice":      {`{"text":"x","custom":{"a":[{"b":1,"b":2}]}}`, 400, petrel.CodeInvalidJSON},
		"comment":             {`{"text":"x"/**/}`, 400, petrel.CodeInvalidJSON},
		"raw nul":             {"{\"text\":\"a\x00b\"}", 400, petrel.CodeInvalidJSON},
		"escaped nul":         {`{"text":"a\u0000b"}`, 400, petrel.CodeInvalidField},
		"lone surrogate":      {`{"text":"\ud83d"}`, 400, petrel.CodeInvalidUTF8},
		"reversed surrogates": {`{"text":"\ude00\ud83d"}`, 400, petrel.CodeInvalidUTF8},
		"unknown field":       {`{"text":"x","colour":"red"}`, 400, petrel.CodeInvalidField},
		"wrong case":          {`{"Text":"x"}`, 400, petrel.CodeInvalidField},
		"wrong type":          {`{"text":7}`, 400, petrel.CodeInvalidField},
		"null text":           {`{"text":null}`, 400, petrel.CodeInvalidField},
		"missing":             {`{}`, 400, petrel.CodeInvalidField},
		"empty text":          {`{"text":""}`, 400, petrel.CodeInvalidField},
		"empty id":            {`{"id":"","text":"x"}`, 400, petrel.CodeInvalidField},
		"two dots for an id":  {`{"id":"..","text":"x"}`, 400, petrel.CodeInvalidID},
		"bad id":              {`{"id":"a b","text":"x"}`, 400, petrel.CodeInvalidID},
		"long id":             {`{"id":"` + strings.Repeat("a", 65) + `","text":"x"}`, 400, petrel.CodeInvalidField},
		"bad mention":         {`{"text":"x","mentions":["a b"]}`, 400, petrel.CodeInvalidID},
		"custom array":        {`{"text":"x","custom":[]}`, 400, petrel.CodeInvalidField},
		"too deep":            {`{"text":"x","custom":` + strings.Repeat(`{"a":`, 20) + `1` + strings.Repeat(`}`, 20) + `}`, 400, petrel.CodeInvalidField},
		"much too deep":       {strings.Repeat(`{"a":`, 10_000) + `1` + strings.Repeat(`}`, 10_000), 400, petrel.CodeInvalidJSON},
		"long text":           {`{"text":"` + strings.Repeat("x", chat.MaxText+1) + `"}`, 413, petrel.CodeTooLarge},
		"huge body":           {`{"text":"` + strings.Repeat("x", 70_000) + `"}`, 413, petrel.CodeTooLarge},
		"not utf-8":           {"{\"text\":\"\xff\"}", 400, petrel.CodeInvalidUTF8},
	} {
		t.Run(name, func(t *testing.T) {
			if status, code := s.ask("POST", "/v1/rooms/r/messages", c.body, s.as("ann")).problem(t); status != c.status || code != c.code {
				t.Errorf("%d %s, want %d %s", status, code, c.status, c.code)
			}
		})
	}
	for _, ct := range []string{"text/plain", "application/json; charset=latin1", "application/xml", ";"} {
		if status, code := s.ask("POST", "/v1/rooms/r/messages", `{"text":"x"}`, s.as("ann"), "Content-Type: "+ct).problem(t); status != 415 || code != petrel.CodeUnsupportedType {
			t.Errorf("%s: %d %s", ct, status, code)
		}
	}
	if r := s.ask("POST", "/v1/rooms/r/messages", `{"text":"\ud83d\ude00"}`, s.as("ann"), "Content-Type: Application/JSON; Charset=UTF-8"); r.StatusCode != 201 || !strings.Contains(r.body, "😀") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

func TestQueries(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	s.room("ann", `{"id":"r","kind":"open"}`)
	for _, q := range []string{
		"messages?limit=-1", "messages?limit=0", "messages?limit=1001", "messages?limit=x", "messages?limit=", "messages?limit=99999999999999999999",
		"messages?before=-1", "messages?before=0", "messages?after=-1", "messages?after=1.5", "messages?colour=red", "messages?limit=1&limit=2",
		"events?after=-1", "events?after=x", "events?limit=-5", "members?limit=-1", "members?limit=1e3",
	} {
		if status, code := s.ask("GET", "/v1/rooms/r/"+q, "", s.as("ann")).problem(t); status != 400 || code != petrel.CodeInvalidField {
			t.Errorf("%s: %d %s", q, status, code)
		}
	}
	if status, code := s.ask("GET", "/v1/rooms/r/members?after=a%20b", "", s.as("ann")).problem(t); status != 400 || code != petrel.CodeInvalidID {
		t.Errorf("%d %s", status, code)
	}
	if r := s.ask("GET", "/v1/rooms/r/messages?after=18446744073709551615", "", s.as("ann")); r.StatusCode != 200 {
		t.Errorf("the largest seq: %d %s", r.StatusCode, r.body)
	}
}

// TestSchemasMatchChat: the types that describe answers have the fields of those that are answers.
func TestSchemasMatchChat(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]reflect.Type{
		{reflect.TypeFor[Message](), reflect.TypeFor[chat.Message]()},
		{reflect.TypeFor[Room](), reflect.TypeFor[chat.Room]()},
		{reflect.TypeFor[Event](), reflect.TypeFor[chat.Event]()},
		{reflect.TypeFor[SyncRoom](), reflect.TypeFor[chat.SyncRoom]()},
		{reflect.TypeFor[Membership](), reflect.TypeFor[chat.Membership]()},
		{reflect.TypeFor[MemberInfo](), reflect.TypeFor[chat.MemberInfo]()},
		{reflect.TypeFor[member](), reflect.TypeFor[chat.Member]()},
	} {
		if diff := cmp.Diff(jsonFields(pair[1]), jsonFields(pair[0])); diff != "" {
			t.Errorf("%s (-chat +described):\n%s", pair[1], diff)
		}
	}
}

func jsonFields(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		out = append(out, t.Field(i).Tag.Get("json"))
	}
	slices.Sort(out)
	return out
}
