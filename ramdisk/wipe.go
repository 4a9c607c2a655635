package ramdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
	"bmc/ramdisk/efiboot"
	"bmc/ramdisk/gpt"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/session"
	"bmc/ramdisk/wipe"
)

const disksAtOnce = 4 // each takes up to 64 MiB of buffers

// wipe erases disks and removes what the firmware remembers of their systems.
// It fails when any part of it fails; the evidence names what was done.
func (m *Machine) wipe(ctx context.Context, task *agentv1.WipeTask, progress session.Progress) (*agentv1.CompleteTaskRequest, error) {
	disks, err := m.wipeTargets(task.GetDisks())
	if err != nil {
		return nil, err
	}
	sum := &sum{report: progress}
	for _, d := range disks {
		sum.total += 2 * d.GetSizeBytes()
	}
	evidence := make([]*agentv1.WipeEvidence, len(disks))
	errs := make([]error, len(disks))
	slots := make(chan struct{}, disksAtOnce)
	var wg sync.WaitGroup
	for i, d := range disks {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			evidence[i], errs[i] = m.wipeDisk(ctx, d, sum)
		})
	}
	wg.Wait()
	result := &agentv1.CompleteTaskRequest{}
	for _, e := range evidence {
		if e != nil {
			result.Wipes = append(result.Wipes, e)
		}
	}
	for _, err := range errs {
		if err != nil {
			return result, err
		}
	}
	return result, m.pruneBootEntries()
}

func (m *Machine) wipeTargets(names []string) ([]*agentv1.Disk, error) {
	var disks []*agentv1.Disk
	for _, name := range names {
		d, err := m.find(name)
		if err != nil {
			return nil, metal.Errorf(metal.CodeWipeFailed, "%v", err)
		}
		disks = append(disks, d)
	}
	if len(names) > 0 {
		return disks, nil
	}
	if kept := hardware.ReadOnly(m.root); len(kept) > 0 {
		return nil, metal.Errorf(metal.CodeWipeFailed, "write-protected disks cannot be wiped: %s", strings.Join(kept, ", "))
	}
	for _, d := range hardware.Disks(m.root) {
		if !d.GetRemovable() {
			disks = append(disks, d)
		}
	}
	if len(disks) == 0 {
		return nil, metal.Errorf(metal.CodeNoDisk, "the machine has no disk to wipe")
	}
	return disks, nil
}

func (m *Machine) wipeDisk(ctx context.Context, d *agentv1.Disk, sum *sum) (*agentv1.WipeEvidence, error) {
	f, err := m.open(d)
	if err != nil {
		return nil, &metal.Error{Code: metal.CodeWipeFailed, Message: fmt.Sprintf("disk %s cannot be opened: %v", d.GetName(), err), Err: err}
	}
	defer f.Close()
	m.log.Info("wiping a disk", "disk", d.GetName(), "bytes", d.GetSizeBytes())
	last := int64(0)
	var mu sync.Mutex
	r, err := wipe.Disk(ctx, f, func(done, _ int64) {
		mu.Lock()
		defer mu.Unlock()
		if done > last {
			sum.add(uint64(done-last), "wiping "+d.GetName())
			last = done
		}
	})
	if err != nil {
		var e *metal.Error
		if errors.As(err, &e) && e.Code == metal.CodeWipeFailed {
			return nil, &metal.Error{Code: e.Code, Message: fmt.Sprintf("disk %s: %s", d.GetName(), e.Message), Err: e.Err}
		}
		return nil, err
	}
	if err := m.reread(ctx, f); err != nil {
		return nil, &metal.Error{Code: metal.CodeWipeFailed, Message: fmt.Sprintf("disk %s still has partitions: %v", d.GetName(), err), Err: err}
	}
	m.log.Info("disk is wiped and read back", "disk", d.GetName(), "method", r.Method, "bytes", r.ReadBack)
	return &agentv1.WipeEvidence{Disk: hardware.DiskID(d), Method: r.Method, Bytes: uint64(r.Bytes), BytesReadBack: uint64(r.ReadBack)}, nil
}

// pruneBootEntries removes entries whose partition is gone.
func (m *Machine) pruneBootEntries() error {
	if !m.uefi() {
		return nil
	}
	// An empty folder means that the variables are not mounted.
	if vars, err := os.ReadDir(m.efivars()); err != nil || len(vars) == 0 {
		return metal.Errorf(metal.CodeWipeFailed, "the firmware's boot entries cannot be read (%v)", err)
	}
	guids := m.partitionGUIDs()
	gone, err := efiboot.Prune(m.efivars(), func(g gpt.GUID) bool { return guids[g] })
	if err != nil {
		return &metal.Error{Code: metal.CodeWipeFailed, Message: "the firmware's boot entries cannot be removed: " + err.Error(), Err: err}
	}
	if len(gone) > 0 {
		m.log.Info("boot entries removed", "entries", fmt.Sprint(gone))
	}
	return nil
}

// sum adds up the progress of several disks.
type sum struct {
	done   atomic.Uint64
	total  uint64
	report session.Progress
}

func (s *sum) add(n uint64, message string) { s.report(s.done.Add(n), s.total, message) }
