package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/web"
)

// devCell is the nodes of `petrel dev cell`.
type devCell struct {
	dir          string
	webhookAllow string
	fresh        bool // the first node founds the cell
	nodes        []*devNode
	failures     chan *devNode

	mu sync.Mutex // lines of nodes that start at one time
}

// devNode is one of them. What is saved is where it was last time, so that the others find it again.
type devNode struct {
	Name   string `json:"name"`
	Listen string `json:"listen"`
	Admin  string `json:"admin"`
	Peer   string `json:"peer"`
	Bus    string `json:"bus"`

	node *node.Node    // nil while it is down
	gone chan struct{} // closed when it is stopped
	log  *os.File
}

// devFile in the cell's folder says which nodes it has.
const devFile = "dev-cell.json"

// devDrain is how long a node's people have to move: they are on this machine.
const devDrain = 3 * time.Second

func openDevCell(dir string, nodes, port int) (*devCell, error) {
	d := &devCell{dir: dir, failures: make(chan *devNode)}
	b, err := os.ReadFile(filepath.Join(dir, devFile))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &d.nodes); err != nil {
			return nil, fmt.Errorf("%s cannot be read; remove the folder to begin anew: %w", filepath.Join(dir, devFile), err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if len(d.nodes) > nodes {
		return nil, mistake{fmt.Errorf("the cell in %s has %d nodes, and --nodes says %d; a cell loses nodes by `petrel node remove`", dir, len(d.nodes), nodes)}
	}
	d.fresh = len(d.nodes) == 0
	for i := len(d.nodes); i < nodes; i++ {
		at := func(offset int) string {
			if port == 0 {
				return "127.0.0.1:0"
			}
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+10*i+offset))
		}
		d.nodes = append(d.nodes, &devNode{Name: fmt.Sprintf("n%d", i+1), Listen: at(0), Admin: at(1), Peer: at(2), Bus: at(3)})
	}
	return d, os.MkdirAll(dir, 0o700)
}

// save remembers where the nodes are.
func (d *devCell) save(ctx context.Context) error {
	for _, m := range d.nodes {
		if m.node == nil {
			continue
		}
		info, err := m.node.Cell(ctx)
		if err != nil {
			return err
		}
		m.Listen, m.Admin = m.node.Addr(), m.node.AdminAddr()
		for _, n := range info.Nodes {
			if n.Self {
				m.Peer, m.Bus = n.Peer, n.Bus
			}
		}
	}
	b, err := json.MarshalIndent(d.nodes, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.dir, devFile), append(b, '\n'), 0o600)
}

func (d *devCell) say(w io.Writer, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(w, format, args...)
}

func (d *devCell) named(name string) *devNode {
	for _, m := range d.nodes {
		if m.Name == name {
			return m
		}
	}
	return nil
}

func (d *devCell) names() string {
	var names []string
	for _, m := range d.nodes {
		names = append(names, m.Name)
	}
	return strings.Join(names, ", ")
}

// voters is how many of the nodes vote.
func (d *devCell) voters() int {
	if len(d.nodes) > 3 {
		return 5
	}
	return 3
}

func (m *devNode) logPath(d *devCell) string { return filepath.Join(d.dir, m.Name+".log") }

// start opens the node and lets people in.
func (m *devNode) start(ctx context.Context, d *devCell) (err error) {
	log, err := os.OpenFile(m.logPath(d), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cfg := node.DefaultConfig()
	cfg.Name, cfg.Data, cfg.Demo, cfg.Voters, cfg.DrainTimeout = m.Name, filepath.Join(d.dir, m.Name), true, d.voters(), devDrain
	cfg.WebhookAllow = d.webhookAllow
	cfg.Listen, cfg.Admin, cfg.Peer, cfg.Bus = free(ctx, m.Listen), free(ctx, m.Admin), free(ctx, m.Peer), free(ctx, m.Bus)
	if first := d.nodes[0]; m != first {
		cfg.Join, cfg.CellSecretFile = first.Peer, filepath.Join(d.dir, first.Name, "cell-secret")
	}
	n, err := openDevNode(ctx, node.Options{Config: cfg, Logger: node.NewLogger(log, "info", "text"), Build: build(), Web: web.Handler()})
	if err != nil {
		return errors.Join(err, log.Close())
	}
	if err := n.Start(ctx); err != nil {
		return errors.Join(stopNow(n, err), log.Close())
	}
	m.node, m.log, m.gone = n, log, make(chan struct{})
	go func(gone <-chan struct{}) {
		select {
		case <-n.Failed():
		case <-gone:
			return
		}
		select {
		case d.failures <- m:
		case <-gone:
		}
	}(m.gone)
	return nil
}

// openDevNode opens a node, and once more when it has set its replica aside: how often is bounded by the node.
func openDevNode(ctx context.Context, o node.Options) (*node.Node, error) {
	for {
		n, err := node.Open(ctx, o)
		if !errors.Is(err, node.ErrRebuild) || ctx.Err() != nil {
			return n, err
		}
		o.Logger.Warn("opening the node again, as a new member of its cell", "why", err)
	}
}

// free is addr, or a free port of its host when it is taken.
func free(ctx context.Context, addr string) string {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close()
	return addr
}

func (m *devNode) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, devDrain)
	defer cancel()
	m.node.Drain(ctx)
}

func (m *devNode) stop() error {
	n := m.node
	m.node = nil
	close(m.gone)
	return errors.Join(n.Stop(), m.log.Close())
}

// stop drains all nodes at once and stops them; a second signal ends the draining.
func (d *devCell) stop(again <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), devDrain)
	defer cancel()
	go func() {
		select {
		case <-again:
			cancel()
		case <-ctx.Done():
		}
	}()
	var g errgroup.Group
	for _, m := range d.nodes {
		if m.node != nil {
			g.Go(func() error {
				m.drain(ctx)
				return m.stop()
			})
		}
	}
	return g.Wait()
}
