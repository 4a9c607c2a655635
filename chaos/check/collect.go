package check

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/chaos/history"
	"bmc/client"
	"bmc/fsm"
	"bmc/fsm/state"
	"bmc/lab"
	"bmc/lab/light"
	"bmc/lab/virtualbmc"
	"bmc/metal"
)

// Collect gathers the evidence of a lab that runs: the state by any node, the
// replicas' hashes, and what the lab has recorded.
func Collect(ctx context.Context, api *client.Client, l *lab.Client, rec *history.Recorder) (*Evidence, error) {
	e := &Evidence{}
	if rec != nil {
		e.Start, e.Calls = rec.Start(), rec.Calls()
	}
	if err := e.Sample(ctx, api); err != nil {
		return nil, fmt.Errorf("ask for the replicas' hashes: %w", err)
	}
	raw, err := Snapshot(ctx, api)
	if err != nil {
		return nil, err
	}
	if err := e.State(raw); err != nil {
		return nil, err
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	return e, e.lab(st)
}

// Snapshot saves the state by whichever node answers.
func Snapshot(ctx context.Context, api *client.Client) ([]byte, error) {
	stream, err := api.Cluster.SaveSnapshot(ctx, &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, fmt.Errorf("save a snapshot: %w", err)
	}
	var raw []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return raw, nil
		}
		if err != nil {
			return nil, fmt.Errorf("save a snapshot: %w", err)
		}
		raw = append(raw, m.GetData()...)
	}
}

// State reads a snapshot into the evidence.
func (e *Evidence) State(snapshot []byte) error {
	f := fsm.New(fsm.Options{})
	if err := f.Restore(io.NopCloser(bytes.NewReader(snapshot))); err != nil {
		return err
	}
	e.View(f.View())
	return nil
}

// View takes a state into the evidence.
func (e *Evidence) View(v *state.View) {
	e.Now = time.Now()
	e.Servers = slices.Collect(v.Servers(state.ServerFilter{}))
	e.Racks = slices.Collect(v.Racks())
	e.Operations = slices.Collect(v.Operations(""))
	e.Agents = slices.Collect(v.Agents())
	e.Audit = slices.Collect(v.Audit(0))
	e.Addresses = nil
	for _, r := range e.Racks {
		e.Addresses = slices.AppendSeq(e.Addresses, v.Addresses(r.ID))
	}
	h := v.Hash()
	e.Replicas = append(e.Replicas, Replica{"snapshot", v.Revision(), hex.EncodeToString(h[:])})
}

// sampleEvery is how long replicas that differ in revision are given.
const sampleEvery = 100 * time.Millisecond

// Sample takes the replicas' hashes into the evidence: it asks until all nodes that answer stand at one revision, for a while:
// a cluster at work never does, and its samples count all the same.
func (e *Evidence) Sample(ctx context.Context, api *client.Client) error {
	var last error
	for range 20 {
		r, err := api.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		last = err
		at := map[uint64]int{}
		for _, p := range r.GetPeers() {
			if p.GetAlive() {
				at[p.GetRevision()]++
				e.Replicas = append(e.Replicas, Replica{p.GetName(), p.GetRevision(), hex.EncodeToString(p.GetStateHash())})
			}
		}
		if err == nil && len(at) == 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(sampleEvery):
		}
	}
	return last
}

// lab reads what the lab has recorded.
func (e *Evidence) lab(st lab.Status) error {
	var err error
	if e.Commands, err = readCommands(filepath.Join(st.Dir, "oob.jsonl")); err != nil {
		return err
	}
	if e.Machines, err = readMachines(filepath.Join(st.Dir, "machines.jsonl")); err != nil {
		return err
	}
	e.Sources = map[netip.Addr]string{}
	agents := map[string]string{} // by the address in their rack
	for _, d := range st.Daemons {
		if d.OOBSource == "" {
			continue
		}
		addr, err := netip.ParseAddr(d.OOBSource)
		if err != nil {
			return fmt.Errorf("source address of %s: %w", d.Name, err)
		}
		e.Sources[addr], agents[d.RackAddr] = d.Name, d.Name
		answers, err := readDHCP(d.Name, d.Log)
		if err != nil {
			return err
		}
		e.DHCP = append(e.DHCP, answers...)
	}
	e.onWire(agents)
	e.Consoles = map[string]string{}
	for _, s := range st.Servers {
		if s.Light {
			continue // it has none
		}
		raw, err := os.ReadFile(s.Console)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a machine that never had power has none
			return err
		}
		e.Consoles[s.Name] = string(raw)
	}
	return nil
}

// readCommands reads the controllers' record. Its last line may be on its way.
func readCommands(path string) ([]virtualbmc.Command, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []virtualbmc.Command
	for s := bufio.NewScanner(f); s.Scan(); {
		var c virtualbmc.Command
		if json.Unmarshal(s.Bytes(), &c) != nil {
			break
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b virtualbmc.Command) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// readMachines reads light machines' record, which labs without any do not have.
func readMachines(path string) ([]light.Event, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []light.Event
	s := bufio.NewScanner(f)
	for s.Scan() {
		var m light.Event
		if json.Unmarshal(s.Bytes(), &m) != nil {
			break // it is on its way
		}
		out = append(out, m)
	}
	return out, s.Err()
}

var dhcpAnswered = regexp.MustCompile(`dhcp packet answered.*\bmac=(\S+) addr=(\S+) outcome=(\S+)`)

// readDHCP reads an agent's log, which names its answers at the level debug.
func readDHCP(agent, path string) ([]DHCPAnswer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []DHCPAnswer
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if m := dhcpAnswered.FindStringSubmatch(s.Text()); m != nil && !strings.EqualFold(m[3], "released") {
			out = append(out, DHCPAnswer{Agent: agent, MAC: m[1], Address: m[2], Line: agent + ": " + s.Text()})
		}
	}
	return out, s.Err()
}

// Open lists the operations of a state that have not ended.
func (e *Evidence) Open() []*metal.Operation {
	var out []*metal.Operation
	for _, o := range e.Operations {
		if !o.State.Ended() {
			out = append(out, o)
		}
	}
	return out
}

// Told lists what a lab's controllers were told to do since then and did: on,
// off, soft, boot.
func Told(dir string, since time.Time) ([]string, error) {
	all, err := readCommands(filepath.Join(dir, "oob.jsonl"))
	if err != nil {
		return nil, err
	}
	words := map[int]string{doOff: "off", doOn: "on", doCycle: "CYCLE", doReset: "RESET", doSoft: "soft"}
	var out []string
	for i := range all {
		c := &all[i]
		if !acts(c) || c.Time.Before(since) {
			continue
		}
		if c.Cmd != setBootOptions {
			out = append(out, words[does(c)])
		} else if len(out) == 0 || out[len(out)-1] != "boot" { // a choice takes several of them
			out = append(out, "boot")
		}
	}
	return out, nil
}
