package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
)

const (
	renewEvery = 5 * time.Second
	renewLimit = 3 * time.Second // of one node's answer
	renewAgain = time.Second     // when nobody has answered
	// leaseLook is how often a lease's end is looked for: a suspended machine
	// stops timers but not the clock.
	leaseLook = time.Second / 2
)

// boottime is CLOCK_BOOTTIME: it counts while the machine is suspended, and
// nobody can set it.
func boottime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 1<<63 - 1 // without a clock nothing is held
	}
	return time.Duration(ts.Nano())
}

// lease is this agent's hold on one rack. It lasts for the granted time counted
// from the moment of sending; the leader adds the skew on its side.
type lease struct {
	rack   *rack
	self   *agentv1.Endpoint // on the rack's network
	serves func() string     // version of the ramdisk; nil: not known
	unfit  func() string     // why another agent should hold it; nil, "": it need not
	log    *slog.Logger
	now    func() time.Duration // boottime

	mu      sync.Mutex
	epoch   uint64
	until   time.Duration
	heard   time.Duration // when the leader's last answer was asked for
	was     bool
	changed chan struct{} // closed when epoch or until change
}

func newLease(r *rack, self *agentv1.Endpoint, log *slog.Logger) *lease {
	return &lease{rack: r, self: self, log: log, now: boottime, changed: make(chan struct{})}
}

// run renews until ctx ends.
func (l *lease) run(ctx context.Context, n *nodes) {
	for {
		ramdisk := ""
		if l.serves != nil {
			ramdisk = l.serves()
		}
		unfit := ""
		if l.unfit != nil {
			unfit = l.unfit()
		}
		err := n.call(ctx, renewLimit, func(ctx context.Context, c agentv1.ControlClient) error {
			sent := l.now()
			resp, err := c.RenewLease(ctx, &agentv1.RenewLeaseRequest{Rack: l.rack.conf.Name, Endpoint: l.self, Ramdisk: ramdisk, Unfit: unfit})
			if err == nil {
				l.answered(sent, resp)
				l.rack.setAgents(resp.GetAgents(), resp.GetPartial(), resp.GetHolder())
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			l.log.Debug("lease not renewed", "rack", l.rack.conf.Name, "err", err)
		}
		l.note()
		wait := renewEvery
		if err != nil {
			wait = renewAgain
		}
		if pause.For(ctx, wait) != nil {
			return
		}
	}
}

func (l *lease) answered(sent time.Duration, resp *agentv1.RenewLeaseResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = sent
	if resp.GetHeld() {
		l.epoch, l.until = resp.GetEpoch(), sent+resp.GetTtl().AsDuration()
	} else {
		l.until = 0
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// note logs edges.
func (l *lease) note() {
	epoch, held := l.Held()
	l.mu.Lock()
	defer l.mu.Unlock()
	if held != l.was {
		l.log.Info(map[bool]string{true: "rack's lease held", false: "rack's lease lost"}[held], "rack", l.rack.conf.Name, "epoch", epoch)
	}
	l.was = held
}

// Held implements oob.Lease.
func (l *lease) Held() (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch, l.now() < l.until
}

// confirmed says whether the leader has answered lately, be the lease held or not.
func (l *lease) confirmed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard != 0 && l.now()-l.heard < confirmedFor
}

// whenLost calls f each time that the lease has ended, until ctx does.
func (l *lease) whenLost(ctx context.Context, f func()) {
	was := false
	for {
		l.mu.Lock()
		left, changed := l.until-l.now(), l.changed
		l.mu.Unlock()
		if was && left <= 0 {
			f()
		}
		was = left > 0
		look := leaseLook
		if was {
			look = min(left, look)
		}
		t := time.NewTimer(look)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (l *lease) state(epoch uint64) (ok bool, left time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left = l.until - l.now()
	return left > 0 && l.epoch == epoch, left, l.changed
}

// hold waits until the lease is held under the epoch, and returns a context
// that ends with it.
func (l *lease) hold(ctx context.Context, epoch func() uint64) (context.Context, context.CancelFunc, error) {
	for {
		ok, left, changed := l.state(epoch())
		if ok {
			held, cancel := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { l.guard(held, cancel, epoch, left, changed) })
			return held, func() { cancel(); wg.Wait() }, nil
		}
		select {
		case <-changed:
		case <-time.After(time.Second): // the epoch may have changed
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (l *lease) guard(ctx context.Context, cancel context.CancelFunc, epoch func() uint64, left time.Duration, changed <-chan struct{}) {
	for {
		t := time.NewTimer(min(left, leaseLook))
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
		var ok bool
		if ok, left, changed = l.state(epoch()); !ok {
			cancel()
			return
		}
	}
}
