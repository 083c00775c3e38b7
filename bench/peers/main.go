//go:build linux

// Command peers measures Petrel against other servers on this machine, and all of them against a server that does nothing but write:
//
//	go run ./bench/peers [flags]           or: make bench-peers ARGS='…'
//	go run ./bench/peers report FILE…      the tables and plots of earlier runs, as one: -plots DIR, -markdown, -servers A,B
//
// Each server is started afresh for each run, on 127.0.0.1, and they take turns: a round is one run of each. Every figure is the median of
// the rounds, beside the median of its ratios to the bare server of the same round, which is what to trust: a slow minute slows both.
// It is a program of its own so that the one that people run carries none of it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/bench/peers/bare"
	"github.com/petrel-chat/petrel/bench/peers/load"
)

func main() {
	// Servers are told to die with the thread that started them: it is this one, which lives as long as the process.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, progress io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "load": // the load generator, as a process of its own: its job is on standard input
			return generate(ctx, in, out, progress)
		case "bare": // the bare Go loop
			return serveBare(args[1:])
		case "report":
			return rewrite(args[1:], out, progress)
		}
	}
	s, err := parseSettings(args, progress)
	if err != nil {
		return err
	}
	return newBench(s, out, progress).run(ctx)
}

// generate does one job.
func generate(ctx context.Context, in io.Reader, out, said io.Writer) error {
	runtime.GOMAXPROCS(max(2, runtime.NumCPU()))
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(4 << 30)
	var job load.Job
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return err
	}
	res, err := load.Run(ctx, job, func() { fmt.Fprintln(said, measuringLine) })
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(res)
}

func serveBare(args []string) error {
	if len(args) < 1 {
		return errors.New("bare PORT [coalesce]")
	}
	signal.Reset() // it ends as limit does
	port, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return bare.Serve(port, len(args) > 1 && args[1] == "coalesce")
}

// settings of a benchmark.
type settings struct {
	servers []string // empty: all that are there
	added   []added
	petrel  string // binary; empty: built from this tree
	cases   []benchCase
	rounds  int
	times   times
	conns   int // of the idle case
	storm   int // of the storm
	payload int
	budget  time.Duration
	memory  int64
	out     string
	plots   string
	profile bool
}

// times of a run.
type times struct{ settle, warmup, measure, idle, limit time.Duration }

// added is a server given on the command line.
type added struct{ name, kind, command string }

func parseSettings(args []string, progress io.Writer) (s settings, err error) {
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	f.SetOutput(progress)
	f.Usage = func() {
		fmt.Fprint(progress, "go run ./bench/peers [flags], or: report FILE… [-plots DIR] [-markdown] [-servers A,B]\n\nServers: "+strings.Join(serverNames(), ", ")+
			"\n  -server NAME=KIND:COMMAND adds one. KIND and COMMAND are\n"+
			"    "+strings.Join(petrelKinds, ", ")+": what is started with serve and its flags: a binary, or 'env GOGC=50 {petrel}' for this one with something else around it;\n"+
			"    centrifugo: its binary;\n"+
			"    pusher, plain, nchan, nats: for whatever speaks as those do, all of a command line, in which {port}, {app}, {key} and {secret} are filled in.\nCases:\n")
		for _, c := range allCases() {
			fmt.Fprintf(progress, "  %-10s %s\n", c.name, c.title)
		}
		fmt.Fprintln(progress, "\nFlags:")
		f.PrintDefaults()
	}
	servers := f.String("servers", "", "these only, with commas between; an absent one is then an error")
	cases := f.String("cases", "", "these only, by name or its beginning, with commas between")
	f.Func("server", "another one, `NAME=KIND:COMMAND`; may be given again", func(v string) error {
		name, rest, ok := strings.Cut(v, "=")
		kind, command, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || name == "" || command == "" {
			return errors.New("say NAME=KIND:COMMAND")
		}
		s.added = append(s.added, added{name, kind, command})
		return nil
	})
	f.StringVar(&s.petrel, "petrel", "", "`FILE`: Petrel's binary, instead of one built from this tree")
	f.IntVar(&s.rounds, "rounds", 7, "how often each server has its turn in each case")
	f.DurationVar(&s.times.settle, "settle", time.Second, "between connecting and the first publication, and after a storm")
	f.DurationVar(&s.times.warmup, "warmup", 2*time.Second, "of publishing before anything is measured")
	f.DurationVar(&s.times.measure, "measure", 6*time.Second, "the window of a run")
	f.DurationVar(&s.times.idle, "idle", 30*time.Second, "the window of a run of the idle case")
	f.DurationVar(&s.times.limit, "limit", 2*time.Minute, "for a run, with everything: one that takes longer has failed")
	f.IntVar(&s.conns, "idle-connections", 19_000, "of the idle case; fewer where Petrel does not take as many, for want of files that it may open")
	f.IntVar(&s.storm, "storm-connections", 9_500, "of the storm")
	f.IntVar(&s.payload, "payload", 128, "bytes of a message")
	f.DurationVar(&s.budget, "budget", 4*time.Hour, "no run begins after it; what is there is reported")
	memory := f.Int64("memory", 6<<10, "MiB that a server may take: one that takes more is killed and has failed")
	f.StringVar(&s.out, "out", "", "`DIR` for results.json, tables.txt and what servers log; a fresh one in the system's temporary folder when absent")
	f.StringVar(&s.plots, "plots", "", "`DIR` for the plots; that of -out when absent")
	f.BoolVar(&s.profile, "profile", false, "take a CPU profile of Petrel in the window of its runs (it costs some per cent: not for figures)")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("what is %q?", f.Arg(0))
	}
	s.memory = *memory << 20
	if *servers != "" {
		s.servers = strings.Split(*servers, ",")
	}
	if s.petrel != "" {
		if s.petrel, err = filepath.Abs(s.petrel); err != nil { // servers run in folders of their own
			return s, err
		}
	}
	if most := petrelTakes(maxFiles()); s.conns > most {
		fmt.Fprintf(progress, "idle: %d connections instead of %d: with %d files (ulimit -n) Petrel takes no more\n", most, s.conns, maxFiles())
		s.conns = most
	}
	if s.rounds < 1 || s.payload < load.MinPayload || s.payload > 10_000 || s.conns < 1 || s.storm < 1 {
		return s, fmt.Errorf("at least one round, one connection and a payload of %d to 10000 bytes", load.MinPayload)
	}
	if s.cases, err = chooseCases(*cases); err != nil {
		return s, err
	}
	if s.out == "" {
		if s.out, err = os.MkdirTemp("", "petrel-bench-"); err != nil {
			return s, err
		}
	}
	if s.out, err = filepath.Abs(s.out); err != nil {
		return s, err
	}
	if s.plots == "" {
		s.plots = s.out
	}
	return s, os.MkdirAll(s.out, 0o755)
}

// maxFiles is how many files a process may open. The runtime has raised the soft limit to the hard one.
func maxFiles() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<20 {
		return 1 << 20
	}
	return int(r.Cur) //nolint:gosec // bounded above
}

// petrelTakes is how many connections a node takes that may open so many files, rounded down: it keeps 256 for its log and its
// projection, and 5 % of the places so that operators get in.
func petrelTakes(files int) int {
	most := (files-256)*95/100 - 100
	return most - most%100
}
