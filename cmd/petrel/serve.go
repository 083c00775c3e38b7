package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/web"
)

type serveCmd struct {
	File        string `name:"config" short:"c" env:"PETREL_CONFIG" placeholder:"FILE" help:"TOML file with settings, by the names of the flags: listen = \"0.0.0.0:8080\"."`
	node.Config `embed:""`
}

// Help is shown by `petrel serve --help`.
func (serveCmd) Help() string {
	return `Every flag is also a setting of the TOML file (replay-limit = 5000) and a variable of the
environment (PETREL_REPLAY_LIMIT=5000). Flags win over the environment, the environment over the file.

The first app of an empty data folder comes from PETREL_APP_ID, PETREL_APP_KEY and PETREL_APP_SECRET
(or PUSHER_APP_ID, …), or is made up and printed once.

SIGTERM drains: connections are told to move, then the node stops. A second one stops it now.

Examples:
  petrel serve --demo
  petrel serve --data /var/lib/petrel --listen 0.0.0.0:8080
  PETREL_LOG_LEVEL=debug petrel serve --config /etc/petrel.toml`
}

func (c *serveCmd) Run(con *console, kctx *kong.Context) error {
	flags := map[string]any{}
	for _, p := range kctx.Path {
		if p.Flag != nil && !p.Resolved && p.Flag.Name != "config" && p.Flag.Name != "help" {
			flags[p.Flag.Name] = kctx.FlagValue(p.Flag)
		}
	}
	cfg, unknown, err := node.LoadConfig(node.Sources{File: c.File, Environ: con.environ, Flags: flags})
	if err != nil {
		return mistake{err}
	}
	logger := node.NewLogger(con.err, cfg.LogLevel, cfg.LogFormat)
	if len(unknown) > 0 {
		logger.Warn("variables of the environment look like settings and are none", "variables", unknown)
	}
	for {
		err := c.serve(con, cfg, logger)
		if con.ctx.Err() != nil && errors.Is(err, context.Canceled) { // by a signal
			logger.Info("stopped before it was ready", "pid", os.Getpid())
			return nil
		}
		if !errors.Is(err, node.ErrRebuild) || con.ctx.Err() != nil {
			return err
		}
		logger.Warn("opening the node again, as a new member of its cell", "why", err)
	}
}

// serve runs a node from its start to its end.
func (c *serveCmd) serve(con *console, cfg node.Config, logger *slog.Logger) error {
	n, err := node.Open(con.ctx, node.Options{
		Config: cfg, Logger: logger, Notice: con.out, Build: build(), Web: web.Handler(), Faults: faults(),
	})
	if err != nil {
		return err
	}
	if err := n.Start(con.ctx); err != nil {
		return stopNow(n, err)
	}
	select {
	case <-n.Failed():
		return stopNow(n, n.Err())
	case <-con.ctx.Done():
	}

	logger.Info("draining", "timeout", cfg.DrainTimeout.String())
	ctx, cancel := context.WithTimeout(context.Background(), cfg.DrainTimeout)
	defer cancel()
	go func() {
		select {
		case <-con.again:
			logger.Warn("a second signal: stopping now")
			cancel()
		case <-ctx.Done():
		}
	}()
	n.Drain(ctx)
	if err := n.Stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	logger.Info("stopped", "pid", os.Getpid())
	return n.Err()
}

// stopNow closes what is open; the first error is the one worth telling.
func stopNow(n *node.Node, err error) error {
	_ = n.Stop()
	return err
}
