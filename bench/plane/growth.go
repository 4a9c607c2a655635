package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/process"
	"bmc/bench/table"
)

// costs measures how memory, a write, a read and the list grow with the inventory,
// of ours alone.
func (o options) costs(ctx context.Context, dir string) (rows []table.Row, err error) {
	c, err := cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "bmc"), Program: o.program, Nodes: nodes, LogStore: o.logStore})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s := &systems{ours: c}
	empty, _ := process.RSS(c.Nodes[0].Child().PID())
	fmt.Printf("cost growth; an empty node has %d MiB resident\n", empty>>20)
	had := 0
	for _, n := range o.growth {
		d, err := c.Fill(ctx, had, n)
		if err != nil {
			return rows, err
		}
		made := float64(n-had) / d.Seconds()
		had = n
		var resident []float64
		for _, node := range c.Nodes {
			now, _ := process.RSS(node.Child().PID())
			resident = append(resident, float64(now)/(1<<20))
		}
		writes, reads := &subject{name: "write", open: s.openWriter(c)}, &subject{name: "read", open: s.openReader(n)}
		if err := inTurns(ctx, []*subject{writes, reads}, 1, o.turns, o.length/2); err != nil {
			return rows, err
		}
		busy := &subject{name: "writes", open: s.openWriter(c)}
		if err := inTurns(ctx, []*subject{busy}, 64, o.turns, o.length/2); err != nil {
			return rows, err
		}
		list := &once{name: "list", do: func(ctx context.Context) error { _, err := receiveAll(ctx, c.Client); return err }}
		if err := timed(ctx, o.turns, list); err != nil {
			return rows, err
		}
		name := fmt.Sprintf(", %d servers", n)
		perServer := table.Of(resident)
		rows = append(rows, table.Row{What: "a node's memory" + name, Unit: "MiB", Ours: perServer,
			Note: fmt.Sprintf("%.1f KiB a server above an empty node", (perServer.Median*1024-float64(empty)/1024)/float64(n))},
			table.Row{What: "write, 1 client, p50" + name, Unit: "ms", Ours: table.Of(writes.p50)},
			table.Row{What: "writes, 64 clients" + name, Unit: "writes/s", Ours: table.Of(busy.rates)},
			table.Row{What: "get one server, linearizable, p50" + name, Unit: "ms", Ours: table.Of(reads.p50)},
			table.Row{What: "list, received" + name, Unit: "ms", Ours: table.Of(list.took)},
			table.Row{What: "servers enrolled in calls of 400" + name, Unit: "servers/s", Ours: table.Of([]float64{made})})
		fmt.Printf("  %d servers: %s MiB resident, %.0f servers/s made (%v)\n", n, perServer, made, d.Round(10*time.Millisecond))
	}
	_, err = c.Client.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	return rows, err
}
