package raftlog

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// bridge hands the engine's logging to slog, one level quieter than it thinks of itself:
// its "info" is every election, and its "error" includes each retry towards a dead peer.
type bridge struct{ to *slog.Logger }

func newHCLog(to *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(bridge{to})
	return l
}

// Accept implements hclog.SinkAdapter.
func (b bridge) Accept(name string, level hclog.Level, msg string, args ...any) {
	lv := slog.LevelDebug - 4
	switch level {
	case hclog.Info:
		lv = slog.LevelDebug
	case hclog.Warn:
		lv = slog.LevelInfo
	case hclog.Error:
		lv = slog.LevelWarn
	}
	ctx := context.Background()
	if !b.to.Enabled(ctx, lv) {
		return
	}
	b.to.Log(ctx, lv, "raft engine", "part", name, "says", msg, slog.Group("with", args...))
}
