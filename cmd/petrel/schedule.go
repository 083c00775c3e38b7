package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

type scheduleCmd struct {
	Set    scheduleSetCmd    `cmd:"" help:"Give an app a schedule, or replace one."`
	List   scheduleListCmd   `cmd:"" help:"List an app's schedules."`
	Pause  schedulePauseCmd  `cmd:"" help:"Keep a schedule, and do not tell it."`
	Resume scheduleResumeCmd `cmd:"" help:"Go on with a schedule."`
	Remove scheduleRemoveCmd `cmd:"" help:"Remove a schedule."`
}

// Help is shown by `petrel schedule --help`.
func (scheduleCmd) Help() string {
	return `A schedule tells an app's webhooks that a time has come, again and again: the event schedule.due. When that is, is a cron
expression (minute, hour, day of month, month, day of week) in a time zone, or an interval. docs/JOBS.md says more.

Examples:
  petrel schedule set --app 482913 nightly --when '0 3 * * *' --zone Europe/Berlin --payload '{"report":"sales"}'
  petrel schedule set --app 482913 tick --when 'every 30s'
  petrel schedule pause --app 482913 tick
  petrel schedule resume --app 482913 tick
  petrel schedule list --app 482913
  petrel schedule remove --app 482913 tick`
}

type scheduleSetCmd struct {
	App    string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	Name   string `arg:"" help:"Name of the schedule; of one that is there all settings are replaced."`
	When   string `required:"" placeholder:"WHEN" help:"A cron expression, @hourly, @daily, @weekly, @monthly, @yearly, or every 30s."`
	Zone   string `placeholder:"ZONE" help:"Time zone of a cron expression, e.g. Europe/Berlin. Without it, UTC."`
	Data   string `name:"payload" placeholder:"JSON" help:"Told with each event, as its data."`
	Paused bool   `help:"Keep it, and do not tell it."`
	JSON   bool   `name:"json" help:"Print JSON."`
	target
}

func (c *scheduleSetCmd) Run(con *console) error {
	if c.Data != "" && !json.Valid([]byte(c.Data)) {
		return mistake{fmt.Errorf("--payload is not JSON")}
	}
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		s, err := op.SetSchedule(ctx, petrel.AppID(c.App), node.Schedule{
			Name: petrel.ScheduleName(c.Name), When: c.When, Zone: c.Zone, Data: json.RawMessage(c.Data), Paused: c.Paused,
		})
		return showSchedule(con.out, c.JSON, s, err)
	})
}

type scheduleListCmd struct {
	App  string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *scheduleListCmd) Run(con *console) error {
	all := []job.ShownSchedule{}
	for more := true; more; {
		err := c.do(con, func(ctx context.Context, op node.Operator) error {
			after := petrel.ScheduleName("")
			if len(all) > 0 {
				after = all[len(all)-1].Name
			}
			page, err := op.Schedules(ctx, petrel.AppID(c.App), after)
			all, more = append(all, page.Schedules...), page.More
			return err
		})
		if err != nil {
			return err
		}
	}
	if c.JSON {
		return printJSON(con.out, all)
	}
	w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tWHEN\tZONE\tNEXT\tLAST\tFIRED\tMISSED")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\n", s.Name, s.When, s.Zone, nextOf(s), orDash(s.LastAt), s.Fired, s.Missed)
	}
	return w.Flush()
}

type schedulePauseCmd struct {
	App  string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	Name string `arg:"" help:"Name of the schedule."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *schedulePauseCmd) Run(con *console) error { return c.turn(con, true) }

type scheduleResumeCmd struct{ schedulePauseCmd }

func (c *scheduleResumeCmd) Run(con *console) error { return c.turn(con, false) }

func (c *schedulePauseCmd) turn(con *console, paused bool) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		s, err := op.PauseSchedule(ctx, petrel.AppID(c.App), petrel.ScheduleName(c.Name), paused)
		return showSchedule(con.out, c.JSON, s, err)
	})
}

type scheduleRemoveCmd struct {
	App  string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	Name string `arg:"" help:"Name of the schedule."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *scheduleRemoveCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		s, err := op.RemoveSchedule(ctx, petrel.AppID(c.App), petrel.ScheduleName(c.Name))
		return showSchedule(con.out, c.JSON, s, err)
	})
}

func showSchedule(w io.Writer, asJSON bool, s job.ShownSchedule, err error) error {
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, s)
	}
	_, err = fmt.Fprintf(w, "schedule  %s\nwhen      %s\nzone      %s\nnext      %s\ndata      %s\n", s.Name, s.When, s.Zone, nextOf(s), orDash(string(s.Data)))
	return err
}

// nextOf says when a schedule is due.
func nextOf(s job.ShownSchedule) string {
	if s.Paused {
		return "paused"
	}
	return orDash(s.NextAt)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
