package hardware

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	agentv1 "bmc/api/agent/v1"
)

// Probe asks devices what /sys does not tell: disks' health, ports' firmware, and
// the machine's own management controller. It opens disks for reading only. Each
// question is bounded by its device's driver.
func Probe(h *agentv1.Hardware) {
	for _, d := range h.GetDisks() {
		d.Health = diskHealth(d)
	}
	portFirmware(h.GetNics())
	h.OobAddress, h.OobFirmware = controller()
}

// Ioctls and their structures, as Linux's include/uapi has them.
const (
	nvmeAdminCommand = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_admin_cmd)
	sgIO             = 0x2285
	ipmiSend         = 0x8028690d // _IOR('i', 13, struct ipmi_req)
	ipmiReceive      = 0xc030690b // _IOWR('i', 11, struct ipmi_recv)
	deviceTimeout    = 5000       // ms
)

type nvmeCommand struct {
	opcode, flags  uint8
	_              uint16
	nsid           uint32
	cdw2, cdw3     uint32
	metadata, addr uint64
	metadataLen    uint32
	dataLen        uint32
	cdw            [6]uint32 // 10 to 15
	timeoutMS      uint32
	result         uint32
}

type sgHeader struct {
	interfaceID, direction   int32
	commandLen, senseLen     uint8
	iovecs                   uint16
	dataLen                  uint32
	data, command, sense     uintptr
	timeoutMS, flags         uint32
	packID                   int32
	_                        uintptr
	status, masked, message  uint8
	senseWritten             uint8
	hostStatus, driverStatus uint16
	residual                 int32
	duration, info           uint32
}

const (
	sgNone, sgFromDevice = -1, -3
	senseBytes           = 32
)

func diskHealth(d *agentv1.Disk) *agentv1.DiskHealth {
	if d.GetKind() == "virtual" && strings.HasPrefix(d.GetName(), "vd") {
		return nil
	}
	fd, err := unix.Open("/dev/"+d.GetName(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd) //nolint:errcheck // opened for reading
	if strings.HasPrefix(d.GetName(), "nvme") {
		log := make([]byte, nvmeLogBytes)
		if nvmeLog(fd, log) != nil {
			return nil
		}
		return parseNVMe(log)
	}
	if h := ataHealth(fd); h != nil {
		return h
	}
	page := make([]byte, 64)
	// LOG SENSE, page 0x2f, cumulative values.
	if _, err := scsi(fd, []byte{0x4d, 0, 0x40 | 0x2f, 0, 0, 0, 0, 0, byte(len(page)), 0}, page); err != nil {
		return nil
	}
	return parseExceptions(page)
}

// nvmeLog reads log page 2 of the whole controller.
func nvmeLog(fd int, log []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&log[0])
	c := nvmeCommand{opcode: 2, nsid: 0xffffffff, addr: uint64(uintptr(unsafe.Pointer(&log[0]))), dataLen: uint32(len(log)), timeoutMS: deviceTimeout}
	c.cdw[0] = 2 | uint32(len(log)/4-1)<<16
	status, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nvmeAdminCommand, uintptr(unsafe.Pointer(&c)))
	if errno != 0 {
		return errno
	}
	if status != 0 {
		return fmt.Errorf("NVMe status %#x", status)
	}
	return nil
}

// ataHealth asks through SAT (ATA PASS-THROUGH (16), SAT-3, 12.2.2).
func ataHealth(fd int) *agentv1.DiskHealth {
	const smart, readData, returnStatus = 0xb0, 0xd0, 0xda
	data := make([]byte, ataDataBytes)
	// PIO in, length in the sector count, from the device, in blocks.
	read := []byte{0x85, 4 << 1, 0x0e, 0, readData, 0, 1, 0, 0, 0, 0x4f, 0, 0xc2, 0, smart, 0}
	if _, err := scsi(fd, read, data); err != nil {
		return nil
	}
	// No data; the registers come back in the sense data (ck_cond).
	sense, _ := scsi(fd, []byte{0x85, 3 << 1, 0x20, 0, returnStatus, 0, 0, 0, 0, 0, 0x4f, 0, 0xc2, 0, smart, 0}, nil)
	return parseATA(data, thresholdExceeded(sense))
}

// thresholdExceeded reads the registers after SMART RETURN STATUS in descriptor
// format sense data: 0x4f and 0xc2 turned round say that a threshold was passed.
func thresholdExceeded(sense []byte) bool {
	if len(sense) < 22 || sense[0]&0x7f != 0x72 || sense[8] != 0x09 || sense[9] != 0x0c {
		return false
	}
	return sense[17] == 0xf4 && sense[19] == 0x2c
}

// scsi sends a command, and returns its sense data. CHECK CONDITION is an error
// only when there was to be data.
func scsi(fd int, command, data []byte) ([]byte, error) {
	sense := make([]byte, senseBytes)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&command[0])
	pin.Pin(&sense[0])
	h := sgHeader{interfaceID: 'S', direction: sgNone, commandLen: uint8(len(command)), senseLen: senseBytes, timeoutMS: deviceTimeout,
		command: uintptr(unsafe.Pointer(&command[0])), sense: uintptr(unsafe.Pointer(&sense[0]))}
	if len(data) > 0 {
		pin.Pin(&data[0])
		h.direction, h.dataLen, h.data = sgFromDevice, uint32(len(data)), uintptr(unsafe.Pointer(&data[0]))
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), sgIO, uintptr(unsafe.Pointer(&h))); errno != 0 {
		return nil, errno
	}
	if h.hostStatus != 0 || len(data) > 0 && h.status != 0 {
		return nil, fmt.Errorf("SCSI status %#x, host %#x", h.status, h.hostStatus)
	}
	return sense[:h.senseWritten], nil
}

// portFirmware asks the ports' drivers (ETHTOOL_GDRVINFO).
func portFirmware(nics []*agentv1.NIC) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // opened for reading
	for _, n := range nics {
		info, err := unix.IoctlGetEthtoolDrvinfo(fd, n.GetName())
		if err != nil {
			continue
		}
		version, _, _ := bytes.Cut(info.Fw_version[:], []byte{0})
		if v := printable(version); v != "N/A" {
			n.Firmware = v
		}
	}
}

type ipmiMessage struct {
	netfn, command uint8
	length         uint16
	data           uintptr
}

type ipmiRequest struct {
	addr    uintptr
	addrLen uint32
	id      int64
	message ipmiMessage
}

type ipmiAnswer struct {
	kind    int32
	addr    uintptr
	addrLen uint32
	id      int64
	message ipmiMessage
}

type ipmiAddress struct {
	kind    int32
	channel int16
	lun     uint8
}

const (
	ipmiInterface = 0x0c // the controller that the host sits on
	ipmiChannel   = 0xf
	ipmiWait      = 3 * time.Second
)

// controller asks the machine's own management controller, over the device that
// the kernel makes of its system interface, for its address and firmware; "" for
// what it does not tell, or where there is none.
func controller() (address, firmware string) {
	fd, err := unix.Open("/dev/ipmi0", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", ""
	}
	defer unix.Close(fd)                             //nolint:errcheck // opened for reading
	if id, err := ipmi(fd, 0x06, 0x01); err == nil { // Get Device ID
		firmware = firmwareRevision(id)
	}
	for channel := byte(1); channel <= 3 && address == ""; channel++ {
		// Get LAN Configuration Parameters, IP address.
		if ip, err := ipmi(fd, 0x0c, 0x02, channel, 3, 0, 0); err == nil {
			address = lanAddress(ip)
		}
	}
	return address, firmware
}

// firmwareRevision reads the answer to Get Device ID (IPMI 2.0, 20.1): the minor
// part is BCD.
func firmwareRevision(id []byte) string {
	if len(id) < 5 || id[0] != 0 {
		return ""
	}
	return fmt.Sprintf("%d.%02x", id[3]&0x7f, id[4])
}

func lanAddress(ip []byte) string {
	if len(ip) < 6 || ip[0] != 0 {
		return ""
	}
	if a := netip.AddrFrom4([4]byte(ip[2:6])); !a.IsUnspecified() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return a.String()
	}
	return ""
}

// ipmi sends one command and waits for its answer, whose first byte is the
// completion code.
func ipmi(fd int, netfn, command byte, args ...byte) ([]byte, error) {
	to := ipmiAddress{kind: ipmiInterface, channel: ipmiChannel}
	data := append(args, 0) // never empty
	out := make([]byte, 272)
	var from [64]byte
	var pin runtime.Pinner
	defer pin.Unpin()
	for _, p := range []any{&to, &data[0], &out[0], &from[0]} {
		pin.Pin(p)
	}
	req := ipmiRequest{addr: uintptr(unsafe.Pointer(&to)), addrLen: uint32(unsafe.Sizeof(to)), id: int64(command),
		message: ipmiMessage{netfn: netfn, command: command, length: uint16(len(args)), data: uintptr(unsafe.Pointer(&data[0]))}}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ipmiSend, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return nil, errno
	}
	for until := time.Now().Add(ipmiWait); time.Now().Before(until); {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 500); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		} else if n <= 0 {
			continue
		}
		ans := ipmiAnswer{addr: uintptr(unsafe.Pointer(&from[0])), addrLen: uint32(len(from)),
			message: ipmiMessage{length: uint16(len(out)), data: uintptr(unsafe.Pointer(&out[0]))}}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ipmiReceive, uintptr(unsafe.Pointer(&ans))); errno != 0 {
			return nil, errno
		}
		if ans.id == int64(command) && ans.message.command == command && ans.message.length > 0 {
			return out[:ans.message.length], nil
		}
	}
	return nil, os.ErrDeadlineExceeded
}
