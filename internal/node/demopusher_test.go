package node

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

var demoTestKey = Key{Key: "petrel-key", Secret: "petrel-secret"}

func TestDemoAuth(t *testing.T) {
	t.Parallel()
	answer, err := demoAuth(Key{Key: "278d425bdf160c739803", Secret: "7ad3773142a6692b25b8"}, url.Values{"socket_id": {"1234.1234"}, "channel_name": {demoPrivate}})
	if err != nil || answer.ChannelData != "" || !strings.HasPrefix(answer.Auth, "278d425bdf160c739803:") || len(answer.Auth) != 21+64 {
		t.Fatalf("%+v, %v", answer, err)
	}
	answer, err = demoAuth(demoTestKey, url.Values{"socket_id": {"1.2"}, "channel_name": {demoPresence}, "id": {"ada-1"}, "name": {"Ada"}})
	if want := `{"user_id":"ada-1","user_info":{"name":"Ada"}}`; err != nil || answer.ChannelData != want || answer.Auth != "petrel-key:"+demoMAC(demoTestKey, "1.2:presence-demo:"+want) {
		t.Fatalf("%+v, %v", answer, err)
	}
	for what, form := range map[string]url.Values{
		"another channel": {"socket_id": {"1.2"}, "channel_name": {"private-other"}},
		"no channel":      {"socket_id": {"1.2"}},
		"no socket":       {"channel_name": {demoPrivate}},
		"a user's socket": {"socket_id": {"1.2::user"}, "channel_name": {demoPrivate}},
		"no id":           {"socket_id": {"1.2"}, "channel_name": {demoPresence}, "name": {"Ada"}},
		"no name":         {"socket_id": {"1.2"}, "channel_name": {demoPresence}, "id": {"ada"}},
		"a long name":     {"socket_id": {"1.2"}, "channel_name": {demoPresence}, "id": {"ada"}, "name": {strings.Repeat("a", 41)}},
	} {
		if answer, err := demoAuth(demoTestKey, form); petrel.CodeOf(err) == petrel.CodeInternal || err == nil {
			t.Errorf("%s: %+v, %v", what, answer, err)
		}
	}
}

func TestDemoEvent(t *testing.T) {
	t.Parallel()
	got, err := demoEvent("1001", demoTestKey, `it's "me"`, time.Unix(1_700_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"channels":["private-demo"],"data":"{\"text\":\"it's \\\"me\\\"\"}","name":"message"}`; got.Body != want {
		t.Errorf("body %s, want %s", got.Body, want)
	}
	if want := "/apps/1001/events?auth_key=petrel-key&auth_timestamp=1700000000&auth_version=1.0&body_md5="; !strings.HasPrefix(got.Path, want) {
		t.Errorf("path %s, want it to begin with %s", got.Path, want)
	}
	for _, text := range []string{"", strings.Repeat("a", demoText+1)} {
		if _, err := demoEvent("1001", demoTestKey, text, time.Now()); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("a text of %d letters: %v", len(text), err)
		}
	}
}
