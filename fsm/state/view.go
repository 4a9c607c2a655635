package state

import (
	"iter"
	"net/netip"
	"time"

	"bmc/metal"
)

// Meta is what concerns the whole state.
type Meta struct {
	ClusterID      string
	Revision       uint64 // index of the last command
	Generation     uint64
	FeatureLevel   uint32
	Time           time.Time // of the newest command
	AuditHead      []byte
	AuditCount     uint64
	RequestHorizon int64 // Unix milliseconds
}

// View is one immutable state. Its methods may be called by anybody at any
// time; what they return is shared and must not be changed.
type View struct{}

// Hash is a row hash summed over all rows: equal on replicas of equal revision.
type Hash [32]byte

func (v *View) Revision() uint64 { panic("todo") }
func (v *View) Meta() Meta       { panic("todo") }
func (v *View) Hash() Hash       { panic("todo") }
func (v *View) Recompute() Hash  { panic("todo") } // from scratch; must equal Hash

// ServerFilter narrows Servers; zero fields match everything.
type ServerFilter struct {
	RackID   string
	State    metal.State
	Size     string
	Project  string // ID: only its rentals
	Rented   bool
	Selector metal.Selector
	After    string // server name: only what sorts after it
}

func (v *View) Server(id string) (*metal.Server, bool)             { panic("todo") }
func (v *View) ServerByName(name string) (*metal.Server, bool)     { panic("todo") }
func (v *View) ServerByMAC(mac string) (*metal.Server, bool)       { panic("todo") }
func (v *View) ServerByAddress(a netip.Addr) (*metal.Server, bool) { panic("todo") }
func (v *View) Servers(f ServerFilter) iter.Seq[*metal.Server]     { panic("todo") } // by name

// ResolveServer finds a server by rental name in project, server name, ID or
// unique ID prefix. With all false only what project rents is seen. Errors:
// NOT_FOUND with a suggestion, AMBIGUOUS_REFERENCE with the matches.
func (v *View) ResolveServer(project string, all bool, ref string) (*metal.Server, error) {
	panic("todo")
}

func (v *View) Operation(id string) (*metal.Operation, bool)            { panic("todo") }
func (v *View) ResolveOperation(ref string) (*metal.Operation, error)   { panic("todo") }
func (v *View) OperationsOf(serverID string) iter.Seq[*metal.Operation] { panic("todo") } // newest first
func (v *View) OpenOperations(rackID string) iter.Seq[*metal.Operation] { panic("todo") } // oldest first; "" for all racks
func (v *View) Operations(before string) iter.Seq[*metal.Operation]     { panic("todo") } // newest first, after the one with this ID

func (v *View) Rack(id string) (*metal.Rack, bool)                                   { panic("todo") }
func (v *View) ResolveRack(ref string) (*metal.Rack, error)                          { panic("todo") }
func (v *View) Racks() iter.Seq[*metal.Rack]                                         { panic("todo") } // by name
func (v *View) Size(name string) (*metal.Size, bool)                                 { panic("todo") }
func (v *View) Sizes() iter.Seq[*metal.Size]                                         { panic("todo") }
func (v *View) Address(rackID string, a netip.Addr) (*metal.AddressAssignment, bool) { panic("todo") }
func (v *View) Addresses(rackID string) iter.Seq[*metal.AddressAssignment]           { panic("todo") }

func (v *View) Image(project, id string) (*metal.Image, bool)          { panic("todo") }
func (v *View) ResolveImage(project, ref string) (*metal.Image, error) { panic("todo") } // ref "": the only one
func (v *View) Images(project string) iter.Seq[*metal.Image]           { panic("todo") } // "" for all
func (v *View) Key(id string) (*metal.SSHKey, bool)                    { panic("todo") }
func (v *View) ResolveKey(project, ref string) (*metal.SSHKey, error)  { panic("todo") }
func (v *View) Keys(project string) iter.Seq[*metal.SSHKey]            { panic("todo") }
func (v *View) Project(id string) (*metal.Project, bool)               { panic("todo") }
func (v *View) ResolveProject(ref string) (*metal.Project, error)      { panic("todo") }
func (v *View) Projects() iter.Seq[*metal.Project]                     { panic("todo") }
func (v *View) Token(id string) (*metal.Token, bool)                   { panic("todo") }
func (v *View) Tokens() iter.Seq[*metal.Token]                         { panic("todo") }
func (v *View) Agent(id string) (*metal.Agent, bool)                   { panic("todo") }
func (v *View) ResolveAgent(ref string) (*metal.Agent, error)          { panic("todo") }
func (v *View) Agents() iter.Seq[*metal.Agent]                         { panic("todo") }
func (v *View) Node(id string) (*metal.Node, bool)                     { panic("todo") }
func (v *View) ResolveNode(ref string) (*metal.Node, error)            { panic("todo") }
func (v *View) Nodes() iter.Seq[*metal.Node]                           { panic("todo") }

func (v *View) Events(afterRevision uint64, afterIndex int) iter.Seq[*metal.Event] { panic("todo") } // oldest first
func (v *View) EventsOf(serverID string) iter.Seq[*metal.Event]                    { panic("todo") } // newest first
func (v *View) Audit(afterRevision uint64) iter.Seq[*metal.AuditEntry]             { panic("todo") } // oldest first

// Request is what is remembered of a request ID.
type Request struct {
	ID, Principal string
	MAC           []byte
	OperationID   string
	ResultID      string
	Revision      uint64
}

func (v *View) Request(principal, id string) (*Request, bool) { panic("todo") }

// Capacity counts the servers of one size in one rack.
type Capacity struct {
	RackID    string
	Rack      string
	Size      string
	Servers   int
	Available int // in state available, before holds and conditions
}

func (v *View) Capacity() []Capacity            { panic("todo") } // by rack, then size
func (v *View) CountServers(s metal.State) int  { panic("todo") } // "" for all
func (v *View) CountRentals(project string) int { panic("todo") } // that count against the quota

// Change says that a row changed. Watchers read the row from a View.
type Change struct {
	Revision uint64
	Kind     string // KindServer, …
	ID       string // events: "" (use Events); images: the image's ID
	ServerID string // that it concerns
	Removed  bool
}

// Kinds of changes.
const (
	KindServer    = "server"
	KindOperation = "operation"
	KindEvent     = "event"
	KindImage     = "image"
	KindRack      = "rack"
	KindSize      = "size"
	KindKey       = "key"
	KindProject   = "project"
	KindToken     = "token"
	KindAgent     = "agent"
	KindNode      = "node"
)

// Changes returns what changed after a revision, oldest first, several changes
// of one row in one command once. ok is false when the ring does not reach that
// far back, or the state was restored since: start over from a snapshot.
func (v *View) Changes(after uint64) (changes []Change, ok bool) { panic("todo") }
