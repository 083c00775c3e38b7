package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
)

type verifyCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
	target
}

// Help is shown by `petrel verify --help`.
func (verifyCmd) Help() string {
	return `While the node of --data runs, all replicas of its cell compare all of their rows, in the midst of traffic: each stops at
the same entries of the log, and hashes the same ranges of keys. A replica with other rows than the rest is named, with the table and
the keys, and rebuilt by itself. Each node does the same by itself once an hour.

While the node is stopped, its data folder is proven alone: every checksum and the chain of the log, the structure of the projection, and
that folding the log anew comes to the same rows. Nothing in it is changed; there must be room for two more copies of the projection.

Exit code 1 when something differs, or could not be compared.

Examples:
  petrel verify
  petrel verify --data /var/lib/petrel --json`
}

func (c *verifyCmd) Run(con *console) error {
	admin := c.Admin
	if admin == "" {
		if _, err := os.Stat(filepath.Join(c.Data, "lock")); errors.Is(err, fs.ErrNotExist) {
			return mistake{fmt.Errorf("there is no data folder at %s; name it with --data, or make one with `petrel serve`", c.Data)}
		}
		v, err := node.VerifyFolder(con.ctx, c.Data, func(format string, args ...any) { fmt.Fprintf(con.err, format+"\n", args...) })
		var locked *node.LockedError
		if !errors.As(err, &locked) {
			return c.folder(con, v, err)
		}
		if admin = locked.Owner.Admin; admin == "" {
			return fmt.Errorf("the node of %s is just starting or has no admin listener; try again in a moment, or name it with --admin", c.Data)
		}
	}
	op, err := node.NewRemote(admin, c.Data)
	if err != nil {
		return err
	}
	defer op.Close()
	v, err := c.follow(con, op)
	if err != nil {
		return err
	}
	return c.cell(con, v)
}

// folder tells what became of a stopped node's folder.
func (c *verifyCmd) folder(con *console, v node.FolderVerification, err error) error {
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(con.out, v)
	} else {
		for _, d := range v.Differences {
			fmt.Fprintf(con.out, "differs: %s\n", d)
		}
		if v.Equal {
			_, err = fmt.Fprintf(con.out, "Replay equals live: all %d rows in %d tables are what the log makes of them, and so is the digest %s at entry %d.\n", v.Rows, v.Tables, short(v.Digest), v.Index)
		}
	}
	switch {
	case err != nil:
		return err
	case v.Equal:
		return nil
	case !v.DigestEqual:
		return errors.New("the projection is not what the log makes of it: its folds came to something else (another digest). In a cell, the others rebuild it at the next start; alone, move shard-0/projection.db* away, and the next start makes it anew")
	}
	return fmt.Errorf("the projection is not what the log makes of it: rows differ in %d ranges. In a cell, the others rebuild it; alone, move shard-0/projection.db* away, and the next start makes it anew", len(v.Differences))
}

// follow lets a running node compare, and tells how far it is.
func (c *verifyCmd) follow(con *console, op *node.Remote) (v node.Verification, err error) {
	if v, err = op.BeginVerify(con.ctx); err != nil {
		return v, err
	}
	fmt.Fprintln(con.err, "All replicas compare their rows …")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for said := time.Now(); v.Running; {
		select {
		case <-con.ctx.Done():
			return v, errors.New("interrupted; the nodes go on comparing")
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(con.ctx, 10*time.Second)
		v, err = op.Verified(ctx)
		cancel()
		if err != nil {
			return v, err
		}
		if v.Running && time.Since(said) > 2*time.Second {
			said = time.Now()
			fmt.Fprintf(con.err, "  … %d rows, table %s\n", v.Rows, strings.TrimRight(v.Table, "\x00"))
		}
	}
	return v, nil
}

// cell tells what became of a cell's replicas.
func (c *verifyCmd) cell(con *console, v node.Verification) error {
	if c.JSON {
		if err := printJSON(con.out, v); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "MEMBER\tINDEX\tDIGEST\tROWS\tHASH\tRESULT")
		for _, n := range v.Nodes {
			result := "equal"
			if !n.Equal {
				result = n.Why
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", n.Member, n.Index, short(n.Digest), n.Rows, short(n.Hash), result)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, d := range v.Differences {
			fmt.Fprintf(con.out, "differs: %s\n", d)
		}
	}
	switch {
	case v.Error != "":
		return fmt.Errorf("the comparison was not finished: %s", v.Error)
	case len(v.Differences) > 0:
		return fmt.Errorf("the replicas differ in %d ranges of rows", len(v.Differences))
	case !v.Equal:
		return errors.New("not all replicas could be compared")
	}
	if !c.JSON {
		_, err := fmt.Fprintf(con.out, "\n%d rows are the same on all %d nodes (%.1f s).\n", v.Rows, len(v.Nodes), v.Seconds)
		return err
	}
	return nil
}

// short is the beginning of a hash.
func short(hash string) string { return hash[:min(12, len(hash))] }
