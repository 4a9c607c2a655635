package manifest

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"bmc/metal"
)

// What a Spec's words may be.
const (
	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"

	ConfigureNoCloud = "nocloud" // a NoCloud seed for cloud-init
	ConfigureFiles   = "files"   // plain files in the root filesystem
	ConfigureNone    = "none"    // the image configures itself

	NetworkNetworkd = "systemd-networkd" // /etc/systemd/network/
	NetworkIfupdown = "ifupdown"         // /etc/network/interfaces
	NetworkBusybox  = "busybox"          // /etc/network.conf, see images/tiny

	ReadySSH  = "ssh"  // the recorded SSH host key answers
	ReadyNone = "none" // started is ready
)

// Spec is what an image's author says of it: the YAML file beside the image,
// and the first part of its manifest.
type Spec struct {
	Name          string   `json:"name" yaml:"name"`                               // DNS label
	OS            string   `json:"os" yaml:"os"`                                   // for people, e.g. "Debian 12"
	Arch          string   `json:"arch" yaml:"arch"`                               // "x86_64" or "aarch64"
	User          string   `json:"user,omitempty" yaml:"user"`                     // that users log in as
	SectorSize    int      `json:"sector_size" yaml:"sector_size"`                 // bytes that the partition table counts in
	RootPartition int      `json:"root_partition,omitempty" yaml:"root_partition"` // number in the GPT, from 1; 0 when not configured
	Filesystem    string   `json:"filesystem,omitempty" yaml:"filesystem"`         // of the root partition: "ext4"
	Kernel        string   `json:"kernel,omitempty" yaml:"kernel"`                 // path in the root filesystem; "" rules out kexec
	Initrd        string   `json:"initrd,omitempty" yaml:"initrd"`
	Cmdline       string   `json:"cmdline,omitempty" yaml:"cmdline"`
	Firmware      []string `json:"firmware" yaml:"firmware"`                 // that it boots by, sorted: "bios", "uefi"
	BootLoader    string   `json:"boot_loader,omitempty" yaml:"boot_loader"` // on the EFI system partition, with backslashes
	Configure     string   `json:"configure" yaml:"configure"`
	Network       string   `json:"network,omitempty" yaml:"network"`
	Ready         string   `json:"ready" yaml:"ready"`
	ChunkSize     int      `json:"chunk_size" yaml:"chunk_size"` // bytes, a power of two
}

var (
	labelPattern      = lazily(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	userPattern       = lazily(`^[a-z_][a-z0-9_-]{0,31}$`)
	osPattern         = lazily(`^[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,63}$`)
	pathPattern       = lazily(`^/[A-Za-z0-9._+/-]{1,254}$`)
	cmdlinePattern    = lazily(`^[A-Za-z0-9=,.:/_+@%-]+( [A-Za-z0-9=,.:/_+@%-]+)*$`)
	bootLoaderPattern = lazily(`^(\\[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}){1,8}$`)
)

// pattern is a regular expression that is compiled when it is first used: all of them
// take a millisecond, and every program that knows of images would wait for it.
type pattern func() *regexp.Regexp

func lazily(expr string) pattern {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// MatchString says whether it matches.
func (p pattern) MatchString(s string) bool { return p().MatchString(s) }

const maxCmdline = 1024 // the kernel's own limit on x86 is 2048

// WithDefaults returns a copy in which what the author left out has its usual
// value.
func (s Spec) WithDefaults() Spec {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&s.Arch, "x86_64")
	set(&s.Configure, ConfigureNone)
	if s.Ready == "" {
		s.Ready = ReadySSH
		if s.Configure == ConfigureNone { // no host key is recorded
			s.Ready = ReadyNone
		}
	}
	if s.SectorSize == 0 {
		s.SectorSize = 512
	}
	if s.ChunkSize == 0 {
		s.ChunkSize = DefaultChunkSize
	}
	if s.Configure != ConfigureNone {
		set(&s.Filesystem, "ext4")
	}
	s.Firmware = slices.Sorted(slices.Values(s.Firmware))
	if slices.Contains(s.Firmware, FirmwareUEFI) {
		set(&s.BootLoader, `\EFI\BOOT\BOOTX64.EFI`)
	}
	return s
}

// Validate checks words, names and paths. All of them end up in files, kernel
// command lines or on terminals, hence the narrow alphabets.
func (s Spec) Validate() error {
	switch {
	case !labelPattern.MatchString(s.Name):
		return metal.Invalid("name", "%q is not a DNS label (a-z, 0-9 and -, at most 63)", s.Name)
	case !osPattern.MatchString(s.OS):
		return metal.Invalid("os", "%q is not a name of at most 64 letters, digits, spaces and ._+()-", s.OS)
	case s.Arch != "x86_64" && s.Arch != "aarch64":
		return metal.Invalid("arch", "%q is neither x86_64 nor aarch64", s.Arch)
	case s.SectorSize != 512 && s.SectorSize != 4096:
		return metal.Invalid("sector_size", "%d is neither 512 nor 4096", s.SectorSize)
	case s.ChunkSize < MinChunkSize || s.ChunkSize > MaxChunkSize || s.ChunkSize&(s.ChunkSize-1) != 0:
		return metal.Invalid("chunk_size", "%d is not a power of two between %d and %d", s.ChunkSize, MinChunkSize, MaxChunkSize)
	case s.RootPartition < 0 || s.RootPartition > 128:
		return metal.Invalid("root_partition", "%d is not between 1 and 128", s.RootPartition)
	case s.Filesystem != "" && s.Filesystem != "ext4":
		return metal.Invalid("filesystem", "%q is not ext4", s.Filesystem)
	case s.Ready != ReadySSH && s.Ready != ReadyNone:
		return metal.Invalid("ready", "%q is neither ssh nor none", s.Ready)
	}
	for _, check := range []func() error{s.validateConfigure, s.validateBoot, s.validateFirmware} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) validateConfigure() error {
	switch s.Configure {
	case ConfigureNone:
		if s.Ready == ReadySSH {
			return metal.Invalid("ready", "ssh needs the host key that configure installs, and configure is none")
		}
		if s.User != "" && !userPattern.MatchString(s.User) {
			return metal.Invalid("user", "%q is not a login name", s.User)
		}
		return nil
	case ConfigureNoCloud, ConfigureFiles:
	default:
		return metal.Invalid("configure", "%q is none of nocloud, files and none", s.Configure)
	}
	switch s.Network {
	case NetworkNetworkd, NetworkIfupdown, NetworkBusybox:
	default:
		return metal.Invalid("network", "%q is none of systemd-networkd, ifupdown and busybox", s.Network)
	}
	switch {
	case s.RootPartition == 0:
		return metal.Invalid("root_partition", "is missing, configure %s writes there", s.Configure)
	case s.Filesystem == "":
		return metal.Invalid("filesystem", "is missing, configure %s mounts it", s.Configure)
	case !userPattern.MatchString(s.User):
		return metal.Invalid("user", "%q is not a login name", s.User)
	}
	return nil
}

func (s Spec) validateBoot() error {
	if s.Kernel == "" && (s.Initrd != "" || s.Cmdline != "") {
		return metal.Invalid("kernel", "is missing, and initrd or cmdline are given")
	}
	for _, p := range []struct{ field, value string }{{"kernel", s.Kernel}, {"initrd", s.Initrd}} {
		if p.value != "" && (!pathPattern.MatchString(p.value) || path.Clean(p.value) != p.value) {
			return metal.Invalid(p.field, "%q is not a clean absolute path", p.value)
		}
	}
	if s.Cmdline != "" && (len(s.Cmdline) > maxCmdline || !cmdlinePattern.MatchString(s.Cmdline)) {
		return metal.Invalid("cmdline", "wants words of letters, digits and =,.:/_+@%%- with single spaces, at most %d bytes", maxCmdline)
	}
	return nil
}

func (s Spec) validateFirmware() error {
	if len(s.Firmware) == 0 {
		return metal.Invalid("firmware", "is missing: say bios, uefi or both")
	}
	for i, f := range s.Firmware {
		if f != FirmwareBIOS && f != FirmwareUEFI {
			return metal.Invalid("firmware", "%q is neither bios nor uefi", f)
		}
		if i > 0 && s.Firmware[i-1] >= f {
			return metal.Invalid("firmware", "is not sorted without repeats")
		}
	}
	if uefi := slices.Contains(s.Firmware, FirmwareUEFI); uefi != (s.BootLoader != "") {
		return metal.Invalid("boot_loader", "belongs to firmware uefi, and only to it")
	}
	if s.BootLoader != "" && (!bootLoaderPattern.MatchString(s.BootLoader) || strings.Contains(s.BootLoader, "..")) {
		return metal.Invalid("boot_loader", `%q is not a path like \EFI\BOOT\BOOTX64.EFI`, s.BootLoader)
	}
	return nil
}
