//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/bench/peers/load"
	"github.com/petrel-chat/petrel/bench/rig"
)

// nativeRooms are the most that Petrel's native protocol is given: rooms are durable, and each takes a request to make.
const nativeRooms = 1000

// petrelKinds are Petrel itself: its Pusher protocol, its native one with durable rooms, and the former over TLS and through an io_uring.
var petrelKinds = []string{"petrel", "petrel-native", "petrel-tls", "petrel-uring"}

func findPetrel(kind string) func(context.Context, *bench) (*server, error) {
	return func(ctx context.Context, b *bench) (*server, error) { return b.petrelServer(ctx, kind, "{petrel}") }
}

// petrelServer is started by a command line, in which {petrel} is the binary of -petrel or of this tree.
func (b *bench) petrelServer(ctx context.Context, kind, line string) (*server, error) {
	if kind == "petrel-uring" {
		// A kernel that allows one gets as far as its parameters, which are not there. The number is the same on all of Go's machines but MIPS.
		const ioUringSetup = 425
		if _, _, errno := syscall.Syscall(ioUringSetup, 1, 0, 0); errno != syscall.EFAULT {
			return nil, absent{"this kernel gives no io_uring: " + errno.Error()}
		}
	}
	if strings.Contains(line, "{petrel}") && b.s.petrel == "" {
		binary, err := rig.BuildPetrel(ctx, b.work)
		if err != nil {
			return nil, err
		}
		b.s.petrel = binary
	}
	command := strings.Fields(line)
	for i, word := range command {
		command[i] = strings.ReplaceAll(word, "{petrel}", b.s.petrel) // a path may have spaces
	}
	version, err := exec.CommandContext(ctx, command[0], append(command[1:], "version")...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w: %s", strings.Join(command, " "), err, version)
	}
	return &server{version: firstLines(strings.TrimSpace(string(version)), 1), launch: func(ctx context.Context, dir string, port int) (*launch, error) {
		admin, err := rig.FreePort(ctx)
		if err != nil {
			return nil, err
		}
		l := &launch{
			args: append(slices.Clone(command), "serve", "--data", filepath.Join(dir, "data"), "--listen", local(port), "--admin", local(admin),
				"--log-level", "warn", "--max-connections", "100000"),
			env:     []string{"PETREL_APP_ID=" + appID, "PETREL_APP_KEY=" + appKey, "PETREL_APP_SECRET=" + appSecret, "PETREL_APP_RATE=0"},
			target:  webTarget("pusher", port),
			ready:   func(ctx context.Context) error { return rig.Ready(ctx, local(admin)) },
			profile: profiler("http://" + local(admin) + "/debug/pprof/profile"),
		}
		switch kind {
		case "petrel-native":
			l.target.Dialect = "petrel"
			l.prepare = func(ctx context.Context, job *load.Job) error { return makeRooms(ctx, local(port), job) }
		case "petrel-uring":
			l.args = append(l.args, "--io-uring")
		case "petrel-tls":
			cert, key, err := rig.SelfSigned(dir)
			if err != nil {
				return nil, err
			}
			l.args = append(l.args, "--tls-cert", cert, "--tls-key", key)
			l.target.TLS = true
		}
		return l, nil
	}}, nil
}

// client is for what is asked beside the load.
func client() *http.Client {
	return &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
}

func ask(ctx context.Context, c *http.Client, method, url string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(appKey, appSecret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %.300s", method, url, resp.Status, text)
	}
	return text, nil
}

// makeRooms makes as many rooms as the job has channels.
func makeRooms(ctx context.Context, addr string, job *load.Job) error {
	if job.Channels == 0 || job.Channels > nativeRooms {
		job.Channels = min(nativeRooms, job.Subscribers)
	}
	c := client()
	defer c.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(32)
	for i := range job.Channels {
		group.Go(func() error {
			_, err := ask(ctx, c, http.MethodPost, "http://"+addr+"/v1/rooms", fmt.Appendf(nil, `{"id":%q,"kind":"open"}`, load.Channel(i)), http.StatusCreated)
			return err
		})
	}
	return group.Wait()
}

// profiler takes a CPU profile from a Go server's pprof.
func profiler(url string) func(ctx context.Context, name string, seconds int) error {
	return func(ctx context.Context, name string, seconds int) error {
		c := client()
		defer c.CloseIdleConnections()
		text, err := ask(ctx, c, http.MethodGet, fmt.Sprintf("%s?seconds=%d", url, seconds), nil, http.StatusOK)
		if err != nil {
			return err
		}
		return os.WriteFile(name, text, 0o644)
	}
}
