package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/measure"
	"bmc/bench/process"
	"bmc/chaos/check"
	"bmc/chaos/history"
	"bmc/client"
)

// ours is the product, used as its users do: TLS, tokens, the typed client.
type ours struct {
	cluster  *cluster.Cluster
	election time.Duration
	evidence check.Evidence // replicas' hashes, until judge
}

func startOurs(ctx context.Context, program, dir string, election time.Duration) (system, error) {
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Program: program, Nodes: 3, Election: election})
	if err != nil {
		return nil, fmt.Errorf("start our nodes: %w", err)
	}
	return &ours{cluster: c, election: election}, nil
}

func (o *ours) name() string { return "bmc" }

func (o *ours) settings() []string {
	return []string{
		fmt.Sprintf("election_timeout %v, heartbeat %v (a tenth)", o.election, o.election/10),
		"TLS 1.3, token; AddKey and RemoveKey, a committed command each; a quorum confirms the leader before one only if it is refused or repeated",
		"the product's client with its defaults: own retry, request IDs",
	}
}

func (o *ours) kill(ctx context.Context) (string, time.Time, error) {
	n, err := o.cluster.Leader(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	at, err := n.Child().Kill()
	return n.Name, at, err
}

func (o *ours) node(name string) *cluster.Node {
	for _, n := range o.cluster.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (o *ours) elected(ctx context.Context, victim string) error {
	return process.Until(ctx, "our new leader", func() error {
		n, err := o.cluster.Leader(ctx)
		if err != nil {
			return err
		}
		if n.Name == victim {
			return errors.New("the victim is still thought to lead")
		}
		return nil
	})
}

func (o *ours) mend(ctx context.Context, victim string) error {
	n := o.node(victim)
	<-n.Child().Done()
	if err := o.cluster.Restart(n); err != nil {
		return err
	}
	return o.cluster.Ready(ctx)
}

func (o *ours) list(ctx context.Context) (map[string]string, error) {
	r, err := o.cluster.Client.Keys.ListKeys(ctx, &bmcv1.ListKeysRequest{})
	out := map[string]string{}
	for _, k := range r.GetKeys() {
		out[k.GetName()] = k.GetId()
	}
	return out, err
}

func (o *ours) close() error { return o.cluster.Close() }

func (o *ours) writer(first int) (writer, error) {
	c, err := o.cluster.NewClient(first)
	if err != nil {
		return nil, err
	}
	return &ourWriter{client: c, keys: map[string]string{}}, nil
}

// sample takes the nodes' hashes: while nobody writes they stand at one revision.
func (o *ours) sample(ctx context.Context) error { return o.evidence.Sample(ctx, o.cluster.Client) }

// judge holds what is left, and a history of calls, to the invariants.
func (o *ours) judge(ctx context.Context, rec *history.Recorder, charts string) (check.Report, error) {
	e := &o.evidence
	e.Start, e.Calls, e.Charts = rec.Start(), rec.Calls(), charts
	if err := e.Sample(ctx, o.cluster.Client); err != nil {
		return nil, err
	}
	raw, err := check.Snapshot(ctx, o.cluster.Client)
	if err != nil {
		return nil, err
	}
	if err := e.State(raw); err != nil {
		return nil, err
	}
	return check.Judge(e, "I1", "I2", "I3", "I8", "I14", "I15"), nil
}

type ourWriter struct {
	client *client.Client
	keys   map[string]string // public key by name: a retry must be the same request
}

func (w *ourWriter) add(ctx context.Context, x write) (string, error) {
	public, ok := w.keys[x.key]
	if !ok {
		public = measure.PublicKey()
		w.keys[x.key] = public
	}
	k, err := w.client.Keys.AddKey(ctx, &bmcv1.AddKeyRequest{RequestId: x.request, Name: x.key, PublicKey: public})
	return k.GetId(), err
}

func (w *ourWriter) remove(ctx context.Context, x write) error {
	_, err := w.client.Keys.RemoveKey(ctx, &bmcv1.RemoveKeyRequest{RequestId: x.request, Ref: x.key})
	if err == nil {
		delete(w.keys, x.key)
	}
	return err
}

func (w *ourWriter) close() error { return w.client.Close() }
