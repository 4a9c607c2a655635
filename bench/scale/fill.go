package main

import (
	"context"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
)

const (
	perRack = 200 // servers; a rack's range holds them
	perCall = 400 // servers of one ApplyInventory
)

// fillInventory makes racks and servers. Each server gets an address, a sealed
// password and an open enrolment, which waits: there is no agent.
func fillInventory(ctx context.Context, c *cluster.Cluster, servers int) (time.Duration, error) {
	began := time.Now()
	racks := (servers + perRack - 1) / perRack
	req := &bmcv1.ApplyInventoryRequest{Sizes: []*bmcv1.SizeInput{{Name: "small", MinCpuThreads: 1}}}
	for r := range racks {
		net := fmt.Sprintf("10.%d.%d.", 16+r/256, r%256)
		req.Racks = append(req.Racks, &bmcv1.RackInput{Name: fmt.Sprintf("r%d", r+1), Subnet: net + "0/24", Gateway: net + "1",
			Dns: []string{net + "1"}, Domain: "example", RangeFrom: net + "10", RangeTo: net + "250"})
	}
	if _, err := c.Client.Inventory.ApplyInventory(ctx, req); err != nil {
		return 0, fmt.Errorf("make racks: %w", err)
	}
	for from := 0; from < servers; from += perCall {
		req := &bmcv1.ApplyInventoryRequest{}
		for i := from; i < min(from+perCall, servers); i++ {
			req.Servers = append(req.Servers, server(i))
		}
		if _, err := c.Client.Inventory.ApplyInventory(ctx, req); err != nil {
			return 0, fmt.Errorf("make servers from %d: %w", from, err)
		}
	}
	return time.Since(began), nil
}

func server(i int) *bmcv1.ServerInput {
	rack, u := i/perRack, i%perRack
	return &bmcv1.ServerInput{Name: fmt.Sprintf("r%d-u%d", rack+1, u+1), Rack: fmt.Sprintf("r%d", rack+1),
		Macs:   []string{fmt.Sprintf("52:54:%02x:%02x:%02x:01", i>>16, i>>8&255, i&255)},
		Oob:    &bmcv1.OOBInput{Protocol: "ipmi", Address: fmt.Sprintf("10.%d.%d.%d", 128+rack/256, rack%256, u+1), Username: "admin", Password: fmt.Sprintf("secret-%d", i)},
		Serial: fmt.Sprintf("SN%08d", i), Labels: map[string]string{"row": fmt.Sprint(rack % 20)}}
}

// fillLog writes until the log has that many entries.
func fillLog(ctx context.Context, c *cluster.Cluster, entries uint64, n int) (d time.Duration, writes int, err error) {
	began := time.Now()
	w, err := startWriters(ctx, c, n, "log", 0)
	if err != nil {
		return 0, 0, err
	}
	for {
		s, statusErr := c.Client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
		if err = statusErr; err != nil || s.GetAppliedIndex() >= entries {
			break
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			break
		}
	}
	if stopErr := w.stop(); err == nil {
		err = stopErr
	}
	return time.Since(began), len(w.cut()), err
}
