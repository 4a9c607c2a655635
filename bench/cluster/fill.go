package cluster

import (
	"context"
	"fmt"
	"time"

	bmcv1 "bmc/api/bmc/v1"
)

const (
	perRack = 200 // servers; a rack's range holds them
	perCall = 400 // servers of one ApplyInventory
)

// Fill makes racks and servers from..to-1. Each server gets an address, a sealed
// password and an open enrolment, which waits: there is no agent.
func (c *Cluster) Fill(ctx context.Context, from, to int) (time.Duration, error) {
	began := time.Now()
	req := &bmcv1.ApplyInventoryRequest{Sizes: []*bmcv1.SizeInput{{Name: "small", MinCpuThreads: 1}}}
	for r := from / perRack; r < (to+perRack-1)/perRack; r++ {
		net := fmt.Sprintf("10.%d.%d.", 16+r/256, r%256)
		req.Racks = append(req.Racks, &bmcv1.RackInput{Name: fmt.Sprintf("r%d", r+1), Subnet: net + "0/24", Gateway: net + "1",
			Dns: []string{net + "1"}, Domain: "example", RangeFrom: net + "10", RangeTo: net + "250"})
	}
	if _, err := c.Client.Inventory.ApplyInventory(ctx, req); err != nil {
		return 0, fmt.Errorf("make racks: %w", err)
	}
	for ; from < to; from += perCall {
		req := &bmcv1.ApplyInventoryRequest{}
		for i := from; i < min(from+perCall, to); i++ {
			req.Servers = append(req.Servers, server(i))
		}
		if _, err := c.Client.Inventory.ApplyInventory(ctx, req); err != nil {
			return 0, fmt.Errorf("make servers from %d: %w", from, err)
		}
	}
	return time.Since(began), nil
}

// ServerName is the name of a server that Fill made.
func ServerName(i int) string { return fmt.Sprintf("r%d-u%d", i/perRack+1, i%perRack+1) }

func server(i int) *bmcv1.ServerInput {
	rack, u := i/perRack, i%perRack
	return &bmcv1.ServerInput{Name: ServerName(i), Rack: fmt.Sprintf("r%d", rack+1),
		Macs:   []string{fmt.Sprintf("52:54:%02x:%02x:%02x:01", i>>16, i>>8&255, i&255)},
		Oob:    &bmcv1.OOBInput{Protocol: "ipmi", Address: fmt.Sprintf("10.%d.%d.%d", 128+rack/256, rack%256, u+1), Username: "admin", Password: fmt.Sprintf("secret-%d", i)},
		Serial: fmt.Sprintf("SN%08d", i), Labels: map[string]string{"row": fmt.Sprint(rack % 20)}}
}
