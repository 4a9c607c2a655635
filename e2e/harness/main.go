package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Main is the main function of a program that brings a lab up: it ends in order
// when it is interrupted, and exits with 1 when run fails. A terminal that closes
// and a reader that leaves (| head) end it in order, too: the lab would outlive it.
func Main(run func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nfailed:", err)
		os.Exit(1)
	}
}

// Absolute makes paths absolute: a lab's daemons run elsewhere.
func Absolute(paths ...*string) error {
	var errs []error
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		*p = abs
	}
	return errors.Join(errs...)
}
