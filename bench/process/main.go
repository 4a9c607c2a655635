package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main runs a measurement until it ends or is interrupted, and exits: 2 for
// arguments that parse refuses, 1 for run's error.
func Main[O any](parse func(args []string) (O, error), run func(context.Context, O) error) {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// In says what a measurement runs on, and runs it in a new directory in dir, which
// is removed afterwards unless it is to be kept.
func In(dir, name string, keep bool, run func(dir string) error) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	kind, err := Filesystem(dir)
	if err != nil {
		return err
	}
	fmt.Printf("Machine: %s\nData on: %s\n", Machine(), kind)
	if kind == "tmpfs" {
		fmt.Println("Warning: tmpfs costs no fsync; these figures are no measurement of durable writes")
	}
	made, err := os.MkdirTemp(dir, name+"-*")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("Data and logs:", made)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(made)) }()
	}
	return run(made)
}
