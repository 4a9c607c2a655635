package metal

import (
	"net/netip"
	"time"
)

// Rack is a set of servers on one provisioning network.
type Rack struct {
	ID        string
	Name      string // DNS label, unique
	Subnet    netip.Prefix
	Gateway   netip.Addr // zero: none
	DNS       []netip.Addr
	Domain    string
	RangeFrom netip.Addr // first and last address that may be assigned
	RangeTo   netip.Addr
	LeaseTime time.Duration // of DHCP leases
	Lease     Lease
	Stop      Stop // an operator has frozen it
	Frozen    bool // a backup was restored: nothing starts until an agent has said what it knew
	// What the restored backup's revision was, and when that happened. Zero: the rack
	// is not frozen, or was before the cluster reached feature level 5.
	FrozenAt    uint64
	FrozenSince time.Time
	Warm        int  // available servers that shall wait in the ramdisk; WarmAll: all
	Discovery   bool // machines that the inventory does not know may say what they are
	Revision    uint64
}

// Stop is an operator's word that nothing new starts in a rack. The zero value: none.
type Stop struct {
	By    string // principal
	Why   string // for people
	Since time.Time
}

// Stopped says whether an operator has frozen the rack.
func (r *Rack) Stopped() bool { return r.Stop.By != "" }

// HoldsBack says whether a frozen rack gives an operation to no agent. What had begun
// when an operator froze it goes on, at another agent, too.
func (r *Rack) HoldsBack(o *Operation) bool {
	return r.Frozen || r.Stopped() && o.Started.IsZero()
}

// Lease says which agent may act on a rack. Epochs never decrease; a restored
// backup raises the generation.
type Lease struct {
	Agent      string // ID; "" when nobody holds it
	Generation uint64
	Epoch      uint64
	Granted    time.Time
	Silent     time.Duration // without a renewal, at least; 0: nothing is known. See dispatch
}

// Model is what is known of a kind of machine, by the vendor and the product that
// its inspection says.
type Model struct {
	Vendor        string
	Product       string
	KexecFailures int       // systems that came up from disk but not by kexec, since it was last switched on
	KexecOff      bool      // its images are started by firmware
	Reason        string    // why it is off
	Since         time.Time // when it was last switched
	Revision      uint64
}

// Name is how people call it.
func (m *Model) Name() string { return m.Vendor + "/" + m.Product }

// Agent is a rack agent that has joined.
type Agent struct {
	ID       string
	Name     string
	Racks    []string // IDs
	Software string
	Joined   time.Time
	Revision uint64
}

// Node is a control-plane node that has joined.
type Node struct {
	ID           string
	Name         string
	Address      string // host:port of its TLS port
	KeyHash      []byte // SHA-256 of its public key (SPKI)
	Software     string
	Joined       time.Time
	FeatureLevel uint32 // the newest log commands that it understands
	Revision     uint64
}

// Size is a class of servers that users ask for by name.
type Size struct {
	Name           string // DNS label, unique
	MinCPUThreads  int
	MinMemoryBytes uint64
	MinDiskBytes   uint64
	RootDiskHint   string
	Rule           SizeRule
	Revision       uint64
}

// Image is a registered, signed manifest; its chunks are in the image store.
type Image struct {
	ID           string // SHA-256 of the manifest, hex
	Name         string // DNS label, unique in the project; several versions replace one another by name
	Project      string // ID
	OS           string
	Arch         string
	SizeBytes    uint64 // of the disk
	StoredBytes  uint64
	Chunks       int
	Firmware     []string
	User         string
	Manifest     []byte
	Signature    []byte
	SigningKeyID string
	Created      time.Time
	Revision     uint64
}

// Project owns rentals, images and keys.
type Project struct {
	ID          string
	Name        string   // DNS label, unique
	SigningKeys []string // minisign public keys
	MaxServers  int      // quota; 0: none
	Created     time.Time
	Revision    uint64
}

// SSHKey is a public key that lands on new servers of its project.
type SSHKey struct {
	ID          string
	Name        string
	Project     string // ID
	PublicKey   string // authorized_keys line
	Fingerprint string // SHA256:…
	Created     time.Time
	Revision    uint64
}

// AddressAssignment gives an address of a rack to a MAC, for as long as its
// server is in the inventory, or lends it to one that nobody knows.
type AddressAssignment struct {
	RackID   string
	Address  netip.Addr
	MAC      string
	ServerID string    // "": it is lent to a machine that is being discovered
	Expires  time.Time // of what is lent
	Revision uint64
}

// Lent says whether the address is a machine's that is being discovered.
func (a *AddressAssignment) Lent() bool { return a.ServerID == "" }

// Role of a principal.
type Role string

// The roles, weakest first.
const (
	RoleViewer   Role = "viewer"
	RoleMember   Role = "member"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// Token is a bearer credential, stored as its hash.
type Token struct {
	ID       string
	Hash     []byte // SHA-256 of the secret
	Kind     string // "user", "join-node" or "join-agent"
	Name     string // principal's name
	Role     Role
	Project  string   // ID; kind user
	Racks    []string // IDs; kind join-agent
	Created  time.Time
	Expires  time.Time
	Used     bool // join tokens work once
	Revision uint64
}

// Event is something that happened, for people and programs to follow.
type Event struct {
	Revision    uint64
	Index       int // within the revision
	Time        time.Time
	Kind        string // "server.active", "operation.step", …
	ServerID    string
	OperationID string
	Target      string
	Project     string
	Principal   string
	Reason      Code
	Message     string
}

// AuditEntry is one mutation, chained to the one before.
type AuditEntry struct {
	Revision  uint64
	Time      time.Time
	Principal string
	RequestID string
	Command   string // its name
	Target    string
	Outcome   Code   // "" when accepted
	Hash      []byte // SHA-256(previous hash, raw command)

	// What a check of who did what under which lease needs; zero where it does
	// not apply.
	ObjectID    string // of what was made or changed; a lease's rack
	OperationID string
	AgentID     string // that the command is about, or from
	Epoch       uint64 // of the rack's lease
	Step        string // and phase: "write-image/done"
}
