package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
)

// server is a machine and its controller.
type server struct {
	serverPlan
	machine interface {
		virtualbmc.Machine
		Close() error
	}
	disk    string
	console string          // "" when there is none
	bmc     *virtualbmc.BMC // nil behind ipmi_sim
	closers []func() error
}

// startServers makes the machines, all off, and starts their controllers.
func (l *Lab) startServers(ctx context.Context) error {
	out, err := os.OpenFile(l.cfg.path("oob.jsonl"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	l.oobFile, l.record = out, virtualbmc.NewRecord(out)
	if err := l.startLight(); err != nil {
		return err
	}
	for _, s := range l.plan.servers() {
		if err := l.startServer(ctx, s); err != nil {
			return &Failure{Part: s.name, Err: err}
		}
	}
	return nil
}

func (l *Lab) startServer(ctx context.Context, p serverPlan) error {
	s := &server{serverPlan: p}
	if err := l.makeMachine(s); err != nil {
		return err
	}
	l.mu.Lock()
	l.servers = append(l.servers, s)
	l.mu.Unlock()
	if l.cfg.BMC == BMCSim && !p.light {
		return l.startSim(ctx, s)
	}
	var conn *net.UDPConn
	if err := l.net.spaces[p.rack].Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.oob, oobPort)))
		return err
	}); err != nil {
		return fmt.Errorf("controller: %w", err)
	}
	b, err := virtualbmc.Serve(conn, virtualbmc.Config{
		Name: p.name, User: p.user, Password: p.password, Machine: s.machine, Record: l.record, Log: l.log,
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	s.bmc = b
	l.mu.Unlock()
	s.closers = append(s.closers, b.Close)
	return nil
}

func (l *Lab) makeMachine(s *server) error {
	if s.light {
		return l.makeLight(s)
	}
	m, err := machine.New(machine.Config{
		Name: s.name, Dir: l.cfg.path("machines", s.name), Firmware: s.firmware,
		MemoryMiB: l.cfg.MemoryMiB, CPUs: l.cfg.CPUs, DiskBytes: l.cfg.DiskBytes,
		MAC: s.mac.String(), UUID: s.uuid, Serial: s.serial,
		Switch: l.net.switches[s.rack], Start: l.net.here.Start, Log: l.log,
	})
	if err != nil {
		return err
	}
	c := m.Config()
	s.machine, s.disk, s.console = m, c.DiskPath(), c.SerialLog()
	return nil
}

// startSim runs ipmi_sim, which runs `bmc-lab chassis`, which asks this process.
// The program is a link in the simulator's own folder, so that its path needs no
// quoting; the lab's folder travels in the environment.
func (l *Lab) startSim(ctx context.Context, s *server) error {
	dir := l.cfg.path("machines", s.name, "ipmi_sim")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	link := filepath.Join(dir, "bmc-lab")
	if err := errors.Join(removeIfThere(link), os.Symlink(l.cfg.Exe, link)); err != nil {
		return err
	}
	ns := l.net.spaces[s.rack]
	sim, err := virtualbmc.StartSim(virtualbmc.SimConfig{
		Name: s.name, Dir: dir, Addr: netip.AddrPortFrom(s.oob, oobPort), User: s.user, Password: s.password,
		Control: "./bmc-lab chassis " + s.name,
		Env:     append(childEnv(os.Environ()), dirVariable+"="+l.cfg.Dir),
		Start:   ns.Start,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, sim.Close)
	var conn net.Conn
	if err := ns.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(s.oob, oobPort).String())
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	return sim.Wait(ctx, conn)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *server) close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	return errors.Join(append(errs, s.machine.Close())...)
}
