// Package configure makes an installed image one particular server: its name,
// its users' keys, its address, its own SSH host key. It works on the mounted
// root file system through os.Root, so that no symlink in an image leads out.
package configure

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"bmc/internal/manifest"
	"bmc/metal"
)

// Params is what a server is to become.
type Params struct {
	Hostname   string
	SSHKeys    []string // authorized_keys lines
	UserData   []byte   // cloud-init's, may be empty
	Address    string   // CIDR; "" leaves the network to the image
	Gateway    string   // "" for none
	DNS        []string
	MAC        string // of the NIC that carries the address
	InstanceID string
}

// Result is what the inventory keeps.
type Result struct {
	HostKeys []string // public halves, authorized_keys format
}

var (
	hostnamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	instancePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// target is a root file system under configuration.
type target struct {
	root    *os.Root
	m       *manifest.Manifest
	p       Params
	address netip.Prefix
	gateway netip.Addr
	dns     []netip.Addr
	chown   bool // off where tests are not root
}

// Apply configures the root file system that is mounted at dir. Every error has
// metal.CodeConfigureFailed.
func Apply(dir string, m *manifest.Manifest, p Params) (Result, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Result{}, failed(err)
	}
	defer root.Close() //nolint:errcheck // each file says for itself whether it was written
	t := &target{root: root, m: m, p: p, chown: os.Geteuid() == 0}
	if err := t.validate(); err != nil {
		return Result{}, failed(err)
	}
	hostKey, err := t.hostKeys()
	if err != nil {
		return Result{}, failed(err)
	}
	steps := []func() error{t.identity, t.authorizedKeys}
	if m.Configure == manifest.ConfigureNoCloud {
		steps = append(steps, t.noCloud) // cloud-init writes the network's files
	} else {
		steps = append(steps, t.hostname, t.network)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Result{}, failed(err)
		}
	}
	return Result{HostKeys: []string{hostKey}}, nil
}

func failed(err error) error {
	return &metal.Error{Code: metal.CodeConfigureFailed, Message: "the image cannot be configured: " + err.Error(), Err: err}
}

// validate parses what ends up in files that programs with rights read.
func (t *target) validate() error {
	if !hostnamePattern.MatchString(t.p.Hostname) || len(t.p.Hostname) > 253 {
		return fmt.Errorf("the host name %q is malformed", t.p.Hostname)
	}
	if !instancePattern.MatchString(t.p.InstanceID) {
		return fmt.Errorf("the instance ID %q is malformed", t.p.InstanceID)
	}
	for _, k := range t.p.SSHKeys {
		if _, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(k)); err != nil || len(rest) > 0 || strings.ContainsAny(strings.TrimSuffix(k, "\n"), "\r\n") {
			return errors.New("an SSH key is malformed")
		}
	}
	if t.p.Address == "" {
		return nil
	}
	var err error
	if t.address, err = netip.ParsePrefix(t.p.Address); err != nil {
		return fmt.Errorf("the address: %w", err)
	}
	if t.p.Gateway != "" {
		if t.gateway, err = netip.ParseAddr(t.p.Gateway); err != nil || t.gateway.Zone() != "" {
			return fmt.Errorf("the gateway %q is malformed", t.p.Gateway)
		}
	}
	for _, d := range t.p.DNS {
		a, err := netip.ParseAddr(d)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("the name server %q is malformed", d)
		}
		t.dns = append(t.dns, a)
	}
	if mac, err := net.ParseMAC(t.p.MAC); err != nil || mac.String() != t.p.MAC {
		return fmt.Errorf("the MAC address %q is malformed", t.p.MAC)
	}
	return nil
}

// identity removes what would make two servers of one image the same machine.
func (t *target) identity() error {
	if err := t.write("etc/machine-id", nil, 0o444); err != nil { // empty: made at the first boot
		return err
	}
	for _, name := range []string{"var/lib/dbus/machine-id", "var/lib/systemd/random-seed"} {
		if err := t.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (t *target) hostname() error {
	if err := t.write("etc/hostname", []byte(t.p.Hostname+"\n"), 0o644); err != nil {
		return err
	}
	old, err := t.read("etc/hosts")
	if err != nil {
		return err
	}
	short, _, _ := strings.Cut(t.p.Hostname, ".")
	names := t.p.Hostname
	if short != names {
		names += " " + short
	}
	// 127.0.1.1 is Debian's place for the machine's own name.
	lines := slices.DeleteFunc(strings.Split(strings.TrimRight(string(old), "\n"), "\n"), func(l string) bool {
		return strings.HasPrefix(strings.TrimSpace(l), "127.0.1.1") || l == ""
	})
	if len(lines) == 0 {
		lines = []string{"127.0.0.1\tlocalhost", "::1\tlocalhost"}
	}
	lines = append(lines, "127.0.1.1\t"+names)
	return t.write("etc/hosts", []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// read returns a file's content, bounded; nil when there is none.
func (t *target) read(name string) ([]byte, error) {
	info, err := t.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return nil, fmt.Errorf("/%s is not a file of reasonable size", name)
	}
	return t.root.ReadFile(name)
}
