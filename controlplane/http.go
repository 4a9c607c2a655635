package controlplane

import (
	"encoding/json"
	"net/http"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	gometricsprom "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bmc/fsm"
	"bmc/internal/version"
	"bmc/metal"
)

// maxLag is how many committed entries a healthy node may still have to apply.
const maxLag = 1000

// NewRegistry makes a process's metrics. It also takes in what raft and
// memberlist measure, which they keep in a global: call it once a process.
func NewRegistry() (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	sink, err := gometricsprom.NewPrometheusSinkFrom(gometricsprom.PrometheusOpts{Registerer: r, Expiration: 10 * time.Minute})
	if err != nil {
		return nil, err
	}
	conf := gometrics.DefaultConfig("bmc")
	conf.EnableHostname, conf.EnableRuntimeMetrics = false, false
	if _, err := gometrics.NewGlobal(conf, sink); err != nil {
		return nil, err
	}
	return r, nil
}

// measures are this node's own metrics.
type measures struct {
	commands       *prometheus.CounterVec
	apply, restore prometheus.Histogram
}

func (n *Node) register(r *prometheus.Registry) {
	gauge := func(name, help string, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "bmc", Name: name, Help: help}, f))
	}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "bmc", Name: "build_info", Help: "Always 1."}, []string{"version", "commit"})
	info.WithLabelValues(version.Version, version.Commit).Set(1)
	r.MustRegister(info, n.measures.commands, n.measures.apply, n.measures.restore)
	gauge("leader", "1 if this node leads.", func() float64 {
		if n.raft.IsLeader() {
			return 1
		}
		return 0
	})
	gauge("commit_index", "Raft's commit index.", func() float64 { return float64(n.raft.CommitIndex()) })
	gauge("applied_index", "Raft's applied index.", func() float64 { return float64(n.raft.AppliedIndex()) })
	gauge("revision", "Index of the last command in the state.", func() float64 { return float64(n.fsm.View().Revision()) })
	gauge("open_operations", "Operations that have not ended.", func() float64 { return float64(n.fsm.View().CountOpenOperations()) })
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "bmc", Name: "leader_gone_total",
		Help: "How often this node stood for election because the leader's process was gone."}, func() float64 { return float64(n.raft.Stood()) }))
	for _, s := range []metal.State{metal.StateAvailable, metal.StateDeploying, metal.StateActive, metal.StateCleaning, metal.StateFailed, metal.StateQuarantined} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "bmc", Name: "servers", Help: "Servers by state.",
			ConstLabels: prometheus.Labels{"state": string(s)}}, func() float64 { return float64(n.fsm.View().CountServers(s)) }))
	}
}

func newMeasures() measures {
	return measures{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "bmc", Name: "commands_total",
			Help: "Commands applied, by name and refusal."}, []string{"command", "outcome"}),
		// 10 us to 2.2 s, each half as much again as the one before.
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "bmc", Name: "apply_seconds",
			Help: "Time in the state machine of each batch of committed commands.", Buckets: prometheus.ExponentialBuckets(10e-6, 1.5, 31)}),
		restore: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "bmc", Name: "restore_seconds",
			Help: "Time in which a snapshot took the state's place; nothing is applied meanwhile.", Buckets: prometheus.ExponentialBuckets(1e-3, 2, 17)}),
	}
}

func (m measures) applied(command string, r *fsm.Result) {
	outcome := "accepted"
	switch {
	case r == nil:
		return
	case r.Err != nil:
		outcome = string(r.Err.Code)
	case r.Replayed:
		outcome = "replayed"
	}
	m.commands.WithLabelValues(command, outcome).Inc()
}

// health says why a node should get no traffic; "" when it should.
func (n *Node) health() string {
	if n.closing.Load() {
		return "the node is shutting down"
	}
	if n.raft.Hung() {
		return "the log store hangs"
	}
	if _, addr := n.raft.Leader(); addr == "" {
		return "no leader is known"
	}
	if commit, applied := n.raft.CommitIndex(), n.raft.AppliedIndex(); commit > applied+maxLag {
		return "the node is catching up"
	}
	if n.fsm.View().Meta().ClusterID == "" {
		return "the node has no state yet"
	}
	return ""
}

func (n *Node) handler(r *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		why := n.health()
		w.Header().Set("Content-Type", "application/json")
		if why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		id, addr := n.raft.Leader()
		_ = json.NewEncoder(w).Encode(map[string]any{"healthy": why == "", "reason": why, "node": n.id.NodeID, "leader": id, "leader_address": addr,
			"applied_index": n.raft.AppliedIndex(), "revision": n.fsm.View().Revision()})
	})
	if r != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	}
	return mux
}
