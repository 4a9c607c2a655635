package main

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
)

// console prints records as "bmc: sentence key=value": short lines that a
// person reads on a serial port. The time is the recorder's business.
type console struct {
	mu    *sync.Mutex
	out   io.Writer
	attrs []slog.Attr
}

func newConsole(out io.Writer) *console { return &console{mu: &sync.Mutex{}, out: out} }

// Enabled implements slog.Handler.
func (c *console) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (c *console) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("bmc: ")
	if r.Level >= slog.LevelWarn {
		b.WriteString(strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	write := func(a slog.Attr) bool {
		v := a.Value.String()
		if strings.ContainsAny(v, " \"=\n\r\t") {
			v = strconv.Quote(v)
		}
		b.WriteString(" " + a.Key + "=" + v)
		return true
	}
	for _, a := range c.attrs {
		write(a)
	}
	r.Attrs(write)
	b.WriteByte('\n')
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := io.WriteString(c.out, b.String())
	return err
}

// WithAttrs implements slog.Handler.
func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *c
	n.attrs = append(append([]slog.Attr(nil), c.attrs...), attrs...)
	return &n
}

// WithGroup implements slog.Handler; the console has no groups.
func (c *console) WithGroup(string) slog.Handler { return c }
