package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/petrel-chat/petrel/bench"
)

type benchCmd struct {
	Commit benchCommitCmd `cmd:"" help:"The durable path: how fast, how late, and how much of it is the disk."`
	Cell   benchCellCmd   `cmd:"" help:"What three nodes cost beside one, and how long writes pause when a leader goes."`
}

type benchCommitCmd struct {
	Dir      string        `placeholder:"DIR" help:"Folder on the disk to measure; a fresh one in the system's temporary folder when absent. Nothing in it is touched."`
	Duration time.Duration `default:"5s" placeholder:"TIME" help:"Per row of the table."`
	Layers   []string      `default:"fold,desk,http,socket" enum:"fold,desk,http,socket" placeholder:"LAYER" help:"fold, desk, http, socket."`
	JSON     bool          `name:"json" help:"Print JSON instead of the table."`
	Profile  string        `placeholder:"FILE" help:"Write a CPU profile of the rows to this file; read it with go tool pprof."`
}

// Help is shown by `petrel bench commit --help`.
func (benchCommitCmd) Help() string {
	return `A fresh node is started in this process, and loaded through each of its layers:

  fold    entries folded into the projection alone, no log: the ceiling
  desk    the internal path: decide, group commit, log (fsync), fold, answer
  http    the same through POST /v1/rooms/{room}/messages
  socket  the same through send frames of /v1/connect

closed 64 and 512: so many senders, each starting its next message when its last is answered.
open 500/s and 4000/s: messages start at that rate whatever becomes of those before; times count from when each was due.

Beside every row a probe appends 4 KiB and fsyncs, 20 times a second, on the same disk: what it waits is the disk's doing.
The column stall is the latest that one of its timers came: long where the whole machine stood still.
Clients and server share this machine's processors.

Example:
  petrel bench commit --dir /var/lib --duration 10s`
}

func (c *benchCommitCmd) Run(con *console) error {
	if c.Duration < 100*time.Millisecond || c.Duration > 10*time.Minute {
		return mistake{fmt.Errorf("--duration is %s; it must be between 100ms and 10m", c.Duration)}
	}
	report, err := bench.Commit(con.ctx, bench.Options{
		Dir: c.Dir, Duration: c.Duration, Layers: c.Layers, Profile: c.Profile, Progress: con.err, Build: build(),
	})
	if err != nil {
		if con.ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}
	if c.JSON {
		return printJSON(con.out, report)
	}
	return report.Write(con.out)
}

type benchCellCmd struct {
	Dir      string        `placeholder:"DIR" help:"Folder on the disk to measure; a fresh one in the system's temporary folder when absent. Nothing in it is touched."`
	Duration time.Duration `default:"5s" placeholder:"TIME" help:"Per row and round."`
	Rounds   int           `default:"3" placeholder:"N" help:"How often one node and three are measured in turn; medians are shown."`
	Parts    []string      `default:"commit,delivery,cost,relay,pause" enum:"commit,delivery,cost,relay,pause" placeholder:"PART" help:"commit, delivery, cost, relay, pause."`
	Kills    int           `default:"10" placeholder:"N" help:"How many leaders are killed for pause."`
	Leaves   int           `default:"5" placeholder:"N" help:"How many leave in order."`
	JSON     bool          `name:"json" help:"Print JSON instead of the tables."`
	Profile  string        `placeholder:"FILE" help:"Write a CPU profile of the part commit to this file; read it with go tool pprof."`
}

// Help is shown by `petrel bench cell --help`.
func (benchCellCmd) Help() string {
	return `A node that runs alone and a cell of three, both fresh, on this machine, in turn:

  commit    posts on the internal path: 512 senders spread over the nodes; 500/s through the leader, through a follower
  delivery  from the acknowledgement of a post, and from the commit on the subscriber's node, to its arrival at a socket
  cost      a process per node: memory, processor time per post and per delivery
  relay     messages of the ephemeral lane from one node to two others
  pause     a process per node: the longest time without an acknowledged write when the leader is killed (kill -9), and
            when it leaves in order (SIGTERM), through each of the two that stay; a write begins there every 5 ms

All nodes, senders and listeners share this machine's processors and its disk: three nodes fsync three times there.

Example:
  petrel bench cell --dir /var/lib --duration 10s`
}

func (c *benchCellCmd) Run(con *console) error {
	switch {
	case c.Duration < 100*time.Millisecond || c.Duration > 10*time.Minute:
		return mistake{fmt.Errorf("--duration is %s; it must be between 100ms and 10m", c.Duration)}
	case c.Rounds < 1 || c.Rounds > 100:
		return mistake{fmt.Errorf("--rounds is %d; it must be between 1 and 100", c.Rounds)}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	report, err := bench.Cell(con.ctx, bench.CellOptions{
		Dir: c.Dir, Duration: c.Duration, Rounds: c.Rounds, Parts: c.Parts, Kills: c.Kills, Leaves: c.Leaves, Binary: self, Profile: c.Profile,
		Progress: con.err, Build: build(),
	})
	if err != nil {
		if con.ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}
	if c.JSON {
		return printJSON(con.out, report)
	}
	return report.Write(con.out)
}
