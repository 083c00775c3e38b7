package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
)

type nodeCmd struct {
	List     nodeListCmd     `cmd:"" help:"Show the nodes of the cell: roles, addresses, how far behind."`
	Wait     nodeWaitCmd     `cmd:"" help:"Wait until the nodes are up and have caught up."`
	Drain    nodeDrainCmd    `cmd:"" help:"Make a node hand over its connections and leadership, before it is stopped."`
	Remove   nodeRemoveCmd   `cmd:"" help:"Forget a node for good."`
	Replace  nodeReplaceCmd  `cmd:"" help:"Remove a node once another has taken its place."`
	Transfer nodeTransferCmd `cmd:"" help:"Hand leadership to another node."`
	Recover  nodeRecoverCmd  `cmd:"" help:"After a quorum was lost for good: go on from one survivor."`
}

// Help is shown by `petrel node --help`.
func (nodeCmd) Help() string {
	return `A cell is several nodes that hold the same log: any of them takes reads and writes, and one can fail.
These commands ask the node whose data folder --data names; that may be any node of the cell.

Examples:
  petrel node list
  petrel node wait --voters 3          until three nodes vote and every node has caught up
  petrel node drain n2                 then stop or restart n2: nobody waits for it
  petrel node replace n2 --with n4     n2 is gone for good, n4 has joined
  petrel node remove n2                refused when too few voters would be left alive`
}

type nodeListCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
	target
}

func (c *nodeListCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		info, err := op.Cell(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(con.out, info)
		}
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tROLE\tSTATE\tAPPLIED\tLAG\tPEER\tPUBLIC\tMEMBER")
		for _, n := range info.Nodes {
			state := n.Health
			if !n.Alive {
				state = "silent"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", n.Name, n.Role, state, n.Applied, n.Lag, n.Peer, n.Public, n.Member)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		leader := "no leader: writes wait"
		if info.Leader != "" {
			leader = "led by " + string(info.Leader)
		}
		_, err = fmt.Fprintf(con.out, "\n%d of %d voters must be alive for writes; %s, term %d\n", info.Quorum, info.Voters, leader, info.Term)
		return err
	})
}

// waitLag is how far behind a node may be and still count as caught up, in entries: under load there are always a few.
const waitLag = 200

type nodeWaitCmd struct {
	Node    string        `arg:"" optional:"" help:"Name or member id of the node; all nodes of the cell when absent."`
	Voters  int           `placeholder:"N" help:"Wait also until so many nodes vote."`
	Timeout time.Duration `default:"2m" placeholder:"TIME" help:"Give up after this long."`
	target
}

// Help is shown by `petrel node wait --help`.
func (nodeWaitCmd) Help() string {
	return `A node is up when its /readyz says yes, and has caught up when it is less than 200 entries behind. The node that
is asked may itself just be starting: it is waited for, too. Exit code 1 and a sentence say what was missing.

Examples:
  petrel node wait --voters 3      after nodes have joined
  petrel node wait                 after each restart, before the next one`
}

func (c *nodeWaitCmd) Run(con *console) error {
	ctx, cancel := context.WithTimeout(con.ctx, c.Timeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := c.missing(ctx)
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			if con.ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return fmt.Errorf("after %s %s", c.Timeout, missing)
		case <-tick.C:
		}
	}
}

// missing says what is waited for; "" for nothing. It never opens the data folder: a node may be about to.
func (c *nodeWaitCmd) missing(ctx context.Context) string {
	admin := c.Admin
	if admin == "" {
		owner, err := node.ReadOwner(c.Data)
		if err != nil || owner.Admin == "" {
			return fmt.Sprintf("no node runs on %s yet", c.Data)
		}
		admin = owner.Admin
	}
	r, err := node.NewRemote(admin, c.Data)
	if err != nil {
		return sentence(err)
	}
	defer r.Close()
	info, err := r.Cell(ctx)
	if err != nil {
		return "the node asked says: " + sentence(err)
	}
	found := false
	for _, n := range info.Nodes {
		if c.Node != "" && n.Name != c.Node && string(n.Member) != c.Node {
			continue
		}
		found = true
		switch {
		case !n.Alive:
			return n.Name + " is not alive"
		case n.Health != "ok":
			return n.Name + " is " + n.Health
		case n.Lag > waitLag:
			return fmt.Sprintf("%s is %d entries behind", n.Name, n.Lag)
		}
	}
	switch {
	case !found:
		return fmt.Sprintf("there is no node %s in the cell", c.Node)
	case info.Leader == "":
		return "the cell has no leader"
	case info.Voters < c.Voters:
		return fmt.Sprintf("%d nodes vote", info.Voters)
	}
	return ""
}

type nodeDrainCmd struct {
	Node  string `arg:"" optional:"" help:"Name of the node; the one asked when absent."`
	Force bool   `help:"Drain it even if too few others stay for writes to go on while it is down."`
	target
}

func (c *nodeDrainCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		if err := op.DrainNode(ctx, c.Node, c.Force); err != nil {
			return err
		}
		_, err := fmt.Fprintln(con.out, "it drains: its /readyz says 503 now, and its process can be stopped or restarted; it takes traffic again after a restart")
		return err
	})
}

type nodeRemoveCmd struct {
	Node  string `arg:"" help:"Name or member id of the node."`
	Force bool   `help:"Remove it even if too few voters would be left alive. Writes then wait until enough are back."`
	target
}

func (c *nodeRemoveCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		if err := op.RemoveNode(ctx, c.Node, c.Force); err != nil {
			return err
		}
		return say(con, c.Node+" is no member of the cell any more; its process stops by itself")
	})
}

type nodeReplaceCmd struct {
	Node string `arg:"" help:"Name or member id of the node that goes."`
	With string `required:"" placeholder:"NODE" help:"The node that has joined in its place."`
	target
}

func (c *nodeReplaceCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		if err := op.ReplaceNode(ctx, c.Node, c.With); err != nil {
			return err
		}
		return say(con, fmt.Sprintf("%s has the place of %s, which is no member of the cell any more", c.With, c.Node))
	})
}

type nodeTransferCmd struct {
	Node string `arg:"" optional:"" help:"The node that shall lead; the one most up to date when absent."`
	target
}

func (c *nodeTransferCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		if err := op.TransferLeadership(ctx, c.Node); err != nil {
			return err
		}
		if c.Node == "" {
			return say(con, "leadership is handed over")
		}
		return say(con, c.Node+" leads now")
	})
}

func say(con *console, sentence string) error {
	_, err := fmt.Fprintln(con.out, sentence)
	return err
}
