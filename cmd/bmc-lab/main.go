// Command bmc-lab brings whole racks up on one machine: control plane, agents,
// object store, and servers with real firmware behind virtual controllers.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"bmc/internal/version"
)

// Exit codes beside those of a program that exec ran.
const (
	exitError       = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// usageError is an error of the command line itself.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	if err == nil {
		return
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "bmc-lab:", err)
	var usage usageError
	switch {
	case interrupted:
		os.Exit(exitInterrupted)
	case errors.As(err, &usage):
		os.Exit(exitUsage)
	default:
		os.Exit(exitError)
	}
}

// options that every command has.
type options struct{ dir string }

func command() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:           "bmc-lab",
		Short:         "Whole racks on one machine",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	dir := os.Getenv("BMC_LAB_DIR")
	if dir == "" {
		dir = ".lab"
	}
	root.PersistentFlags().StringVar(&o.dir, "dir", dir, "the lab's folder (or BMC_LAB_DIR)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		upCommand(o), downCommand(o), envCommand(o), statusCommand(o), consoleCommand(o),
		powerCommand(o), oobLogCommand(o), execCommand(o),
		faultCommand(o), healCommand(o), faultsCommand(o), startCommand(o), restartCommand(o), contCommand(o),
		superviseCommand(), storeCommand(), chassisCommand(o),
	)
	return root
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("want %s", what)}
		}
		return nil
	}
}
