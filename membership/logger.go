package membership

import (
	"bytes"
	"context"
	"log"
	"log/slog"
)

// lines turns memberlist's "[WARN] memberlist: text" into records.
type lines struct{ log *slog.Logger }

func newLogger(l *slog.Logger) *log.Logger {
	return log.New(lines{l.With("lib", "memberlist")}, "", 0)
}

func (w lines) Write(p []byte) (int, error) {
	text := bytes.TrimSpace(p)
	level := slog.LevelDebug
	for prefix, l := range map[string]slog.Level{"[WARN]": slog.LevelDebug, "[ERR]": slog.LevelWarn, "[ERROR]": slog.LevelWarn, "[INFO]": slog.LevelDebug, "[DEBUG]": slog.LevelDebug} {
		if rest, ok := bytes.CutPrefix(text, []byte(prefix)); ok {
			text, level = bytes.TrimSpace(rest), l
			break
		}
	}
	text = bytes.TrimPrefix(text, []byte("memberlist: "))
	w.log.Log(context.Background(), level, "gossip", "text", string(text))
	return len(p), nil
}
