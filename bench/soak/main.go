// Command soak keeps a Petrel under everything that clients do to a server for as long as one likes, and judges what they saw:
//
//	go run ./bench/soak -for 10m           or: make soak DURATION=10m
//
// Clients that keep up must hear every publication of every subscription once and in order, whatever the others do: those that come and go,
// that reset their connections, that read a byte a second, that never answer, or never finish a request. A part of all of them comes by TLS.
// At the end who is there must be right, on every list and over HTTP; and memory, goroutines and everybody's latency must be what they were.
//
// # Invariants
//
//   - A channel's publications are numbered from 1 by the one goroutine that publishes there, which waits for each answer.
//   - Whoever has been told that it is subscribed hears everything whose publishing begins later; whoever asks for an answer (a ping) after a
//     publication was acknowledged has heard that one when the answer comes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/bench/rig"
)

// The app that Petrel is started with.
const (
	appID     = "soak"
	appKey    = "soak-key"
	appSecret = "soak-secret"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	o := options{}
	f.DurationVar(&o.duration, "for", 10*time.Minute, "how long, once all are connected")
	f.IntVar(&o.conns, "connections", 10_000, "that keep up; the others come beside them")
	f.IntVar(&o.channels, "channels", 1000, "a tenth of them presence channels")
	f.Float64Var(&o.rate, "rate", 400, "publications a second")
	f.Int64Var(&o.seed, "seed", time.Now().UnixNano(), "of what is done when")
	petrel := f.String("petrel", "", "`FILE`: Petrel's binary, instead of one built from this tree")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "petrel-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := start(ctx, dir, *petrel)
	if err != nil {
		return err
	}
	defer p.stop()
	o.target = p.target
	v, err := soak(ctx, o, out)
	if err != nil {
		return err
	}
	v.judgeCost()
	fmt.Fprint(out, v.report())
	if v.found > 0 {
		return fmt.Errorf("%d findings; the seed was %d, and Petrel's log ends so:\n%s", v.found, o.seed, p.tail())
	}
	return nil
}

// process is the Petrel under test.
type process struct {
	target
	cmd *exec.Cmd
	log string
}

// start builds and starts Petrel on free ports.
func start(ctx context.Context, dir, binary string) (_ *process, err error) {
	if binary == "" {
		if binary, err = rig.BuildPetrel(ctx, dir); err != nil {
			return nil, err
		}
	}
	cert, key, err := rig.SelfSigned(dir)
	if err != nil {
		return nil, err
	}
	p := &process{log: filepath.Join(dir, "log")}
	for _, addr := range []*string{&p.plain, &p.secured, &p.admin} {
		port, err := rig.FreePort(ctx)
		if err != nil {
			return nil, err
		}
		*addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	file, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p.cmd = exec.Command(binary, "serve", "--data", filepath.Join(dir, "data"), "--listen", p.plain, "--tls-listen", p.secured, //nolint:noctx // it is told to stop
		"--tls-cert", cert, "--tls-key", key, "--admin", p.admin, "--log-level", "warn", "--max-connections", "100000")
	p.cmd.Env = append(os.Environ(), "PETREL_APP_ID="+appID, "PETREL_APP_KEY="+appKey, "PETREL_APP_SECRET="+appSecret)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := rig.Ready(ctx, p.admin); err != nil {
		p.stop()
		return nil, fmt.Errorf("it does not become ready: %w\n%s", err, p.tail())
	}
	return p, nil
}

// stop ends it as an operator does, and after a while by force.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	t := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer t.Stop()
	_ = p.cmd.Wait() // how it ended is in its log
}

// tail is the end of its log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}
