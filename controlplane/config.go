// Package controlplane composes one control-plane node: its identity, its
// member of the Raft group, gossip, the API, and what the leader does, behind
// one TLS port.
package controlplane

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"bmc/controlplane/consensus"
	"bmc/imagestore"
	"bmc/internal/config"
	"bmc/metal"
)

// Config is a node's configuration file.
type Config struct {
	Name        string             `yaml:"name"`         // DNS label, unique among the nodes
	DataDir     string             `yaml:"data_dir"`     // identity, log, snapshots
	Listen      string             `yaml:"listen"`       // IP:port of the one TLS port
	Advertise   string             `yaml:"advertise"`    // host:port that others reach; default: listen
	TLSNames    []string           `yaml:"tls_names"`    // further names and addresses in the node's certificate
	Gossip      string             `yaml:"gossip"`       // IP:port, UDP and TCP; empty: no gossip
	GossipSeeds []string           `yaml:"gossip_seeds"` // host:port to try besides the nodes' hosts
	Nodes       []string           `yaml:"nodes"`        // host:port of TLS ports, where gossip cannot pass
	KeyringFile string             `yaml:"keyring_file"` // outside data_dir
	ImageStore  *imagestore.Config `yaml:"image_store"`  // absent: no images
	LogLevel    string             `yaml:"log_level"`    // debug, info, warn, error
	// ElectionTimeout is how long a follower waits for the leader; heartbeats are a
	// tenth. More for networks slower than one site's, 300ms for a quiet LAN.
	ElectionTimeout config.Duration `yaml:"election_timeout"` // default 1s
	LogStore        string          `yaml:"log_store"`        // boltdb (default) or wal; for good
}

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (Config, error) {
	var c Config
	if err := config.Load(path, &c); err != nil {
		return Config{}, err
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// check refuses what cannot work and fills in the defaults.
func (c *Config) check() error {
	if c.Advertise == "" {
		c.Advertise = c.Listen
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	if err := metal.ValidateName("name", c.Name); err != nil {
		return err
	}
	for _, f := range []struct{ field, value string }{{"data_dir", c.DataDir}, {"keyring_file", c.KeyringFile}} {
		if f.value == "" {
			return metal.Invalid(f.field, "is missing")
		}
	}
	if inside(c.DataDir, c.KeyringFile) {
		return metal.Invalid("keyring_file", "lies in data_dir: a copy of the data must not hold the keys to its secrets")
	}
	for _, f := range []struct{ field, value string }{{"listen", c.Listen}, {"advertise", c.Advertise}} {
		if err := metal.ValidateHostPort(f.field, f.value, true); err != nil {
			return err
		}
	}
	if host, _, err := net.SplitHostPort(c.Advertise); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return metal.Invalid("advertise", "must be an address that other nodes reach, not %s", host)
		}
	}
	for _, s := range c.Nodes {
		if err := metal.ValidateHostPort("nodes", s, true); err != nil {
			return err
		}
	}
	for _, s := range c.GossipSeeds {
		if err := metal.ValidateHostPort("gossip_seeds", s, true); err != nil {
			return err
		}
	}
	return c.checkRest()
}

func (c *Config) checkRest() error {
	if c.Gossip != "" {
		host, port, err := net.SplitHostPort(c.Gossip)
		if _, convErr := strconv.ParseUint(port, 10, 16); err != nil || convErr != nil || net.ParseIP(host) == nil {
			return metal.Invalid("gossip", "%q is not like 10.0.0.1:7946", c.Gossip)
		}
	}
	if c.ImageStore != nil {
		if err := c.ImageStore.Validate(); err != nil {
			return err
		}
	}
	if err := consensus.CheckStore(c.LogStore); err != nil {
		return err
	}
	_, err := c.level()
	return err
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, metal.Invalid("log_level", "%q is not debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// Level is the log level.
func (c *Config) Level() slog.Level {
	l, err := c.level()
	if err != nil {
		return slog.LevelInfo
	}
	return l
}

// names are what the node's certificate says besides the advertised host.
func (c *Config) names() []string {
	host, _, err := net.SplitHostPort(c.Advertise)
	if err != nil {
		return c.TLSNames
	}
	return append([]string{host}, c.TLSNames...)
}

// gossipPort is tried at the other nodes' hosts.
func (c *Config) gossipPort() string {
	_, port, err := net.SplitHostPort(c.Gossip)
	if err != nil {
		return ""
	}
	return port
}

func inside(dir, path string) bool {
	d, err1 := filepath.Abs(dir)
	p, err2 := filepath.Abs(path)
	if err1 != nil || err2 != nil {
		return false
	}
	rel, err := filepath.Rel(d, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
