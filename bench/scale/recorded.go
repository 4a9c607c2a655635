package main

import (
	"context"
	"fmt"
	"io"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/chaos/check"
	"bmc/chaos/history"
)

// recorded is the history of the writes of all rounds but that which a restore
// undoes. A nil one records nothing.
type recorded struct {
	rec      *history.Recorder
	evidence check.Evidence
}

func newRecorded() *recorded { return &recorded{rec: history.NewRecorder(io.Discard, 0)} }

// start starts writers whose calls are recorded.
func (r *recorded) start(ctx context.Context, c *cluster.Cluster, n int, round string, pause time.Duration) (*writers, error) {
	return startWriters(ctx, c, n, round, pause, r)
}

func (r *recorded) call(begin history.Call, do func(*history.Call) error) error {
	if r == nil {
		return do(&begin)
	}
	return r.rec.Do(begin, do)
}

// judge holds the cluster to the invariants by the history, a last reading of all
// keys, the audit and the nodes' hashes.
func (r *recorded) judge(ctx context.Context, c *cluster.Cluster) error {
	began := time.Now()
	if err := r.call(history.Call{Kind: history.ListKeys}, func(a *history.Call) error {
		l, err := c.Client.Keys.ListKeys(ctx, &bmcv1.ListKeysRequest{})
		a.Keys = map[string]string{}
		for _, k := range l.GetKeys() {
			a.Keys[k.GetName()] = k.GetId()
		}
		return err
	}); err != nil {
		return err
	}
	e := &r.evidence
	if err := e.Sample(ctx, c.Client); err != nil {
		return err
	}
	raw, err := check.Snapshot(ctx, c.Client)
	if err != nil {
		return err
	}
	if err := e.State(raw); err != nil {
		return err
	}
	e.Start, e.Calls = r.rec.Start(), r.rec.Calls()
	report := check.Judge(e, "I1", "I2", "I3", "I8", "I14", "I15")
	for _, v := range report.Violations() {
		fmt.Println(v)
	}
	fmt.Printf("held to the invariants in %.1f s:\n%s", time.Since(began).Seconds(), report)
	if n := len(report.Violations()); n > 0 {
		return fmt.Errorf("%d violations", n)
	}
	return report.Demand("I1", "I2", "I3", "I14")
}
