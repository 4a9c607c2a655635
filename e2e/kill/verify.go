package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/run"
	"bmc/metal"
)

// warmOperations are what a warm pass goes through.
var warmOperations = []struct {
	op   string
	kind metal.OperationKind
}{{opWarm, metal.KindDeploy}, {"destroy", metal.KindRelease}}

// Bounds of a warm pass and of the reader.
const (
	warmFor   = 6 * time.Minute // for a machine under QEMU to wait in the ramdisk
	readEvery = time.Second
	askFor    = 10 * time.Second // who holds the lease: well within one
)

// warm sets how many servers wait in the ramdisk; "all": until this one does.
func (k *killer) warm(ctx context.Context, many string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, warmFor, fmt.Errorf("not within %s", warmFor))
	defer cancel()
	if err := run.Until(ctx, "the rack's warm servers to be set", func(ctx context.Context) (bool, error) {
		_, err := k.world.API.Inventory.SetRackWarm(ctx, &bmcv1.SetRackWarmRequest{Ref: "r1", Warm: many})
		return err == nil, err
	}); err != nil || many == "none" {
		return err
	}
	began := time.Now()
	_, err := k.world.Harness.Waits(ctx, "r1-u01")
	fmt.Printf("%-8s the server waits in the ramdisk after %.0f s\n", opWarm, time.Since(began).Seconds())
	return err
}

// reads is a second client, beside the one that changes things, until ctx ends: a
// history of one client alone is linear by itself.
func (k *killer) reads(ctx context.Context, n int, name string) error {
	c, err := k.world.Client(1000 + n)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // its calls are over
	t := time.NewTicker(readEvery)
	defer t.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		call, cancel := context.WithTimeout(ctx, askFor)
		if i%2 == 0 {
			_, _ = c.List(call) // the history has what it answered, or that it did not
		} else {
			_, _ = c.Get(call, name)
		}
		cancel()
	}
}

// verify notes whether a kill met who it was for: the agent that held the lease, the
// node that led.
func (k *killer) verify(ctx context.Context, f *fired) error {
	if f.victim != victimLeader {
		holder := ""
		ask, cancel := context.WithTimeout(ctx, askFor)
		defer cancel()
		// A dead holder's lease is its own until it has run out, so it can be asked for now.
		err := run.Until(ask, "who holds the lease", func(ctx context.Context) (bool, error) {
			r, err := k.world.API.Inventory.GetRack(ctx, &bmcv1.GetRackRequest{Ref: "r1", AllowStale: f.victim == victimBoth})
			holder = r.GetLease().GetHolderName()
			return holder != "", err
		})
		if err != nil && ctx.Err() != nil {
			return err
		}
		if !slices.Contains(f.dead, holder) {
			f.wrong = fmt.Sprintf("%q held the lease", holder)
		}
	}
	if f.victim == victimAgent {
		return nil
	}
	alive := f.alive
	if f.victim == victimBoth {
		alive = f.leaderAlive
	}
	leader, err := k.led(ctx, alive)
	if err != nil {
		return err
	}
	if !slices.Contains(f.dead, leader) {
		f.wrong += fmt.Sprintf("%q led", leader)
	}
	return nil
}

// led is the node that led at a moment.
func (k *killer) led(ctx context.Context, at time.Time) (string, error) {
	st, err := k.world.Lab.Status(ctx)
	if err != nil {
		return "", err
	}
	logs := map[string]string{}
	for _, d := range st.Daemons {
		if strings.HasPrefix(d.Name, "cp") {
			logs[d.Name] = d.Log
		}
	}
	return ledAt(logs, at)
}

var leadership = regexp.MustCompile(`^time=(\S+) .*msg="leadership (gained|lost)"`)

// ledAt is the node that led at a moment, by the nodes' own logs (files by name): who
// gained leadership last before it.
func ledAt(logs map[string]string, at time.Time) (string, error) {
	name, newest := "", time.Time{}
	for node, path := range logs {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		s := bufio.NewScanner(f)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			m := leadership.FindStringSubmatch(s.Text())
			if m == nil || m[2] != "gained" {
				continue
			}
			if t, err := time.Parse(time.RFC3339Nano, m[1]); err == nil && t.After(newest) && t.Before(at) {
				name, newest = node, t
			}
		}
		err = s.Err()
		_ = f.Close() // it was only read
		if err != nil {
			return "", fmt.Errorf("log of %s: %w", node, err)
		}
	}
	return name, nil
}
