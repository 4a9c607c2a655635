package lab

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"bmc/lab/machine"
)

// Kinds of controllers.
const (
	BMCGo  = "go"
	BMCSim = "ipmi_sim"
)

// Limits that keep the address plan in its /24s.
const (
	maxNodes, maxRacks, maxRelayed, maxAgents, maxServers, maxMachines = 7, 16, 4, 4, 64, 230
)

// Config says what to bring up. The zero value of a field means its default.
type Config struct {
	Dir     string `json:"dir"`     // everything the lab writes; made if missing
	Bin     string `json:"bin"`     // bmc-controlplane, bmc-agent; default: where this program is
	Exe     string `json:"exe"`     // bmc-lab; default: this program if it is that, else the one in Bin
	Ramdisk string `json:"ramdisk"` // vmlinuz and initrd.img; default: build/ramdisk

	Nodes     int      `json:"nodes"`      // 3
	Racks     int      `json:"racks"`      // 1
	Relayed   int      `json:"relayed"`    // of the racks, the last ones: without agents, behind a relay to those of r1; 0
	Agents    int      `json:"agents"`     // a rack; 1
	Servers   int      `json:"servers"`    // a rack; 0 means none
	Light     int      `json:"light"`      // machines without a CPU a rack, see lab/light; 0 means none
	Firmware  []string `json:"firmware"`   // in turn; bios, uefi
	BMC       string   `json:"bmc"`        // BMCGo
	DiskBytes int64    `json:"disk_bytes"` // 4 GiB
	MemoryMiB int      `json:"memory_mib"` // 512
	CPUs      int      `json:"cpus"`       // 1

	// NoGossip drops the gossip port between the agents and everybody else, as a
	// firewall would, and gives the agents a list of the nodes.
	NoGossip bool `json:"no_gossip"`

	// AgentLog is how much agents log: debug, info (the default). At debug they name
	// each DHCP answer, which the checks of a QEMU machine's life read.
	AgentLog string `json:"agent_log,omitempty"`

	// LightSeed is that of the light machines' random choices, and LightPace how
	// many times as long as usual they take where a real machine computes; 1.
	LightSeed uint64  `json:"light_seed"`
	LightPace float64 `json:"light_pace"`

	// Failpoints says that the daemons were built with the tag failpoints. The lab
	// reads that out of the programs in Bin; set it where they do not say.
	Failpoints bool `json:"failpoints"`

	// S3 is "embedded" (the default), "minio:PATH" for a real MinIO that the lab
	// runs, or the path of a YAML file like the daemons' image_store for a store
	// that the host can reach and the lab forwards to.
	S3 string `json:"s3"`
}

// complete fills the defaults in and makes paths absolute.
func (c *Config) complete() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Nodes, 3)
	def(&c.Racks, 1)
	def(&c.Agents, 1)
	def(&c.MemoryMiB, 512)
	def(&c.CPUs, 1)
	if c.LightPace == 0 {
		c.LightPace = 1
	}
	if c.DiskBytes == 0 {
		c.DiskBytes = 4 << 30
	}
	if len(c.Firmware) == 0 {
		c.Firmware = []string{machine.BIOS, machine.UEFI}
	}
	if c.BMC == "" {
		c.BMC = BMCGo
	}
	if c.S3 == "" {
		c.S3 = "embedded"
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if c.Bin == "" {
		c.Bin = filepath.Dir(self)
	}
	if c.Ramdisk == "" {
		c.Ramdisk = filepath.Join("build", "ramdisk")
	}
	for _, p := range []*string{&c.Dir, &c.Bin, &c.Ramdisk} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	c.Failpoints = c.Failpoints || hasFailpoints(c.program("bmc-controlplane")) && hasFailpoints(c.program("bmc-agent"))
	if c.Exe == "" {
		c.Exe = self
		if filepath.Base(self) != "bmc-lab" { // a test's binary
			c.Exe = filepath.Join(c.Bin, "bmc-lab")
		}
	}
	return nil
}

// hasFailpoints says whether a Go program was built with the tag failpoints. One
// that is missing has none; requirements complains of it.
func hasFailpoints(program string) bool {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			return slices.Contains(strings.Split(s.Value, ","), "failpoints")
		}
	}
	return false
}

func (c *Config) validate() error {
	between := func(what string, v, lo, hi int) error {
		if v < lo || v > hi {
			return fmt.Errorf("%d %s: between %d and %d are possible", v, what, lo, hi)
		}
		return nil
	}
	errs := []error{
		between("nodes", c.Nodes, 1, maxNodes),
		between("racks", c.Racks, 1, maxRacks),
		between("racks behind a relay", c.Relayed, 0, min(maxRelayed, c.Racks-1)),
		between("agents", c.Agents, 1, maxAgents),
		between("servers", c.Servers, 0, maxServers),
		between("servers and light machines", c.Servers+c.Light, 0, maxMachines),
		between("MiB of memory", c.MemoryMiB, 192, 64<<10),
		between("CPUs", c.CPUs, 1, 64),
	}
	if c.DiskBytes < 16<<20 || c.DiskBytes%512 != 0 {
		errs = append(errs, fmt.Errorf("a disk of %d bytes: at least 16 MiB, in whole sectors", c.DiskBytes))
	}
	if c.Light < 0 || c.LightPace < 0.01 || c.LightPace > 100 {
		errs = append(errs, fmt.Errorf("%d light machines at pace %g: not below none, and a pace between 0.01 and 100", c.Light, c.LightPace))
	}
	for _, f := range c.Firmware {
		if f != machine.BIOS && f != machine.UEFI {
			errs = append(errs, fmt.Errorf("unknown firmware %q: bios or uefi", f))
		}
	}
	if c.BMC != BMCGo && c.BMC != BMCSim {
		errs = append(errs, fmt.Errorf("unknown controller %q: %s or %s", c.BMC, BMCGo, BMCSim))
	}
	// The path goes into command lines of programs that split at commas.
	if strings.ContainsAny(c.Dir, ",\"'\n") {
		errs = append(errs, fmt.Errorf("folder %q: no commas or quotes, please", c.Dir))
	}
	return errors.Join(errs...)
}

// requirements says everything that is missing, at once.
func (c *Config) requirements() error {
	var errs []error
	if c.Servers > 0 {
		errs = append(errs, machine.Requirements(c.Firmware...))
	}
	if c.BMC == BMCSim {
		if _, err := exec.LookPath("ipmi_sim"); err != nil {
			errs = append(errs, errors.New("ipmi_sim is missing: apt install openipmi"))
		}
	}
	for _, p := range []string{c.program("bmc-controlplane"), c.program("bmc-agent"), c.Exe} {
		if _, err := exec.LookPath(p); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: make build", p))
		}
	}
	for _, f := range []string{c.kernel(), c.initrd()} {
		if _, err := os.Stat(f); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: make ramdisk", f))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }
func (c *Config) kernel() string             { return filepath.Join(c.Ramdisk, "vmlinuz") }
func (c *Config) initrd() string             { return filepath.Join(c.Ramdisk, "initrd.img") }
func (c *Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// ramdiskVersion is what the ramdisk that agents serve calls itself, by the
// manifest beside it.
func (c *Config) ramdiskVersion() string {
	var m struct{ Version, Commit string }
	data, err := os.ReadFile(filepath.Join(c.Ramdisk, "manifest.json"))
	if err != nil || json.Unmarshal(data, &m) != nil {
		return "light"
	}
	return m.Version + " (" + m.Commit + ")"
}
