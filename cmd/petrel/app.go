package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// target says which installation a command is about.
type target struct {
	Data  string `default:"petrel-data" env:"PETREL_DATA" placeholder:"DIR" help:"Data folder of the installation."`
	Admin string `env:"PETREL_ADMIN" placeholder:"HOST:PORT" help:"Admin listener of the running node. Found through the data folder when absent."`
}

// open returns the operator of the installation: the running node's, or, when none runs, the data folder itself.
func (t target) open(con *console) (op node.Operator, owner node.Owner, closeIt func() error, err error) {
	if t.Admin != "" {
		return t.remote(t.Admin, node.Owner{Admin: t.Admin})
	}
	if _, err := os.Stat(filepath.Join(t.Data, "lock")); errors.Is(err, fs.ErrNotExist) {
		return nil, owner, nil, mistake{fmt.Errorf("there is no data folder at %s; name it with --data, or make one with `petrel serve`", t.Data)}
	}
	cfg := node.DefaultConfig()
	cfg.Data = t.Data
	n, err := node.Open(con.ctx, node.Options{Config: cfg, Logger: node.NewLogger(con.err, "error", "text"), Notice: io.Discard, Build: build(), Offline: true})
	var locked *node.LockedError
	switch {
	case errors.As(err, &locked) && locked.Owner.Admin != "":
		return t.remote(locked.Owner.Admin, locked.Owner)
	case errors.As(err, &locked):
		return nil, owner, nil, fmt.Errorf("the node of %s is just starting or has no admin listener; try again in a moment, or name it with --admin", t.Data)
	case err != nil:
		return nil, owner, nil, err
	}
	return n, owner, n.Stop, nil
}

func (t target) remote(addr string, owner node.Owner) (node.Operator, node.Owner, func() error, error) {
	r, err := node.NewRemote(addr, t.Data)
	if err != nil {
		return nil, owner, nil, err
	}
	return r, owner, func() error { r.Close(); return nil }, nil
}

// electionPatience is how long a command waits for a leader: longer than any election, and not for ever.
const electionPatience = 10 * time.Second

// do opens the installation, asks, and closes it again. It asks again while the cell is without a leader: nothing was
// done then, and an election takes a second or two.
func (t target) do(con *console, ask func(ctx context.Context, op node.Operator) error) error {
	op, _, closeIt, err := t.open(con)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(con.ctx, time.Minute)
	defer cancel()
	return errors.Join(askPatiently(ctx, con.err, op, ask), closeIt())
}

// askPatiently says once what it waits for when that takes longer than an election does.
func askPatiently(ctx context.Context, notes io.Writer, op node.Operator, ask func(ctx context.Context, op node.Operator) error) error {
	said := false
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		err := ask(ctx, op)
		if petrel.CodeOf(err) != petrel.CodeNoLeader || time.Since(began) > electionPatience {
			return err
		}
		if !said && time.Since(began) > time.Second {
			said = true
			fmt.Fprintf(notes, "petrel: %s (trying for %s)\n", sentence(err), electionPatience)
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

type appCmd struct {
	Create  appCreateCmd  `cmd:"" help:"Make an app with its first key and secret."`
	List    appListCmd    `cmd:"" help:"List the apps."`
	Show    appShowCmd    `cmd:"" help:"Show one app with its keys and secrets."`
	Set     appSetCmd     `cmd:"" help:"Change settings of an app: limits, and what its clients may do."`
	Rotate  appRotateCmd  `cmd:"" help:"Give an app a new key, or retire an old one."`
	Suspend appSuspendCmd `cmd:"" help:"Refuse everything of an app until it is resumed."`
	Resume  appResumeCmd  `cmd:"" help:"End a suspension."`
}

// Help is shown by `petrel app --help`.
func (appCmd) Help() string {
	return `An app is a tenant: its rooms, users and limits are its own. Its backend signs with key and secret.
These commands ask the running node; when none runs, they open the data folder themselves.

Examples:
  petrel app create --name "Our shop"
  petrel app rotate 482913                      the new key is good at once, the old one still is
  petrel app rotate 482913 --retire OLDKEY      now it is not
  petrel app set 482913 client_events=off max_event_bytes=20000
  petrel app suspend 482913 --reason "floods its rooms"`
}

type appCreateCmd struct {
	ID   string `placeholder:"ID" help:"Id of the app; digits are understood by every SDK of the Pusher family. Made up when absent."`
	Name string `placeholder:"NAME" help:"A name for people."`
	Set  string `placeholder:"NAME=VALUE,…" help:"Settings that differ from their defaults."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *appCreateCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		app, err := op.CreateApp(ctx, node.NewApp{ID: petrel.AppID(c.ID), Name: c.Name, Settings: c.Set})
		return show(con.out, c.JSON, app, err)
	})
}

type appListCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
	target
}

func (c *appListCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		apps, err := op.Apps(ctx)
		if err != nil {
			return err
		}
		for i := range apps {
			apps[i] = discreet(apps[i])
		}
		if c.JSON {
			return printJSON(con.out, apps)
		}
		w := tabwriter.NewWriter(con.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tSTATE\tKEYS\tCREATED")
		for _, a := range apps {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", a.ID, a.Name, state(a), len(a.Keys), a.CreatedAt.UTC().Format(time.RFC3339))
		}
		return w.Flush()
	})
}

type appShowCmd struct {
	App  string `arg:"" help:"Id of the app."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *appShowCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		app, err := op.App(ctx, petrel.AppID(c.App))
		return show(con.out, c.JSON, app, err)
	})
}

type appSetCmd struct {
	App      string            `arg:"" help:"Id of the app."`
	Settings map[string]string `arg:"" mapsep:"none" placeholder:"NAME=VALUE" help:"What to change; nothing after the = means the default. petrel app show lists them all."`
	JSON     bool              `name:"json" help:"Print JSON."`
	target
}

func (c *appSetCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		app, err := op.Configure(ctx, petrel.AppID(c.App), c.Settings)
		return show(con.out, c.JSON, discreet(app), err)
	})
}

type appRotateCmd struct {
	App    string `arg:"" help:"Id of the app."`
	Retire string `placeholder:"KEY" help:"Retire this key instead of making a new one. The last key of an app stays."`
	JSON   bool   `name:"json" help:"Print JSON."`
	target
}

func (c *appRotateCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) (err error) {
		var app node.App
		if c.Retire != "" {
			app, err = op.RetireKey(ctx, petrel.AppID(c.App), c.Retire)
		} else {
			app, err = op.AddKey(ctx, petrel.AppID(c.App))
		}
		return show(con.out, c.JSON, app, err)
	})
}

type appSuspendCmd struct {
	App    string `arg:"" help:"Id of the app."`
	Reason string `placeholder:"TEXT" help:"Why; shown to operators."`
	JSON   bool   `name:"json" help:"Print JSON."`
	target
}

func (c *appSuspendCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		app, err := op.Suspend(ctx, petrel.AppID(c.App), c.Reason)
		return show(con.out, c.JSON, discreet(app), err)
	})
}

type appResumeCmd struct {
	App  string `arg:"" help:"Id of the app."`
	JSON bool   `name:"json" help:"Print JSON."`
	target
}

func (c *appResumeCmd) Run(con *console) error {
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		app, err := op.Resume(ctx, petrel.AppID(c.App))
		return show(con.out, c.JSON, discreet(app), err)
	})
}

type tokenCmd struct {
	App  string        `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	User string        `required:"" placeholder:"USER" help:"Id of the user; need not exist yet."`
	TTL  time.Duration `default:"24h" placeholder:"TIME" help:"How long the token is good."`
	target
}

// Help is shown by `petrel token --help`.
func (tokenCmd) Help() string {
	return `The token is a JWT (HS256) signed with the app's secret: iss is the app's key, sub the user, exp the end.
Your own backend makes the same with any JWT library; this command is for trying things out.

Example:
  curl -H "Authorization: Bearer $(petrel token --app 482913 --user ada)" http://127.0.0.1:8080/v1/rooms`
}

func (c *tokenCmd) Run(con *console) error {
	if c.TTL < time.Second || c.TTL > node.MaxTokenTTL {
		return mistake{fmt.Errorf("--ttl is %s; it must be between 1s and %s", c.TTL, node.MaxTokenTTL)}
	}
	return c.do(con, func(ctx context.Context, op node.Operator) error {
		t, err := op.MintToken(ctx, petrel.AppID(c.App), petrel.UserID(c.User), c.TTL)
		if err == nil {
			_, err = fmt.Fprintln(con.out, t.Token)
		}
		return err
	})
}

// discreet is an app without its secrets: only who makes a key, or asks to be shown the app, is given them.
func discreet(a node.App) node.App {
	for i := range a.Keys {
		a.Keys[i].Secret = ""
	}
	return a
}

func show(w io.Writer, asJSON bool, a node.App, err error) error {
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, a)
	}
	fmt.Fprintf(w, "app     %s\n", a.ID)
	if a.Name != "" {
		fmt.Fprintf(w, "name    %s\n", a.Name)
	}
	fmt.Fprintf(w, "state   %s\n", state(a))
	for _, k := range a.Keys {
		fmt.Fprintf(w, "key     %s\n", k.Key)
		if k.Secret != "" {
			fmt.Fprintf(w, "secret  %s\n", k.Secret)
		}
	}
	for i, s := range a.Settings {
		label := ""
		if i == 0 {
			label = "settings"
		}
		note := ""
		if s.Value != s.Default {
			note = fmt.Sprintf("  (default %s)", s.Default)
		}
		fmt.Fprintf(w, "%-9s%-23s%s%s\n", label, s.Name, s.Value, note)
	}
	return nil
}

func state(a node.App) string {
	switch {
	case a.Suspended && a.Reason != "":
		return "suspended: " + a.Reason
	case a.Suspended:
		return "suspended"
	}
	return "good"
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
