package main

import (
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
)

type nodeRecoverCmd struct {
	Data  string `default:"petrel-data" env:"PETREL_DATA" placeholder:"DIR" help:"Data folder of a surviving node that is stopped."`
	Yes   bool   `help:"Do it. Without, it is only said what this folder holds."`
	Force bool   `help:"Even if other nodes seem to be there, or this replica is fenced."`
	JSON  bool   `name:"json" help:"Print JSON."`
}

// Help is shown by `petrel node recover --help`.
func (nodeRecoverCmd) Help() string {
	return `For when more nodes are gone for good than the cell can lose: with one of three left, no write is ever taken again.
This makes one survivor the only node of the cell. Bring back a lost node instead if there is any way to.

  1. Stop the surviving nodes, and run ` + "`petrel node recover`" + ` on each: it changes nothing and says how far the folder is.
     The survivor with the highest term is ahead; among equal terms, the one with the highest mark.
  2. On that one: ` + "`petrel node recover --yes`" + `, then start it with the flags that it had.
  3. Give the others empty data folders and the cell's new secret, and let them join.

The risk: what only the lost nodes had is gone, even if it was acknowledged. From the survivor that is ahead, that is what a lost
majority wrote without it in its last moments; from another, more. Clients notice by themselves: the log begins
another epoch, and they read anew instead of going on from positions that may not exist here. The lost nodes must never come back
with their old folders: that would be two cells. The cell's secret is changed, so that they could not touch this one.`
}

func (c *nodeRecoverCmd) Run(con *console) error {
	if !c.Yes {
		s, err := node.InspectSurvivor(con.ctx, c.Data)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(con.out, s)
		}
		if err := showSurvivor(con.out, s); err != nil {
			return err
		}
		return c.advise(con.out, s)
	}
	s, err := node.Recover(con.ctx, c.Data, c.Force, build(), node.NewLogger(con.err, "error", "auto"))
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(con.out, s)
	}
	_, err = fmt.Fprintf(con.out, `%s is the only node of its cell now; nothing that this folder held is lost.

  1. Start it with the flags that it had. If they name a copy of the cell's secret, renew it first: the secret is another
     now, in %s.
  2. On every other node: empty the data folder, copy the new secret there, and start it with --join and --cell-secret-file.
     Never start a lost node with its old folder again.
`, s.Member, filepath.Join(c.Data, "cell-secret"))
	return err
}

func showSurvivor(w io.Writer, s node.Survivor) error {
	fmt.Fprintf(w, "This folder is the node %s.\n\n  term     %d\n  mark     %d\n  entries  %d\n  written  %s\n\n", s.Member, s.Term, s.Mark, s.Index, s.Written.Format(time.RFC3339))
	fmt.Fprintf(w, "The cell as it knew it: %d voters, of which %d decide.\n\n", s.Voters, s.Quorum)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, m := range s.Members {
		role, state := "no vote", "does not answer"
		if m.Voter {
			role = "voter"
		}
		switch {
		case m.Self:
			state = "this one, stopped"
		case m.Answers:
			state = "answers: a process runs there"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", m.Member, role, m.Peer, state)
	}
	return t.Flush()
}

// advise says what to do with what was shown.
func (c *nodeRecoverCmd) advise(w io.Writer, s node.Survivor) (err error) {
	switch {
	case s.Enough():
		_, err = fmt.Fprintln(w, "\nNo quorum is lost: start this node before anything else, and it catches up.")
	default:
		_, err = fmt.Fprintf(w, `
Nothing was changed. Run this on every survivor, stopped: the one with the highest term is ahead, among equal terms the
one with the highest mark. Entries says how many entries its log holds, for the eye; 0 if all are in its snapshot.

If no lost node can be brought back, and this one is ahead:

  petrel node recover --data %s --yes

What only the lost nodes had is gone then, even if it was acknowledged; clients read anew, because the log begins another epoch.
`, c.Data)
	}
	if err == nil && s.Fenced != "" {
		_, err = fmt.Fprintf(w, "\nThis replica is fenced (%s): recover from another if there is one.\n", s.Fenced)
	}
	return err
}
