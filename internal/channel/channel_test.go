package channel

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Form{
		"a":                                   {},
		"my-channel":                          {},
		"Aa0_-=@,.;":                          {},
		strings.Repeat("x", 200):              {},
		"cache-x":                             {Cache: true},
		"cachet":                              {},
		"private-x":                           {Kind: Private},
		"private-":                            {Kind: Private},
		"private":                             {},
		"Private-x":                           {},
		"private-cache-x":                     {Kind: Private, Cache: true},
		"presence-x":                          {Kind: Presence},
		"presence-cache-x":                    {Kind: Presence, Cache: true},
		"presence-private-x":                  {Kind: Presence},
		"private-encrypted-x":                 {Kind: Encrypted},
		"private-encrypted-cache-x":           {Kind: Encrypted, Cache: true},
		"private-encryptedx":                  {Kind: Private},
		"private-presence-x":                  {Kind: Private},
		"#server-to-user-7":                   {Kind: ServerToUser, User: "7"},
		"#server-to-user-ann@example.org/ü x": {Kind: ServerToUser, User: "ann@example.org/ü x"},
	} {
		if got, err := Parse(name); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for _, name := range []string{
		"", strings.Repeat("x", 201), "a b", "a/b", "a:b", "ü", "a\x00", "a\n", "\xff", "#x", "#", "#server-to-user", "#server-to-user-", "#server-to-user-\x00",
		"private-#x", "a#", "#server-to-user-" + strings.Repeat("x", 129),
	} {
		if got, err := Parse(name); petrel.CodeOf(err) != petrel.CodeInvalidID || got.Kind == ServerToUser && got.User != "" {
			t.Errorf("%q: %+v, %v; want invalid_id", name, got, err)
		}
	}
}

func TestWhatAFormAllows(t *testing.T) {
	t.Parallel()
	for k := Public; k <= ServerToUser+1; k++ {
		f := Form{Kind: k}
		got := fmt.Sprintf("%s authorised=%v client_events=%v counted=%v", k, f.Authorised(), f.ClientEvents(), f.Counted())
		want := map[Kind]string{
			Public:           "public authorised=false client_events=false counted=true",
			Private:          "private authorised=true client_events=true counted=true",
			Presence:         "presence authorised=true client_events=true counted=false",
			Encrypted:        "private-encrypted authorised=true client_events=false counted=true",
			ServerToUser:     "server-to-user authorised=false client_events=false counted=false",
			ServerToUser + 1: "unknown authorised=false client_events=false counted=true",
		}[k]
		if got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a", "private-encrypted-cache-x", "#server-to-user-x", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		form, err := Parse(name)
		if err != nil {
			if petrel.CodeOf(err) != petrel.CodeInvalidID || !utf8.ValidString(err.Error()) {
				t.Fatalf("%q: %v", name, err)
			}
			return
		}
		if len(name) > MaxName && form.Kind != ServerToUser {
			t.Fatalf("%d bytes are too long", len(name))
		}
		if (form.Kind == ServerToUser) != strings.HasPrefix(name, "#") || (form.Kind == ServerToUser) != (form.User != "") {
			t.Fatalf("%q: %+v", name, form)
		}
	})
}

func TestParseMember(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		`{"user_id":10,"user_info":{"name":"Mr. Channels"}}`: `10 {"name":"Mr. Channels"}`,
		`{"user_id":"10"}`:                                                `10 `,
		`{"user_id":"ann","user_info":null}`:                              `ann `,
		`{"user_id":-1.5e3,"user_info":"x"}`:                              `-1.5e3 "x"`,
		`{"user_id":12345678901234567890}`:                                `12345678901234567890 `,
		"{\"user_id\":\"é\",\"user_info\": [ 1,\n2]}":                     `é [1,2]`,
		`{"user_id":"a","user_info":"` + strings.Repeat("x", 1022) + `"}`: `a "` + strings.Repeat("x", 1022) + `"`,
	} {
		m, err := ParseMember(data, 0)
		if got := string(m.ID) + " " + string(m.Info); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", data, got, err, want)
		}
	}
	for data, want := range map[string]petrel.Code{
		``: petrel.CodeInvalidJSON, `x`: petrel.CodeInvalidJSON, `[]`: petrel.CodeInvalidJSON, `null`: petrel.CodeInvalidJSON, `{}`: petrel.CodeInvalidField,
		`{"user_id":null}`: petrel.CodeInvalidField, `{"user_id":true}`: petrel.CodeInvalidField, `{"user_id":{}}`: petrel.CodeInvalidField, `{"user_id":""}`: petrel.CodeInvalidID,
		`{"user_id":"` + strings.Repeat("é", 129) + `"}`:                  petrel.CodeInvalidID,
		`{"user_id":"a","user_info":"` + strings.Repeat("x", 1023) + `"}`: petrel.CodeTooLarge,
		`{"user_id":"\u0000"}`: petrel.CodeInvalidID,
		`{"user_id":"\ud800"}`: petrel.CodeInvalidUTF8, `{"user_id":"a","user_id":"b"}`: petrel.CodeInvalidJSON, `{"USER_ID":"a"}`: petrel.CodeInvalidField,
	} {
		if m, err := ParseMember(data, 0); petrel.CodeOf(err) != want {
			t.Errorf("%s: %+v, %v; want %s", data, m, err, want)
		}
	}
	if _, err := ParseMember(`{"user_id":"a","user_info":"12345"}`, 6); petrel.CodeOf(err) != petrel.CodeTooLarge {
		t.Errorf("an app's own limit: %v", err)
	}
}

func FuzzParseMember(f *testing.F) {
	f.Add(`{"user_id":10,"user_info":{"name":"x"}}`)
	f.Fuzz(func(t *testing.T, data string) {
		m, err := ParseMember(data, 100)
		if err == nil && (m.ID == "" || len(m.Info) > 100 || !utf8.ValidString(string(m.ID))) {
			t.Fatalf("%q: %+v", data, m)
		}
		if err != nil && petrel.CodeOf(err) == petrel.CodeInternal {
			t.Fatalf("%q: %v", data, err)
		}
	})
}

func pub(app petrel.AppID, name, data string) *petrel.Publication {
	return &petrel.Publication{Channel: petrel.PusherChannel(app, name), Type: "tick", Data: []byte(data), At: time.Now()}
}

func kept(c *Cache, app petrel.AppID, name string) string {
	p, left, ok := c.Kept(petrel.PusherChannel(app, name))
	if !ok {
		return "nothing"
	}
	return fmt.Sprintf("%s for %v", p.Data, left)
}

func TestCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ttl := time.Hour // more than is allowed
		c := NewCache(CacheOptions{TTL: func(petrel.AppID) time.Duration { return ttl }})
		c.Keep(pub("1", "cache-a", "one"))
		c.Keep(pub("1", "cache-a", "two"))
		c.Keep(pub("2", "cache-a", "other"))
		c.Keep(pub("1", "a", "not kept"))
		p := pub("1", "private-cache-a", "by a client")
		p.Client = true
		c.Keep(p)
		room := pub("1", "cache-room", "chat")
		room.Channel.Kind = petrel.ChannelRoom
		c.Keep(room)
		<-time.After(time.Minute)
		var got []string
		for _, name := range []string{"cache-a", "a", "private-cache-a", "cache-room"} {
			got = append(got, kept(c, "1", name))
		}
		got = append(got, kept(c, "2", "cache-a"))
		want := []string{"two for 29m0s", "nothing", "nothing", "nothing", "other for 29m0s"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		ttl = 2 * time.Minute
		if got := kept(c, "1", "cache-a"); got != "two for 1m0s" {
			t.Errorf("when the app has shortened its time: %s", got)
		}
		<-time.After(time.Minute)
		if got := kept(c, "1", "cache-a"); got != "nothing" {
			t.Errorf("after its time: %s", got)
		}
		late := pub("1", "cache-b", "heard late")
		late.At = late.At.Add(-time.Minute)
		c.Keep(late)
		if got := kept(c, "1", "cache-b"); got != "heard late for 1m0s" {
			t.Errorf("%s", got)
		}
		<-time.After(time.Hour)
		c.Keep(pub("1", "cache-c", ""))
		c.Keep(pub("2", "cache-c", ""))
		if used, _ := c.Bytes(); used != 2*size(pub("1", "cache-c", "")) {
			t.Errorf("%d bytes are kept of what nobody asks for", used)
		}
	})
}

// TestCacheIsBounded: an app that keeps much loses its own first.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := NewCache(CacheOptions{MaxBytes: 10_000})
	c.Keep(pub("small", "cache-a", "x"))
	for i := range 1000 {
		c.Keep(pub("big", fmt.Sprint("cache-", i), strings.Repeat("x", 100)))
		if used, limit := c.Bytes(); used > limit {
			t.Fatalf("%d bytes of %d", used, limit)
		}
	}
	if _, _, ok := c.Kept(petrel.PusherChannel("small", "cache-a")); !ok {
		t.Error("another app's was dropped")
	}
	if _, _, ok := c.Kept(petrel.PusherChannel("big", "cache-999")); !ok {
		t.Error("the newest was dropped")
	}
	c.Keep(pub("big", "cache-x", strings.Repeat("x", 10_000)))
	if _, _, ok := c.Kept(petrel.PusherChannel("big", "cache-x")); ok {
		t.Error("what is larger than everything was kept")
	}
}

func TestReadObject(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		``: "The body is not JSON, or ends too early.", `{"a":"x"`: "The body is not JSON, or ends too early.", `{"a":}`: "The body is not JSON, or ends too early.",
		`[]`: "The body is a list: it must be a JSON object.", `null`: "The body is null: it must be a JSON object.", ` 7`: "The body is a number: it must be a JSON object.",
		`{} x`: "The body is not JSON, or ends too early.", `{}{}`: "The body is not JSON, or ends too early.",
		`{"a":"x","b":1,"a":"x"}`: "The body has the key a twice.", `{"a":"x","\u0061":"y"}`: "The body has the key a twice.",
		`{"a":7}`: "The a of the body is a number: it must be a string.", `{"all":"x"}`: "The all of the body is a string: it must be a list of strings.",
		`{"a":"\ud800"}`:                                  "The a of the body has an escape that is half of a character (a lone surrogate).",
		`{"a":"\uDC00\ud800"}`:                            "The a of the body has an escape that is half of a character (a lone surrogate).",
		`{"a":"\ud83d\n\ude00"}`:                          "The a of the body has an escape that is half of a character (a lone surrogate).",
		`{"a":"\ud83d-\ude00"}`:                           "The a of the body has an escape that is half of a character (a lone surrogate).",
		`{"all":["\ud83d","x"]}`:                          "The all of the body has an escape that is half of a character (a lone surrogate).",
		`{"a":"\ud83d\uDE00\n\u00e9\ud7ff\ue000\\ud800"}`: "", `{"A":"y","a":null,"x":1,"x":2,"raw":"\ud800"}`: "", ` {"a":"x","all":["y"]} `: "",
	} {
		var a string
		var all []string
		var raw json.RawMessage
		err := ReadObject("The body", []byte(body), Field{"a", &a}, Field{"all", &all}, Field{"raw", &raw})
		var e *petrel.Error
		switch errors.As(err, &e); {
		case want == "" && err != nil, want != "" && (e == nil || e.Detail != want):
			t.Errorf("%s: %v; want %q", body, err, want)
		case a == "y":
			t.Errorf("%s: another key was read", body)
		}
	}
}

// FuzzReadObject: what is read is what a decoder reads that knows the same rules; nothing panics.
func FuzzReadObject(f *testing.F) {
	for _, s := range []string{`{"a":"x","b":[1,{"a":"]"}],"all":["\\",""]}`, ` { } `, `{"\u0061":"\"","x":-1e5}`, `{"a":null,"x":"a"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var a string
		var x json.RawMessage
		err := ReadObject("The body", []byte(body), Field{"a", &a}, Field{"x", &x})
		if err != nil {
			return
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		var want string
		if json.Unmarshal(m["a"], &want) == nil && want != a {
			t.Fatalf("%q: %q; want %q", body, a, want)
		}
		if string(m["x"]) != string(x) && string(m["x"]) != "null" {
			t.Fatalf("%q: %q; want %q", body, x, m["x"])
		}
	})
}
