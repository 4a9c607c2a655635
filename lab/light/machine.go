package light

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"time"

	"bmc/lab/machine"
)

// Timing is how long a machine takes where a real one computes. Each is varied by
// up to half, from the machine's seed.
type Timing struct {
	Post   time.Duration // power-on self test
	Kernel time.Duration // from the loader to the ramdisk's hello
	Task   time.Duration // of each task, beside what it really does
	OS     time.Duration // from the disk to the first DHCP
	Soft   time.Duration // of an orderly shutdown
	// Retry is the unit of the firmware's DHCP: it asks at 0, 1 and 3 units and
	// gives up after 7.
	Retry time.Duration
}

// DefaultTiming is the usual one, each time as pace makes it.
func DefaultTiming(pace func(time.Duration) time.Duration) Timing {
	return Timing{
		Post: pace(300 * time.Millisecond), Kernel: pace(300 * time.Millisecond), Task: pace(200 * time.Millisecond),
		OS: pace(500 * time.Millisecond), Soft: pace(300 * time.Millisecond), Retry: time.Second,
	}
}

// Config of a machine.
type Config struct {
	Name      string
	Rack      *Rack
	MAC       [6]byte
	UUID      string
	Serial    string
	Firmware  string // machine.BIOS or machine.UEFI
	HTTPBoot  bool   // UEFI that boots by HTTP, not by TFTP
	DiskPath  string // a sparse file, made if missing
	DiskBytes int64
	Memory    uint64 // bytes that it says to have
	CPUs      uint32
	Seed      uint64 // of everything that is random, but keys
	Timing    Timing
	Record    *Record
	// Version is what its ramdisk calls itself: that of the one which it fetches,
	// and throws away. Nil: "light".
	Version func() string
	Log     *slog.Logger
}

// Machine may be used by several goroutines. Close it.
type Machine struct {
	cfg  Config
	disk *disk

	op sync.Mutex // one power operation at a time

	mu     sync.Mutex
	rng    *mathrand.Rand
	order  machine.BootOrder
	life   *life
	starts int
	resets int
	since  time.Time
	closed bool
}

// life is the time from power-on to power-off.
type life struct {
	m      *Machine
	nic    *nic
	start  int
	soft   chan struct{} // the power button
	reset  chan struct{}
	cancel context.CancelCauseFunc
	ended  chan struct{}
	bootID string // of the ramdisk that runs
}

// Why a boot ends.
var (
	errPowerOff = errors.New("power off")
	errReset    = errors.New("reset")
)

// New prepares a machine that is off.
func New(cfg Config) (*Machine, error) {
	if cfg.Firmware != machine.BIOS && cfg.Firmware != machine.UEFI {
		return nil, fmt.Errorf("machine %s: unknown firmware %q", cfg.Name, cfg.Firmware)
	}
	d, err := newDisk(cfg.DiskPath, cfg.DiskBytes)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
	}
	name := fnv.New64a()
	_, _ = name.Write([]byte(cfg.Name))
	return &Machine{cfg: cfg, disk: d, rng: mathrand.New(mathrand.NewPCG(cfg.Seed, name.Sum64())), since: time.Now()}, nil
}

// State never blocks on a power operation. A light machine has no process.
func (m *Machine) State() machine.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return machine.State{On: m.life != nil, Since: m.since, Starts: m.starts, Resets: m.resets, Boot: m.order.Current()}
}

// DiskPath is the file behind the disk.
func (m *Machine) DiskPath() string { return m.cfg.DiskPath }

// SetBoot changes what the next boots try first.
func (m *Machine) SetBoot(_ context.Context, o machine.Override) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order.Set(o)
}

// PowerOn does nothing to a machine that is on.
func (m *Machine) PowerOn(context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	on, closed, start := m.life != nil, m.closed, m.starts+1
	m.mu.Unlock()
	if on {
		return nil
	}
	if closed {
		return fmt.Errorf("machine %s: %w", m.cfg.Name, os.ErrClosed)
	}
	nic, err := m.cfg.Rack.plug(m.cfg.Name, m.cfg.MAC, func(a *message) { m.cfg.Record.answered(m.cfg.Name, start, a) })
	if err != nil {
		return fmt.Errorf("power on %s: %w", m.cfg.Name, err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m.mu.Lock()
	m.starts = start
	l := &life{m: m, nic: nic, start: start, soft: make(chan struct{}, 1), reset: make(chan struct{}, 1), cancel: cancel, ended: make(chan struct{})}
	m.life, m.since = l, time.Now()
	m.mu.Unlock()
	l.record(PowerOn, "", "")
	go l.run(ctx)
	return nil
}

// PowerOff cuts the power and waits until the machine is off.
func (m *Machine) PowerOff(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	l := m.running()
	if l == nil {
		return nil
	}
	err := l.nic.unplug() // first: what ends now must not say goodbye to anybody
	l.cancel(errPowerOff)
	select {
	case <-l.ended:
		return err
	case <-ctx.Done():
		return fmt.Errorf("power off %s: %w", m.cfg.Name, ctx.Err())
	}
}

func (m *Machine) running() *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// SoftOff presses the power button. An operating system obeys; firmware and the
// ramdisk do not.
func (m *Machine) SoftOff(context.Context) error {
	return m.press(func(l *life) chan struct{} { return l.soft })
}

// Reset presses the reset button.
func (m *Machine) Reset(context.Context) error {
	return m.press(func(l *life) chan struct{} { return l.reset })
}

func (m *Machine) press(button func(*life) chan struct{}) error {
	l := m.running()
	if l == nil {
		return machine.ErrOff
	}
	select {
	case button(l) <- struct{}{}:
	default: // pressed already
	}
	return nil
}

// Close powers the machine off for good.
func (m *Machine) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return m.PowerOff(ctx)
}

// run boots again and again until the power is off.
func (l *life) run(ctx context.Context) {
	defer close(l.ended)
	var why error
	for why == nil || errors.Is(why, errReset) {
		why = l.bootUntilReset(ctx)
	}
	l.cancel(why) // the machine may have turned itself off
	if err := l.nic.unplug(); err != nil {
		l.failed("unplugged", err)
	}
	detail := "controller"
	if errors.Is(why, errGuestOff) {
		detail = "guest"
	}
	l.m.mu.Lock()
	l.m.life, l.m.since = nil, time.Now()
	l.m.mu.Unlock()
	l.record(PowerOff, "", detail)
}

// errGuestOff is a machine that turned itself off.
var errGuestOff = errors.New("turned itself off")

// bootUntilReset is one boot. It returns nil when the machine has started itself
// again, else why it ended.
func (l *life) bootUntilReset(ctx context.Context) error {
	l.bootID = ""
	bootCtx, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-l.reset:
			l.m.mu.Lock()
			l.m.resets++
			l.m.mu.Unlock()
			l.record(Reset, "", "")
			stop(errReset)
		case <-bootCtx.Done():
		}
	}()
	err := l.boot(bootCtx)
	cause := context.Cause(bootCtx)
	stop(nil)
	<-watched
	l.nic.cutConns()
	if err := l.nic.setAddr(noAddr); err != nil {
		l.failed("address", err)
	}
	if cause != nil {
		return cause
	}
	if err == nil {
		l.m.mu.Lock()
		l.m.resets++
		l.m.mu.Unlock()
	}
	return err
}

// sleep waits for about d. It returns why when the boot is over first.
func (l *life) sleep(ctx context.Context, d time.Duration) error {
	l.m.mu.Lock()
	d = d/2 + time.Duration(l.m.rng.Int64N(int64(d)+1))
	l.m.mu.Unlock()
	return pause(ctx, d)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (l *life) random() uint32 {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.m.rng.Uint32()
}

func (l *life) record(event, task, detail string) {
	l.m.cfg.Record.Add(Event{Server: l.m.cfg.Name, Event: event, Start: l.start, Boot: l.bootID, Task: task, Detail: detail})
}

func (l *life) failed(what string, err error) {
	l.record(Failed, "", what+": "+err.Error())
	l.m.cfg.Log.Warn("light machine met something unexpected", "server", l.m.cfg.Name, "what", what, "err", err)
}

// newBootID is a random UUID, as the kernel makes one: not from the seed, which
// two labs may share.
func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&15|4<<4, b[8]&63|2<<6
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
