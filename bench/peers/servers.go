//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/bench/peers/bare"
	"github.com/petrel-chat/petrel/bench/peers/load"
	"github.com/petrel-chat/petrel/bench/rig"
)

// The credentials of every server that has some. They guard nothing: what listens does so on this machine, for a minute.
const (
	appID     = "1001"
	appKey    = "bench-key"
	appSecret = "bench-secret"
)

// server is one that takes part.
type server struct {
	name, kind string
	version    string
	// launch writes what the server needs into dir and says how it is started on the port, and how it is spoken to.
	launch func(ctx context.Context, dir string, port int) (*launch, error)
}

// launch is how a server is started.
type launch struct {
	args   []string
	env    []string // besides what this process has
	target load.Target
	// ready waits until it serves; nil: until it accepts.
	ready func(ctx context.Context) error
	// prepare makes what a job needs, such as rooms; nil: nothing.
	prepare func(ctx context.Context, job *load.Job) error
	profile func(ctx context.Context, name string, seconds int) error // nil: it has none
}

// absent says why a server cannot take part, and what would change that.
type absent struct{ why string }

func (a absent) Error() string { return a.why }

// kind is a sort of server: find looks for it on this machine, once.
type kind struct {
	name string
	find func(ctx context.Context, b *bench) (*server, error)
}

// kinds in the order of the tables.
func kinds() []kind {
	return []kind{
		{"limit", findLimit("")},
		{"limit-coalesce", findLimit("coalesce")},
		{"bare", findBare("")},
		{"bare-coalesce", findBare("coalesce")},
		{"petrel", findPetrel("petrel")},
		{"petrel-native", findPetrel("petrel-native")},
		{"petrel-tls", findPetrel("petrel-tls")},
		{"petrel-uring", findPetrel("petrel-uring")},
		{"nchan", findNchan},
		{"soketi", findSoketi},
		{"nats", findNATS},
	}
}

func serverNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// findServers returns those that take part, and tells of those that cannot.
func (b *bench) findServers(ctx context.Context) error {
	wanted, all := map[string]bool{}, len(b.s.servers) == 0
	for _, name := range b.s.servers {
		wanted[name] = true
	}
	for _, k := range kinds() {
		if !all && !wanted[k.name] {
			continue
		}
		delete(wanted, k.name)
		s, err := k.find(ctx, b)
		var a absent
		if errors.As(err, &a) && all {
			b.tell("%s does not take part: %s\n", k.name, a.why)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		s.name, s.kind = k.name, k.name
		b.servers = append(b.servers, s)
	}
	for _, a := range b.s.added { // whoever adds one wants it
		delete(wanted, a.name)
		s, err := b.addedServer(ctx, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		b.servers = append(b.servers, s)
	}
	for name := range wanted {
		return fmt.Errorf("no such server: %s; there are %s, and -server adds one", name, strings.Join(serverNames(), ", "))
	}
	return nil
}

// addedServer is one of the command line.
func (b *bench) addedServer(ctx context.Context, a added) (*server, error) {
	if slices.Contains(petrelKinds, a.kind) {
		s, err := b.petrelServer(ctx, a.kind, a.command)
		if err != nil {
			return nil, err
		}
		s.name, s.kind = a.name, a.kind
		return s, nil
	}
	s := &server{name: a.name, kind: a.kind}
	switch a.kind {
	case "centrifugo":
		s.launch = launchCentrifugo(a.command)
	case "pusher", "plain", "nchan", "nats":
		s.launch = func(_ context.Context, _ string, port int) (*launch, error) {
			fill := strings.NewReplacer("{port}", fmt.Sprint(port), "{app}", appID, "{key}", appKey, "{secret}", appSecret)
			return &launch{args: strings.Fields(fill.Replace(a.command)), target: webTarget(a.kind, port)}, nil
		}
	default:
		return nil, fmt.Errorf("no such kind: %s", a.kind)
	}
	return s, nil
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func webTarget(dialect string, port int) load.Target {
	return load.Target{Dialect: dialect, Addr: local(port), App: appID, Key: appKey, Secret: appSecret}
}

func findLimit(mode string) func(context.Context, *bench) (*server, error) {
	return func(ctx context.Context, b *bench) (*server, error) {
		binary, err := bare.BuildLimit(ctx, b.work)
		if errors.Is(err, bare.ErrNoCompiler) {
			return nil, absent{err.Error()}
		}
		if err != nil {
			return nil, err
		}
		return &server{version: "C, " + firstLine(ctx, "cc", "--version"), launch: bareLaunch(binary, mode)}, nil
	}
}

func findBare(mode string) func(context.Context, *bench) (*server, error) {
	return func(_ context.Context, b *bench) (*server, error) {
		return &server{version: runtime.Version(), launch: bareLaunch(b.self, "bare", mode)}, nil
	}
}

// bareLaunch starts a command whose last arguments are the port and the mode.
func bareLaunch(command ...string) func(context.Context, string, int) (*launch, error) {
	return func(_ context.Context, _ string, port int) (*launch, error) {
		last := len(command) - 1
		args := append(append([]string(nil), command[:last]...), fmt.Sprint(port))
		if command[last] != "" {
			args = append(args, command[last])
		}
		return &launch{args: args, target: webTarget("plain", port)}, nil
	}
}

// peersDir is where install.sh puts peers.
func peersDir() (string, error) {
	if dir := os.Getenv("PETREL_BENCH_PEERS"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "petrel-bench"), nil
}

// findNchan takes nginx with nchan from where install.sh unpacked it, or from where Debian installs it.
func findNchan(ctx context.Context, _ *bench) (*server, error) {
	dir, err := peersDir()
	if err != nil {
		return nil, err
	}
	for _, root := range []string{filepath.Join(dir, "nchan"), "/"} {
		nginx := filepath.Join(root, "usr/sbin/nginx")
		module := filepath.Join(root, "usr/lib/nginx/modules/ngx_nchan_module.so")
		if exists(nginx) && exists(module) {
			return &server{version: firstLine(ctx, nginx, "-v"), launch: launchNchan(nginx, module)}, nil
		}
	}
	return nil, absent{"it is not on this machine: bash bench/peers/install.sh nchan"}
}

func launchNchan(nginx, module string) func(context.Context, string, int) (*launch, error) {
	return func(_ context.Context, dir string, port int) (*launch, error) {
		conf := fmt.Sprintf(`load_module %s;
user root;
daemon off;
pid nginx.pid;
error_log error.log error;
worker_processes 2;
worker_rlimit_nofile %d;
events { worker_connections %d; }
http {
	access_log off;
	keepalive_requests 100000000;
	keepalive_timeout 300s;
	tcp_nodelay on;
	nchan_max_reserved_memory 1024M;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server {
		listen %s backlog=4096;
		location ~ ^/sub/(\w+)$ { nchan_subscriber websocket; nchan_channel_id $1; nchan_websocket_ping_interval 25; }
		location ~ ^/pub/(\w+)$ { nchan_publisher http; nchan_channel_id $1; nchan_store_messages off; }
	}
}
`, module, maxFiles(), maxFiles(), local(port))
		if os.Getuid() != 0 {
			conf = strings.Replace(conf, "user root;\n", "", 1)
		}
		file := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		return &launch{args: []string{nginx, "-p", dir, "-c", file, "-e", filepath.Join(dir, "error.log")}, target: webTarget("nchan", port)}, nil
	}
}

func findSoketi(context.Context, *bench) (*server, error) {
	dir, err := peersDir()
	if err != nil {
		return nil, err
	}
	script := filepath.Join(dir, "soketi/node_modules/@soketi/soketi/bin/server.js")
	node, err := filepath.Glob(filepath.Join(dir, "soketi/node_modules/node-linux-*/bin/node"))
	if err != nil || len(node) == 0 || !exists(script) {
		return nil, absent{"it is not on this machine: bash bench/peers/install.sh soketi"}
	}
	return &server{version: "1.6.1, Node 18", launch: func(_ context.Context, _ string, port int) (*launch, error) {
		return &launch{
			args: []string{node[0], script, "start"},
			env: []string{
				"SOKETI_HOST=127.0.0.1", fmt.Sprintf("SOKETI_PORT=%d", port), "SOKETI_DEBUG=0", "SOKETI_METRICS_ENABLED=0",
				"SOKETI_DEFAULT_APP_ID=" + appID, "SOKETI_DEFAULT_APP_KEY=" + appKey, "SOKETI_DEFAULT_APP_SECRET=" + appSecret,
				"SOKETI_DEFAULT_APP_MAX_CONNS=-1", "SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC=-1", "SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC=-1",
				"SOKETI_DEFAULT_APP_MAX_READ_REQ_PER_SEC=-1",
			},
			target: webTarget("pusher", port),
		}, nil
	}}, nil
}

// findNATS builds the nats-server of this module's own dependencies.
func findNATS(ctx context.Context, b *bench) (*server, error) {
	const module = "github.com/nats-io/nats-server/v2"
	binary := filepath.Join(b.work, "nats-server")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, module).CombinedOutput(); err != nil {
		return nil, absent{fmt.Sprintf("go build %s, which works within Petrel's sources: %v %s", module, err, out)}
	}
	return &server{version: firstLine(ctx, binary, "--version"), launch: func(ctx context.Context, dir string, port int) (*launch, error) {
		tcp, err := rig.FreePort(ctx)
		if err != nil {
			return nil, err
		}
		conf := fmt.Sprintf("listen: %q\nping_interval: \"25s\"\nmax_connections: 100000\nwebsocket { listen: %q, no_tls: true, compression: false }\n", local(tcp), local(port))
		file := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		return &launch{args: []string{binary, "-c", file}, target: load.Target{Dialect: "nats", Addr: local(port), Publish: local(tcp)}}, nil
	}}, nil
}

// launchCentrifugo starts a Centrifugo of version 6 as its documentation says. None could be had where this was written, so this is untried.
func launchCentrifugo(binary string) func(context.Context, string, int) (*launch, error) {
	return func(_ context.Context, dir string, port int) (*launch, error) {
		conf := fmt.Sprintf(`{"http_server":{"address":"127.0.0.1","port":%d},"http_api":{"key":%q},"log":{"level":"error"},"usage_stats":{"enabled":false},
"client":{"allow_anonymous_connect_without_token":true},
"channel":{"without_namespace":{"allow_subscribe_for_client":true,"allow_subscribe_for_anonymous":true}}}`, port, appKey)
		file := filepath.Join(dir, "centrifugo.json")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		return &launch{args: []string{binary, "-c", file}, target: webTarget("centrifugo", port)}, nil
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// firstLine is what a command says of itself.
func firstLine(ctx context.Context, command string, args ...string) string {
	out, err := exec.CommandContext(ctx, command, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
