// Petrel is a self-hosted realtime messaging platform in one binary. This program reads
// flags, starts the node of package node or talks to a running one, and turns what became of
// it into an exit code.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Exit codes, as docs/OPERATING.md lists them.
const (
	exitOK      = 0
	exitFailed  = 1 // what was asked for did not work
	exitMistake = 2 // a mistake on the command line or in the configuration
	exitInUse   = 3 // the data folder belongs to another process
	exitFatal   = 4 // the log or the projection failed for good, or is damaged: look before starting again
)

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// cli is every command. The help texts are for somebody who sees Petrel for the first time.
type cli struct {
	Serve    serveCmd    `cmd:"" help:"Run a node."`
	App      appCmd      `cmd:"" help:"Make and manage apps, the tenants of an installation."`
	Hook     hookCmd     `cmd:"" help:"Tell an address of yours what happens in an app."`
	Job      jobCmd      `cmd:"" help:"Look at what is done outside, and repeat what could not be done."`
	Schedule scheduleCmd `cmd:"" help:"Tell an app's webhooks that a time has come, again and again."`
	Token    tokenCmd    `cmd:"" help:"Mint a token with which a user signs in."`
	Node     nodeCmd     `cmd:"" help:"Show and change the nodes of a cell."`
	Verify   verifyCmd   `cmd:"" help:"Prove that all replicas hold the same rows, or that a stopped one holds what its log says."`
	Import   importCmd   `cmd:"" help:"Bring in conversations from elsewhere."`
	Dev      devCmd      `cmd:"" help:"Try things out: a whole cell in one process."`
	Bench    benchCmd    `cmd:"" help:"Measure this build on this machine."`
	Version  versionCmd  `cmd:"" help:"Show version, commit and feature level."`
}

// console is what a command may know of the process around it.
type console struct {
	ctx     context.Context // ends at the first SIGINT or SIGTERM
	again   <-chan struct{} // closed by the second one
	environ []string
	in      io.Reader
	out     io.Writer
	err     io.Writer
}

// mistake marks an error as one of the person's at the keyboard.
type mistake struct{ error }

func run(args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	again := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() { // lives as long as the process
		<-signals
		cancel()
		<-signals
		close(again)
	}()

	c := &console{ctx: ctx, again: again, environ: environ, in: stdin, out: stdout, err: stderr}
	var commands cli
	exit := -1
	parser, err := kong.New(&commands,
		kong.Name("petrel"),
		kong.Description("Petrel: realtime messaging that loses nothing. One binary, one data folder.\n\n"+
			"  petrel serve --demo           two browsers chat at once\n"+
			"  petrel serve --data DIR       a node for real; prints its first app\n"+
			"  petrel dev cell               three nodes in one process, to try a cell\n"+
			"  petrel app create             another app\n"+
			"  petrel token --app ID --user ada\n"),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.ValueFormatter(helpOf),
		kong.Bind(c),
	)
	if err != nil {
		panic(err) // the structs above are wrong: every test shows it
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parser.Parse(args)
	if exit >= 0 {
		return exit // --help
	}
	if err == nil {
		err = kctx.Run()
	} else {
		err = mistake{fmt.Errorf("%w; `petrel %s` explains", err, strings.TrimSpace(commandOf(err)+" --help"))}
	}
	return report(stderr, err)
}

// helpOf shows what holds when a flag is not given: kong leaves it out beside a placeholder.
func helpOf(v *kong.Value) string {
	help := kong.DefaultHelpValueFormatter(v)
	if v.HasDefault && v.Default != "" {
		help += " Default: " + v.Default + "."
	}
	return help
}

// commandOf names the command in whose flags a mistake was made.
func commandOf(err error) string {
	var parse *kong.ParseError
	if !errors.As(err, &parse) || parse.Context == nil || parse.Context.Selected() == nil {
		return ""
	}
	return strings.TrimPrefix(parse.Context.Selected().FullPath(), "petrel ")
}

// report says what went wrong in one sentence each and chooses the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	for line := range strings.SplitSeq(sentence(err), "\n") {
		fmt.Fprintln(stderr, "petrel:", line)
	}
	var locked *node.LockedError
	switch {
	case errors.As(err, &mistake{}):
		return exitMistake
	case errors.As(err, &locked):
		return exitInUse
	case errors.Is(err, node.ErrFatal):
		return exitFatal
	}
	return exitFailed
}

// sentence shows a refusal without its code and cause.
func sentence(err error) string {
	var refusal *petrel.Error
	if errors.As(err, &refusal) {
		return refusal.Detail
	}
	return err.Error()
}
