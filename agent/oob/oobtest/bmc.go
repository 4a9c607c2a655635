// Package oobtest is a management controller for tests: go-ipmi's server on a
// loopback UDP socket over a machine that is a few fields.
package oobtest

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/hal/mock"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"
)

// The user that every BMC here knows.
const (
	Username = "admin"
	Password = "secret-of-the-bmc"
)

// BMC is a running controller and its machine.
type BMC struct {
	Address string // host:port

	conn *wire
	bmc  *bmc.BMC

	mu         sync.Mutex
	hal.HAL    // what is not the chassis
	on         bool
	flags      types.BootOptionParam_BootFlags
	log        []string
	faults     Faults
	onPowerOn  func(boot string)
	onPowerOff func()
}

// Faults bend the controller's behaviour.
type Faults struct {
	IgnoreSoft     bool // accepts a soft shutdown and does nothing
	IgnoreActs     int  // accepts that many on or off commands and does nothing
	RefuseActs     bool
	ForgetPersist  bool // accepts persistent boot flags and keeps them for once
	RefuseBootOpts bool
}

// Start runs a controller until the test ends.
func Start(t testing.TB) *BMC {
	t.Helper()
	m := &BMC{HAL: mock.New()}
	var guid [16]byte
	copy(guid[:], "oobtest")
	m.bmc = bmc.New(bmc.DeviceInfo{DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20, ManufacturerID: 0x157, ProductID: 1}, guid, m, bmc.WithClock(clock.Real))
	user, err := m.bmc.Users.Add(2, Username)
	if err != nil {
		t.Fatal(err)
	}
	user.SetPassword([]byte(Password))
	user.Enabled = true
	user.ChannelAccess[1] = bmc.UserChannelAccess{MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	m.Address = socket.LocalAddr().String()
	m.conn = &wire{Conn: udp.Wrap(socket), sessions: make(map[uint32]bool)}
	srv := server.NewServer(m.bmc, m.conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(context.Background()) // ends by Close
	}()
	t.Cleanup(func() {
		_ = srv.Close() // the socket goes with it
		<-done
	})
	return m
}

// wire is the socket, which can stop answering.
type wire struct {
	*udp.Conn
	mu       sync.Mutex
	hung     bool
	dropNext int // answers to lose
	sessions map[uint32]bool
}

// ReadFrom notes the sessions that clients use: bytes 6 to 9 of an RMCP+ packet.
func (w *wire) ReadFrom(p []byte) (int, net.Addr, error) {
	n, addr, err := w.Conn.ReadFrom(p)
	if n >= 10 && p[4] == 0x06 {
		w.mu.Lock()
		w.sessions[binary.LittleEndian.Uint32(p[6:10])] = true
		w.mu.Unlock()
	}
	return n, addr, err
}

func (w *wire) WriteTo(p []byte, addr net.Addr) (int, error) {
	w.mu.Lock()
	lose := w.hung || w.dropNext > 0
	if w.dropNext > 0 {
		w.dropNext--
	}
	w.mu.Unlock()
	if lose {
		return len(p), nil
	}
	return w.Conn.WriteTo(p, addr)
}

// Hang makes the controller read and never answer, or answer again.
func (m *BMC) Hang(hung bool) {
	m.conn.mu.Lock()
	defer m.conn.mu.Unlock()
	m.conn.hung = hung
}

// DropAnswers loses the next n answers.
func (m *BMC) DropAnswers(n int) {
	m.conn.mu.Lock()
	defer m.conn.mu.Unlock()
	m.conn.dropNext = n
}

// Sessions is how many sessions the controller holds.
func (m *BMC) Sessions() int { return m.bmc.Sessions.Count() }

// Opened is how many sessions were ever opened.
func (m *BMC) Opened() int {
	m.conn.mu.Lock()
	defer m.conn.mu.Unlock()
	n := 0
	for id := range m.conn.sessions {
		if id != 0 {
			n++
		}
	}
	return n
}

// ForgetSessions is what a restart of the controller does to its sessions.
func (m *BMC) ForgetSessions() {
	m.conn.mu.Lock()
	defer m.conn.mu.Unlock()
	for id := range m.conn.sessions {
		_ = m.bmc.Sessions.Close(id) // one that has ended already
	}
}

// SetFaults replaces the faults.
func (m *BMC) SetFaults(f Faults) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = f
}

// SetOn sets the machine's power behind the controller's back.
func (m *BMC) SetOn(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = on
}

// On says whether the machine is powered.
func (m *BMC) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

// Log is the power and boot commands that arrived, in order: "on", "off",
// "soft", "boot pxe once", "boot disk persistent efi".
func (m *BMC) Log() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.log...)
}

// OnPowerOn runs f in a goroutine of its own each time the machine gets power,
// with the device that it boots from: "pxe", "disk" or "default".
func (m *BMC) OnPowerOn(f func(boot string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onPowerOn = f
}

// OnPowerOff has f run each time the machine loses its power; f must not ask
// the controller.
func (m *BMC) OnPowerOff(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onPowerOff = f
}

// Chassis implements hal.HAL.
func (m *BMC) Chassis() hal.ChassisHAL { return m }

// PowerState implements hal.ChassisHAL.
func (m *BMC) PowerState(context.Context) (bool, error) { return m.On(), nil }

// SetPower implements hal.ChassisHAL.
func (m *BMC) SetPower(_ context.Context, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	word := "off"
	if on {
		word = "on"
	}
	m.log = append(m.log, word)
	if m.faults.RefuseActs {
		return errors.New("refused")
	}
	if m.faults.IgnoreActs > 0 {
		m.faults.IgnoreActs--
		return nil
	}
	if on && !m.on && m.onPowerOn != nil {
		go m.onPowerOn(m.boot())
	}
	if !on && m.on && m.onPowerOff != nil {
		m.onPowerOff()
	}
	m.on = on
	return nil
}

// boot is the device of the boot that begins; a one-shot override is spent.
func (m *BMC) boot() string {
	if !m.flags.BootFlagsValid {
		return "default"
	}
	if !m.flags.Persist {
		m.flags.BootFlagsValid = false
	}
	return device(m.flags.BootDeviceSelector)
}

func device(s types.BootDeviceSelector) string {
	switch s {
	case types.BootDeviceSelectorForcePXE:
		return "pxe"
	case types.BootDeviceSelectorForceHardDrive:
		return "disk"
	}
	return "default"
}

// PowerCycle implements hal.ChassisHAL; nobody may send it.
func (m *BMC) PowerCycle(context.Context) error { return m.forbidden("cycle") }

// ColdReset implements hal.ChassisHAL; nobody may send it.
func (m *BMC) ColdReset(context.Context) error { return m.forbidden("reset") }

func (m *BMC) forbidden(word string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, word)
	return nil
}

// WarmReset implements hal.ChassisHAL: go-ipmi's soft shutdown.
func (m *BMC) WarmReset(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, "soft")
	if !m.faults.IgnoreSoft {
		m.on = false
	}
	return nil
}

// Identify implements hal.ChassisHAL.
func (m *BMC) Identify(context.Context, uint8) error { return nil }

// IntrusionState implements hal.ChassisHAL.
func (m *BMC) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

// SetBootFlags implements hal.ChassisHAL.
func (m *BMC) SetBootFlags(_ context.Context, f *types.BootOptionParam_BootFlags) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults.RefuseBootOpts {
		return errors.New("refused")
	}
	m.flags = *f
	line := "boot " + device(f.BootDeviceSelector)
	if f.Persist {
		line += " persistent"
	} else {
		line += " once"
	}
	if f.BIOSBootType {
		line += " efi"
	}
	m.log = append(m.log, line)
	if m.faults.ForgetPersist {
		m.flags.Persist = false
	}
	return nil
}

// GetBootFlags implements hal.ChassisHAL.
func (m *BMC) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.flags
	return &f, nil
}

// SetBootInfoAcknowledge implements hal.ChassisHAL.
func (m *BMC) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

// GetBootInfoAcknowledge implements hal.ChassisHAL.
func (m *BMC) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
