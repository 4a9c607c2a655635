//go:build e2e

package lab

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
)

// TestRestoredRackThaws: a backup is restored onto a cluster whose rack had no news
// between the backup and that. Its agents were there all the time, and are told how far
// they are: the rack goes on by itself.
func TestRestoredRackThaws(t *testing.T) {
	r := startReal(t, func(c *Config) { c.Servers = min(c.Servers, 1) })
	if len(r.status.Servers) == 0 {
		t.Skip("needs QEMU")
	}
	env, err := r.status.Environ()
	if err != nil {
		t.Fatal(err)
	}
	apply := exec.CommandContext(t.Context(), filepath.Join(r.cfg.Bin, "bmc"), "inventory", "apply", "-f", r.status.Inventory)
	apply.Env = slices.Concat(os.Environ(), env)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, 30*time.Second, "a lease", func() error { _, err := r.holder(); return err })
	for range 3 { // revisions that are none of the rack's business, before and after
		if _, err := r.any.Cluster.CreateJoinToken(t.Context(), &bmcv1.CreateJoinTokenRequest{Role: "node"}); err != nil {
			t.Fatal(err)
		}
	}
	saved := r.save()
	if _, err := r.any.Cluster.CreateJoinToken(t.Context(), &bmcv1.CreateJoinTokenRequest{Role: "node"}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.restore(saved)
	eventually(t, 90*time.Second, "the rack thaws", func() error {
		racks, err := r.any.Inventory.ListRacks(t.Context(), &bmcv1.ListRacksRequest{})
		if err == nil && racks.GetRacks()[0].GetFrozen() {
			err = errors.New("it is frozen")
		}
		if err == nil && racks.GetRacks()[0].GetLease().GetGeneration() == 0 {
			err = errors.New("its lease is of before the restore")
		}
		return err
	})
	t.Logf("the rack goes on after %s", time.Since(begin))
}

func (r *realLab) save() (data []byte) {
	r.Helper()
	s, err := r.any.Cluster.SaveSnapshot(r.Context(), &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		r.Fatal(err)
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return data
		}
		if err != nil {
			r.Fatal(err)
		}
		data = append(data, m.GetData()...)
	}
}

func (r *realLab) restore(data []byte) {
	r.Helper()
	s, err := r.any.Cluster.RestoreSnapshot(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for chunk := range slices.Chunk(data, 64<<10) {
		if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: chunk}); err != nil && !errors.Is(err, io.EOF) {
			r.Fatal(err)
		}
	}
	if _, err := s.CloseAndRecv(); err != nil {
		r.Fatal(err)
	}
}
