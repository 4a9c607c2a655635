package state

import (
	"time"

	"bmc/metal"
)

// What is kept, so that state stays bounded.
const (
	MaxServerEvents     = 100     // of each server
	MaxGlobalEvents     = 10_000  // of those that concern no server
	MaxServerOperations = 20      // of each server, the open one included
	MaxAudit            = 100_000 // entries
	MaxRequests         = 200_000 // request IDs
	MaxChanges          = 4096    // in the ring that watches read
)

// Meta is what concerns the whole state.
type Meta struct {
	ClusterID      string // "" until InitCluster
	Revision       uint64 // index of the last command
	Generation     uint64 // raised when a backup is restored
	FeatureLevel   uint32
	Time           time.Time // of the newest command
	AuditHead      []byte    // SHA-256 over the chain of all commands
	AuditCount     uint64    // entries ever made
	RequestHorizon int64     // Unix milliseconds: unknown request IDs up to here are refused
}

// Request is what is remembered of a request ID.
type Request struct {
	ID          string // UUIDv7
	Principal   string
	MAC         []byte // HMAC of the unsealed request
	OperationID string
	ResultID    string // of what was made or changed
	Revision    uint64
}

// counter is one aggregate that is kept so that nobody has to count rows.
type counter struct {
	key string
	n   int
}

// tables is everything: rows, indexes, aggregates. Copying it copies no rows.
type tables struct {
	meta Meta

	racks      table[metal.Rack]              // id
	sizes      table[metal.Size]              // name
	servers    table[metal.Server]            // id
	operations table[metal.Operation]         // id
	addresses  table[metal.AddressAssignment] // rack, address
	images     table[metal.Image]             // project, id
	projects   table[metal.Project]           // id
	keys       table[metal.SSHKey]            // id
	tokens     table[metal.Token]             // id
	agents     table[metal.Agent]             // id
	nodes      table[metal.Node]              // id
	events     table[metal.Event]             // revision, index
	audit      table[metal.AuditEntry]        // revision
	requests   table[Request]                 // request ID, principal
	models     table[metal.Model]             // vendor, product

	rackName, agentName, nodeName, projectName index // name
	serverMAC                                  index // mac
	serverSerial                               index // serial number as serialKey has it; those of fillers are not there
	serverOOB                                  index // rack, address
	loans                                      index // rack, mac: addresses that are lent; leads to their key
	rentalName                                 index // project, name; released ones too
	capacity                                   index // rack, state, size, name
	warm                                       index // rack, size, name; available and waiting in the ramdisk
	imageName                                  index // project, name, created
	keyName                                    index // project, name
	keyPrint                                   index // project, fingerprint
	openOps                                    index // created
	serverOps                                  index // server, created
	createdOps                                 index // created
	serverEvents                               index // server, revision and index

	serverName cow[namedServer]

	counts  cow[counter]
	changes cow[change] // not part of the state: a restored node starts with none
	floor   uint64      // the ring holds every change after this revision
	seq     uint64      // of the newest change in the ring
}

func (t *tables) count(key string) int {
	c, _ := t.counts.tree.Get(counter{key: key})
	return c.n
}

// Hash is a sum of row hashes: equal on all replicas of equal revision.
func (t *tables) Hash() Hash {
	sum := hashRow('m', func(b []byte) []byte { return encode(b, fromMeta(&t.meta)) })
	for _, l := range []lanes{t.racks.sum, t.sizes.sum, t.servers.sum, t.operations.sum, t.addresses.sum, t.images.sum,
		t.projects.sum, t.keys.sum, t.tokens.sum, t.agents.sum, t.nodes.sum, t.events.sum, t.audit.sum, t.requests.sum, t.models.sum} {
		sum.add(l)
	}
	return sum.bytes()
}

// Recompute takes the hash from scratch; it must equal Hash.
func (t *tables) Recompute() Hash {
	sum := hashRow('m', func(b []byte) []byte { return encode(b, fromMeta(&t.meta)) })
	for _, l := range []lanes{t.racks.recompute(), t.sizes.recompute(), t.servers.recompute(), t.operations.recompute(),
		t.addresses.recompute(), t.images.recompute(), t.projects.recompute(), t.keys.recompute(), t.tokens.recompute(),
		t.agents.recompute(), t.nodes.recompute(), t.events.recompute(), t.audit.recompute(), t.requests.recompute(), t.models.recompute()} {
		sum.add(l)
	}
	return sum.bytes()
}
