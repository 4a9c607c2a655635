package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bmc/lab/vswitch"
)

// ErrOff is returned by what needs a running machine.
var ErrOff = errors.New("machine is off")

// startTimeout bounds the start of QEMU until its monitor answers, on a busy
// computer.
const startTimeout = 60 * time.Second

// resetSettles is how long after a reset another one counts as the same boot: no
// guest boots and resets that soon.
const resetSettles = 2 * time.Second

// Machine may be used by several goroutines. Close it.
type Machine struct {
	cfg Config

	op sync.Mutex // one power or boot operation at a time

	mu     sync.Mutex
	boot   BootOrder
	run    *run
	starts int
	resets int
	since  time.Time // of the power state
	closed bool
}

// run is one life of the QEMU process.
type run struct {
	cmd    *exec.Cmd
	port   *vswitch.Port
	q      *qmp
	resets chan struct{}
	exited chan struct{} // closed when the process is reaped
	ended  chan struct{} // closed when nothing of it is left
}

// State is a machine's state at one moment. PID is 0 when it is off.
type State struct {
	On     bool
	PID    int
	Since  time.Time
	Starts int // power-ons
	Resets int // by the guest or by the BMC
	Boot   Override
}

// New prepares a machine that is off.
func New(cfg Config) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Start == nil {
		cfg.Start = (*exec.Cmd).Start
	}
	if err := cfg.prepare(); err != nil {
		return nil, err
	}
	return &Machine{cfg: cfg, since: time.Now()}, nil
}

// Config returns what the machine was made of.
func (m *Machine) Config() Config { return m.cfg }

// State never blocks on a power operation.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{On: m.run != nil, Since: m.since, Starts: m.starts, Resets: m.resets, Boot: m.boot.Current()}
	if m.run != nil {
		s.PID = m.run.cmd.Process.Pid
	}
	return s
}

// SetBoot changes the boot order; a running machine obeys at its next reset.
func (m *Machine) SetBoot(ctx context.Context, o Override) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	err := m.boot.Set(o)
	r, first := m.run, m.boot.First()
	m.mu.Unlock()
	if err != nil || r == nil {
		return err
	}
	return setBootIndexes(ctx, r.q, first)
}

// PowerOn does nothing to a machine that is on.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	first, on, closed := m.boot.First(), m.run != nil, m.closed
	m.mu.Unlock()
	if on {
		return nil
	}
	if closed {
		return fmt.Errorf("machine %s: %w", m.cfg.Name, os.ErrClosed)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := m.launch(ctx, first)
	if err != nil {
		return fmt.Errorf("power on %s: %w", m.cfg.Name, err)
	}
	m.mu.Lock()
	m.boot.Boots()
	m.boot.Booted()
	next := m.boot.First()
	m.run, m.since = r, time.Now()
	m.starts++
	m.mu.Unlock()
	go m.reap(r)
	go m.watchResets(r)
	// The machine is still paused, so nothing can reset it before the order of
	// its next boot stands.
	if next != first {
		err = setBootIndexes(ctx, r.q, next)
	}
	if err = errors.Join(err, r.q.execute(ctx, "cont", nil)); err != nil {
		return errors.Join(fmt.Errorf("power on %s: %w", m.cfg.Name, err), m.kill(ctx, r))
	}
	m.cfg.Log.Info("machine powered on", "server", m.cfg.Name, "boot", string(first))
	return nil
}

// PowerOff cuts the power and waits until the machine is off.
func (m *Machine) PowerOff(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	return m.kill(ctx, r)
}

// SoftOff presses the power button.
func (m *Machine) SoftOff(ctx context.Context) error { return m.execute(ctx, "system_powerdown") }

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error { return m.execute(ctx, "system_reset") }

func (m *Machine) execute(ctx context.Context, command string) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return ErrOff
	}
	return r.q.execute(ctx, command, nil)
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

// launch starts QEMU, paused, with its monitor answering.
func (m *Machine) launch(ctx context.Context, first Device) (_ *run, err error) {
	if err := m.markConsole(); err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(filepath.Join(m.cfg.Dir, "qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	monitor, monitorPeer, err := streamPair()
	if err != nil {
		return nil, err
	}
	defer monitorPeer.Close()
	link, nic, err := vswitch.SocketPair()
	if err != nil {
		return nil, errors.Join(err, monitor.Close())
	}
	defer nic.Close()
	port, err := m.cfg.Switch.Attach(m.cfg.Name, link)
	if err != nil {
		return nil, errors.Join(err, monitor.Close())
	}

	cmd := exec.Command("qemu-system-x86_64", m.cfg.args(first)...)
	cmd.Dir = m.cfg.Dir
	cmd.ExtraFiles = []*os.File{nic, monitorPeer}
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if err := m.cfg.Start(cmd); err != nil {
		return nil, errors.Join(err, monitor.Close(), port.Close())
	}
	// The child has its ends now. Ours must go before the monitor is asked, or
	// QEMU's death would not close it.
	_ = monitorPeer.Close()
	r := &run{cmd: cmd, port: port, resets: make(chan struct{}, 64), exited: make(chan struct{}), ended: make(chan struct{})}
	r.q, err = dialQMP(ctx, monitor, func(event string) {
		if event == "RESET" {
			select {
			case r.resets <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, errors.Join(err, port.Close(), m.qemuSaid())
	}
	return r, nil
}

// markConsole writes a line into the console's record, so that a reader can tell
// the machine's lives apart.
func (m *Machine) markConsole() error {
	f, err := os.OpenFile(m.cfg.SerialLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\r\n[lab] %s powered on at %s\r\n", m.cfg.Name, time.Now().UTC().Format(time.RFC3339Nano))
	return errors.Join(err, f.Close())
}

func (m *Machine) qemuSaid() error {
	raw, err := os.ReadFile(filepath.Join(m.cfg.Dir, "qemu.log"))
	if err != nil || len(raw) == 0 {
		return err
	}
	return fmt.Errorf("qemu: %s", raw[max(0, len(raw)-2000):])
}

// kill ends the process and waits until nothing of it is left.
func (m *Machine) kill(ctx context.Context, r *run) error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("power off %s: %w", m.cfg.Name, err)
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power off %s: %w", m.cfg.Name, ctx.Err())
	}
}

// reap waits for the process, whoever ended it: the BMC, or the guest.
func (m *Machine) reap(r *run) {
	_ = r.cmd.Wait() // a killed process is no error here
	close(r.exited)
	_ = r.port.Close()
	_ = r.q.close()
	_ = os.Remove(filepath.Join(m.cfg.Dir, "console.sock"))
	m.mu.Lock()
	m.run, m.since = nil, time.Now()
	m.mu.Unlock()
	m.cfg.Log.Info("machine is off", "server", m.cfg.Name)
	close(r.ended)
}

// watchResets counts boots without a power-on and uses up a one-shot override
// when one has begun. QEMU tells of a reset after it has read the boot order, so
// what is set then is for the boot after it. But SeaBIOS answers a reset by a
// second one, to get its ROM mapped again: the order must stand for both.
func (m *Machine) watchResets(r *run) {
	for {
		select {
		case <-r.exited:
			return
		case <-r.resets:
		}
		m.mu.Lock()
		m.resets++
		m.boot.Boots()
		m.mu.Unlock()
		settled := time.After(resetSettles)
		for settled != nil {
			select {
			case <-r.exited:
				return
			case <-r.resets: // the same boot
			case <-settled:
				settled = nil
			}
		}
		if err := m.booted(r); err != nil && !errors.Is(err, errQMPClosed) {
			m.cfg.Log.Error("boot order not restored", "server", m.cfg.Name, "err", err)
		}
	}
}

func (m *Machine) booted(r *run) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	before := m.boot.First()
	m.boot.Booted()
	after := m.boot.First()
	m.mu.Unlock()
	if before == after {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return setBootIndexes(ctx, r.q, after)
}

// streamPair returns a connection and the file of its other end.
func streamPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine, peer := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor-peer")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		peer.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, peer, nil
}
