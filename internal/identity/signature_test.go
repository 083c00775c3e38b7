package identity

import (
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// worked are signatures that Pusher's documentation, or a second implementation, computed.
var worked = []struct{ what, key, secret, message, mac string }{
	{"private", "278d425bdf160c739803", "7ad3773142a6692b25b8", "1234.1234:private-foobar", "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"},
	{
		"presence", "278d425bdf160c739803", "7ad3773142a6692b25b8", `1234.1234:presence-foobar:{"user_id":10,"user_info":{"name":"Mr. Channels"}}`,
		"31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
	},
	{ // The documentation prints this signature beside the string above: its example is stale.
		"presence as printed", "278d425bdf160c739803", "7ad3773142a6692b25b8", `1234.1234:presence-foobar:{"user_id":10,"user_info":{"name":"Mr. Pusher"}}`,
		"afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
	},
	{"sign in", "278d425bdf160c739803", "7ad3773142a6692b25b8", `1234.1234::user::{"id":"12345"}`, "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"},
	{
		"webhook", "278d425bdf160c739803", "7ad3773142a6692b25b8", `{"time_ms":1327078148132,"events":[{"name":"channel_occupied","channel":"my-channel"}]}`,
		"c19001ae3963ccb13bf618e5b16ba9848e7e74df0993aa0689168e341c6833cf",
	},
}

func TestVerify(t *testing.T) {
	t.Parallel()
	for _, c := range worked {
		d := NewDirectory(DirectoryOptions{})
		d.current.Store(&snapshot{
			apps: map[petrel.AppID]bool{"1": false, "2": true},
			keys: map[string]signer{c.key: newSigner("1", c.secret), "suspended": newSigner("2", c.secret)},
		})
		verify := func(key, message, mac string) petrel.Code {
			app, err := d.Verify(key, []byte(message), mac)
			if (err == nil) != (app == "1") {
				t.Errorf("%s: app %q with %v", c.what, app, err)
			}
			return petrel.CodeOf(err)
		}
		for name, got := range map[string]struct{ got, want petrel.Code }{
			"good":         {verify(c.key, c.message, c.mac), ""},
			"capitals":     {verify(c.key, c.message, strings.ToUpper(c.mac)), ""},
			"other key":    {verify("nobody", c.message, c.mac), petrel.CodeInvalidToken},
			"suspended":    {verify("suspended", c.message, c.mac), petrel.CodeAppSuspended},
			"other text":   {verify(c.key, c.message+" ", c.mac), petrel.CodeInvalidToken},
			"cut":          {verify(c.key, c.message, c.mac[:62]), petrel.CodeInvalidToken},
			"half a digit": {verify(c.key, c.message, c.mac[:63]), petrel.CodeInvalidToken},
			"longer":       {verify(c.key, c.message, c.mac+"00"), petrel.CodeInvalidToken},
			"empty":        {verify(c.key, c.message, ""), petrel.CodeInvalidToken},
			"no digits":    {verify(c.key, c.message, strings.Repeat("x", 64)), petrel.CodeInvalidToken},
		} {
			if got.got != got.want {
				t.Errorf("%s, %s: %q, want %q", c.what, name, got.got, got.want)
			}
		}
	}
	if _, err := NewDirectory(DirectoryOptions{}).Verify("k", nil, ""); petrel.CodeOf(err) != petrel.CodeBusy {
		t.Error(err)
	}
}

func TestAppOfKey(t *testing.T) {
	t.Parallel()
	d := NewDirectory(DirectoryOptions{})
	if _, err := d.AppOfKey("k1"); petrel.CodeOf(err) != petrel.CodeBusy {
		t.Error(err)
	}
	d.current.Store(&snapshot{
		apps: map[petrel.AppID]bool{"1": false, "2": true},
		keys: map[string]signer{"k1": newSigner("1", "secret-of-k1"), "k2": newSigner("2", "secret-of-k2")},
	})
	if app, err := d.AppOfKey("k1"); app != "1" || err != nil {
		t.Error(app, err)
	}
	if app, err := d.AppOfKey("k2"); app != "2" || petrel.CodeOf(err) != petrel.CodeAppSuspended {
		t.Error(app, err)
	}
	if app, err := d.AppOfKey("k3"); app != "" || petrel.CodeOf(err) != petrel.CodeInvalidToken {
		t.Error(app, err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	def := DefaultSettings()
	if !def.ClientEvents || def.SubscriptionCount || def.AuthorizedConnections != 0 || def.MaxEventBytes != 10_240 || def.MaxMembers != 100 {
		t.Errorf("%+v", def)
	}
	for _, s := range def.List() {
		if s.Value != s.Default {
			t.Errorf("%s is %s, by default %s", s.Name, s.Value, s.Default)
		}
		if changes, err := ParseSettings(s.Name + "=" + s.Value); err != nil || changes[s.Name] != s.Value {
			t.Errorf("what is shown cannot be set: %s: %v", s.Name, err)
		}
	}
	for _, bad := range []string{"x", "x=1", "max_batch=1,max_batch=2", "max_batch=1.5", "client_events=2", "max_batch=99999999999999999999"} {
		if _, err := ParseSettings(bad); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("%s: %v", bad, err)
		}
	}
	set, err := withChanges(nil, map[string]string{"max_batch": "20", "client_events": "off"})
	if err != nil {
		t.Fatal(err)
	}
	if got := settingsOf(unpackSettings(packSettings(set) + "of_a_newer_build=7\n")); got.MaxBatch != 20 || got.ClientEvents || got.MaxMembers != 100 {
		t.Errorf("%+v", got)
	}
	if d := NewDirectory(DirectoryOptions{}); *d.Settings("nobody") != def {
		t.Error("an app that is not known has other settings")
	}
}

// TestCreateWithSettings: they are there from the app's first moment, in the rows and in the directory.
func TestCreateWithSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, _, err := w.do(CreateApp{App: "1", Pair: pair("k1"), Settings: "max_batch=0"}); petrel.CodeOf(err) != petrel.CodeInvalidField {
		t.Error(err)
	}
	if app := w.must(CreateApp{App: "1", Pair: pair("k1"), Settings: "max_batch=20, client_events=off"}); app.Settings.MaxBatch != 20 || app.Settings.ClientEvents {
		t.Errorf("%+v", app.Settings)
	}
	if set := w.dir.Settings("1"); set.MaxBatch != 20 || set.ClientEvents {
		t.Errorf("%+v", set)
	}
	w.agree()
}

func BenchmarkVerify(b *testing.B) {
	c := worked[0]
	d := NewDirectory(DirectoryOptions{})
	d.current.Store(&snapshot{apps: map[petrel.AppID]bool{"1": false}, keys: map[string]signer{c.key: newSigner("1", c.secret)}})
	message := []byte(c.message)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Verify(c.key, message, c.mac); err != nil {
			b.Fatal(err)
		}
	}
}
