package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"bmc/bench/cluster"
	"bmc/bench/measure"
	"bmc/bench/table"
)

// recordSize is what the commands of AddKey and RemoveKey are in our log, on
// average (TestRecordSize); etcd's values are as long.
const recordSize = 193 // bytes

// commitAims by clients.
var commitAims = map[int]string{64: "at least 1.4 x (goal 2.5)", 256: "at least 1.4 x (goal 2.5)"}

// commits measures committed writes.
func (o options) commits(ctx context.Context, dir string) (rows []table.Row, err error) {
	s, err := o.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	s.wal, err = cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "wal"), Program: o.program, Nodes: nodes, LogStore: "wal"})
	if err != nil {
		return nil, fmt.Errorf("start our nodes with log_store: wal: %w", err)
	}
	fmt.Printf("committed writes, records of %d bytes; all clients at the leaders; both with TLS 1.3; ours with tokens, request IDs, audit\n", recordSize)
	for _, n := range o.clients {
		bolt, wal := &subject{name: "bmc, boltdb", open: s.openWriter(s.ours), pids: pidsOf(s.ours)}, &subject{name: "bmc, wal", open: s.openWriter(s.wal), pids: pidsOf(s.wal)}
		limit := &subject{name: "limit: echo", open: s.echo.open(1, recordSize, recordSize), pids: s.echo.pids} // all at one, as at a leader
		subjects := []*subject{bolt, wal, limit}
		var peer *subject
		if s.etcd != nil {
			peer = &subject{name: "etcd", open: s.openPutter(ctx, recordSize), pids: s.etcdPIDs}
			subjects = append(subjects, peer)
		}
		if err := inTurns(ctx, subjects, n, o.turns, o.length); err != nil {
			return rows, err
		}
		what := fmt.Sprintf("committed writes, %d clients", n)
		rows = append(rows, rowsOf(what+", boltdb", "writes/s", commitAims[n], bolt, peer, limit)...)
		rows = append(rows, rowsOf(what+", log_store: wal", "writes/s", commitAims[n], wal, peer, limit)...)
		if n == 1 {
			syncs, err := syncRows(dir, bolt, wal)
			if err != nil {
				return rows, err
			}
			rows = append(rows, syncs...)
		}
	}
	return rows, nil
}

// syncRows set a single writer's latency beside the disk's own sync.
func syncRows(dir string, ours ...*subject) (rows []table.Row, err error) {
	syncs, err := diskSyncs(filepath.Join(dir, "sync"))
	if err != nil {
		return nil, err
	}
	limit := table.Of(syncs)
	fmt.Printf("  one fdatasync of 4 KiB on the same disk: %s ms\n", limit)
	for _, s := range ours {
		p50 := table.Of(s.p50)
		rows = append(rows, table.Row{What: "single writer's latency, p50; " + s.name, Unit: "ms", Ours: p50, Limit: limit,
			Note: fmt.Sprintf("limit: one fdatasync; %.1f of them", p50.Median/limit.Median)})
	}
	return rows, nil
}

// diskSyncs is the median of appending 4 KiB and fdatasync, ms, of five runs of
// 100: into room made before, as etcd's and raft's logs do.
func diskSyncs(path string) (medians []float64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	block := make([]byte, 4096)
	const runs, each = 5, 100
	for i := range runs * each {
		if _, err := f.WriteAt(block, int64(i*len(block))); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	for r := range runs {
		var took []time.Duration
		for i := range each {
			if _, err := f.WriteAt(block, int64((r*each+i)*len(block))); err != nil {
				return nil, err
			}
			began := time.Now()
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				return nil, fmt.Errorf("fdatasync: %w", err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		medians = append(medians, ms(measure.Percentile(took, 50)))
	}
	return medians, nil
}
