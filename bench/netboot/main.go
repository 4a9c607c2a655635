// Netboot measures how a rack agent answers machines that boot from the network,
// beside what a user would pick instead: DHCP beside Kea and dnsmasq, TFTP beside
// dnsmasq and atftpd, HTTP beside nginx, and each beside a bare echo as limit. Every
// server has a network namespace and a cable of its own and answers the same load
// generators, in turns. Needs root or user namespaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Roles of this program: it starts itself in new namespaces.
const (
	roleLoad = "load" // inside, where the load generators run
	roleHold = "hold" // waits for its cable, then becomes a server
	roleOurs = "ours"
	roleEcho = "echo"
	rolePin  = "pin-tftp" // pin/tftp's server, which netboot/tftp had before
)

// niceness of the servers and of the load generators.
const niceness = -15

type settings struct {
	rounds  int
	length  time.Duration // of one run
	only    string
	profile string
	dir     string
	rows    string
}

func main() {
	if len(os.Args) > 1 {
		if run, ok := map[string]func([]string) error{roleHold: hold, roleOurs: serveOurs, roleEcho: serveEcho, rolePin: servePin}[os.Args[1]]; ok {
			if err := run(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	var s settings
	flag.IntVar(&s.rounds, "rounds", 5, "runs of each server for each figure, in turns")
	flag.DurationVar(&s.length, "length", 800*time.Millisecond, "of one run")
	flag.StringVar(&s.only, "only", "dhcp,tftp,http", "what to measure: words of the names in the table")
	flag.StringVar(&s.profile, "profile", "", "directory for CPU profiles of our server, one for the whole run")
	flag.StringVar(&s.dir, "dir", "", "of the run's files; a temporary one")
	flag.StringVar(&s.rows, "rows", "", "add the table's rows to this file")
	inside := flag.Bool(roleLoad, false, "internal: already in a namespace")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	if err := start(ctx, s, *inside); err != nil {
		fmt.Fprintln(os.Stderr, "netboot:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, s settings, inside bool) error {
	if !inside {
		return enter(ctx)
	}
	// Processes are seen by the numbers that they have in here.
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), syscall.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	prefer()
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "bench-netboot-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		s.dir = dir
	}
	return measure(ctx, s)
}

// enter starts the program again as the first process of namespaces that end with
// it, however it ends, and take every server along.
func enter(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"-" + roleLoad}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return errors.New("the measurement failed")
	} else if err != nil {
		return fmt.Errorf("new namespace: %w", err)
	}
	return nil
}

// prefer has everything that is started here, servers and load generators alike, go
// before what else the machine does. Where sessions are groups of their own to the
// scheduler (sched(7), autogroup), a process's niceness counts only within.
func prefer() {
	runtime.LockOSThread() // for good: niceness is a thread's, and of the children that it starts
	err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, niceness)
	if group := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(niceness)), 0); group != nil && !errors.Is(group, fs.ErrNotExist) {
		err = errors.Join(err, group)
	}
	if err != nil {
		fmt.Println("at normal priority: other work on this machine shows in the figures")
	}
}

// wants says whether one of the words is in a subject's name.
func (s settings) wants(name string) bool {
	for w := range strings.SplitSeq(s.only, ",") {
		if strings.Contains(strings.ToLower(name), strings.ToLower(w)) {
			return true
		}
	}
	return false
}
