package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"time"

	"go.yaml.in/yaml/v3"
)

// The daemons' configuration files, as the lab writes them.

type storeFile struct {
	Endpoint      string `yaml:"endpoint"`
	Bucket        string `yaml:"bucket"`
	AccessKey     string `yaml:"access_key"`
	SecretKeyFile string `yaml:"secret_key_file"`
	CAFile        string `yaml:"ca_file"`
	Region        string `yaml:"region"`
}

type nodeFile struct {
	Name        string    `yaml:"name"`
	DataDir     string    `yaml:"data_dir"`
	Listen      string    `yaml:"listen"`
	Advertise   string    `yaml:"advertise"`
	TLSNames    []string  `yaml:"tls_names"`
	Gossip      string    `yaml:"gossip"`
	KeyringFile string    `yaml:"keyring_file"`
	ImageStore  storeFile `yaml:"image_store"`
	LogLevel    string    `yaml:"log_level"`
}

type agentRackFile struct {
	Name      string `yaml:"name"`
	Interface string `yaml:"interface"`
	Address   string `yaml:"address"`
	Relayed   bool   `yaml:"relayed,omitempty"`
}

type ramdiskFile struct {
	Kernel string `yaml:"kernel"`
	Initrd string `yaml:"initrd"`
}

type cacheFile struct {
	MaxBytes string `yaml:"max_bytes"`
}

type agentFile struct {
	Name       string          `yaml:"name"`
	DataDir    string          `yaml:"data_dir"`
	Gossip     string          `yaml:"gossip"`
	TokenFile  string          `yaml:"token_file"`
	Nodes      []string        `yaml:"nodes,omitempty"`
	Racks      []agentRackFile `yaml:"racks"`
	HTTPPort   int             `yaml:"http_port"`
	TLSPort    int             `yaml:"tls_port"`
	Ramdisk    ramdiskFile     `yaml:"ramdisk"`
	ImageStore storeFile       `yaml:"image_store"`
	Cache      cacheFile       `yaml:"cache"`
	LogLevel   string          `yaml:"log_level"`
}

func (c *Config) nodeFile(n nodePlan, store storeFile) nodeFile {
	tls := netip.AddrPortFrom(n.addr, tlsPort).String()
	return nodeFile{
		Name:      n.name,
		DataDir:   c.path("nodes", n.name, "data"),
		Listen:    tls,
		Advertise: tls,
		// Users come through a port of the host's loopback.
		TLSNames:    []string{"127.0.0.1", "localhost"},
		Gossip:      netip.AddrPortFrom(n.addr, gossipPort).String(),
		KeyringFile: c.path("nodes", n.name, "keyring.json"),
		ImageStore:  store,
		LogLevel:    "info",
	}
}

func (c *Config) agentFile(p *plan, r rackPlan, a agentPlan, store storeFile) agentFile {
	var list []string
	if c.NoGossip {
		for _, n := range p.nodes {
			list = append(list, netip.AddrPortFrom(n.addr, tlsPort).String())
		}
	}
	var racks []agentRackFile
	for _, s := range p.servedBy(r) {
		racks = append(racks, agentRackFile{Name: s.name, Interface: rackInterface, Address: netip.PrefixFrom(a.rack, rackBits).String(), Relayed: s.relay != nil})
	}
	return agentFile{
		Name:       a.name,
		DataDir:    c.path("agents", a.name, "data"),
		Gossip:     netip.AddrPortFrom(a.mgmt, gossipPort).String(),
		TokenFile:  c.path("agents", a.name, "token"),
		Nodes:      list,
		Racks:      racks,
		HTTPPort:   80,
		TLSPort:    8443,
		Ramdisk:    ramdiskFile{Kernel: c.kernel(), Initrd: c.initrd()},
		ImageStore: store,
		Cache:      cacheFile{MaxBytes: "20GiB"},
		LogLevel:   cmp.Or(c.AgentLog, "info"),
	}
}

// The inventory, for `bmc inventory apply -f`.

type inventoryFile struct {
	Racks   []inventoryRack   `yaml:"racks"`
	Sizes   []inventorySize   `yaml:"sizes"`
	Servers []inventoryServer `yaml:"servers"`
}

type inventoryRack struct {
	Name      string   `yaml:"name"`
	Subnet    string   `yaml:"subnet"`
	Gateway   string   `yaml:"gateway"`
	DNS       []string `yaml:"dns,omitempty"`
	Domain    string   `yaml:"domain"`
	RangeFrom string   `yaml:"range_from"`
	RangeTo   string   `yaml:"range_to"`
	LeaseTime string   `yaml:"lease_time"`
}

type inventorySize struct {
	Name           string `yaml:"name"`
	MinCPUThreads  int    `yaml:"min_cpu_threads"`
	MinMemoryBytes string `yaml:"min_memory_bytes"`
	MinDiskBytes   string `yaml:"min_disk_bytes"`
}

type inventoryServer struct {
	Name       string       `yaml:"name"`
	Rack       string       `yaml:"rack"`
	Size       string       `yaml:"size"`
	MACs       []string     `yaml:"macs"`
	OOB        inventoryOOB `yaml:"oob"`
	Serial     string       `yaml:"serial"`
	UUID       string       `yaml:"uuid"`
	Wipe       bool         `yaml:"wipe"`
	ConsoleTTY string       `yaml:"console_tty"`
}

type inventoryOOB struct {
	Protocol    string `yaml:"protocol"`
	Address     string `yaml:"address"`
	Username    string `yaml:"username"`
	Password    string `yaml:"password"`
	CipherSuite int    `yaml:"cipher_suite"`
}

const (
	sizeName  = "small"
	leaseTime = time.Hour
)

func (c *Config) inventory(p *plan) inventoryFile {
	f := inventoryFile{Sizes: []inventorySize{{
		Name: sizeName, MinCPUThreads: 1,
		// The guest sees less than it was given; half is surely there.
		MinMemoryBytes: fmt.Sprintf("%dMiB", c.MemoryMiB/2),
		MinDiskBytes:   fmt.Sprint(c.DiskBytes),
	}}}
	for _, r := range p.racks {
		from, to := r.addresses()
		f.Racks = append(f.Racks, inventoryRack{
			Name: r.name, Subnet: r.subnet.String(), Gateway: r.gateway.String(), Domain: r.name + ".lab",
			RangeFrom: from.String(), RangeTo: to.String(), LeaseTime: leaseTime.String(),
		})
		for _, s := range r.servers {
			cipher := 17
			if c.BMC == BMCSim && !s.light {
				cipher = 3
			}
			f.Servers = append(f.Servers, inventoryServer{
				Name: s.name, Rack: r.name, Size: sizeName, MACs: []string{s.mac.String()},
				OOB:    inventoryOOB{Protocol: "ipmi", Address: s.oob.String(), Username: s.user, Password: s.password, CipherSuite: cipher},
				Serial: s.serial, UUID: s.uuid, Wipe: true, ConsoleTTY: "ttyS0,115200n8",
			})
		}
	}
	return f
}

func writeYAML(path string, v any) error {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}
