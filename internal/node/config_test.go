package node

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoadConfigPrecedence(t *testing.T) {
	t.Parallel()
	file := writeTOML(t, "listen = \"127.0.0.1:1\"\nname = \"from-file\"\nreplay-limit = 7\ndrain-timeout = \"3s\"\ndemo = true\n")
	got, unknown, err := LoadConfig(Sources{
		File:    file,
		Environ: []string{"PETREL_NAME=from-env", "PETREL_LISTEN=127.0.0.1:2", "PETREL_PORT=tcp://10.0.0.1:80", "HOME=/x", "PETREL_APP=1"},
		Flags:   map[string]any{"listen": "127.0.0.1:3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Listen, want.Name, want.ReplayLimit, want.DrainTimeout, want.Demo = "127.0.0.1:3", "from-env", 7, 3*time.Second, true
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"PETREL_PORT"}, unknown); d != "" {
		t.Errorf("unknown variables (-want +got):\n%s", d)
	}
}

func TestLoadConfigPusherNames(t *testing.T) {
	t.Parallel()
	pusher := []string{"PUSHER_APP_ID=1", "PUSHER_APP_KEY=k", "PUSHER_APP_SECRET=s"}
	got, _, err := LoadConfig(Sources{Environ: pusher})
	if err != nil || got.AppID != "1" || got.AppKey != "k" || got.AppSecret != "s" {
		t.Errorf("got %+v, %v; want the PUSHER_ trio", got, err)
	}
	got, _, err = LoadConfig(Sources{Environ: append(pusher, "PETREL_APP_ID=2", "PETREL_APP_KEY=k2", "PETREL_APP_SECRET=s2")})
	if err != nil || got.AppID != "2" || got.AppKey != "k2" || got.AppSecret != "s2" {
		t.Errorf("got %+v, %v; want the PETREL_ trio to win whole", got, err)
	}
}

func TestLoadConfigMistakes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		toml string
		env  []string
		flag map[string]any
		want string // the sentence holds this
	}{
		{"misspelt", "lisen = \"x\"", nil, nil, `has the setting "lisen", which does not exist; did you mean "listen"?`},
		{"underscore", "log_level = \"info\"", nil, nil, `did you mean "log-level"?`},
		{"unknown", "colour = 1", nil, nil, "`petrel serve --help` lists them all"},
		{"table", "[server]\nlisten = \"x\"", nil, nil, "settings stand at the top, without tables"},
		{"not TOML", "listen", nil, nil, "is not valid TOML"},
		{"type", "replay-limit = \"many\"", nil, nil, `sets replay-limit to "many"; it must be a whole number`},
		{"type of text", "name = 7", nil, nil, "sets name to 7; it must be a text in quotes"},
		{"bool", "", []string{"PETREL_DEMO=perhaps"}, nil, `the environment variable PETREL_DEMO sets demo to "perhaps"; it must be true or false`},
		{"duration", "", []string{"PETREL_DRAIN_TIMEOUT=10"}, nil, `it must be a time with its unit`},
		{"address", "", nil, map[string]any{"listen": "8080"}, `the flag --listen: listen is "8080"; it must be HOST:PORT`},
		{"same port", "", nil, map[string]any{"admin": "127.0.0.1:8080"}, "the admin listener needs its own port"},
		{"level", "", []string{"PETREL_LOG_LEVEL=loud"}, nil, `it must be debug, info, warn or error`},
		{"trio", "", []string{"PETREL_APP_ID=1"}, nil, "set all three or none"},
		{"app id", "", []string{"PETREL_APP_ID=a b", "PETREL_APP_KEY=k", "PETREL_APP_SECRET=s"}, nil, `app-id is "a b"`},
		{"proxy", "", []string{"PETREL_TRUSTED_PROXIES=10.0.0.1, x"}, nil, `trusted-proxies has "10.0.0.1", which is no network`},
		{"negative", "replay-limit = -1", nil, nil, "between 1 and 10,000,000"},
		{"app rate", "app-rate = -1", nil, nil, "between 0 (no limit) and 10,000,000"},
		{"webhook network", "", []string{"PETREL_WEBHOOK_ALLOW=10.0.0.0/8, 10.1"}, nil, `webhook-allow has "10.1", which is no network`},
		{"webhook address", "", []string{"PETREL_APP_WEBHOOK=https://user:pass@shop.example"}, nil, "the environment variable PETREL_APP_WEBHOOK: The url of the webhook has credentials in it"},
		{"voters", "", nil, map[string]any{"voters": 4}, "the flag --voters: voters is 4; it must be 3 or 5"},
		{"certificate", "", nil, map[string]any{"tls-cert": "/nope", "tls-key": "/nope"}, "the flag --tls-cert: the certificate of the public listener (tls-cert /nope, tls-key /nope) cannot be used: open /nope"},
		{"secret unseen", "app-secret = 12345", nil, nil, "sets app-secret to something else"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			src := Sources{Environ: tt.env, Flags: tt.flag}
			if tt.toml != "" {
				src.File = writeTOML(t, tt.toml)
			}
			_, _, err := LoadConfig(src)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want one that says %q", err, tt.want)
			}
		})
	}
	if _, _, err := LoadConfig(Sources{File: "/no/such/file.toml"}); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("error %v; want one that says the file does not exist", err)
	}
}

// TestConfigDefaults keeps the defaults shown by --help and those that hold alike.
func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	v := reflect.ValueOf(&cfg).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		shown, ok := tag.Lookup("default")
		got := reflect.New(v.Field(i).Type()).Elem()
		if ok {
			if want := assign(got, shown); want != "" {
				t.Errorf("%s: the default tag %q is not %s", tag.Get("koanf"), shown, want)
			}
		}
		if !got.Equal(v.Field(i)) {
			t.Errorf("%s: --help shows %v, DefaultConfig has %v", tag.Get("koanf"), got, v.Field(i))
		}
	}
}

// TestConfigDocumented keeps docs/OPERATING.md complete.
func TestConfigDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "OPERATING.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range settingNames() {
		if !strings.Contains(string(doc), "`"+name+"`") || !strings.Contains(string(doc), "`"+envName(name)+"`") {
			t.Errorf("docs/OPERATING.md does not name the setting `%s` and its variable `%s`", name, envName(name))
		}
	}
}

func TestLockFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	l, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(Owner{PID: os.Getpid(), Admin: "127.0.0.1:9"}); err != nil {
		t.Fatal(err)
	}
	_, err = lockFolder(dir)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Owner.Admin != "127.0.0.1:9" || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("second lock: %v; want a sentence with the process, and its addresses", err)
	}
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	again, err := lockFolder(dir)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	if err := again.release(); err != nil {
		t.Fatal(err)
	}
}

func writeTOML(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "petrel.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
