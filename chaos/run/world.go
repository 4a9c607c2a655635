// Package run brings labs up, breaks them, and holds what is left to the
// invariants: what the programs of chaos and e2e have in common.
package run

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/client"
	"bmc/e2e/harness"
	"bmc/lab"
	"bmc/metal"
)

// Bounds of what a world waits for.
const (
	pollEvery  = 100 * time.Millisecond
	callWait   = 5 * time.Second // of a question that is asked again
	enrolWait  = 15 * time.Minute
	healedWait = 60 * time.Second
)

// World is a lab with somebody who uses it.
type World struct {
	Harness *harness.Lab
	Lab     *lab.Client
	API     *client.Client
	Calls   *history.Recorder
	Key     string // authorized_keys line of the tenant
	Dir     string // of charts and the history

	conf client.Config
	file *os.File
}

// Up brings a lab up. Dir in the options is where everything is left.
func Up(ctx context.Context, o harness.Options, seed uint64) (*World, error) {
	h, err := harness.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	h.Keep = true // evidence; who runs this removes the folder
	w := &World{Harness: h, Lab: lab.NewClient(h.Dir()), Dir: o.Dir}
	if err := w.open(seed); err != nil {
		return nil, errors.Join(err, w.Down(context.WithoutCancel(ctx)))
	}
	return w, nil
}

func (w *World) open(seed uint64) error {
	ca, err := os.ReadFile(w.Harness.Env("BMC_CACERT"))
	if err != nil {
		return err
	}
	w.conf = client.Config{Addresses: strings.Split(w.Harness.Env("BMC_ADDR"), ","), Token: w.Harness.Env("BMC_TOKEN"), CACert: ca}
	if w.API, err = client.New(w.conf); err != nil {
		return err
	}
	if w.file, err = os.Create(filepath.Join(w.Dir, "history.jsonl")); err != nil {
		return err
	}
	w.Calls = history.NewRecorder(w.file, seed)
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	w.Key = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " chaos"
	return nil
}

// Client is one that the history tells apart from others. It begins at another
// node than its neighbours.
func (w *World) Client(id int) (*history.Client, error) {
	conf := w.conf
	n := id % len(conf.Addresses)
	conf.Addresses = append(slices.Clone(conf.Addresses[n:]), conf.Addresses[:n]...)
	return history.NewClient(conf, id, w.Calls)
}

// Down ends the lab.
func (w *World) Down(ctx context.Context) error {
	var errs []error
	if w.API != nil {
		errs = append(errs, w.API.Close())
	}
	if w.Calls != nil {
		errs = append(errs, w.Calls.Err(), w.file.Close())
	}
	return errors.Join(append(errs, w.Harness.Down(ctx))...)
}

// Enrol applies the lab's inventory and waits until all its servers are available.
func (w *World) Enrol(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enrolWait)
	defer cancel()
	_, err := w.Harness.BMCTo(ctx, os.Stderr, "inventory", "apply", "-f", w.Harness.Env("BMC_INVENTORY"), "--wait", "--timeout", fmt.Sprint(enrolWait))
	return err
}

// Until asks again and again until ok says yes, and fails with the last error, or
// with what it waited for, when ctx ends.
func Until(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	var last error
	for {
		ask, cancel := context.WithTimeout(ctx, callWait)
		yes, err := ok(ask)
		cancel()
		if yes && err == nil {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited for %s: %w", what, context.Cause(ctx)), last)
		case <-t.C:
		}
	}
}

// Leader is the name of the node that leads, by the word of any node.
func (w *World) Leader(ctx context.Context) (string, error) {
	name := ""
	err := Until(ctx, "a leader", func(ctx context.Context) (bool, error) {
		r, err := w.API.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		for _, p := range r.GetPeers() {
			if p.GetLeader() && p.GetAlive() {
				name = p.GetName()
			}
		}
		return name != "", err
	})
	return name, err
}

// Holder is the name of the agent that holds a rack's lease, and its epoch.
func (w *World) Holder(ctx context.Context, rack string) (string, uint64, error) {
	r, err := w.API.Inventory.GetRack(ctx, &bmcv1.GetRackRequest{Ref: rack})
	return r.GetLease().GetHolderName(), r.GetLease().GetEpoch(), err
}

// Ended says which of the lab's daemons do not run.
func (w *World) Ended(ctx context.Context) ([]string, error) {
	st, err := w.Lab.Status(ctx)
	var out []string
	for _, d := range st.Daemons {
		if d.Ended != "" {
			out = append(out, d.Name)
		}
	}
	return out, err
}

// Agents of a rack, by name.
func (w *World) Agents(ctx context.Context, rack string) ([]string, error) {
	st, err := w.Lab.Status(ctx)
	var out []string
	for _, d := range st.Daemons {
		if strings.HasPrefix(d.Name, rack+"-a") {
			out = append(out, d.Name)
		}
	}
	return out, err
}

// Nodes of the control plane, by name.
func (w *World) Nodes(ctx context.Context) ([]string, error) {
	st, err := w.Lab.Status(ctx)
	var out []string
	for _, d := range st.Daemons {
		if strings.HasPrefix(d.Name, "cp") {
			out = append(out, d.Name)
		}
	}
	return out, err
}

// Wait returns an operation once it has ended.
func (w *World) Wait(ctx context.Context, id string) (*bmcv1.Operation, error) {
	var op *bmcv1.Operation
	err := Until(ctx, "the end of operation "+id, func(ctx context.Context) (bool, error) {
		o, err := w.API.Operations.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: id})
		if err == nil {
			op = o
		}
		return metal.OperationState(o.GetState()).Ended(), err
	})
	return op, err
}

// Heal undoes all faults, starts what was killed, and waits until every node
// answers, one leads and every rack has an agent.
func (w *World) Heal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healedWait)
	defer cancel()
	if err := w.Lab.Heal(ctx, "all"); err != nil {
		return err
	}
	dead, err := w.Ended(ctx)
	if err != nil {
		return err
	}
	for _, d := range dead {
		if err := w.Lab.StartDaemon(ctx, d); err != nil {
			return err
		}
	}
	return Until(ctx, "all nodes and a holder of every rack", func(ctx context.Context) (bool, error) {
		r, err := w.API.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		if err != nil {
			return false, err
		}
		leaders := 0
		for _, p := range r.GetPeers() {
			if !p.GetAlive() {
				return false, fmt.Errorf("%s does not answer", p.GetName())
			}
			if p.GetLeader() {
				leaders++
			}
		}
		return leaders == 1, nil
	})
}

// Settle waits until every operation has ended.
func (w *World) Settle(ctx context.Context) error {
	return Until(ctx, "the end of all operations", func(ctx context.Context) (bool, error) {
		s, err := w.API.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		if err == nil && s.GetRunningOperations() > 0 {
			err = fmt.Errorf("%d operations are still open", s.GetRunningOperations())
		}
		return err == nil, err
	})
}

// Evidence collects what a healed lab has to show.
func (w *World) Evidence(ctx context.Context) (*check.Evidence, error) {
	e, err := check.Collect(ctx, w.API, w.Lab, w.Calls)
	if err != nil {
		return nil, err
	}
	e.Healed, e.Charts = true, w.Dir
	return e, nil
}

// Percentiles prints p50 and p99 (of few samples, the largest) of durations.
func Percentiles(what string, all []time.Duration) {
	if len(all) == 0 {
		return
	}
	all = slices.Clone(all)
	slices.Sort(all)
	at := func(p int) time.Duration { return all[min(len(all)-1, len(all)*p/100)] }
	fmt.Printf("%s: p50 %.1f s, p99 %.1f s, of %d\n", what, at(50).Seconds(), at(99).Seconds(), len(all))
}
