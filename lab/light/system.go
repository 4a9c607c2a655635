package light

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	sshPort = 22
	sshFor  = 10 * time.Second // of one connection: nobody can log in
)

// bootDisk starts what is on the disk, if it can be started.
func (l *life) bootDisk(ctx context.Context) error {
	s, err := l.m.disk.boot()
	if err != nil {
		return next("disk: %v", err)
	}
	select { // a button that was pressed earlier pressed nothing
	case <-l.soft:
	default:
	}
	if s == nil {
		l.record(DiskBoot, "", "not configured")
		return l.until(ctx, nil)
	}
	l.record(DiskBoot, "", s.Hostname)
	if err := l.sleep(ctx, l.m.cfg.Timing.OS); err != nil {
		return err
	}
	known := noAddr
	if p, err := netip.ParsePrefix(s.Address); err == nil {
		known = p.Addr()
	}
	lease, err := l.systemDHCP(ctx, "system", known)
	if err != nil {
		return err
	}
	stop, err := l.serve(s)
	if err != nil {
		l.failed("operating system", err)
		return l.until(ctx, nil)
	}
	defer stop()
	l.record(Up, "", lease.yiaddr.String())
	return l.until(ctx, lease)
}

// until runs the operating system until it is shut down, and keeps its lease.
func (l *life) until(ctx context.Context, lease *message) error {
	for {
		var renew <-chan time.Time
		var timer *time.Timer
		if lease != nil {
			timer = time.NewTimer(lease.lease() / 2)
			renew = timer.C
		}
		select {
		case <-ctx.Done():
		case <-l.soft:
			stopTimer(timer)
			if err := l.sleep(ctx, l.m.cfg.Timing.Soft); err != nil {
				return err
			}
			return errGuestOff
		case <-renew:
			if again, err := l.renew(ctx, lease); err == nil && again != nil {
				lease = again
			} else if ctx.Err() == nil {
				l.failed("lease", errors.Join(errNoOffer, err))
			}
		}
		stopTimer(timer)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func stopTimer(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// serve shows the host key on port 22, until stop.
func (l *life) serve(s *system) (stop func(), err error) {
	key, err := hostKeyOf(s)
	if err != nil {
		return nil, err
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
		return nil, errors.New("a light machine has no users")
	}}
	cfg.AddHostKey(key)
	listener, err := l.nic.listen(sshPort)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			t, err := listener.Accept()
			if err != nil {
				return // closed
			}
			c, err := l.nic.hold(t)
			if err != nil {
				continue // without power
			}
			wg.Go(func() { shake(c, cfg) })
		}
	})
	return func() {
		_ = listener.Close()
		l.nic.cutConns()
		wg.Wait()
	}, nil
}

// shake is a connection as far as the proof of the host key, and its refusal.
func shake(c net.Conn, cfg *ssh.ServerConfig) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(sshFor)); err != nil {
		return
	}
	if s, _, _, err := ssh.NewServerConn(c, cfg); err == nil {
		_ = s.Close()
	}
}
