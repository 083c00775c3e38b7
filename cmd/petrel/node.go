package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/petrel-chat/petrel/internal/node"
)

type nodeCmd struct {
	List     nodeListCmd     `cmd:"" help:"Show the nodes of the cell: roles, addresses, how far behind."`
	Drain    nodeDrainCmd    `cmd:"" help:"Make a node hand over its connections and leadership, before it is stopped."`
	Remove   nodeRemoveCmd   `cmd:"" help:"Forget a node for good."`
	Replace  nodeReplaceCmd  `cmd:"" help:"Remove a node once another has taken its place."`
	Transfer nodeTransferCmd `cmd:"" help:"Hand leadership to another node."`
}

// Help is shown by `petrel node --help`.
func (nodeCmd) Help() string {
	return `A cell is several nodes that hold the same log: any of them takes reads and writes, and one can fail.
These commands ask the node whose data folder --data names; that may be any node of the cell.

Examples:
  petrel node list
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

type nodeDrainCmd struct {
	Node string `arg:"" optional:"" help:"Name of the node; the one asked when absent."`
	target
}

func (c *nodeDrainCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		if err := op.DrainNode(ctx, c.Node); err != nil {
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
	return c.do(con, func(ctx context.Context, op node.Operator) error { return op.RemoveNode(ctx, c.Node, c.Force) })
}

type nodeReplaceCmd struct {
	Node string `arg:"" help:"Name or member id of the node that goes."`
	With string `required:"" placeholder:"NODE" help:"The node that has joined in its place."`
	target
}

func (c *nodeReplaceCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error { return op.ReplaceNode(ctx, c.Node, c.With) })
}

type nodeTransferCmd struct {
	Node string `arg:"" optional:"" help:"The node that shall lead; the one most up to date when absent."`
	target
}

func (c *nodeTransferCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error { return op.TransferLeadership(ctx, c.Node) })
}
