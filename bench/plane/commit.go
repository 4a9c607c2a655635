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

	"bmc/bench/measure"
	"bmc/bench/table"
)

// recordSize is what the commands of AddKey and RemoveKey are in our log, on
// average (TestRecordSize); etcd's values are as long.
const recordSize = 214 // bytes

// commitAims by clients.
var commitAims = map[int]string{64: "at least 1.4 x (goal 2.5)", 256: "at least 1.4 x (goal 2.5)"}

// commits measures committed writes.
func (o options) commits(ctx context.Context, dir string) (rows []table.Row, err error) {
	s, err := o.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Printf("committed writes, records of %d bytes; both with TLS 1.3; ours with tokens, request IDs, audit\n", recordSize)
	for _, n := range o.clients {
		subjects := []*subject{{name: "bmc", open: s.openWriter}}
		if s.etcd != nil {
			subjects = append(subjects, &subject{name: "etcd", open: s.openPutter(recordSize)})
		}
		if err := inTurns(ctx, subjects, n, o.turns, o.length); err != nil {
			return rows, err
		}
		rows = append(rows, rowsOf(fmt.Sprintf("committed writes, %d clients", n), "writes/s", "etcd 3.6", commitAims[n], "", subjects)...)
		if n == 1 {
			row, err := syncRow(dir, subjects[0])
			if err != nil {
				return rows, err
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// syncRow sets the single writer's latency beside the disk's own sync.
func syncRow(dir string, ours *subject) (table.Row, error) {
	syncs, err := diskSyncs(filepath.Join(dir, "sync"))
	if err != nil {
		return table.Row{}, err
	}
	limit := table.Of(syncs)
	p50 := table.Of(ours.p50)
	fmt.Printf("  one fdatasync of 4 KiB on the same disk: %s ms; a single writer's median is %.1f of them\n", limit, p50.Median/limit.Median)
	return table.Row{What: "single writer's latency, p50", Unit: "ms", Ours: p50, Limit: limit,
		Note: fmt.Sprintf("limit: one fdatasync; %.1f of them", p50.Median/limit.Median)}, nil
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
