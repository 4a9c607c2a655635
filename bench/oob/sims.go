package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"bmc/bench/process"
	"bmc/internal/freeport"
)

const (
	user     = "admin"
	password = "bench-secret"
	suite    = 3 // the best that ipmi_sim knows
)

// sims are OpenIPMI's controllers, one process each, as BMCs are.
type sims struct {
	ports []int
	procs []*process.Child
}

const lanConf = `name "m%d"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_admin md5
    guid a123456789abcdefa123456789abcdef
  endlan
  startnow false
  user 1 false "" "" user 10 md5
  user 2 true "` + user + `" "` + password + `" admin 10 md5
`

const simCommands = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"

// startSims starts n of them and waits until they answer.
func startSims(ctx context.Context, program, dir string, n int) (*sims, error) {
	s := &sims{}
	emu := filepath.Join(dir, "sim.emu")
	if err := os.WriteFile(emu, []byte(simCommands), 0o600); err != nil {
		return s, err
	}
	for i := range n {
		port, err := freeport.Find()
		if err != nil {
			return s, err
		}
		state := filepath.Join(dir, "m"+strconv.Itoa(i))
		conf := filepath.Join(state, "lan.conf")
		if err := errors.Join(os.MkdirAll(state, 0o700), os.WriteFile(conf, fmt.Appendf(nil, lanConf, i, port), 0o600)); err != nil {
			return s, err
		}
		c, err := process.Start(filepath.Join(state, "log"), program, "-c", conf, "-f", emu, "-s", state, "-n")
		if err != nil {
			return s, err
		}
		s.procs, s.ports = append(s.procs, c), append(s.ports, port)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if took, err := s.ping(); err == nil && took > 0 {
			return s, nil
		}
	}
	return s, errors.New("ipmi_sim does not answer: see its log")
}

// presence is an ASF presence ping (DMTF DSP0136, 3.2.4.2): it needs no session and
// no cryptography, and is the least that a controller can be asked.
var presence = []byte{6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0}

// ping asks all for their presence, and returns when all have answered.
func (s *sims) ping() (time.Duration, error) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	defer func() { _ = socket.Close() }()
	began := time.Now()
	for _, port := range s.ports {
		if _, err := socket.WriteToUDPAddrPort(presence, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))); err != nil {
			return 0, err
		}
	}
	if err := socket.SetReadDeadline(began.Add(time.Second)); err != nil {
		return 0, err
	}
	buf := make([]byte, 64)
	for range s.ports {
		if _, err := socket.Read(buf); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (s *sims) close() error {
	var errs []error
	for _, c := range s.procs {
		errs = append(errs, c.End())
	}
	return errors.Join(errs...)
}
