package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

type jobCmd struct {
	List    jobListCmd    `cmd:"" help:"Count the jobs of every app, or list those of one."`
	Show    jobShowCmd    `cmd:"" help:"Show one job with its body."`
	Export  jobExportCmd  `cmd:"" help:"Write an app's jobs with their bodies as JSON lines."`
	Repeat  jobRepeatCmd  `cmd:"" help:"Give dead jobs another round of attempts."`
	Discard jobDiscardCmd `cmd:"" help:"Remove jobs that wait or are dead."`
}

// Help is shown by `petrel job --help`.
func (jobCmd) Help() string {
	return `A job is something that is done outside because of something that happened: a webhook is one. It is tried again until it is
done, or dead: then somebody has to look at it. docs/JOBS.md says more.

Examples:
  petrel job list                                  what became of all jobs, app by app
  petrel job list --app 482913                     the dead ones
  petrel job show 10482.1.0
  petrel job export --app 482913 > dead.jsonl
  petrel job repeat --app 482913 10482.1.0
  petrel job repeat --app 482913 --all`
}

type jobListCmd struct {
	App   string `env:"PETREL_APP" placeholder:"ID" help:"Id of the app. Without it, all apps are counted."`
	State string `default:"dead" placeholder:"STATE" help:"Which jobs: waiting, running, done or dead."`
	Limit int    `default:"100" placeholder:"N" help:"How many at most."`
	After string `placeholder:"JOB" help:"Begin behind this one."`
	JSON  bool   `name:"json" help:"Print JSON."`
	target
}

func (c *jobListCmd) Run(con *console) error {
	if c.App == "" {
		return c.count(con)
	}
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		page, err := op.Jobs(ctx, petrel.AppID(c.App), c.State, c.After, c.Limit)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(con.out, page)
		}
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tKIND\tTARGET\tSTATE\tATTEMPTS\tQUEUED\tERROR")
		for _, j := range page.Jobs {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", j.ID, j.Kind, j.Target, j.State, j.Attempts, j.QueuedAt, j.Error)
		}
		if err := w.Flush(); err != nil || !page.More {
			return err
		}
		_, err = fmt.Fprintf(con.out, "There are more: --after %s\n", page.Jobs[len(page.Jobs)-1].ID)
		return err
	})
}

func (c *jobListCmd) count(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		ledgers, err := op.JobLedgers(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(con.out, ledgers)
		}
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "APP\tACCEPTED\tWAITING\tRUNNING\tDONE\tDEAD\tDISCARDED\tATTEMPTS\tFAILED\tINTERRUPTED")
		for _, l := range ledgers {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", l.App, l.Accepted, l.Waiting, l.Running, l.Done, l.Dead, l.Discarded, l.Attempts, l.Failed, l.Interrupted)
		}
		return w.Flush()
	})
}

type jobShowCmd struct {
	Job string `arg:"" help:"Id of the job."`
	target
}

func (c *jobShowCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		j, err := op.Job(ctx, c.Job)
		if err != nil {
			return err
		}
		return printJSON(con.out, j)
	})
}

type jobExportCmd struct {
	App   string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	State string `default:"dead" placeholder:"STATE" help:"Which jobs: waiting, running, done or dead."`
	target
}

func (c *jobExportCmd) Run(con *console) error {
	return c.each(con, petrel.AppID(c.App), c.State, func(ctx context.Context, op node.Operator, jobs []job.Shown) error {
		enc := json.NewEncoder(con.out)
		for _, j := range jobs {
			whole, err := op.Job(ctx, j.ID)
			if petrel.CodeOf(err) == petrel.CodeJobNotFound {
				continue // it ended meanwhile
			}
			if err == nil {
				err = enc.Encode(whole)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// each walks through the jobs of one state, page by page; each page has its own time.
func (t target) each(con *console, app petrel.AppID, state string, do func(ctx context.Context, op node.Operator, jobs []job.Shown) error) error {
	after := ""
	for more := true; more; {
		err := t.do(con, func(ctx context.Context, op node.Operator) error {
			page, err := op.Jobs(ctx, app, state, after, 200)
			if err == nil && len(page.Jobs) > 0 {
				err = do(ctx, op, page.Jobs)
			}
			if err != nil {
				return err
			}
			if more = page.More; more {
				after = page.Jobs[len(page.Jobs)-1].ID
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

type jobRepeatCmd struct {
	App  string   `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	All  bool     `help:"All of its dead jobs."`
	Jobs []string `arg:"" optional:"" help:"Ids of the jobs."`
	target
}

func (c *jobRepeatCmd) Run(con *console) error {
	return c.change(con, jobChange{c.App, c.Jobs, c.All, "dead", "repeated", node.Operator.RepeatJobs})
}

type jobDiscardCmd struct {
	App     string   `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	AllDead bool     `help:"All of its dead jobs. Export them first."`
	Jobs    []string `arg:"" optional:"" help:"Ids of the jobs."`
	target
}

func (c *jobDiscardCmd) Run(con *console) error {
	return c.change(con, jobChange{c.App, c.Jobs, c.AllDead, "dead", "discarded", node.Operator.DiscardJobs})
}

// jobChange is what an operator wants done to some jobs, or to all of one state.
type jobChange struct {
	app   string
	jobs  []string
	all   bool
	state string
	done  string
	do    func(op node.Operator, ctx context.Context, app petrel.AppID, ids []string) ([]string, error)
}

func (t target) change(con *console, c jobChange) error {
	if c.all == (len(c.jobs) > 0) {
		return mistake{fmt.Errorf("name the jobs, or all of them: one of the two")}
	}
	n := 0
	change := func(ctx context.Context, op node.Operator, ids []string) error {
		changed, err := c.do(op, ctx, petrel.AppID(c.app), ids)
		n += len(changed)
		return err
	}
	var err error
	if c.all {
		err = t.each(con, petrel.AppID(c.app), c.state, func(ctx context.Context, op node.Operator, jobs []job.Shown) error {
			ids := make([]string, len(jobs))
			for i, j := range jobs {
				ids[i] = j.ID
			}
			return change(ctx, op, ids)
		})
	} else {
		err = t.do(con, func(ctx context.Context, op node.Operator) error { return change(ctx, op, c.jobs) })
	}
	fmt.Fprintf(con.out, "%d %s\n", n, c.done)
	return err
}
