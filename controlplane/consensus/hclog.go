package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLog lets HashiCorp's libraries log through slog. What they only say to
// their own developers (raft's info) becomes debug, and the rest sinks a level.
type hcLog struct {
	hclog.Logger // the rest: nothing
	log          *slog.Logger
	name         string
	args         []any
	said         *said // shared by all that With and Named made
}

// quiet is how long a warning is not repeated: raft warns of a peer that is
// down at every heartbeat.
const quiet = 30 * time.Second

// said remembers warnings, by sentence and peer. There are few.
type said struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (s *said) again(msg string, args []any) bool {
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "peer" || args[i] == "id" {
			key += "\x00" + fmt.Sprint(args[i+1])
		}
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.last[key]; ok && now.Sub(at) < quiet {
		return true
	}
	maps.DeleteFunc(s.last, func(_ string, at time.Time) bool { return now.Sub(at) >= quiet })
	s.last[key] = now
	return false
}

func newHCLog(l *slog.Logger) hclog.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &hcLog{Logger: hclog.NewNullLogger(), log: l.With("lib", "raft"), name: "raft", said: &said{last: map[string]time.Time{}}}
}

var levels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelDebug,
	hclog.Warn: slog.LevelInfo, hclog.Error: slog.LevelWarn, // an election or a peer that is down is no error of ours
}

func (h *hcLog) Log(level hclog.Level, msg string, args ...any) {
	if level >= hclog.Warn && h.said.again(msg, args) {
		return
	}
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
