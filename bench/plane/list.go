package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/etcd"
	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/client"
)

// pageOf is as many servers as a page may have; it ends at 8 MiB.
const pageOf = 50_000

// listAll asks page by page until it has all.
func listAll(ctx context.Context, c *client.Client) (all []*bmcv1.Server, err error) {
	req := &bmcv1.ListServersRequest{PageSize: pageOf}
	for {
		page, err := c.Servers.ListServers(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetServers()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all, nil
		}
	}
}

// bytesCodec leaves answers as they came, for both sides of a comparison.
type bytesCodec struct{ last []byte }

func (*bytesCodec) Name() string { return "proto" }

func (*bytesCodec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return proto.Marshal(m)
}

func (c *bytesCodec) Unmarshal(b []byte, _ any) error {
	c.last = append([]byte(nil), b...)
	return nil
}

// receiveAll is listAll without decoding what came, but for the token of the next
// page.
func receiveAll(ctx context.Context, c *client.Client) (size int, err error) {
	req := &bmcv1.ListServersRequest{PageSize: pageOf}
	for {
		codec := &bytesCodec{}
		if _, err := c.Servers.ListServers(ctx, req, grpc.ForceCodec(codec)); err != nil {
			return 0, err
		}
		size += len(codec.last)
		if req.PageToken = nextToken(codec.last); req.PageToken == "" {
			return size, nil
		}
	}
}

// nextToken is ListServersResponse.next_page_token, field 2.
func nextToken(b []byte) string {
	for len(b) > 0 {
		n, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return ""
		}
		if n == 2 && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[k:])
			return string(v)
		}
		m := protowire.ConsumeFieldValue(n, typ, b[k:])
		if m < 0 {
			return ""
		}
		b = b[k+m:]
	}
	return ""
}

// once is a call that is timed by itself, again and again.
type once struct {
	name string
	do   func(ctx context.Context) error
	each int       // calls of one run
	took []float64 // ms, of one call
}

func timed(ctx context.Context, turns int, calls ...*once) error {
	for _, c := range calls {
		if err := c.do(ctx); err != nil { // warms up
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for turn := range turns {
		for _, c := range ordered(calls, turn) {
			began := time.Now()
			for range max(c.each, 1) {
				if err := c.do(ctx); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			c.took = append(c.took, ms(time.Since(began))/float64(max(c.each, 1)))
		}
	}
	for _, c := range calls {
		fmt.Printf("  %-34s %s ms\n", c.name, table.Of(c.took))
	}
	return nil
}

func (c *once) row(what, aim, peer string, them, limit *once) table.Row {
	r := table.Row{What: what, Unit: "ms", Ours: table.Of(c.took), Aim: aim, Peer: peer, Limit: table.Of(limit.took)}
	if them == nil {
		r.Note = peer + ": skipped, not installed"
		return r
	}
	r.Them, r.Ratio = table.Of(them.took), table.InTurns(c.took, them.took)
	return r
}

// lists measures the list of all servers, and one.
func (o options) lists(ctx context.Context, dir string) (rows []table.Row, err error) {
	s, err := o.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var empty []int64
	for _, n := range s.ours.Nodes {
		now, _ := process.RSS(n.Child().PID())
		empty = append(empty, now)
	}
	d, err := s.ours.Fill(ctx, 0, o.servers)
	if err != nil {
		return nil, err
	}
	var resident, each []float64
	for i, n := range s.ours.Nodes {
		now, peak := process.RSS(n.Child().PID())
		resident = append(resident, float64(now)/(1<<20))
		each = append(each, float64(now-empty[i])/1024/float64(o.servers))
		fmt.Printf("%d servers made in %.1f s; %s has %d MiB resident (peak %d)\n", o.servers, d.Seconds(), n.Name, now>>20, peak>>20)
	}
	leader, err := s.ours.Leader(ctx)
	if err != nil {
		return nil, err
	}
	us, err := s.ours.ClientOf(leader)
	if err != nil {
		return nil, err
	}
	defer func() { _ = us.Close() }()
	all, err := listAll(ctx, us)
	if err != nil {
		return nil, err
	}
	if len(all) != o.servers {
		return nil, fmt.Errorf("the list has %d servers, not %d", len(all), o.servers)
	}
	sum := 0
	for _, srv := range all {
		sum += proto.Size(srv)
	}
	size, err := receiveAll(ctx, us)
	if err != nil {
		return nil, err
	}
	fmt.Printf("list of %d servers, %d bytes each on average\n", o.servers, sum/len(all))
	middle := cluster.ServerName(o.servers / 2)
	received := &once{name: "bmc, all received", do: func(ctx context.Context) error { _, err := receiveAll(ctx, us); return err }}
	decoded := &once{name: "bmc, all decoded", do: func(ctx context.Context) error { _, err := listAll(ctx, us); return err }}
	one := &once{name: "bmc, one, linearizable", each: 200, do: func(ctx context.Context) error {
		_, err := us.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: middle})
		return err
	}}
	stale := &once{name: "bmc, one, from one node", each: 200, do: func(ctx context.Context) error {
		_, err := us.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: middle, AllowStale: true})
		return err
	}}
	bare, err := s.echo.open(1, 16, size)(0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	little, err := s.echo.open(1, 16, sum/len(all))(0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, little.close()) }()
	bareList := &once{name: "limit: echo, as many bytes", do: func(ctx context.Context) error { return bare.call(ctx, 0) }}
	bareOne := &once{name: "limit: echo, as many as of one", each: 200, do: func(ctx context.Context) error { return little.call(ctx, 0) }}
	calls := []*once{received, decoded, one, stale, bareList, bareOne}
	var e [3]*once
	if s.etcd != nil {
		if e, err = s.etcdLists(ctx, all, middle); err != nil {
			return nil, err
		}
		calls = append(calls, e[:]...)
	}
	var p [2]*once
	if pg, pgErr := startPostgres(ctx, dir); pgErr != nil {
		fmt.Println("PostgreSQL is skipped:", pgErr)
	} else {
		defer func() { err = errors.Join(err, pg.close()) }()
		if p, err = pg.lists(all, middle); err != nil {
			return nil, err
		}
		calls = append(calls, p[:]...)
	}
	if err := timed(ctx, 3*o.turns, calls...); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("list of %d servers", o.servers)
	memory := fmt.Sprintf("a node's memory with %d servers", o.servers)
	return []table.Row{{What: memory, Unit: "MiB", Ours: table.Of(resident), Note: "three nodes, just filled"},
		{What: memory + ", a server", Unit: "KiB", Ours: table.Of(each), Note: "above an empty node"}, received.row(what+", received", "at most 0.43 x", peerName, e[0], bareList), received.row(what+", received", "at most 0.43 x", "PostgreSQL 15", p[0], bareList),
		decoded.row(what+", decoded", "", peerName, e[1], bareList), one.row("get one server, linearizable", "at most 0.82 x", peerName, e[2], bareOne),
		stale.row("get one server, from one node", "at most 0.82 x", "PostgreSQL 15", p[1], bareOne)}, nil
}

// etcdLists puts each server's encoding under its name.
func (s *systems) etcdLists(ctx context.Context, all []*bmcv1.Server, one string) (calls [3]*once, err error) {
	leader := s.etcd.Leader(ctx)
	if leader == nil {
		return calls, errors.New("etcd has no leader")
	}
	conn, err := s.etcd.Dial(leader, grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(4<<20))
	if err != nil {
		return calls, err
	}
	err = parallel(64, len(all), func(i int) error {
		b, err := proto.Marshal(all[i])
		if err != nil {
			return err
		}
		_, err = etcd.Invoke(ctx, conn, etcd.MethodPut, etcd.Put("s/"+all[i].GetName(), string(b)))
		return err
	})
	if err != nil {
		return calls, fmt.Errorf("fill etcd: %w", err)
	}
	receive := func(ctx context.Context, req []byte, want int) ([]etcd.KV, error) {
		b, err := etcd.Invoke(ctx, conn, etcd.MethodRange, req)
		if err != nil {
			return nil, err
		}
		kvs, err := etcd.KVs(b)
		if err == nil && len(kvs) != want {
			return nil, fmt.Errorf("%d records, want %d", len(kvs), want)
		}
		return kvs, err
	}
	return [3]*once{
		{name: "etcd, all received", do: func(ctx context.Context) error {
			_, err := etcd.Invoke(ctx, conn, etcd.MethodRange, etcd.Prefix("s/"))
			return err
		}},
		{name: "etcd, all decoded", do: func(ctx context.Context) error {
			kvs, err := receive(ctx, etcd.Prefix("s/"), len(all))
			for _, kv := range kvs {
				if err := proto.Unmarshal(kv.Value, new(bmcv1.Server)); err != nil {
					return err
				}
			}
			return err
		}},
		{name: "etcd, one, linearizable", each: 200, do: func(ctx context.Context) error {
			_, err := receive(ctx, etcd.Key("s/"+one), 1)
			return err
		}}}, nil
}

func (p *postgres) lists(all []*bmcv1.Server, one string) (calls [2]*once, err error) {
	if err := p.fill(all); err != nil {
		return calls, err
	}
	c, err := p.dial()
	if err != nil {
		return calls, err
	}
	if err := c.prepare("one", "SELECT * FROM servers WHERE name = $1"); err != nil {
		return calls, err
	}
	return [2]*once{
		{name: "PostgreSQL, all received", do: func(context.Context) error {
			rows, err := c.query("SELECT * FROM servers ORDER BY name")
			if err == nil && len(rows) != len(all) {
				err = fmt.Errorf("%d rows, want %d", len(rows), len(all))
			}
			return err
		}},
		{name: "PostgreSQL, one, prepared", each: 200, do: func(context.Context) error {
			rows, err := c.execute("one", one)
			if err == nil && len(rows) != 1 {
				err = fmt.Errorf("%d rows", len(rows))
			}
			return err
		}}}, nil
}
