// Command mutants proves that the checks find what they are for. Each mutant is
// a place where the product does wrong on purpose (see internal/mutant); a test
// must hold without it, and with it must report a violation of the invariant
// that the mutant breaks: not a crash, not something else. `make mutants` is this
// program; its exit code tells.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

type mutant struct {
	name      string
	does      string
	invariant string
	pkg       string // below the module's folder
	test      string
}

var mutants = []mutant{
	{"unsynced-log", "a restart loses the newest entry of the log", "I1", "controlplane/consensus", "TestInvariantAcknowledgedIsKept"},
	{"no-read-index", "a follower answers from what it has", "I2", "controlplane/consensus", "TestInvariantFollowerReads"},
	{"clock-in-apply", "Apply takes this node's clock", "I3", "fsm", "TestInvariantsOfTheLog"},
	{"ignore-epoch", "a report counts whatever epoch it comes from", "I4", "fsm", "TestInvariantsOfTheLog"},
	{"request-twice", "a known request ID is run again", "I14", "fsm", "TestInvariantsOfTheLog"},
	{"no-verify-leader", "a renewal is acknowledged without asking the others", "I4", "controlplane/dispatch", "TestInvariantDeposedLeader"},
	{"early-grant", "a successor does not wait for the former lease's end", "I4", "controlplane/dispatch", "TestInvariantSuccessorWaits"},
	{"keep-mark", "a renewal is acknowledged, the mark of its silence stays", "I4", "controlplane/dispatch", "TestInvariantRenewalTakesTheMarkBack"},
	{"no-alarm", "half of a step's time goes by without a word", "I8", "controlplane/dispatch", "TestInvariantAlarmBeforeTheDeadline"},
	{"no-reassign", "what a dead agent had stays its own", "I15", "controlplane/dispatch", "TestInvariantGoesOnAtTheSuccessor"},
	{"no-lease-look", "no look at the lease before a controller's command", "I4", "agent/oob", "TestInvariantActsWithoutLease"},
	{"leave-sessions", "a successor leaves the former holder's sessions open", "I4", "agent/oob", "TestInvariantPausedBetweenLookAndSend"},
	{"act-before-word", "an agent acts before its step's start is recorded", "I5", "agent/operation", "TestInvariantWordBeforeAct"},
	{"answer-unknown", "a MAC that nobody enrolled gets an address", "I6", "agent", "TestInvariantUnknownMAC"},
	{"rent-rented", "create picks a server that is rented", "I7", "controlplane/rpc", "TestInvariantOneTenant"},
	{"no-read-off", "destroy calls a machine off without a look", "I9", "agent/operation", "TestInvariantReadOff"},
	{"no-read-back", "a wipe is not read back", "I10", "ramdisk/wipe", "TestInvariantWipeIsReadBack"},
	{"any-rack", "a report counts by whichever agent's certificate", "I12", "controlplane/rpc", "TestInvariantReportsOfOwnRack"},
	{"grant-again", "a task is granted beside the one under way or done", "twice", "agent/boot", "TestInvariantGrantedOnce"},
}

// Bounds of one build and one run.
const (
	buildFor = 10 * time.Minute
	runFor   = 2 * time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nfailed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "bmc-mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // binaries, nothing more
	fmt.Printf("%-17s %-55s %-10s %-8s %s\n", "mutant", "does", "invariant", "without", "with")
	missed := 0
	for _, m := range mutants {
		program, err := build(ctx, dir, m.pkg)
		if err != nil {
			return err
		}
		without, with := "holds", "caught by "+m.test
		if found, failed := try(ctx, program, m, ""); failed {
			without = "FAILS " + strings.Join(found, " ")
			missed++
		}
		found, failed := try(ctx, program, m, m.name)
		caught := false
		for _, f := range found {
			caught = caught || f == m.invariant
		}
		switch {
		case !failed:
			with = "NOT CAUGHT"
		case !caught:
			with = fmt.Sprintf("FAILS, but does not report %s: %v", m.invariant, found)
		}
		if !failed || !caught {
			missed++
		}
		fmt.Printf("%-17s %-55s %-10s %-8s %s\n", m.name, m.does, m.invariant, without, with)
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d mutants were not caught as they should be", missed, len(mutants))
	}
	fmt.Printf("%d mutants, all caught by their invariants; the same tests hold without them\n", len(mutants))
	return nil
}

// build compiles a package's tests with the tag, once.
func build(ctx context.Context, dir, pkg string) (string, error) {
	program := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	ctx, cancel := context.WithTimeout(ctx, buildFor)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", program, "./"+pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}

var violated = regexp.MustCompile(`violated (\w+):`)

// try runs a test with a mutant, or without any, and returns which invariants it
// says are violated, and whether it failed.
func try(ctx context.Context, program string, m mutant, name string) (found []string, failed bool) {
	ctx, cancel := context.WithTimeout(ctx, runFor)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", "^"+m.test+"$", "-test.v") //nolint:gosec // our own tests
	cmd.Dir = filepath.FromSlash(m.pkg)
	cmd.Env = append(os.Environ(), "BMC_MUTANT="+name)
	out, err := cmd.CombinedOutput()
	for _, v := range violated.FindAllStringSubmatch(string(out), -1) {
		found = append(found, v[1])
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return []string{err.Error()}, true
	}
	ran := strings.Contains(string(out), "=== RUN   "+m.test)
	if !ran {
		return []string{"the test does not exist"}, true
	}
	return found, err != nil
}
