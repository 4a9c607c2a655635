package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bmc/client"
	"bmc/cmd/bmc/output"
	"bmc/metal"
)

// app is one run of the command: its streams, its flags, and the client that
// the first call makes.
type app struct {
	in  io.Reader
	out io.Writer
	err io.Writer

	addrs      []string
	caFile     string
	context    string
	outputFlag string
	columns    []string
	sortBy     string
	color      string
	wait       bool
	noWait     bool
	timeout    time.Duration
	yes        bool
	quiet      bool
	allowStale bool

	format   output.Format
	resolved *target
	client   *client.Client
	env      func(string) string
}

func newApp(in io.Reader, out, errw io.Writer) *app {
	return &app{in: in, out: out, err: errw, env: os.Getenv}
}

// run executes one command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if metal.CodeOf(err) == metal.CodeInvalid {
		err = hinted(err, "%s --help", cmd.CommandPath())
	}
	if a.client != nil {
		a.noteStale()
		if cerr := a.client.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}
	if err != nil {
		a.report(ctx, err)
	}
	return exitCode(ctx, err)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "bmc",
		Short: "Bare-metal servers that feel like virtual machines",
		Long: `bmc manages the whole life of servers in datacenter racks, against any node of
the control plane. Errors carry a reason and the command to run next.

First steps:  bmc status        what there is
              bmc create --name web-1 --image debian12
              bmc login web-1
              bmc destroy web-1`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			a.format, err = output.Parse(a.outputFlag, a.columns, a.sortBy)
			return err
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd, "%v", err)
	})
	f := root.PersistentFlags()
	f.StringSliceVar(&a.addrs, "addr", nil, "control-plane nodes, host:port (BMC_ADDR)")
	f.StringVar(&a.caFile, "cacert", "", "file with the cluster's CA certificate (BMC_CACERT)")
	f.StringVar(&a.context, "context", "", "context to use (BMC_CONTEXT)")
	f.StringVarP(&a.outputFlag, "output", "o", "", "table, wide, json, jsonl, yaml, name, template=…")
	f.StringSliceVar(&a.columns, "columns", nil, "columns of the table, in order")
	f.StringVar(&a.sortBy, "sort-by", "", "column to sort by; -COLUMN turns it round")
	f.StringVar(&a.color, "color", "auto", "auto, always or never (NO_COLOR is honoured)")
	f.DurationVar(&a.timeout, "timeout", 0, "give up waiting after this long (0: never)")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no hints")
	root.AddGroup(
		&cobra.Group{ID: "daily", Title: "Servers:"},
		&cobra.Group{ID: "operator", Title: "Racks and inventory:"},
		&cobra.Group{ID: "other", Title: "This command:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("daily", a.createCommand(), a.listCommand(), a.getCommand(), a.explainCommand(), a.restartCommand(),
		a.powerCommand(), a.destroyCommand(), a.retryCommand(), a.cancelCommand(),
		a.holdCommand("protect", "Keep a server from being destroyed", true), a.holdCommand("unprotect", "Let a server be destroyed again", false), a.loginCommand(), a.waitCommand(), a.eventsCommand(),
		a.operationCommand(), a.keyCommand(), a.imageCommand(), a.sizeCommand())
	add("operator", a.inventoryCommand(), a.rackCommand(), a.agentCommand(), a.clusterCommand(), a.tokenCommand(), a.statusCommand())
	add("other", a.doctorCommand(), a.contextCommand(), a.whoamiCommand(), a.completionCommand(), a.versionCommand())
	root.AddCommand(a.tunnelCommand())
	a.staleFlag(root)
	root.SetHelpCommandGroupID("other")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd, "there is no command %q%s", args[0], suggest(cmd, args[0]))
		}
		return cmd.Help()
	}
	root.Args = cobra.ArbitraryArgs
	return root
}

// waitFlags adds --wait and --no-wait to a mutation.
func (a *app) waitFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.wait, "wait", false, "wait for the end, with progress (the default on a terminal)")
	cmd.Flags().BoolVar(&a.noWait, "no-wait", false, "print the operation and return (the default elsewhere)")
	cmd.MarkFlagsMutuallyExclusive("wait", "no-wait")
}

// waits says whether a mutation waits for its end.
func (a *app) waits() bool { return a.wait || (!a.noWait && a.terminal(a.err) && !a.format.Machine()) }

// terminal says whether w is one.
func (a *app) terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colored says whether w may carry colour; it is never the only sign.
func (a *app) colored(w io.Writer) bool {
	switch a.color {
	case "always":
		return true
	case "never":
		return false
	}
	return a.env("NO_COLOR") == "" && a.env("TERM") != "dumb" && a.terminal(w)
}

// note prints a line for people on stderr.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// api returns the client, made at the first call.
func (a *app) api() (*client.Client, error) {
	if a.client != nil {
		if a.allowStale {
			a.client.AllowStale()
		}
		return a.client, nil
	}
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	a.client, err = client.New(client.Config{
		Addresses: t.Addresses, Token: t.Token, CACert: t.CA,
		OnRetry: func(reason string) { a.note("waiting: %s; trying again for 10 s", reason) },
	})
	if err == nil && a.allowStale {
		a.client.AllowStale()
	}
	return a.client, err
}

// errUsage marks a command line that cannot be right (exit code 2).
type errUsage struct{ error }

func usage(cmd *cobra.Command, format string, args ...any) error {
	return errUsage{metal.Errorf(metal.CodeInvalid, format, args...).WithHint("%s --help", cmd.CommandPath())}
}

func (e errUsage) Unwrap() error { return e.error }

// hinted adds a command to run to a refusal that has none.
func hinted(err error, format string, args ...any) error {
	var e *metal.Error
	if errors.As(err, &e) && e.Hint == "" {
		return e.WithHint(format, args...)
	}
	return err
}

func suggest(cmd *cobra.Command, typed string) string {
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(typed); len(s) > 0 {
		return `; did you mean "` + strings.Join(s, `" or "`) + `"?`
	}
	return ""
}

// exactly refuses another number of arguments, naming what is wanted.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return usage(cmd, "takes no argument, but was given %q", args[0])
		}
		return usage(cmd, "wants %s", strings.Join(names, " "))
	}
}

// atMost admits one argument or none.
func atMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usage(cmd, "wants %s or nothing", name)
		}
		return nil
	}
}

// group is a command that only holds others.
func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
	g.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd, "there is no command %q%s", args[0], suggest(cmd, args[0]))
		}
		return cmd.Help()
	}
	g.AddCommand(cmds...)
	return g
}

func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || metal.CodeOf(err) == metal.CodeCancelled)
}
