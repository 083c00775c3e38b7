package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/petrel-chat/petrel/bench"
)

type benchCmd struct {
	Commit benchCommitCmd `cmd:"" help:"The durable path: how fast, how late, and how much of it is the disk."`
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
