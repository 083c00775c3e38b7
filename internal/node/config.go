package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/toml/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Config is everything that a person may set about one node. The struct is at once the
// list of settings (koanf), of the flags of `petrel serve` (kong) and of their help;
// docs/OPERATING.md shows the same list and a test keeps the two alike.
//
// A setting is called the same everywhere: `replay-limit` in the TOML file,
// `PETREL_REPLAY_LIMIT` in the environment, `--replay-limit` on the command line.
type Config struct {
	Data   string `koanf:"data" default:"petrel-data" placeholder:"DIR" help:"Folder for everything that is kept. Made when absent; one process at a time."`
	Listen string `koanf:"listen" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Public listener: API, socket and web page. Port 0 takes a free one."`
	Admin  string `koanf:"admin" default:"127.0.0.1:8081" placeholder:"HOST:PORT" help:"Admin listener: health, metrics, profiles, apps. Never expose it."`
	Name   string `koanf:"name" default:"n1" placeholder:"NAME" help:"Name of this node in logs, metrics and greetings."`
	Demo   bool   `koanf:"demo" help:"Seed an app, people and rooms, and let any visitor choose a name. Not for production."`

	LogLevel  string `koanf:"log-level" default:"info" placeholder:"LEVEL" help:"debug, info, warn or error. At debug one request can be followed from door to delivery."`
	LogFormat string `koanf:"log-format" default:"auto" placeholder:"FORMAT" help:"text, json, or auto: text on a terminal, JSON otherwise."`

	ReplayLimit  int           `koanf:"replay-limit" default:"100000" placeholder:"N" help:"Events a socket may be behind and still resume; further behind it is told to resync."`
	DrainTimeout time.Duration `koanf:"drain-timeout" default:"10s" placeholder:"TIME" help:"After the first SIGTERM: how long connections have to move away before the node stops."`

	MaxConnections int    `koanf:"max-connections" default:"10000" placeholder:"N" help:"Sockets and event streams at most; fewer when the process may open fewer files."`
	AppRate        int    `koanf:"app-rate" default:"20000" placeholder:"N" help:"Requests and frames of sockets a second that one app may make on this node; further ones are told when to come again (429). 0: as many as come."`
	Compress       bool   `koanf:"compress" help:"Let WebSockets compress messages (permessage-deflate) where the client offers it: fewer bytes, for more processor time and memory."`
	IOUring        bool   `koanf:"io-uring" help:"Write to many connections in one call of the kernel (io_uring), where it allows that: up to a quarter less processor time for large channels. Off, because some systems forbid io_uring for its past."`
	TrustedProxies string `koanf:"trusted-proxies" placeholder:"CIDR,…" help:"Proxies whose X-Forwarded-For is believed, like 10.0.0.0/8,::1/128."`

	PublicURL string `koanf:"public-url" placeholder:"URL" help:"Address of this node as clients write it, like https://n1.chat.example. Who has to move is told where the other nodes are."`

	TLSCert   string `koanf:"tls-cert" placeholder:"FILE" help:"Certificate (PEM, with its chain) of the public listener: it then speaks TLS alone, unless there is tls-listen. Read again when the file changes."`
	TLSKey    string `koanf:"tls-key" placeholder:"FILE" help:"Its key."`
	TLSListen string `koanf:"tls-listen" placeholder:"HOST:PORT" help:"A second public listener, which speaks TLS; --listen then stays in the clear, for what is behind the same wall."`

	Peer           string `koanf:"peer" placeholder:"HOST:PORT" help:"TLS port between nodes, as the others reach it. Alone, it founds a cell, or makes one of a node that ran alone."`
	Join           string `koanf:"join" placeholder:"HOST:PORT,…" help:"Peer ports of nodes of the cell that this node joins. Needed once: later it knows them."`
	CellSecretFile string `koanf:"cell-secret-file" placeholder:"FILE" help:"The cell's secret, to join: a copy of DATA/cell-secret of any node of it."`
	Bus            string `koanf:"bus" placeholder:"HOST:PORT" help:"Port of the embedded NATS between nodes. Default: that of --peer, plus 1."`
	NATS           string `koanf:"nats" placeholder:"URL" help:"Use this NATS cluster instead of the embedded one. The URL may hold a password: better in the file or PETREL_NATS."`
	PeerCert       string `koanf:"peer-cert" placeholder:"FILE" help:"Certificate (PEM) of this node, with the URI petrel-node:NAME, instead of one made from the cell's secret."`
	PeerKey        string `koanf:"peer-key" placeholder:"FILE" help:"Its key."`
	PeerCA         string `koanf:"peer-ca" placeholder:"FILE" help:"The roots (PEM) that sign the certificates of the cell's nodes."`
	Voters         int    `koanf:"voters" default:"3" placeholder:"N" help:"Nodes that vote on the log, 3 or 5; further ones hold it without a vote. The same on every node."`

	WebhookAllow string `koanf:"webhook-allow" placeholder:"CIDR,…" help:"Private networks that webhooks may call, like 10.1.0.0/16. All others that are not public are refused."`
	AppSettings  string `koanf:"app-settings" placeholder:"NAME=VALUE,…" help:"Settings of the first app, set when that is made, like client_events=off,max_event_bytes=20000. More: petrel app set."`
	AppWebhook   string `koanf:"app-webhook" placeholder:"URL" help:"Webhook of the first app, set when that is made: all events but client_event. More: petrel hook."`

	// The first app, made on an empty data folder. No flags: a secret on a command line
	// is readable by every user of the machine.
	AppID     string `koanf:"app-id" kong:"-"`
	AppKey    string `koanf:"app-key" kong:"-"`
	AppSecret string `koanf:"app-secret" kong:"-"`
}

// DefaultConfig returns what holds when nothing is set.
func DefaultConfig() Config {
	return Config{
		Data: "petrel-data", Listen: "127.0.0.1:8080", Admin: "127.0.0.1:8081", Name: "n1",
		LogLevel: "info", LogFormat: "auto", ReplayLimit: 100_000, DrainTimeout: 10 * time.Second,
		MaxConnections: 10_000, AppRate: 20_000, Voters: 3,
	}
}

// EnvPrefix begins every environment variable of a setting.
const EnvPrefix = "PETREL_"

// envNotSettings are PETREL_ variables of the command line tools, which the server leaves alone.
var envNotSettings = []string{"PETREL_CONFIG", "PETREL_APP", "PETREL_URL", "PETREL_KEY", "PETREL_SECRET"}

// Sources is where settings come from, weakest first: defaults, File, Environ, Flags.
type Sources struct {
	File    string         // path of a TOML file; empty: none
	Environ []string       // "KEY=value", as of os.Environ
	Flags   map[string]any // only those that were given, by name without dashes
}

// LoadConfig merges the sources. Every mistake is one error of one sentence, all of them joined.
// unknown holds PETREL_ variables that mean nothing: they are for a warning only, because
// orchestrators set such names on their own (a Kubernetes service called "petrel" brings PETREL_PORT).
func LoadConfig(src Sources) (cfg Config, unknown []string, err error) {
	k := koanf.New("\x00") // our keys are flat: no character of a key may mean "inside"
	origin := map[string]string{}
	if src.File != "" {
		if err := loadFile(k, origin, src.File); err != nil {
			return Config{}, nil, err
		}
	}
	names := settingNames()
	for name, value := range environSettings(src.Environ, names, &unknown) {
		origin[name] = "the environment variable " + envName(name)
		if slices.Contains(pusherNames(name), value.name) {
			origin[name] = "the environment variable " + value.name
		}
		_ = k.Set(name, value.text) // fails only for nested keys
	}
	for name, v := range src.Flags {
		origin[name] = "the flag --" + name
		_ = k.Set(name, v)
	}

	cfg = DefaultConfig()
	var problems []error
	target := reflect.ValueOf(&cfg).Elem()
	for _, name := range k.Keys() {
		i := slices.Index(names, name)
		if i < 0 {
			problems = append(problems, fmt.Errorf("%s has the setting %q, which does not exist%s", origin[name], name, didYouMean(name, names)))
			continue
		}
		if want := assign(target.Field(i), k.Get(name)); want != "" {
			problems = append(problems, fmt.Errorf("%s sets %s to %s; it must be %s", origin[name], name, shown(name, k.Get(name)), want))
		}
	}
	if len(problems) == 0 {
		problems = cfg.problems(origin)
	}
	return cfg, unknown, errors.Join(problems...)
}

func loadFile(k *koanf.Koanf, origin map[string]string, path string) error {
	err := k.Load(file.Provider(path), toml.Parser())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the configuration file %s does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the configuration file %s may not be read by this user", path)
	case err != nil:
		return fmt.Errorf("the configuration file %s is not valid TOML: %w", path, err)
	}
	for _, key := range k.Keys() {
		name, inner, nested := strings.Cut(key, "\x00")
		if nested {
			return fmt.Errorf("the file %s has %q inside a table [%s]; settings stand at the top, without tables", path, inner, name)
		}
		origin[key] = "the file " + path
	}
	return nil
}

type envValue struct{ name, text string }

// environSettings picks the settings out of the environment. PUSHER_APP_* stand in for
// PETREL_APP_* only when none of those is set, so that pairs are never mixed.
func environSettings(environ, names []string, unknown *[]string) map[string]envValue {
	all := map[string]string{}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			all[name] = value
		}
	}
	found := map[string]envValue{}
	ours := false
	for _, name := range names {
		env := envName(name)
		if v, ok := all[env]; ok {
			found[name] = envValue{env, v}
			ours = ours || slices.Contains(firstAppPair, name)
		}
		delete(all, env)
	}
	if !ours {
		for _, name := range names {
			for _, env := range pusherNames(name) {
				if v := all[env]; v != "" {
					found[name] = envValue{env, v}
				}
			}
		}
	}
	for env := range all {
		if strings.HasPrefix(env, EnvPrefix) && !slices.Contains(envNotSettings, env) {
			*unknown = append(*unknown, env)
		}
	}
	slices.Sort(*unknown)
	return found
}

func envName(name string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// firstAppPair are the settings that Pusher's own names may stand in for.
var firstAppPair = []string{"app-id", "app-key", "app-secret"}

func pusherNames(name string) []string {
	if !slices.Contains(firstAppPair, name) {
		return nil
	}
	return []string{"PUSHER_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
}

// settingNames lists the settings in the order of Config's fields.
func settingNames() []string {
	t := reflect.TypeFor[Config]()
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("koanf")
	}
	return names
}

// assign stores v in f; it returns what v must be when it is not.
func assign(f reflect.Value, v any) (want string) {
	text, isText := v.(string)
	switch f.Interface().(type) {
	case string:
		if !isText {
			return "a text in quotes"
		}
		f.SetString(text)
	case bool:
		b, ok := v.(bool)
		if isText {
			var err error
			b, err = strconv.ParseBool(text)
			ok = err == nil
		}
		if !ok {
			return "true or false"
		}
		f.SetBool(b)
	case int:
		var n int64
		var err error
		switch v := v.(type) {
		case int:
			n = int64(v)
		case int64:
			n = v
		case string:
			n, err = strconv.ParseInt(v, 10, 64)
		default:
			err = strconv.ErrSyntax
		}
		if err != nil {
			return "a whole number"
		}
		f.SetInt(n)
	case time.Duration:
		d, ok := v.(time.Duration)
		if isText {
			var err error
			d, err = time.ParseDuration(text)
			ok = err == nil
		}
		if !ok {
			return `a time with its unit, like "10s" or "1m30s"`
		}
		f.SetInt(int64(d))
	}
	return ""
}

// problems checks values and how they fit together.
func (c *Config) problems(origin map[string]string) []error {
	var out []error
	bad := func(name, format string, args ...any) {
		who := origin[name]
		if who == "" {
			who = "the default of " + name
		}
		out = append(out, fmt.Errorf("%s: %s", who, fmt.Sprintf(format, args...)))
	}
	if c.Data == "" {
		bad("data", "the data folder may not be empty")
	}
	for _, l := range []struct{ name, addr string }{{"listen", c.Listen}, {"admin", c.Admin}, {"tls-listen", c.TLSListen}} {
		if l.name == "tls-listen" && l.addr == "" {
			continue
		}
		_, port, err := net.SplitHostPort(l.addr)
		if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
			bad(l.name, "%s is %q; it must be HOST:PORT, like 127.0.0.1:8080", l.name, l.addr)
		}
	}
	out = append(out, c.cellProblems(origin)...)
	if c.Listen == c.Admin && !strings.HasSuffix(c.Listen, ":0") {
		bad("admin", "listen and admin are both %s; the admin listener needs its own port", c.Admin)
	}
	if _, err := petrel.ParseRoomID(c.Name); err != nil {
		bad("name", "name is %q; use 1 to 64 of A–Z a–z 0–9 _ - . : @ =", c.Name)
	}
	if _, ok := logLevels[c.LogLevel]; !ok {
		bad("log-level", "log-level is %q; it must be debug, info, warn or error", c.LogLevel)
	}
	if !slices.Contains([]string{"auto", "text", "json"}, c.LogFormat) {
		bad("log-format", "log-format is %q; it must be auto, text or json", c.LogFormat)
	}
	if c.ReplayLimit < 1 || c.ReplayLimit > 10_000_000 {
		bad("replay-limit", "replay-limit is %d; it must be between 1 and 10,000,000", c.ReplayLimit)
	}
	if c.DrainTimeout < 0 || c.DrainTimeout > time.Hour {
		bad("drain-timeout", "drain-timeout is %s; it must be between 0s and 1h", c.DrainTimeout)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls-cert", "tls-cert and tls-key belong together; one of them is missing")
	} else if c.TLSCert != "" {
		if _, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey); err != nil {
			bad("tls-cert", "the certificate of the public listener (tls-cert %s, tls-key %s) cannot be used: %s", c.TLSCert, c.TLSKey, err)
		}
	}
	if c.TLSListen != "" && c.TLSCert == "" {
		bad("tls-listen", "tls-listen needs tls-cert and tls-key")
	}
	if c.MaxConnections < 1 || c.MaxConnections > 10_000_000 {
		bad("max-connections", "max-connections is %d; it must be between 1 and 10,000,000", c.MaxConnections)
	}
	if c.AppRate < 0 || c.AppRate > 10_000_000 {
		bad("app-rate", "app-rate is %d; it must be between 0 (no limit) and 10,000,000", c.AppRate)
	}
	if _, err := parseNetworks(c.TrustedProxies); err != nil {
		bad("trusted-proxies", "trusted-proxies has %s, which is no network; write networks like 10.0.0.0/8,::1/128", err)
	}
	if _, err := parseNetworks(c.WebhookAllow); err != nil {
		bad("webhook-allow", "webhook-allow has %s, which is no network; write networks like 10.1.0.0/16,fd00::/8", err)
	}
	if _, err := identity.ParseSettings(c.AppSettings); err != nil {
		var refusal *petrel.Error
		errors.As(err, &refusal)
		bad("app-settings", "%s", refusal.Detail)
	}
	if c.AppWebhook != "" {
		if err := identity.CheckHookURL(c.AppWebhook); err != nil {
			var refusal *petrel.Error
			errors.As(err, &refusal)
			bad("app-webhook", "%s", refusal.Detail)
		}
	}
	switch set := btoi(c.AppID != "") + btoi(c.AppKey != "") + btoi(c.AppSecret != ""); {
	case set != 0 && set != 3:
		for _, name := range []string{"app-id", "app-key", "app-secret"} {
			if origin[name] != "" {
				bad(name, "app-id, app-key and app-secret belong together; set all three or none")
				break
			}
		}
	case set == 3:
		if _, err := petrel.ParseAppID(c.AppID); err != nil {
			bad("app-id", "app-id is %q; use 1 to 64 of A–Z a–z 0–9 _ - . : @ =, best digits only", c.AppID)
		}
	}
	return out
}

// parseNetworks reads a list of networks with commas between them.
func parseNetworks(list string) (out []netip.Prefix, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q", s)
		}
		out = append(out, p)
	}
	return out, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// shown returns a value for an error sentence, and never a secret.
func shown(name string, v any) string {
	if name == "app-secret" || name == "app-webhook" || name == "app-key" || name == "nats" {
		return "something else"
	}
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}

// didYouMean suggests the nearest name within two edits.
func didYouMean(name string, names []string) string {
	best, dist := "", 3
	for _, n := range names {
		if d := edits(strings.ReplaceAll(name, "_", "-"), n); d < dist {
			best, dist = n, d
		}
	}
	if best == "" {
		return "; `petrel serve --help` lists them all"
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag + btoi(a[i] != b[j])
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}
