package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"bmc/lab/light"
)

// lights are the light machines' racks and their record.
type lights struct {
	racks     map[string]*light.Rack
	strangers []*light.Stranger
	file      *os.File
	record    *light.Record
}

// startLight prepares the racks that have light machines.
func (l *Lab) startLight() error {
	if l.cfg.Light == 0 {
		return nil
	}
	out, err := os.OpenFile(l.cfg.path("machines.jsonl"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	l.lights = lights{racks: map[string]*light.Rack{}, file: out, record: light.NewRecord(out)}
	for _, r := range l.plan.racks {
		rack, err := light.NewRack(l.net.spaces[lightName(r.name)], l.net.switches[r.name], r.subnet, router(r), l.log)
		if err != nil {
			return &Failure{Part: r.name, Err: err}
		}
		l.lights.racks[r.name] = rack
		first, _ := r.addresses()
		stranger, err := light.NewStranger(light.StrangerConfig{
			Name: strangerName(r.name), Rack: rack, MAC: [6]byte(r.stranger), Claims: first, Every: strangerAsks,
			Seed: l.cfg.LightSeed, Record: l.lights.record,
		})
		if err != nil {
			return &Failure{Part: r.name, Err: err}
		}
		l.lights.strangers = append(l.lights.strangers, stranger)
	}
	return nil
}

// strangerAsks is how often a machine that nobody enrolled asks a rack for an
// address: an agent must be silent to it in whatever state it is.
const strangerAsks = 2 * time.Second

func strangerName(rack string) string { return fmt.Sprintf("%s-stranger", rack) }

// router is what a rack's light machines reach other networks through; none where
// nothing routes.
func router(r rackPlan) netip.Addr {
	if r.relay == nil {
		return netip.Addr{}
	}
	return r.gateway
}

func (l *Lab) makeLight(s *server) error {
	dir := l.cfg.path("machines", s.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pace := func(d time.Duration) time.Duration { return time.Duration(float64(d) * l.cfg.LightPace) }
	m, err := light.New(light.Config{
		Name: s.name, Rack: l.lights.racks[s.rack], MAC: [6]byte(s.mac), UUID: s.uuid, Serial: s.serial,
		Firmware: s.firmware, HTTPBoot: s.httpBoot, DiskPath: l.cfg.path("machines", s.name, "disk.img"), DiskBytes: l.cfg.DiskBytes,
		Memory: uint64(l.cfg.MemoryMiB) << 20, CPUs: uint32(l.cfg.CPUs), Seed: l.cfg.LightSeed,
		Timing: light.DefaultTiming(pace), Record: l.lights.record, Log: l.log, Version: l.cfg.ramdiskVersion,
	})
	if err != nil {
		return err
	}
	s.machine, s.disk = m, m.DiskPath()
	return nil
}

// close follows the machines' own end.
func (l *lights) close() error {
	if l.file == nil {
		return nil
	}
	var errs []error
	for _, s := range l.strangers {
		errs = append(errs, s.Close())
	}
	for _, r := range l.racks {
		errs = append(errs, r.Close())
	}
	return errors.Join(append(errs, l.record.Err(), l.file.Close())...)
}
