package kexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// lost are PCI devices that are known not to come back in the next kernel: they
// cannot be reset without the firmware. By subsystem vendor and device, as the
// kernel's hpsa driver lists them (drivers/scsi/hpsa.c, unresettable_controller).
// Whole models that misbehave are an operator's switch, not this program's.
var lost = map[string]string{
	"103c:324a": "Smart Array P712m", "103c:324b": "Smart Array P711m", "103c:3223": "Smart Array P800",
	"103c:3234": "Smart Array P400", "103c:3235": "Smart Array P400i", "103c:3211": "Smart Array E200i",
	"103c:3212": "Smart Array E200", "103c:3213": "Smart Array E200i", "103c:3214": "Smart Array E200i",
	"103c:3215": "Smart Array E200i", "103c:3237": "Smart Array E500", "103c:323d": "Smart Array P700m",
	"0e11:4080": "Smart Array 5i", "0e11:409c": "Smart Array 6400", "0e11:409d": "Smart Array 6400 EM",
	"0e11:4070": "Smart Array 5300", "0e11:4082": "Smart Array 532", "0e11:4083": "Smart Array 5312",
	"0e11:409a": "Smart Array 641", "0e11:409b": "Smart Array 642", "0e11:4091": "Smart Array 6i",
}

// Refusal says why this machine must boot by its firmware; "" when it need not.
// root is "/" but in tests.
func Refusal(root string, secureBoot bool) string {
	if secureBoot {
		return "Secure Boot is on: only the firmware's chain may start a kernel"
	}
	devices, err := filepath.Glob(filepath.Join(root, "sys/bus/pci/devices/*"))
	if err != nil {
		return ""
	}
	for _, d := range devices {
		if name, ok := lost[id(d, "subsystem_vendor")+":"+id(d, "subsystem_device")]; ok {
			return fmt.Sprintf("device %s (%s) does not come back after a kexec", filepath.Base(d), name)
		}
	}
	return ""
}

// id reads a PCI ID without its 0x.
func id(device, name string) string {
	b, err := os.ReadFile(filepath.Join(device, name))
	if err != nil {
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(strings.TrimSpace(string(b)), "0x"))
}
