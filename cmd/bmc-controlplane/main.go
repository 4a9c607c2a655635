// Command bmc-controlplane is one node of the control plane.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"bmc/controlplane"
	"bmc/internal/jointoken"
	"bmc/internal/version"
	"bmc/metal"
)

// Exit codes, as bmc has them: 1 for errors, 2 for usage and files that are wrong, 4
// for who is not let in, 5 for what the state of the node or cluster does not admit, 6
// when no node answers.
const (
	exitError       = 1
	exitUsage       = 2
	exitDenied      = 4
	exitState       = 5
	exitUnreachable = 6
)

var exitByCode = map[metal.Code]int{
	metal.CodeInvalid: exitUsage,
	metal.CodeDenied:  exitDenied, metal.CodeUnauthenticated: exitDenied, metal.CodeTokenExpired: exitDenied,
	metal.CodeWrongState: exitState, metal.CodeBusy: exitState, metal.CodeNameTaken: exitState, metal.CodeConflict: exitState,
	metal.CodeNoLeader: exitUnreachable, metal.CodeUnknownOutcome: exitUnreachable, metal.CodeDeadline: exitUnreachable,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its edges as arguments.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot(stdin, stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	return failed(err, stderr)
}

// failed says what went wrong, and returns the exit code for it.
func failed(err error, stderr io.Writer) int {
	fmt.Fprintf(stderr, "Error: %s\n", err)
	var e *metal.Error
	if errors.As(err, &e) {
		fmt.Fprintf(stderr, "Reason: %s\n", e.Code)
		if e.Hint != "" {
			fmt.Fprintf(stderr, "Hint: %s\n", e.Hint)
		}
		if code, ok := exitByCode[e.Code]; ok {
			return code
		}
		return exitError
	}
	var u usageError
	if errors.As(err, &u) {
		return exitUsage
	}
	return exitError
}

// usageError is a mistake on the command line.
type usageError struct{ error }

// flags of all subcommands.
type flags struct {
	config    string
	logFormat string
	stdin     io.Reader
	stderr    io.Writer
	stdout    io.Writer
}

func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	f := &flags{stdin: stdin, stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use: "bmc-controlplane", Short: "A node of the bare-metal control plane",
		SilenceUsage: true, SilenceErrors: true, Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q: use init, join, run, recover or version", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&f.config, "config", "", "configuration file (YAML)")
	root.PersistentFlags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	root.AddCommand(f.initCommand(), f.joinCommand(), f.runCommand(), f.recoverCommand(), f.versionCommand())
	return root
}

// load reads the configuration and makes the log that it asks for.
func (f *flags) load() (controlplane.Config, *slog.Logger, error) {
	if f.config == "" {
		return controlplane.Config{}, nil, usageError{errors.New("--config FILE is missing")}
	}
	c, err := controlplane.LoadConfig(f.config)
	if err != nil {
		return c, nil, err
	}
	options := &slog.HandlerOptions{Level: c.Level()}
	switch f.logFormat {
	case "text":
		return c, slog.New(slog.NewTextHandler(f.stderr, options)), nil
	case "json":
		return c, slog.New(slog.NewJSONHandler(f.stderr, options)), nil
	}
	return c, nil, usageError{fmt.Errorf("--log-format is text or json, not %q", f.logFormat)}
}

func (f *flags) initCommand() *cobra.Command {
	var tokenFile, snapshot string
	cmd := &cobra.Command{
		Use: "init --config FILE --admin-token-file FILE", Short: "Start a new cluster with this node, or a lost one again from a backup", Args: noArgs,
		Long: "Makes the CA, the key ring, and an administrator's token.\n\n" +
			"With --from-snapshot it makes a cluster again whose nodes are all lost. That needs the snapshot\n" +
			"(bmc cluster snapshot save) and a copy of the key ring at keyring_file. The cluster, its CA, agents'\n" +
			"certificates and users' tokens stay what they were; an administrator's token is made only if asked for.\n" +
			"Its racks are frozen until their agents have said what they knew. The lost nodes must never start again.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := f.load()
			if err != nil {
				return err
			}
			if snapshot != "" {
				return f.initFrom(cmd.Context(), c, snapshot, tokenFile)
			}
			if tokenFile == "" {
				return usageError{errors.New("--admin-token-file FILE is missing: the first administrator's token is written there and nowhere else")}
			}
			cluster, err := controlplane.Init(cmd.Context(), c, tokenFile)
			if err != nil {
				return err
			}
			fmt.Fprintf(f.stdout, "Cluster %s has its first node, %s.\nAdministrator's token: %s\nCA certificate: %s/ca.pem\n", cluster, c.Name, tokenFile, c.DataDir)
			fmt.Fprintf(f.stderr, "Keep a copy of %s apart from the backups: without it a backup is of no use.\n", c.KeyringFile)
			fmt.Fprintf(f.stderr, "Next: bmc-controlplane run --config %s\n", f.config)
			return nil
		},
	}
	cmd.Flags().StringVar(&tokenFile, "admin-token-file", "", "where to write the administrator's token")
	cmd.Flags().StringVar(&snapshot, "from-snapshot", "", "a saved state of the cluster that was lost")
	return cmd
}

func (f *flags) joinCommand() *cobra.Command {
	var tokenFile string
	cmd := &cobra.Command{
		Use: "join --config FILE --token-file FILE", Short: "Enter a cluster with a join token", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := f.load()
			if err != nil {
				return err
			}
			if tokenFile == "" {
				return usageError{errors.New("--token-file FILE is missing: make a token with `bmc cluster join-token --role node`")}
			}
			token, err := jointoken.ReadFile(tokenFile)
			if err != nil {
				return err
			}
			cluster, err := controlplane.Join(cmd.Context(), c, token, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(f.stdout, "Node %s has entered cluster %s.\n", c.Name, cluster)
			fmt.Fprintf(f.stderr, "Next: bmc-controlplane run --config %s\n", f.config)
			return nil
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the join token")
	return cmd
}

func (f *flags) runCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run --config FILE", Short: "Run the node until SIGTERM or SIGINT", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := f.load()
			if err != nil {
				return err
			}
			slog.SetDefault(log)
			tuneGC(os.Getenv)
			registry, err := controlplane.NewRegistry()
			if err != nil {
				return err
			}
			notify := func(state string) {
				if _, err := daemon.SdNotify(false, state); err != nil {
					log.Warn("systemd was not notified", "err", err)
				}
			}
			defer context.AfterFunc(cmd.Context(), func() { notify(daemon.SdNotifyStopping) })()
			return controlplane.Run(cmd.Context(), c, controlplane.Options{Log: log, Registry: registry, Fatal: func(err error) {
				log.Error("the state machine cannot go on", "err", err)
				os.Exit(exitError)
			}}, func() { notify(daemon.SdNotifyReady) })
		},
	}
}

func (f *flags) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(f.stdout, version.String())
			return nil
		}}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument %q", cmd.Name(), args[0])}
	}
	return nil
}
