package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/etcd"
	"bmc/bench/table"
	"bmc/client"
)

// readServers is how many servers there are to read one of.
const readServers = 1000

// reads measures linearizable reads of one server.
func (o options) reads(ctx context.Context, dir string) (rows []table.Row, err error) {
	s, err := o.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.ours.Fill(ctx, 0, readServers); err != nil {
		return nil, err
	}
	one, err := s.ours.Client.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: cluster.ServerName(0)})
	if err != nil {
		return nil, err
	}
	size := proto.Size(one)
	if err := s.fillEtcd(ctx, readServers, strings.Repeat("x", size)); err != nil {
		return nil, err
	}
	fmt.Printf("linearizable reads of one record of %d; it has %d bytes\n", readServers, size)
	for _, n := range o.clients {
		ours := &subject{name: "bmc", open: s.openReader(readServers), pids: pidsOf(s.ours)}
		limit := &subject{name: "limit: echo", open: s.echo.open(nodes, 16, size), pids: s.echo.pids}
		subjects := []*subject{ours, limit}
		var peer *subject
		if s.etcd != nil {
			peer = &subject{name: "etcd", open: s.openRanger, pids: s.etcdPIDs}
			subjects = append(subjects, peer)
		}
		if err := inTurns(ctx, subjects, n, o.turns, o.length); err != nil {
			return rows, err
		}
		rows = append(rows, rowsOf(fmt.Sprintf("linearizable reads, %d clients", n), "reads/s", "at least 2.2 x", ours, peer, limit)...)
	}
	return rows, nil
}

// fillEtcd puts records s0, s1… of the same value.
func (s *systems) fillEtcd(ctx context.Context, n int, value string) error {
	if s.etcd == nil {
		return nil
	}
	conn, err := s.etcd.Dial(s.etcd.Members[0])
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return parallel(64, n, func(i int) error {
		_, err := etcd.Invoke(ctx, conn, etcd.MethodPut, etcd.Put(fmt.Sprintf("s%d", i), value))
		return err
	})
}

// reader reads one of some servers.
type reader struct {
	client  *client.Client
	servers int
}

func (s *systems) openReader(servers int) func(i int) (caller, error) {
	return func(i int) (caller, error) {
		c, err := s.ours.NewClient(i % nodes)
		return &reader{c, servers}, err
	}
}

func (r *reader) call(ctx context.Context, n int) error {
	_, err := r.client.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: cluster.ServerName(n * 7 % r.servers)})
	return err
}

func (r *reader) close() error { return r.client.Close() }

type ranger struct{ conn *grpc.ClientConn }

func (s *systems) openRanger(i int) (caller, error) {
	conn, err := s.etcd.Dial(s.etcd.Members[i%nodes])
	return &ranger{conn}, err
}

func (r *ranger) call(ctx context.Context, n int) error {
	b, err := etcd.Invoke(ctx, r.conn, etcd.MethodRange, etcd.Key(fmt.Sprintf("s%d", n*7%readServers)))
	if err != nil {
		return err
	}
	kvs, err := etcd.KVs(b)
	if err == nil && len(kvs) != 1 {
		return fmt.Errorf("%d records under one key", len(kvs))
	}
	return err
}

func (r *ranger) close() error { return r.conn.Close() }
