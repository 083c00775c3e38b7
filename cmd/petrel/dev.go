package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

type devCmd struct {
	Cell devCellCmd `cmd:"" help:"Run a cell of three nodes in this process, for trying things out."`
}

type devCellCmd struct {
	Nodes        int    `default:"3" placeholder:"N" help:"How many nodes, 1 to 5."`
	Data         string `default:"petrel-cell" placeholder:"DIR" help:"Folder of the cell; the nodes' data folders are DIR/n1, DIR/n2, …. A second start goes on with them."`
	Port         int    `default:"8080" placeholder:"PORT" help:"Public port of the first node; each next node's is 10 higher. The ports for admin, peer and bus follow it. Taken ones are replaced; 0 takes free ones."`
	WebhookAllow string `name:"webhook-allow" placeholder:"CIDR,…" help:"Private networks that webhooks may call, like 127.0.0.0/8 for a receiver on this machine."`
}

// Help is shown by `petrel dev cell --help`.
func (devCellCmd) Help() string {
	return `Every node has its own page: who signs in at one chats with those at the others. While it runs, type

  list       to show the nodes
  kill n2    to end a node without a word to the others
  stop n2    to end it in order: its people move, its leadership too
  start n2   to bring it back
  quit       to stop them all, as Ctrl-C does

Each folder is a node's like any other, so every command works beside it: petrel node list --data petrel-cell/n1

Example:
  petrel dev cell --data /tmp/cell`
}

func (c *devCellCmd) Run(con *console) error {
	switch {
	case c.Nodes < 1 || c.Nodes > 5:
		return mistake{fmt.Errorf("--nodes is %d; a cell for trying out has 1 to 5", c.Nodes)}
	case c.Port < 0 || c.Port > 65500:
		return mistake{fmt.Errorf("--port is %d; it must be between 0 and 65500", c.Port)}
	}
	if _, _, err := node.LoadConfig(node.Sources{Flags: map[string]any{"webhook-allow": c.WebhookAllow}}); err != nil {
		return mistake{err}
	}
	d, err := openDevCell(c.Data, c.Nodes, c.Port)
	if err != nil {
		return err
	}
	d.webhookAllow = c.WebhookAllow
	err = d.run(con)
	if con.ctx.Err() != nil {
		err = nil // asked to stop, even while it grew
	}
	fmt.Fprintln(con.out, "stopping")
	return errors.Join(err, d.stop(con.again))
}

// run grows the cell, tells what to try, and does what is typed until ctx of con ends.
func (d *devCell) run(con *console) error {
	fmt.Fprintf(con.out, "A cell of %d nodes starts in %s.\n\n", len(d.nodes), d.dir)
	if err := d.start(con.ctx, con.out); err != nil {
		return err
	}
	if err := d.votes(con.ctx, con.out); err != nil {
		return err
	}
	if err := d.welcome(con.ctx, con.out); err != nil {
		return err
	}
	lines := make(chan string)
	go func() { // lives as long as the process: nothing ends a read of a terminal
		in := bufio.NewScanner(con.in)
		for in.Scan() {
			lines <- in.Text()
		}
	}()
	for {
		select {
		case <-con.ctx.Done():
			return nil
		case m := <-d.failures:
			d.failed(con, m)
		case line := <-lines:
			if quit := d.typed(con, line); quit {
				return nil
			}
		}
	}
}

// start starts all nodes; the first alone when it has to found the cell.
func (d *devCell) start(ctx context.Context, w io.Writer) error {
	began := time.Now()
	up := func(ctx context.Context, m *devNode, how string) error {
		if err := m.start(ctx, d); err != nil {
			return fmt.Errorf("%s (its log is %s): %w", m.Name, m.logPath(d), err)
		}
		d.say(w, "  %s  %-34s http://%s   (%.1f s)\n", m.Name, how, m.node.Addr(), time.Since(began).Seconds())
		return nil
	}
	rest, how := d.nodes, "is back"
	if d.fresh {
		if err := up(ctx, d.nodes[0], "has founded the cell"); err != nil {
			return err
		}
		if err := d.save(ctx); err != nil { // the others join where it listens
			return err
		}
		rest, how = d.nodes[1:], "has joined and caught up"
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range rest {
		g.Go(func() error { return up(ctx, m, how) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return d.save(ctx)
}

// votes waits until every node that is to vote does, and tells how it goes.
func (d *devCell) votes(ctx context.Context, w io.Writer) error {
	told := map[string]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := d.info(ctx)
		if err != nil {
			return err
		}
		for _, n := range info.Nodes {
			if n.Role != "nonvoter" && !told[n.Name] && d.fresh && len(d.nodes) > 1 {
				told[n.Name] = true
				d.say(w, "  %s  votes\n", n.Name)
			}
		}
		if info.Voters >= min(len(d.nodes), d.voters()) && info.Leader != "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-d.failures:
			return fmt.Errorf("%s failed: %w", m.Name, m.node.Err())
		case <-tick.C:
		}
	}
}

// welcome says where everything is and what to try.
func (d *devCell) welcome(ctx context.Context, w io.Writer) error {
	n1 := d.nodes[0].node
	apps, err := n1.Apps(ctx)
	if err != nil {
		return err
	}
	if len(apps) == 0 || len(apps[0].Keys) == 0 {
		return errors.New("the cell has no app; was it made by petrel dev cell?")
	}
	app := apps[0]
	token, err := n1.MintToken(ctx, app.ID, "ada", 24*time.Hour)
	if err != nil {
		return err
	}
	key := app.Keys[len(app.Keys)-1]
	fmt.Fprint(w, "\nThe cell is ready. Open the pages in several browsers, choose names, and chat across the nodes.\n\n")
	if err := d.list(ctx, w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n  app      %s\n  key      %s\n  secret   %s\n\nA token for the user \"ada\", good for a day, and a message through each node:\n\n  TOKEN=%s\n",
		app.ID, key.Key, key.Secret, token.Token)
	for _, m := range d.nodes {
		fmt.Fprintf(w, "  curl http://%s/v1/rooms/lobby/messages -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{\"text\":\"Hello through %s\"}'\n",
			m.node.Addr(), m.Name)
	}
	last := d.nodes[len(d.nodes)-1].Name
	_, err = fmt.Fprintf(w, `
Try next, in another terminal:

  petrel node list --data %[1]s
  petrel node transfer %[2]s --data %[1]s
  petrel verify --data %[1]s

or type here: list, kill %[2]s, stop %[2]s, start %[2]s, quit. Ctrl-C stops all; a second start goes on.
The nodes write their logs to %[3]s.

`, filepath.Join(d.dir, d.nodes[0].Name), last, filepath.Join(d.dir, "n*.log"))
	return err
}

// list shows the nodes as the first living one sees them.
func (d *devCell) list(ctx context.Context, w io.Writer) error {
	info, err := d.info(ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "  NODE\tROLE\tPAGE\tADMIN\tPEER\tDATA")
	for _, m := range d.nodes {
		role, page, admin := "down", "-", "-"
		if m.node != nil {
			page, admin = "http://"+m.node.Addr(), m.node.AdminAddr()
		}
		for _, n := range info.Nodes {
			if n.Name == m.Name && m.node != nil {
				role = n.Role
				if n.Health != "" && n.Health != "ok" {
					role += ", " + n.Health
				}
			}
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", m.Name, role, page, admin, m.Peer, filepath.Join(d.dir, m.Name))
	}
	return t.Flush()
}

// typed does what a line of standard input asks for.
func (d *devCell) typed(con *console, line string) (quit bool) {
	words := append(strings.Fields(line), "", "")
	verb, name := words[0], words[1]
	switch verb {
	case "":
		return false
	case "quit", "exit":
		return true
	case "list":
		if err := d.list(con.ctx, con.out); err != nil {
			fmt.Fprintln(con.out, sentence(err))
		}
		return false
	case "kill", "stop", "start":
	default:
		fmt.Fprintln(con.out, "there are list, kill NODE, stop NODE, start NODE and quit")
		return false
	}
	m := d.named(name)
	switch {
	case m == nil:
		fmt.Fprintf(con.out, "which node? %s needs one of %s\n", verb, d.names())
	case verb == "start" && m.node != nil:
		fmt.Fprintf(con.out, "%s runs already\n", name)
	case verb != "start" && m.node == nil:
		fmt.Fprintf(con.out, "%s is down already; start %s brings it back\n", name, name)
	case verb == "start":
		d.restart(con, m)
	default:
		began := time.Now()
		if verb == "stop" {
			m.drain(con.ctx)
		}
		err := m.stop()
		if err != nil {
			fmt.Fprintln(con.out, sentence(err))
		}
		fmt.Fprintf(con.out, "%s is down after %.1f s; start %s brings it back\n", name, time.Since(began).Seconds(), name)
	}
	return false
}

func (d *devCell) restart(con *console, m *devNode) {
	fmt.Fprintf(con.out, "%s starts\n", m.Name)
	err := m.start(con.ctx, d)
	if err == nil {
		err = d.save(con.ctx)
	}
	if err != nil {
		fmt.Fprintf(con.out, "%s did not start: %s\n", m.Name, sentence(err))
		return
	}
	fmt.Fprintf(con.out, "%s is back: http://%s\n", m.Name, m.node.Addr())
}

// failed is told of a node that ended by itself.
func (d *devCell) failed(con *console, m *devNode) {
	why := m.node.Err()
	fmt.Fprintf(con.out, "%s stopped by itself: %s\n", m.Name, sentence(why))
	_ = m.stop() // the first error is the one worth telling
	if errors.Is(why, node.ErrRebuild) {
		d.restart(con, m)
	}
}

func (d *devCell) info(ctx context.Context) (node.CellInfo, error) {
	for _, m := range d.nodes {
		if m.node != nil {
			return m.node.Cell(ctx)
		}
	}
	return node.CellInfo{}, petrel.Errorf(petrel.CodeNotFound, "No node runs; start one.")
}
