package consensus

import (
	"context"
	"io"
	"log"
	"log/slog"
	"slices"

	"github.com/hashicorp/go-hclog"
)

// hcLog lets HashiCorp's libraries log through slog. What they only say to
// their own developers (info of raft) becomes debug.
type hcLog struct {
	hclog.Logger // the rest: nothing
	log          *slog.Logger
	name         string
	args         []any
}

func newHCLog(l *slog.Logger) hclog.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &hcLog{Logger: hclog.NewNullLogger(), log: l.With("lib", "raft"), name: "raft"}
}

var levels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelDebug,
	hclog.Warn: slog.LevelWarn, hclog.Error: slog.LevelError,
}

func (h *hcLog) Log(level hclog.Level, msg string, args ...any) {
	h.log.Log(context.Background(), levels[level], msg, args...)
}

func (h *hcLog) Trace(msg string, args ...any) {}
func (h *hcLog) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLog) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLog) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLog) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hcLog) IsTrace() bool { return false }
func (h *hcLog) IsDebug() bool { return h.log.Enabled(context.Background(), slog.LevelDebug) }
func (h *hcLog) IsInfo() bool  { return h.IsDebug() }
func (h *hcLog) IsWarn() bool  { return true }
func (h *hcLog) IsError() bool { return true }

func (h *hcLog) ImpliedArgs() []any { return h.args }
func (h *hcLog) Name() string       { return h.name }

func (h *hcLog) With(args ...any) hclog.Logger {
	c := *h
	c.log, c.args = h.log.With(args...), append(slices.Clip(h.args), args...)
	return &c
}

func (h *hcLog) Named(name string) hclog.Logger {
	c := *h
	c.name = h.name + "." + name
	return &c
}

func (h *hcLog) ResetNamed(name string) hclog.Logger {
	c := *h
	c.name = name
	return &c
}

func (h *hcLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)
}

func (h *hcLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return h.StandardLogger(o).Writer()
}
