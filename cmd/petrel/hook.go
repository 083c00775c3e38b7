package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

type hookCmd struct {
	Set    hookSetCmd    `cmd:"" help:"Give an app a webhook, or change one."`
	List   hookListCmd   `cmd:"" help:"List an app's webhooks."`
	Remove hookRemoveCmd `cmd:"" help:"Remove a webhook; what waits for it is not delivered any more."`
}

// Help is shown by `petrel hook --help`.
func (hookCmd) Help() string {
	return `A webhook is an address of yours that is told what happens in an app: channels that become occupied or vacated,
members who come and go, rooms and messages. Calls are signed with the app's oldest good key. Events are names
and patterns: channel_occupied, channel_vacated, member_added, member_removed, client_event, cache_miss,
subscription_count, room.*, member.*, message.*, each chat event by its type, and * for all.

Examples:
  petrel hook set --app 482913 --url https://shop.example/pusher --events channel_occupied,channel_vacated
  petrel hook set --app 482913 --id archive --url https://archive.example/in --events 'room.*,message.*' --batch
  petrel hook remove --app 482913 archive`
}

type hookSetCmd struct {
	App    string   `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	ID     string   `name:"id" placeholder:"ID" help:"Id of the webhook. Made up when absent; one that is there is changed."`
	URL    string   `name:"url" required:"" placeholder:"URL" help:"Where to call: http or https, no credentials."`
	Events []string `required:"" placeholder:"NAME,…" help:"What to tell."`
	Batch  bool     `help:"Put what is due together into one call."`
	JSON   bool     `name:"json" help:"Print JSON."`
	target
}

func (c *hookSetCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		h, err := op.SetHook(ctx, petrel.AppID(c.App), node.Hook{ID: petrel.HookID(c.ID), URL: c.URL, Events: c.Events, Batch: c.Batch})
		return showHook(con.out, c.JSON, h, err)
	})
}

type hookListCmd struct {
	App  string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *hookListCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		hooks, err := op.Hooks(ctx, petrel.AppID(c.App))
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(con.out, hooks)
		}
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tURL\tBATCH\tEVENTS")
		for _, h := range hooks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", h.ID, h.URL, yesNo(h.Batch), strings.Join(h.Events, ","))
		}
		return w.Flush()
	})
}

type hookRemoveCmd struct {
	App  string `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	ID   string `arg:"" help:"Id of the webhook."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *hookRemoveCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		h, err := op.RemoveHook(ctx, petrel.AppID(c.App), petrel.HookID(c.ID))
		return showHook(con.out, c.JSON, h, err)
	})
}

func showHook(w io.Writer, asJSON bool, h node.Hook, err error) error {
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, h)
	}
	_, err = fmt.Fprintf(w, "hook    %s\nurl     %s\nevents  %s\nbatch   %s\n", h.ID, h.URL, strings.Join(h.Events, ","), yesNo(h.Batch))
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
