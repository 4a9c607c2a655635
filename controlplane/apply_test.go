package controlplane

import (
	"bytes"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"bmc/fsm"
	"bmc/fsm/logpb"
)

// Every batch and every restore is one observation, and the answers are the state
// machine's own.
func TestApplyIsTimed(t *testing.T) {
	m := newMeasures()
	f := timed{fsm.New(fsm.Options{}), m.apply, m.restore}
	raw, err := fsm.Encode(&logpb.Command{Header: &logpb.Header{Time: 1}, Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{
		ClusterId: "cluster-a", Project: &logpb.Project{Id: "prj-default", Name: "default"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var batching raft.BatchingFSM = f
	out := batching.ApplyBatch([]*raft.Log{{Index: 1, Type: raft.LogCommand, Data: raw}, {Index: 2, Type: raft.LogNoop}})
	if r, ok := out[0].(*fsm.Result); !ok || r.Err != nil {
		t.Fatalf("%+v", out[0])
	}
	if err := f.Restore(io.NopCloser(bytes.NewReader([]byte("no snapshot")))); err == nil {
		t.Error("restored what is no snapshot")
	}
	for name, h := range map[string]prometheus.Histogram{"apply": m.apply, "restore": m.restore} {
		r := prometheus.NewRegistry()
		r.MustRegister(h)
		all, err := r.Gather()
		if err != nil || len(all) != 1 || all[0].GetMetric()[0].GetHistogram().GetSampleCount() != 1 {
			t.Errorf("%s: %v %v", name, all, err)
		}
	}
}
