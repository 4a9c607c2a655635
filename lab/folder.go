package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirVariable tells every bmc-lab command which lab is meant.
const dirVariable = "BMC_LAB_DIR"

const (
	lockName   = "lock"
	socketName = "control.sock"
	// superviseLog is where a supervisor's own messages go. Whoever starts it
	// makes that file.
	superviseLog = "supervisor.log"
)

// ours is everything that a lab writes into its folder.
var ours = []string{
	"machines", "nodes", "agents", "s3", "logs", socketName, "inventory.yaml", "admin.token", "oob.jsonl", "machines.jsonl", "faults.jsonl", "failpoints",
}

// RunningError says that a lab already has the folder.
type RunningError struct {
	Dir string
	PID int
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("a lab is running in %s (process %d); take it down with: bmc-lab down --dir %s", e.Dir, e.PID, e.Dir)
}

// claim takes the folder for this process, for as long as the file it returns is
// open, and removes what a crashed lab left there.
func claim(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := notSomebodyElses(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &RunningError{dir, holder(dir)}
		}
		return nil, errors.Join(err, f.Close())
	}
	err = errors.Join(f.Truncate(0), remove(dir, ours))
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// notSomebodyElses refuses a folder with files in it that no lab made.
func notSomebodyElses(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockName || e.Name() == superviseLog {
			return nil
		}
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds other files (%s): give an empty folder", dir, entries[0].Name())
	}
	return nil
}

// holder is the process that wrote itself into the lock; 0 if unknown.
func holder(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// Running returns the supervisor's process of the lab in dir, 0 if there is none.
func Running(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return holder(dir), nil
	}
	return 0, err
}

// Clean removes a dead lab's files, and the folder when it is empty then.
func Clean(dir string) error {
	if pid, err := Running(dir); err != nil || pid != 0 {
		return errors.Join(err, &RunningError{dir, pid})
	}
	if err := remove(dir, append(ours, superviseLog, lockName)); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func remove(dir string, names []string) error {
	var errs []error
	for _, n := range names {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, n)))
	}
	return errors.Join(errs...)
}

// downTimeout bounds a lab's orderly end.
const downTimeout = 60 * time.Second

// Down ends the lab in dir, in order if it can, and returns when its process is
// gone. It says whether there was one. Files stay: Clean.
func Down(ctx context.Context, dir string) (bool, error) {
	pid, err := Running(dir)
	if err != nil || pid == 0 {
		return false, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return true, fmt.Errorf("supervisor %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	asked := NewClient(dir).Down(ctx)
	if asked != nil {
		// It does not listen: a signal does the same.
		asked = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	}
	if gone(ctx, fd) {
		return true, nil
	}
	// The kernel kills its children with it.
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	if !gone(last, fd) {
		return true, errors.Join(fmt.Errorf("supervisor %d does not end", pid), asked, err)
	}
	return true, errors.Join(fmt.Errorf("supervisor %d did not end in time and was killed", pid), asked)
}

// gone waits until the process behind a pidfd has ended.
func gone(ctx context.Context, fd int) bool {
	for ctx.Err() == nil {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 100); err == nil && n == 1 {
			return true
		}
	}
	return false
}
