// Package agent composes a rack agent: it joins the cluster, follows its racks
// from every node, holds their leases, answers their machines' network boots
// and runs their operations.
package agent

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"bmc/imagestore"
	"bmc/internal/config"
	"bmc/metal"
)

// Config is the agent's configuration file.
type Config struct {
	Name       string            `yaml:"name"`       // DNS label, unique among agents
	DataDir    string            `yaml:"data_dir"`   // identity, journals, racks, cache
	Gossip     string            `yaml:"gossip"`     // IP:port; "": no gossip, nodes must name them
	TokenFile  string            `yaml:"token_file"` // join token; read on the first run only
	Nodes      []string          `yaml:"nodes"`      // host:port, where gossip cannot pass
	Racks      []RackConfig      `yaml:"racks"`
	HTTPPort   int               `yaml:"http_port"` // scripts, ramdisk, chunks
	TLSPort    int               `yaml:"tls_port"`  // the Ramdisk service
	Ramdisk    RamdiskConfig     `yaml:"ramdisk"`
	ImageStore imagestore.Config `yaml:"image_store"`
	Cache      CacheConfig       `yaml:"cache"`
	LogLevel   string            `yaml:"log_level"`
}

// RackConfig says how the agent reaches a rack.
type RackConfig struct {
	Name      string `yaml:"name"`
	Interface string `yaml:"interface"`  // on the rack's provisioning network
	Address   string `yaml:"address"`    // the agent's own there, CIDR
	LoaderDir string `yaml:"loader_dir"` // boot loaders in place of the built-in ones; "": none

	// MaxRate is how many bytes of images a second this agent sends to the rack's
	// machines at most; 0: no limit.
	MaxRate config.Bytes `yaml:"max_rate"`

	// Relayed says that the rack's network is another one, behind a DHCP relay and
	// a router: Interface is where the relay's requests arrive, and Address what the
	// relay sends them to and the machines reach. Any number of racks behind relays
	// share an interface, with each other and with one rack that is not.
	Relayed bool `yaml:"relayed"`
}

// RamdiskConfig names the ramdisk's files.
type RamdiskConfig struct {
	Kernel string `yaml:"kernel"`
	Initrd string `yaml:"initrd"`
}

// CacheConfig bounds the image cache.
type CacheConfig struct {
	MaxBytes config.Bytes `yaml:"max_bytes"`
}

// LoadConfig reads and checks the file at path.
func LoadConfig(path string) (Config, error) {
	c := Config{HTTPPort: 80, TLSPort: 8443, Cache: CacheConfig{MaxBytes: 20 << 30}, LogLevel: "info"}
	if err := config.Load(path, &c); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// Validate checks what can be checked without the network.
func (c *Config) Validate() error {
	if err := metal.ValidateName("name", c.Name); err != nil {
		return err
	}
	switch {
	case !filepath.IsAbs(c.DataDir):
		return metal.Invalid("data_dir", "%q is not an absolute path", c.DataDir)
	case c.Gossip == "" && len(c.Nodes) == 0 && c.TokenFile == "":
		return metal.Invalid("gossip", "is missing, and nodes names nobody")
	case len(c.Racks) == 0:
		return metal.Invalid("racks", "is empty")
	case c.HTTPPort < 1 || c.HTTPPort > 65535:
		return metal.Invalid("http_port", "%d is not 1 to 65535", c.HTTPPort)
	case c.TLSPort < 1 || c.TLSPort > 65535:
		return metal.Invalid("tls_port", "%d is not 1 to 65535", c.TLSPort)
	case c.Ramdisk.Kernel == "" || c.Ramdisk.Initrd == "":
		return metal.Invalid("ramdisk", "kernel and initrd must both be named")
	case c.Cache.MaxBytes <= 0:
		return metal.Invalid("cache.max_bytes", "must be more than 0")
	case !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel):
		return metal.Invalid("log_level", "%q is not debug, info, warn or error", c.LogLevel)
	}
	if c.Gossip != "" {
		if _, err := netip.ParseAddrPort(c.Gossip); err != nil {
			return metal.Invalid("gossip", "%q is not IP:port", c.Gossip)
		}
	}
	for _, n := range c.Nodes {
		if _, _, err := net.SplitHostPort(n); err != nil {
			return metal.Invalid("nodes", "%q is not host:port", n)
		}
	}
	if err := c.validateRacks(); err != nil {
		return err
	}
	return c.ImageStore.Validate()
}

func (c *Config) validateRacks() error {
	seen := make(map[string]bool)
	for i, r := range c.Racks {
		if err := metal.ValidateName("racks.name", r.Name); err != nil {
			return err
		}
		p, err := netip.ParsePrefix(r.Address)
		switch {
		case seen[r.Name]:
			return metal.Invalid("racks.name", "%s is there twice", r.Name)
		case err != nil || !p.Addr().Is4():
			return metal.Invalid("racks.address", "%q is not an IPv4 address with its prefix length", r.Address)
		case r.MaxRate < 0:
			return metal.Invalid("racks.max_rate", "is negative for %s", r.Name)
		case r.Interface == "":
			return metal.Invalid("racks.interface", "is missing for %s", r.Name)
		}
		seen[r.Name] = true
		for _, other := range c.Racks[:i] {
			if err := r.beside(other); err != nil {
				return err
			}
		}
	}
	return nil
}

// beside refuses what two racks cannot have together: an interface has one set of
// sockets, on one address.
func (r RackConfig) beside(o RackConfig) error {
	switch same := r.Interface == o.Interface; {
	case same && r.addr() != o.addr():
		return metal.Invalid("racks.address", "%s has %s and %s has %s: racks that share the interface %s share its address", o.Name, o.Address, r.Name, r.Address, r.Interface)
	case !same && r.addr() == o.addr():
		return metal.Invalid("racks.interface", "%s has %s on %s, and %s has it on %s", o.Name, r.addr(), o.Interface, r.Name, r.Interface)
	case same && !r.Relayed && !o.Relayed:
		return metal.Invalid("racks.interface", "%s and %s both have %s: one of them must be relayed", o.Name, r.Name, r.Interface)
	case same && r.LoaderDir != o.LoaderDir:
		return metal.Invalid("racks.loader_dir", "%s and %s share the interface %s, and so its boot loaders", o.Name, r.Name, r.Interface)
	}
	return nil
}

// addr is the agent's own address in the rack; Validate has parsed it.
func (r RackConfig) addr() netip.Addr {
	p, err := netip.ParsePrefix(r.Address)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}
