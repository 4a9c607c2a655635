package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/etcd"
	"bmc/bench/measure"
	"bmc/client"
)

// nodes of each system.
const nodes = 3

// peerName is etcd in the table.
const peerName = "etcd 3.6"

// systems are what stands side by side: ours, the limit, and etcd where it is built.
type systems struct {
	ours *cluster.Cluster
	echo *echoes
	etcd *etcd.Cluster // nil: none

	wal *cluster.Cluster // ours again with the other log store; nil: not wanted

	writers atomic.Int64 // so far: each has a key of its own
}

func (o options) start(ctx context.Context, dir string) (_ *systems, err error) {
	s := &systems{}
	if s.ours, err = cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "bmc"), Program: o.program, Nodes: nodes, LogStore: o.logStore}); err != nil {
		return nil, fmt.Errorf("start our nodes: %w", err)
	}
	if s.echo, err = startEchoes(ctx, filepath.Join(dir, "echo")); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if o.etcd == "" {
		fmt.Println("etcd is skipped: no -etcd")
		return s, nil
	}
	s.etcd, err = etcd.Start(ctx, etcd.Config{Program: o.etcd, Dir: filepath.Join(dir, "etcd"), Members: nodes, TLS: true})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *systems) close() error {
	err := s.ours.Close()
	if s.echo != nil {
		err = errors.Join(err, s.echo.close())
	}
	if s.wal != nil {
		err = errors.Join(err, s.wal.Close())
	}
	if s.etcd != nil {
		err = errors.Join(err, s.etcd.Close())
	}
	return err
}

// pidsOf are the processes of our nodes.
func pidsOf(c *cluster.Cluster) func() []int {
	return func() (pids []int) {
		for _, n := range c.Nodes {
			pids = append(pids, n.Child().PID())
		}
		return pids
	}
}

// etcdPIDs are etcd's.
func (s *systems) etcdPIDs() (pids []int) {
	for _, m := range s.etcd.Members {
		pids = append(pids, m.Child().PID())
	}
	return pids
}

// writer adds and removes one key, each a committed command.
type writer struct {
	client *client.Client
	name   string
	key    string
	there  bool
}

// openWriter is a client that begins at one of the nodes.
func (s *systems) openWriter(cl *cluster.Cluster) func(i int) (caller, error) {
	return func(i int) (caller, error) {
		c, err := cl.NewClient(i % nodes)
		if err != nil {
			return nil, err
		}
		return &writer{client: c, name: fmt.Sprintf("w%d-%d", i, s.writers.Add(1)), key: measure.PublicKey()}, nil
	}
}

func (w *writer) call(ctx context.Context, _ int) (err error) {
	if !w.there {
		_, err = w.client.Keys.AddKey(ctx, &bmcv1.AddKeyRequest{Name: w.name, PublicKey: w.key})
	} else {
		_, err = w.client.Keys.RemoveKey(ctx, &bmcv1.RemoveKeyRequest{Ref: w.name})
	}
	if err == nil {
		w.there = !w.there
	}
	return err
}

func (w *writer) close() error { return w.client.Close() }

// putter writes one key of etcd's with a value of as many bytes as our command has.
type putter struct {
	conn *grpc.ClientConn
	req  []byte
}

// openPutter is a client of etcd's leader, since the product's client goes there,
// too, once it has been told who leads: neither side forwards a write.
func (s *systems) openPutter(ctx context.Context, size int) func(i int) (caller, error) {
	return func(i int) (caller, error) {
		leader := s.etcd.Leader(ctx)
		if leader == nil {
			return nil, errors.New("etcd has no leader")
		}
		conn, err := s.etcd.Dial(leader)
		if err != nil {
			return nil, err
		}
		return &putter{conn, etcd.Put(fmt.Sprintf("w%d", i), strings.Repeat("x", size))}, nil
	}
}

func (p *putter) call(ctx context.Context, _ int) error {
	_, err := etcd.Invoke(ctx, p.conn, etcd.MethodPut, p.req)
	return err
}

func (p *putter) close() error { return p.conn.Close() }
