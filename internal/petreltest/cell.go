package petreltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/node"
)

// CellOptions of StartCell.
type CellOptions struct {
	Nodes int // default 3; 1 is a node that runs alone
	// Faults plants a bug in node i. nil: none.
	Faults func(i int) *node.Faults
	// Jobs are kinds of jobs and who carries them out, on every node. nil: those of production alone.
	Jobs map[string]effect.Handler
	// CompareEvery is how often replicas compare themselves. 0: as in production.
	CompareEvery time.Duration
	// Change may set more of what node i is opened with. nil: nothing.
	Change func(i int, o *node.Options)
}

// Cell is nodes in this process, with real sockets between them and for clients. It knows no kill -9: Kill is a stop without
// a word to anybody, and what a node had not written is still written. For that and for networks that fail there is Fleet.
type Cell struct {
	tb    testing.TB
	opt   CellOptions
	http  *http.Client
	root  string
	nodes []*cellNode
}

type cellNode struct {
	name string
	dir  string

	mu   sync.Mutex // guards what follows
	node *node.Node // nil while it is down
	logs *logBuffer // of all its lives
}

// StartCell founds a cell, or a single node, and waits until every node votes.
func StartCell(tb testing.TB, o CellOptions) *Cell {
	tb.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	c := &Cell{tb: tb, opt: o, http: &http.Client{Transport: transport}, root: tb.TempDir()}
	tb.Cleanup(func() {
		transport.CloseIdleConnections()
		for i, n := range c.nodes {
			c.Kill(i)

			if tb.Failed() {
				tb.Logf("the end of what %s wrote:\n%s", n.name, tail(n.logs.String(), 6000))
			}
		}
	})
	for i := range o.Nodes {
		name := fmt.Sprintf("n%d", i+1)
		c.nodes = append(c.nodes, &cellNode{name: name, dir: filepath.Join(c.root, name), logs: &logBuffer{}})
	}
	for i := range c.nodes {
		ctx, cancel := context.WithTimeout(tb.Context(), Patience)
		err := c.Start(ctx, i)
		cancel()
		if err != nil {
			tb.Fatalf("start %s: %v", c.nodes[i].name, err)
		}
	}
	if err := c.WaitHealthy(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return c
}

// Size is how many nodes there are.
func (c *Cell) Size() int { return len(c.nodes) }

func (c *Cell) config(ctx context.Context, i int) (node.Config, error) {
	cfg := node.DefaultConfig()
	cfg.Data, cfg.Name, cfg.Listen, cfg.Admin = c.nodes[i].dir, c.nodes[i].name, "127.0.0.1:0", "127.0.0.1:0"
	cfg.AppID, cfg.AppKey, cfg.AppSecret = AppID, AppKey, AppSecret
	if len(c.nodes) == 1 {
		return cfg, nil
	}
	cfg.Peer, cfg.Bus = "127.0.0.1:0", "127.0.0.1:0"
	if _, err := os.Stat(filepath.Join(cfg.Data, "cell.json")); i == 0 || err == nil {
		return cfg, nil // it founds, or knows the others
	}
	first := c.Node(0)
	if first == nil {
		return cfg, errors.New("the first node is down")
	}
	view, err := first.Cell(ctx)
	if err != nil {
		return cfg, err
	}
	for _, n := range view.Nodes {
		if n.Self {
			cfg.Join = n.Peer
		}
	}
	cfg.CellSecretFile = filepath.Join(c.nodes[0].dir, "cell-secret")
	return cfg, nil
}

// Start starts a node and returns when it lets people in.
func (c *Cell) Start(ctx context.Context, i int) error {
	cn := c.nodes[i]
	cfg, err := c.config(ctx, i)
	if err != nil {
		return err
	}
	opt := node.Options{Config: cfg, Logger: slog.New(slog.NewJSONHandler(cn.logs, nil)), Notice: io.Discard, CompareEvery: c.opt.CompareEvery, Jobs: c.opt.Jobs}
	if c.opt.Faults != nil {
		opt.Faults = c.opt.Faults(i)
	}
	if c.opt.Change != nil {
		c.opt.Change(i, &opt)
	}
	n, err := node.Open(ctx, opt)
	if err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return errors.Join(err, n.Stop())
	}
	cn.mu.Lock()
	cn.node = n
	cn.mu.Unlock()
	return nil
}

// Kill stops a node without a word to its clients or to the other nodes.
func (c *Cell) Kill(i int) {
	if n := c.down(i); n != nil {
		_ = n.Stop() // the next start finds what matters
	}
}

// Stop stops a node as SIGTERM does.
func (c *Cell) Stop(ctx context.Context, i int) error {
	n := c.down(i)
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	n.Drain(ctx)
	return n.Stop()
}

// Restart is Stop and Start.
func (c *Cell) Restart(ctx context.Context, i int) error {
	return errors.Join(c.Stop(ctx, i), c.Start(ctx, i))
}

func (c *Cell) down(i int) *node.Node {
	cn := c.nodes[i]
	cn.mu.Lock()
	defer cn.mu.Unlock()
	n := cn.node
	cn.node = nil
	return n
}

// Node returns a node, nil while it is down.
func (c *Cell) Node(i int) *node.Node {
	cn := c.nodes[i]
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.node
}

// URL is where a node's public listener is, "" while it is down.
func (c *Cell) URL(i int) string {
	if n := c.Node(i); n != nil {
		return "http://" + n.Addr()
	}
	return ""
}

// Sites are the nodes as clients see them.
func (c *Cell) Sites() []Site {
	var out []Site
	for i, n := range c.nodes {
		out = append(out, Site{Name: n.name, At: func() (string, *http.Client) { return c.URL(i), c.http }})
	}
	return out
}

// Leader is the node that takes itself for the leader; -1 when none does.
func (c *Cell) Leader(ctx context.Context) int {
	for i := range c.nodes {
		n := c.Node(i)
		if n == nil {
			continue
		}
		view, err := n.Cell(ctx)
		if err != nil {
			continue
		}
		for _, m := range view.Nodes {
			if m.Self && m.Role == "leader" {
				return i
			}
		}
	}
	return -1
}

// WaitHealthy waits until every node sees all of them as living voters.
func (c *Cell) WaitHealthy(ctx context.Context) error {
	why := ""
	if poll(ctx, Patience, func() bool { why = c.ill(ctx); return why == "" }) {
		return nil
	}
	return fmt.Errorf("the cell did not become healthy: %s", why)
}

func (c *Cell) ill(ctx context.Context) string {
	for i, cn := range c.nodes {
		n := c.Node(i)
		if n == nil {
			return cn.name + " is down"
		}
		view, err := n.Cell(ctx)
		if err != nil {
			return fmt.Sprintf("%s does not show the cell: %v", cn.name, err)
		}
		living := 0
		for _, m := range view.Nodes {
			if m.Alive && m.Role != "nonvoter" {
				living++
			}
		}
		if view.Leader == "" || living != len(c.nodes) || view.Voters != len(c.nodes) {
			return fmt.Sprintf("%s sees %+v", cn.name, view)
		}
	}
	return ""
}
