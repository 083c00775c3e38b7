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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/bench/peers/load"
	"github.com/petrel-chat/petrel/bench/rig"
)

// nativeRooms are the most that Petrel's native protocol is given: rooms are durable, and each takes a request to make.
const nativeRooms = 1000

// findPetrel is Petrel itself: its Pusher protocol, its native one with durable rooms, and the former over TLS.
func findPetrel(kind string) func(context.Context, *bench) (*server, error) {
	return func(ctx context.Context, b *bench) (*server, error) {
		if b.s.petrel == "" {
			binary, err := rig.BuildPetrel(ctx, b.work)
			if err != nil {
				return nil, err
			}
			b.s.petrel = binary
		}
		return petrelServer(ctx, kind, b.s.petrel)
	}
}

func petrelServer(ctx context.Context, kind, binary string) (*server, error) {
	if kind == "petrel-tls" {
		help, err := exec.CommandContext(ctx, binary, "serve", "--help").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, help)
		}
		if !bytes.Contains(help, []byte("--tls-cert")) {
			return nil, absent{"this Petrel has no TLS of its own (--tls-cert)"}
		}
	}
	return &server{version: firstLine(ctx, binary, "version"), launch: func(ctx context.Context, dir string, port int) (*launch, error) {
		admin, err := rig.FreePort(ctx)
		if err != nil {
			return nil, err
		}
		l := &launch{
			args: []string{
				binary, "serve", "--data", filepath.Join(dir, "data"), "--listen", local(port), "--admin", local(admin), "--log-level", "warn",
				"--max-connections", "100000",
			},
			env:     []string{"PETREL_APP_ID=" + appID, "PETREL_APP_KEY=" + appKey, "PETREL_APP_SECRET=" + appSecret},
			target:  webTarget("pusher", port),
			ready:   func(ctx context.Context) error { return rig.Ready(ctx, local(admin)) },
			profile: profiler("http://" + local(admin) + "/debug/pprof/profile"),
		}
		switch kind {
		case "petrel-native":
			l.target.Dialect = "petrel"
			l.prepare = func(ctx context.Context, job *load.Job) error { return makeRooms(ctx, local(port), job) }
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
