package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"bmc/membership"
)

const (
	gossipRefresh = 30 * time.Second
	// lostFor is how long no node has answered until those are asked again that
	// were there when the agent joined.
	lostFor = time.Minute
)

// discover connects to the nodes that are configured, that the nodes themselves
// name, and that gossip tells of (nil: none is configured), and drops others. A
// gossiped address counts for nothing before TLS has proved who is there.
func (a *Agent) discover(ctx context.Context, gossip *membership.Membership) {
	var saved []string
	answered := time.Now()
	for {
		var changed <-chan struct{}
		var heard []string
		if gossip != nil {
			changed, heard = gossip.Changed(), gossip.Nodes()
		}
		named, live := a.named()
		if live {
			answered = time.Now()
		}
		known := slices.Concat(a.cfg.Nodes, named, heard)
		a.nodes.update(known)
		switch {
		case !live && (len(named) == 0 || time.Since(answered) > lostFor):
			a.nodes.update(slices.Concat(a.id.Nodes, loadNodes(a.cfg.DataDir)))
		case live && len(named) > 0:
			a.nodes.keep(known)
		}
		slices.Sort(known)
		if known = slices.Compact(known); len(known) > 0 && !slices.Equal(known, saved) {
			if err := saveNodes(a.cfg.DataDir, known); err != nil {
				a.log.Warn("nodes' addresses not saved", "err", err)
			}
			saved = known
		}
		select {
		case <-changed:
		case <-a.renamed:
		case <-time.After(gossipRefresh):
		case <-ctx.Done():
			return
		}
	}
}

// named is the nodes of the cluster as the newest of the racks has them, and
// whether any node answers now.
func (a *Agent) named() (addrs []string, live bool) {
	var generation, revision uint64
	for _, r := range a.racks {
		r.mu.RLock()
		g, rev, n := r.spec.GetGeneration(), r.revision, r.spec.GetNodes()
		live = live || len(r.live) > 0
		r.mu.RUnlock()
		if len(n) > 0 && (g > generation || g == generation && rev >= revision) {
			addrs, generation, revision = n, g, rev
		}
	}
	return addrs, live
}

// nodesPath is the file of the nodes that were heard of since the agent joined.
func nodesPath(dataDir string) string { return filepath.Join(dataDir, "nodes.json") }

func saveNodes(dataDir string, addrs []string) error {
	data, err := json.Marshal(addrs)
	if err != nil {
		return err
	}
	return writeFile(nodesPath(dataDir), data)
}

// loadNodes returns nothing where there is no such file: gossip tells again.
func loadNodes(dataDir string) (addrs []string) {
	data, err := os.ReadFile(nodesPath(dataDir))
	if err != nil || json.Unmarshal(data, &addrs) != nil {
		return nil
	}
	return addrs
}
