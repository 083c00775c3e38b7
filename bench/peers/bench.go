//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/bench/peers/load"
	"github.com/petrel-chat/petrel/bench/rig"
)

// bench is one run of the program.
type bench struct {
	s        settings
	out      io.Writer
	progress io.Writer
	self     string // this program's file
	work     string // binaries; removed at the end
	servers  []*server
	report   report
}

func newBench(s settings, out, progress io.Writer) *bench {
	return &bench{s: s, out: out, progress: progress}
}

func (b *bench) tell(format string, args ...any) { fmt.Fprintf(b.progress, format, args...) }

func (b *bench) run(ctx context.Context) (err error) {
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "petrel-bench-work-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if err := b.findServers(ctx); err != nil {
		return err
	}
	b.report = newReport(ctx, b)
	b.tell("%d runs, about %s\n", len(b.s.cases)*len(b.servers)*b.s.rounds, b.expected().Round(time.Minute))
	end := time.Now().Add(b.s.budget)
	for _, c := range b.s.cases {
		for round := range b.s.rounds {
			// Every round begins with another one, so that whoever comes after an expensive neighbour is not always the same.
			for i := range b.servers {
				s := b.servers[(i+round)%len(b.servers)]
				if time.Now().After(end) {
					b.tell("the time for this benchmark is over (-budget)\n")
					return b.finish()
				}
				r := b.once(ctx, c, s, round)
				if ctx.Err() != nil {
					return errors.Join(errors.New("interrupted; what was measured is in "+b.s.out), b.finish())
				}
				b.report.Runs = append(b.report.Runs, r)
				if err := b.report.save(b.s.out); err != nil {
					return err
				}
			}
		}
	}
	return b.finish()
}

// expected is how long all of it takes, as a rule: a start and an end are two seconds, and 3,000 connections come in a second.
func (b *bench) expected() (d time.Duration) {
	for _, c := range b.s.cases {
		job := c.job(&b.s)
		d += job.Settle + job.Warmup + job.Measure + 2*time.Second + time.Duration(job.Subscribers)*time.Second/3000
	}
	return d * time.Duration(len(b.servers)*b.s.rounds)
}

func (b *bench) finish() error {
	var text bytes.Buffer
	b.report.write(&text)
	if err := os.WriteFile(filepath.Join(b.s.out, "tables.txt"), text.Bytes(), 0o644); err != nil {
		return err
	}
	if err := b.report.plot(b.s.plots); err != nil {
		return err
	}
	b.tell("results.json, tables.txt: %s; plots: %s\n", b.s.out, b.s.plots)
	_, err := b.out.Write(text.Bytes())
	return err
}

// once is one run of one server. What fails is told and kept: a benchmark of hours does not end with it.
func (b *bench) once(ctx context.Context, c benchCase, s *server, round int) record {
	r := record{Case: c.name, Server: s.name, Round: round + 1, At: time.Now(), Job: c.job(&b.s)}
	ctx, cancel := context.WithTimeout(ctx, b.s.times.limit)
	defer cancel()
	res, err := b.measure(ctx, &r.Job, s, c.name)
	r.Took = time.Since(r.At).Seconds()
	if err != nil {
		r.Error = err.Error()
		b.tell("%-10s %d/%d %-14s failed after %.0f s: %s\n", c.name, round+1, b.s.rounds, s.name, r.Took, firstLines(r.Error, 3))
		return r
	}
	r.Result = res
	b.tell("%-10s %d/%d %-14s %10s %s, load %s µs, steal %.2f, others %.2f, %.0f s%s\n", c.name, round+1, b.s.rounds, s.name, number(c.value(res)), c.unit,
		number(over(res.LoadCPU, max(res.Delivered, res.Published))), res.Steal, res.Others, r.Took, res.Complaints())
	return r
}

// measure starts a server, puts the load on it, and stops it.
func (b *bench) measure(ctx context.Context, job *load.Job, s *server, name string) (*load.Result, error) {
	dir, err := os.MkdirTemp(b.work, "run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	port, err := rig.FreePort(ctx)
	if err != nil {
		return nil, err
	}
	l, err := s.launch(ctx, dir, port)
	if err != nil {
		return nil, err
	}
	p, err := b.start(l, dir, filepath.Join(b.s.out, "log-"+s.name+".txt"))
	if err != nil {
		return nil, err
	}
	defer p.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go p.watch(ctx, cancel, b.s.memory)
	err = until(ctx, l)
	if err == nil && l.prepare != nil {
		err = l.prepare(ctx, job)
	}
	if err != nil {
		return nil, fmt.Errorf("the server did not get ready: %w; its log is in %s", errors.Join(err, context.Cause(ctx)), b.s.out)
	}
	job.Target = l.target
	job.Target.PID = p.cmd.Process.Pid
	var measuring func()
	if b.s.profile && l.profile != nil {
		measuring = func() {
			file := filepath.Join(b.s.out, "profile-"+s.name+"-"+name+".pprof")
			if err := l.profile(ctx, file, int(job.Measure.Seconds())); err != nil {
				b.tell("the profile of %s: %v\n", s.name, err)
			}
		}
	}
	res, err := b.generate(ctx, job, measuring)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		return nil, err
	}
	return res, nil
}

// generate runs the load generator as a process of its own, so that no run leaves it anything. measuring is called when its
// window begins; nil: nobody wants to know.
func (b *bench) generate(ctx context.Context, job *load.Job, measuring func()) (*load.Result, error) {
	in, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.self, "load")
	cmd.Stdin = bytes.NewReader(in)
	var out bytes.Buffer
	cmd.Stdout = &out
	said, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var complaint strings.Builder
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if lines.Text() == measuringLine {
			if measuring != nil {
				go measuring()
			}
			continue
		}
		if complaint.Len() < 4096 {
			complaint.WriteString(lines.Text() + "\n")
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("the load generator: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	var res load.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return nil, fmt.Errorf("the load generator: %w", err)
	}
	return &res, nil
}

// measuringLine is what the load generator says when its window begins.
const measuringLine = "measuring"

// process is a server that runs.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

func (b *bench) start(l *launch, dir, log string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(l.args[0], l.args[1:]...), log: f, exited: make(chan struct{})} //nolint:noctx // it is stopped by stop, in order
	p.cmd.Dir = dir
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PETREL_") && !strings.HasPrefix(kv, "PUSHER_") && !strings.HasPrefix(kv, "SOKETI_") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.Env = append(p.cmd.Env, l.env...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// A group of its own, so that children are stopped with it. (To die with this process would be to die with the thread that began it.)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.exited)
	}()
	return p, nil
}

// stop asks, and then does not.
func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(2 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left of the group; none is no matter
	<-p.exited
	_ = p.log.Close()
}

// watch gives a run up when its server ends, or takes more memory than it may.
func (p *process) watch(ctx context.Context, giveUp context.CancelCauseFunc, memory int64) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.exited:
			giveUp(fmt.Errorf("the server ended: %s", p.cmd.ProcessState))
			return
		case <-tick.C:
			if rss := load.ResidentSize(p.cmd.Process.Pid); rss > memory {
				giveUp(fmt.Errorf("the server took %d MiB of memory: it was given %d (-memory)", rss>>20, memory>>20))
				return
			}
		}
	}
}

// until waits for a server to serve, at most for 30 seconds.
func until(ctx context.Context, l *launch) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if l.ready != nil {
		return l.ready(ctx)
	}
	addrs := slices.DeleteFunc([]string{l.target.Addr, l.target.Publish}, func(a string) bool { return a == "" })
	for _, addr := range addrs {
		for {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err == nil {
				c.Close()
				break
			}
			if err := rig.Pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "; ")
}
