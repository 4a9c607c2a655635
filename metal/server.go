package metal

import (
	"net/netip"
	"time"
)

// State is one of a server's five axes; fsm/lifecycle holds its transitions.
type State string

// The states.
const (
	StateDiscovered  State = "discovered"
	StateEnrolling   State = "enrolling"
	StateInspecting  State = "inspecting"
	StateAvailable   State = "available"
	StateDeploying   State = "deploying"
	StateActive      State = "active"
	StateRescuing    State = "rescuing"
	StateRescue      State = "rescue"
	StateReleasing   State = "releasing"
	StateCleaning    State = "cleaning"
	StateFailed      State = "failed"
	StateQuarantined State = "quarantined"
	StateRetired     State = "retired"
)

// Power of a server, as wanted or as read from its management controller.
type Power string

// The power states.
const (
	PowerUnknown Power = "unknown"
	PowerOff     Power = "off"
	PowerOn      Power = "on"
)

// Condition is something about a server that is so at the moment, beside its state.
type Condition string

// The conditions.
const (
	ConditionOOBUnreachable   Condition = "oob_unreachable"
	ConditionAgentLost        Condition = "agent_lost"
	ConditionHardwareDegraded Condition = "hardware_degraded"
	ConditionLate             Condition = "late"
	ConditionBootEntry        Condition = "boot_entry_failed"
	ConditionWarmFailed       Condition = "warm_failed" // it shall wait in the ramdisk, and does not
)

// Hold is an operator's or owner's word that something must not happen.
type Hold string

// The holds.
const (
	HoldProtected Hold = "protected" // destroy is refused
	HoldCordoned  Hold = "cordoned"  // create passes it by
	HoldParked    Hold = "parked"    // nothing automatic touches it
	HoldNoKexec   Hold = "no-kexec"  // its images are started by firmware
)

// Server is the physical machine in the inventory. Values reached through a
// View are shared: copy before changing.
type Server struct {
	ID      string
	Name    string // DNS label, unique, e.g. "r1-u07"
	RackID  string
	Size    string // name of a Size; "" until inspection has found one
	Labels  map[string]string
	Created time.Time

	State      State
	StateSince time.Time
	Power      PowerStatus
	Conditions map[Condition]ConditionStatus
	Holds      map[Hold]bool
	Operation  string   // ID of the operation under way, or ""
	Failure    *Failure // set in StateFailed and StateQuarantined

	Rental *Rental // set from create until the BMC has read off

	MACs         []string   // lower case, colons; the boot NIC first
	Address      netip.Addr // assigned for good at enrolment
	OOB          OOB
	Serial       string // SMBIOS identity; expected before the first inspection, found after
	UUID         string
	Hardware     *Hardware
	WipeOK       bool           // the operator's word for the first wipe
	ConsoleTTY   string         // "ttyS0,115200"; "" for the default
	Wiped        []WipeEvidence // of the last clean
	WasAvailable bool           // has been available once: decides what failed admits
	Warm         *Warm          // of an available server; nil: nothing was tried, or it does not matter any more
	SizeByRule   bool           // an inspection found Size: the next one may find another
	Claim        *Claim         // nil: the machine is what the inventory says

	Revision uint64 // of the last command that changed it
}

// Claim is what a machine said it is, and the inventory does not believe until
// an operator accepts it.
type Claim struct {
	Serial string
	UUID   string
	MACs   []string // the boot NIC first
	Reason string   // what differs, for people
	At     time.Time
	Board  bool // another mainboard: to accept it is to enrol the machine anew
}

// PowerStatus is the power axis.
type PowerStatus struct {
	Wanted     Power
	Observed   Power
	ObservedAt time.Time
}

// ConditionStatus says since when a condition holds, and why.
type ConditionStatus struct {
	Since   time.Time
	Message string
}

// Failure says from where, at which step and why an operation failed.
type Failure struct {
	From      State
	Operation string
	Step      Step
	Reason    Code
	Message   string
	At        time.Time
}

// Rental is what a project holds of a server.
type Rental struct {
	Name        string // DNS label, unique in the project; becomes the hostname
	Project     string // ID
	ImageID     string
	ImageName   string
	User        string   // login user of the image
	SSHKeys     []string // authorized_keys lines, resolved at create
	UserData    Sealed
	SSHHostKeys []string // made at install; the public halves
	RootDisk    string
	Since       time.Time
	Expires     time.Time // zero: never
	Released    bool      // destroy was accepted: quota and name are free, the machine is still held
}

// OOB is how to reach a server's management controller (out of band).
type OOB struct {
	Protocol    string // "ipmi", "ipmitool" or "redfish"
	Address     string // host or host:port
	Username    string
	Password    Sealed
	CipherSuite int // IPMI cipher suite ID; 0: 17, then 3
}

// Sealed is a secret under the cluster's keyring (AES-256-GCM): key ID, nonce
// and ciphertext. It is opaque to the state machine.
type Sealed []byte

// Hardware is what an inspection found.
type Hardware struct {
	Serial          string
	UUID            string
	Vendor          string
	Product         string
	Firmware        string // "bios" or "uefi"
	FirmwareVersion string
	SecureBoot      bool
	Arch            string // "x86_64", "aarch64"
	CPUModel        string
	CPUThreads      int
	MemoryBytes     uint64
	Disks           []Disk
	NICs            []NIC
	InspectedAt     time.Time
	CPUCores        int // of all sockets; 0: unknown
	CPUSockets      int
	DIMMs           []DIMM // filled slots
	OOBAddress      string // of the machine's own management controller, as its host reads it; "": unknown
	OOBFirmware     string
	BoardSerial     string
}

// DIMM is a memory module.
type DIMM struct {
	Slot      string
	SizeBytes uint64
	SpeedMTs  int    // megatransfers a second; 0: unknown
	Kind      string // "DDR4"
	Vendor    string
	Part      string
	Serial    string
}

// Disk is a block device that could hold an image.
type Disk struct {
	Name       string // kernel name, "vda"
	SizeBytes  uint64
	Kind       string // "nvme", "ssd", "hdd", "virtual"
	WWN        string
	Serial     string
	Model      string
	SectorSize int // logical, bytes
	Removable  bool
	Firmware   string
	Physical   int         // sector size, bytes; 0: unknown
	Health     *DiskHealth // nil: the disk does not say
}

// DiskHealth is what a disk says of itself.
type DiskHealth struct {
	State        string // DiskOK or DiskFailing
	Reason       string // why it is failing
	PercentUsed  int    // of its rated endurance; may exceed 100
	Reallocated  uint64 // sectors, or NVMe media errors
	PowerOnHours uint64
	Celsius      int // 0: unknown
}

// The states of a disk's health.
const (
	DiskOK      = "ok"
	DiskFailing = "failing"
)

// NIC is a network port.
type NIC struct {
	Name      string
	MAC       string
	Link      bool
	SpeedMbps int // 0: unknown
	Driver    string
	Firmware  string
	Neighbour *Neighbour // nil: nobody announced itself
}

// Neighbour is the switch port at the other end of a NIC's cable, as it says by LLDP.
type Neighbour struct {
	Chassis         string // ID: a MAC or a name
	Port            string // ID
	System          string // name
	PortDescription string
	VLAN            int // the port's own; 0: not said
}

// WipeEvidence is what a ramdisk did to a disk and read back of it.
type WipeEvidence struct {
	Disk          string // WWN, serial or name
	Method        string // "discard", "overwrite", "sanitize", "format"
	Bytes         uint64
	BytesReadBack uint64
}
