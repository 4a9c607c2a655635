package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"bmc/bench/process"
)

// keyPrefix is of every key that a measurement writes.
const keyPrefix = "w"

// etcd is three etcd processes, without TLS.
type etcd struct {
	program  string
	dir      string
	election time.Duration
	attempt  time.Duration // one try of a write at one node
	members  []*member
}

type member struct {
	name, peer, client string
	child              *process.Child
	conn               *grpc.ClientConn
}

func startEtcd(ctx context.Context, program, dir string, election, attempt time.Duration) (_ system, err error) {
	e := &etcd{program: program, dir: dir, election: election, attempt: attempt}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start etcd: %w", err), e.close())
		}
	}()
	for i := range 3 {
		m := &member{name: fmt.Sprintf("e%d", i+1)}
		if m.peer, err = process.FreeAddress(); err != nil {
			return nil, err
		}
		if m.client, err = process.FreeAddress(); err != nil {
			return nil, err
		}
		if m.conn, err = dialEtcd(m.client); err != nil {
			return nil, err
		}
		e.members = append(e.members, m)
	}
	for _, m := range e.members {
		if err := e.run(m); err != nil {
			return nil, err
		}
	}
	return e, e.ready(ctx)
}

func dialEtcd(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}))
}

func (e *etcd) run(m *member) (err error) {
	var all []string
	for _, o := range e.members {
		all = append(all, o.name+"=http://"+o.peer)
	}
	ms := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
	m.child, err = process.Start(filepath.Join(e.dir, m.name+".log"), e.program, "--name", m.name,
		"--data-dir", filepath.Join(e.dir, m.name),
		"--listen-peer-urls", "http://"+m.peer, "--initial-advertise-peer-urls", "http://"+m.peer,
		"--listen-client-urls", "http://"+m.client, "--advertise-client-urls", "http://"+m.client,
		"--initial-cluster", strings.Join(all, ","), "--initial-cluster-state", "new",
		"--heartbeat-interval", ms(e.election/10), "--election-timeout", ms(e.election), "--log-level", "warn")
	return err
}

func (e *etcd) name() string { return "etcd" }

func (e *etcd) settings() []string {
	return []string{
		fmt.Sprintf("--election-timeout %v --heartbeat-interval %v, pre-vote (its default)", e.election, e.election/10),
		"no TLS, no authentication, Put and DeleteRange",
		fmt.Sprintf("a client that goes to the next node at once after an error or %v without an answer", e.attempt),
	}
}

func (m *member) status(ctx context.Context) (etcdStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b, err := invoke(ctx, m.conn, methodStatus, nil)
	if err != nil {
		return etcdStatus{}, err
	}
	return parseStatus(b)
}

// leader asks all members; nil when none that answers is the leader.
func (e *etcd) leader(ctx context.Context) *member {
	for _, m := range e.members {
		if s, err := m.status(ctx); err == nil && s.leader == s.member && s.leader != 0 {
			return m
		}
	}
	return nil
}

func (e *etcd) kill(ctx context.Context) (string, time.Time, error) {
	var victim *member
	err := until(ctx, "etcd's leader", func() error {
		if victim = e.leader(ctx); victim == nil {
			return errors.New("no member leads")
		}
		return nil
	})
	if err != nil {
		return "", time.Time{}, err
	}
	at, err := victim.child.Kill()
	return victim.name, at, err
}

func (e *etcd) elected(ctx context.Context, victim string) error {
	return until(ctx, "etcd's new leader", func() error {
		if l := e.leader(ctx); l == nil || l.name == victim {
			return errors.New("no other member leads")
		}
		return nil
	})
}

func (e *etcd) mend(ctx context.Context, victim string) error {
	for _, m := range e.members {
		if m.name == victim {
			<-m.child.Done()
			if err := e.run(m); err != nil {
				return err
			}
		}
	}
	return e.ready(ctx)
}

// ready waits until all members answer, agree on a leader and lack little.
func (e *etcd) ready(ctx context.Context) error {
	return until(ctx, "etcd's members", func() error {
		var all []etcdStatus
		newest := uint64(0)
		for _, m := range e.members {
			s, err := m.status(ctx)
			if err != nil {
				return err
			}
			all, newest = append(all, s), max(newest, s.applied)
		}
		for _, s := range all {
			if s.leader == 0 || s.leader != all[0].leader || s.applied+64 < newest {
				return errors.New("a member has not caught up")
			}
		}
		return nil
	})
}

func (e *etcd) list(ctx context.Context) (out []string, err error) {
	err = until(ctx, "etcd's keys", func() error {
		b, err := invoke(ctx, e.members[0].conn, methodRange, prefixRequest(keyPrefix))
		if err != nil {
			return err
		}
		out, err = rangeKeys(b)
		return err
	})
	return out, err
}

func (e *etcd) close() error {
	var errs []error
	for _, m := range e.members {
		if m.conn != nil {
			errs = append(errs, m.conn.Close())
		}
		if m.child != nil {
			errs = append(errs, m.child.End())
		}
	}
	return errors.Join(errs...)
}

func (e *etcd) writer(first int) (writer, error) {
	w := &etcdWriter{attempt: e.attempt, at: first % len(e.members)}
	for _, m := range e.members {
		conn, err := dialEtcd(m.client)
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
	_, err := invoke(ctx, w.conns[w.at], method, req)
	if err != nil {
		w.at = (w.at + 1) % len(w.conns)
	}
	return err
}

// A Put of the same value, or a removal, has the same effect done twice.
func (w *etcdWriter) add(ctx context.Context, x write) error {
	return w.call(ctx, methodPut, putRequest(x.key, strings.Repeat("x", 80)))
}

func (w *etcdWriter) remove(ctx context.Context, x write) error {
	return w.call(ctx, methodDelete, keyRequest(x.key))
}

func (w *etcdWriter) close() error {
	var errs []error
	for _, c := range w.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
