package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
)

// httpClient is for what is asked now and then.
var httpClient = &http.Client{Timeout: 30 * time.Second}

// process is one petrel of a cell, in a process of its own.
type process struct {
	data   string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{}
	owner  node.Owner
	remote *node.Remote
}

// village is a cell of processes, as villages of houses are.
type village struct {
	ctx   context.Context //nolint:containedctx // the processes end with it
	o     CellOptions
	nodes []*process
}

// newVillage starts the processes and waits until all of them vote.
func newVillage(ctx context.Context, dir string, size int, o CellOptions) (v *village, err error) {
	v = &village{ctx: ctx, o: o}
	defer func() {
		if err != nil {
			v.stop()
		}
	}()
	data, err := os.MkdirTemp(dir, "village-")
	if err != nil {
		return v, err
	}
	for i := range size {
		p := &process{data: filepath.Join(data, fmt.Sprint("n", i+1))}
		p.args = []string{"serve", "--data", p.data, "--name", fmt.Sprint("n", i+1), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "error"}
		if size > 1 {
			p.args = append(p.args, "--peer", "127.0.0.1:0", "--bus", "127.0.0.1:0")
		}
		if i > 0 {
			info, err := v.nodes[0].remote.Cell(ctx)
			if err != nil {
				return v, err
			}
			p.args = append(p.args, "--join", info.Nodes[0].Peer, "--cell-secret-file", filepath.Join(v.nodes[0].data, "cell-secret"))
		}
		v.nodes = append(v.nodes, p)
		if err := v.start(p); err != nil {
			return v, err
		}
	}
	return v, v.whole()
}

// start starts a process and waits until it is ready.
func (v *village) start(p *process) error {
	if err := os.Remove(filepath.Join(p.data, "lock")); err != nil && !errors.Is(err, os.ErrNotExist) { // what a killed one said of itself
		return err
	}
	p.cmd = exec.Command(v.o.Binary, p.args...) //nolint:noctx // it is killed by stop, in order
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PETREL_") && !strings.HasPrefix(kv, "PUSHER_") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "PETREL_APP_ID="+string(benchApp), "PETREL_APP_KEY="+benchKey, "PETREL_APP_SECRET="+benchSecret)
	p.cmd.Stderr = v.o.Progress
	p.exited = make(chan struct{})
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", v.o.Binary, err)
	}
	go func(done chan struct{}) {
		_ = p.cmd.Wait()
		close(done)
	}(p.exited)
	return until(v.ctx, func() (bool, error) {
		if !p.running() {
			return false, fmt.Errorf("%s ended before it was ready", p.cmd.Args)
		}
		owner, err := node.ReadOwner(p.data)
		if err != nil || owner.Listen == "" {
			return false, nil // not yet
		}
		if p.remote, err = node.NewRemote(owner.Admin, p.data); err != nil {
			return false, err
		}
		p.owner = owner
		return true, nil
	})
}

func (p *process) running() bool {
	if p.cmd == nil || p.cmd.Process == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// whole waits until every node votes, is heard of and has caught up.
func (v *village) whole() error {
	return until(v.ctx, func() (bool, error) {
		info, err := v.nodes[0].remote.Cell(v.ctx)
		if err != nil {
			return false, nil // it may have no leader yet
		}
		for _, n := range info.Nodes {
			if !n.Alive || n.Health != "ok" || n.Lag > 0 {
				return false, nil
			}
		}
		return len(info.Nodes) == len(v.nodes) && info.Voters == len(v.nodes) && info.Leader != "", nil
	})
}

// leader is the process that leads, and the others.
func (v *village) leader() (leads *process, others []*process, err error) {
	err = until(v.ctx, func() (bool, error) {
		leads, others = nil, nil
		for _, p := range v.nodes {
			info, err := p.remote.Cell(v.ctx)
			if err != nil {
				return false, nil
			}
			for _, n := range info.Nodes {
				if n.Self && n.Member == info.Leader {
					leads = p
				}
			}
			if leads != p {
				others = append(others, p)
			}
		}
		return leads != nil, nil
	})
	return leads, others, err
}

// stop kills what runs.
func (v *village) stop() {
	for _, p := range v.nodes {
		if p.running() {
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
	}
}

// tokens mints one for each of the first so many users.
func (v *village) tokens(n int) ([]string, error) {
	out := make([]string, n)
	for i := range out {
		t, err := v.nodes[0].remote.MintToken(v.ctx, benchApp, user(i), 24*time.Hour)
		if err != nil {
			return nil, err
		}
		out[i] = t.Token
	}
	return out, nil
}

// openRooms makes the rooms by way of p.
func (v *village) openRooms(p *process) error {
	for i := range benchRooms {
		body := strings.NewReader(`{"id":"` + string(room(i)) + `","kind":"open"}`)
		req, err := http.NewRequestWithContext(v.ctx, http.MethodPost, "http://"+p.owner.Listen+"/v1/rooms", body)
		if err != nil {
			return err
		}
		req.SetBasicAuth(benchKey, benchSecret)
		req.Header.Set("Content-Type", "application/json")
		resp, err := httpClient.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("make a room: %s %w", resp.Status, err)
		}
	}
	return nil
}

// terminate asks a process to stop in order; kill does not ask.
func (p *process) terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
func (p *process) kill() error      { return p.cmd.Process.Kill() }
