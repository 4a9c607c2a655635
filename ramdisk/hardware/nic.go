package hardware

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	agentv1 "bmc/api/agent/v1"
)

// NICs lists the network ports, by name. The kernel reports link and speed of
// a port that is up only: bring them up first.
func NICs(root string) []*agentv1.NIC {
	t := tree(root)
	entries, err := os.ReadDir(filepath.Join(root, "sys/class/net"))
	if err != nil {
		return nil
	}
	var nics []*agentv1.NIC
	for _, e := range entries {
		dir := "sys/class/net/" + e.Name() + "/"
		driver, err := os.Readlink(filepath.Join(root, dir, "device/driver"))
		if err != nil {
			continue // not a port: loopback, a bridge
		}
		// Speed is -1 where the driver does not know.
		speed, _ := strconv.ParseUint(t.text(dir+"speed"), 10, 32)
		if speed == 1<<32-1 {
			speed = 0
		}
		nics = append(nics, &agentv1.NIC{
			Name:      e.Name(),
			Mac:       strings.ToLower(t.text(dir + "address")),
			Link:      t.number(dir+"carrier") == 1,
			SpeedMbps: uint32(speed),
			Driver:    filepath.Base(driver),
		})
	}
	return nics
}
