package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/client"
	"bmc/metal"
)

const chunk = 256 << 10

// save writes a snapshot to a file, as `bmc cluster snapshot save` does.
func save(ctx context.Context, c *client.Client, path string) (size int64, d time.Duration, err error) {
	began := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s, err := c.Cluster.SaveSnapshot(ctx, &bmcv1.SaveSnapshotRequest{})
	if err != nil {
		return 0, 0, err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, 0, err
		}
		n, err := f.Write(m.GetData())
		if size += int64(n); err != nil {
			return 0, 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	return size, time.Since(began), nil
}

// longestRead bounds one reading of a snapshot by a node that others keep busy.
const longestRead = 3 * time.Minute

func inspect(ctx context.Context, c *client.Client, data []byte) (*bmcv1.InspectSnapshotResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, longestRead)
	defer cancel()
	s, err := c.Cluster.InspectSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	for part := range parts(data) {
		if err := s.Send(&bmcv1.SnapshotChunk{Data: part}); err != nil {
			break // CloseAndRecv has the reason
		}
	}
	return s.CloseAndRecv()
}

func restore(ctx context.Context, c *client.Client, data []byte) (*bmcv1.RestoreSnapshotResponse, error) {
	s, err := c.Cluster.RestoreSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	for part := range parts(data) {
		if err := s.Send(&bmcv1.RestoreSnapshotRequest{Data: part}); err != nil {
			break
		}
	}
	return s.CloseAndRecv()
}

func parts(data []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			n := min(len(data), chunk)
			if !yield(data[:n]) {
				return
			}
			data = data[n:]
		}
	}
}

// flips asks a node to inspect, and at last to restore, the snapshot with one
// bit turned over, at places spread over the whole file. All must be refused.
func flips(ctx context.Context, c *client.Client, data []byte, n int) error {
	for i := range n {
		bad := bytes.Clone(data)
		at := int(int64(len(bad)-1) * int64(i) / int64(max(n-1, 1)))
		bad[at] ^= 1 << (i % 8)
		if _, err := inspect(ctx, c, bad); metal.CodeOf(err) != metal.CodeInvalid {
			return fmt.Errorf("byte %d of %d, bit %d: inspect answered %w", at, len(data), i%8, orNothing(err))
		}
	}
	bad := bytes.Clone(data)
	bad[len(bad)/2] ^= 1
	if _, err := restore(ctx, c, bad); metal.CodeOf(err) != metal.CodeInvalid {
		return fmt.Errorf("restore of a damaged snapshot answered %w", orNothing(err))
	}
	return nil
}

func orNothing(err error) error {
	if err == nil {
		return errors.New("that it is good")
	}
	return err
}

// agreed waits until all nodes have one revision and one hash, and returns them.
func agreed(ctx context.Context, c *cluster.Cluster) (revision uint64, hash []byte, d time.Duration, err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		r, err := c.Client.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		if err == nil && same(r.GetPeers(), len(c.Nodes)) {
			return r.GetPeers()[0].GetRevision(), r.GetPeers()[0].GetStateHash(), time.Since(began), nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, nil, 0, fmt.Errorf("the nodes never agreed: %v, %w", r.GetPeers(), errors.Join(err, ctx.Err()))
		}
	}
}

func same(peers []*bmcv1.Peer, n int) bool {
	if len(peers) != n {
		return false
	}
	for _, p := range peers {
		if !p.GetAlive() || p.GetRevision() != peers[0].GetRevision() || !bytes.Equal(p.GetStateHash(), peers[0].GetStateHash()) {
			return false
		}
	}
	return true
}
