package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"bmc/bench/etcd"
	"bmc/bench/process"
)

// keyPrefix is of every key that a measurement writes.
const keyPrefix = "w"

// theirs is three etcd processes, without TLS.
type theirs struct {
	*etcd.Cluster
	election time.Duration
	attempt  time.Duration // one try of a write at one node
}

func startEtcd(ctx context.Context, program, dir string, election, attempt time.Duration) (system, error) {
	c, err := etcd.Start(ctx, etcd.Config{Program: program, Dir: dir, Members: 3, Election: election})
	if err != nil {
		return nil, err
	}
	return &theirs{c, election, attempt}, nil
}

func (e *theirs) name() string { return "etcd" }

func (e *theirs) settings() []string {
	return []string{
		fmt.Sprintf("--election-timeout %v --heartbeat-interval %v, pre-vote (its default)", e.election, e.election/10),
		"no TLS, no authentication, Put and DeleteRange",
		fmt.Sprintf("a client that goes to the next node at once after an error or %v without an answer", e.attempt),
	}
}

func (e *theirs) kill(ctx context.Context) (string, time.Time, error) {
	var victim *etcd.Member
	err := process.Until(ctx, "etcd's leader", func() error {
		if victim = e.Leader(ctx); victim == nil {
			return errors.New("no member leads")
		}
		return nil
	})
	if err != nil {
		return "", time.Time{}, err
	}
	at, err := victim.Child().Kill()
	return victim.Name, at, err
}

func (e *theirs) elected(ctx context.Context, victim string) error {
	return process.Until(ctx, "etcd's new leader", func() error {
		if l := e.Leader(ctx); l == nil || l.Name == victim {
			return errors.New("no other member leads")
		}
		return nil
	})
}

func (e *theirs) mend(ctx context.Context, victim string) error {
	for _, m := range e.Members {
		if m.Name == victim {
			if err := e.Restart(m); err != nil {
				return err
			}
		}
	}
	return e.Ready(ctx)
}

func (e *theirs) list(ctx context.Context) (out map[string]string, err error) {
	err = process.Until(ctx, "etcd's keys", func() error {
		kvs, err := e.Range(ctx, etcd.Prefix(keyPrefix))
		out = map[string]string{}
		for _, kv := range kvs {
			out[string(kv.Key)] = ""
		}
		return err
	})
	return out, err
}

func (e *theirs) close() error { return e.Close() }

func (e *theirs) writer(first int) (writer, error) {
	w := &etcdWriter{attempt: e.attempt, at: first % len(e.Members)}
	for _, m := range e.Members {
		conn, err := e.Dial(m)
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		w.conns = append(w.conns, conn)
	}
	return w, nil
}

type etcdWriter struct {
	conns   []*grpc.ClientConn
	attempt time.Duration
	at      int
}

// call tries once; after a failure the next call asks the next member.
func (w *etcdWriter) call(ctx context.Context, method string, req []byte) error {
	ctx, cancel := context.WithTimeout(ctx, w.attempt)
	defer cancel()
	_, err := etcd.Invoke(ctx, w.conns[w.at], method, req)
	if err != nil {
		w.at = (w.at + 1) % len(w.conns)
	}
	return err
}

// A Put of the same value, or a removal, has the same effect done twice.
func (w *etcdWriter) add(ctx context.Context, x write) (string, error) {
	return "", w.call(ctx, etcd.MethodPut, etcd.Put(x.key, strings.Repeat("x", 80)))
}

func (w *etcdWriter) remove(ctx context.Context, x write) error {
	return w.call(ctx, etcd.MethodDelete, etcd.Key(x.key))
}

func (w *etcdWriter) close() error {
	var errs []error
	for _, c := range w.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
