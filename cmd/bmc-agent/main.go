// Command bmc-agent runs a rack agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"bmc/agent"
	"bmc/internal/version"
	"bmc/metal"
)

const usage = `Usage:
  bmc-agent run --config FILE [--log-format text|json]
  bmc-agent version
`

// Exit codes, as docs/operations.md lists them; exitState is of an agent that was
// removed.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
	exitState = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "version", "--version":
		fmt.Fprintln(stdout, "bmc-agent", version.String())
		return exitOK
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return exitOK
	case "run":
		return runAgent(ctx, args[1:], stderr)
	}
	fmt.Fprintf(stderr, "bmc-agent: there is no command %q\n%s", args[0], usage)
	return exitUsage
}

func runAgent(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("bmc-agent run", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "/etc/bmc/agent.yaml", "configuration file")
	format := flags.String("log-format", "text", "text or json")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 || *format != "text" && *format != "json" {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		fail(stderr, err)
		return exitUsage
	}
	a, err := agent.New(cfg, logger(stderr, *format, cfg.LogLevel))
	if err != nil {
		return fail(stderr, err)
	}
	a.OnReady(func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }) // nobody may listen
	err = a.Run(ctx)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if err != nil {
		return fail(stderr, err)
	}
	return exitOK
}

func logger(w io.Writer, format, level string) *slog.Logger {
	opts := &slog.HandlerOptions{}
	var l slog.Level
	if l.UnmarshalText([]byte(level)) == nil { // the configuration was checked
		opts.Level = l
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// fail prints an error in the parts that all programs use.
func fail(w io.Writer, err error) int {
	fmt.Fprintln(w, "bmc-agent:", err)
	var e *metal.Error
	if errors.As(err, &e) {
		fmt.Fprintln(w, "  reason:", e.Code)
		if e.Hint != "" {
			fmt.Fprintln(w, "  try:   ", e.Hint)
		}
		if e.Code == metal.CodeWrongState {
			return exitState
		}
	}
	return exitError
}
