package state

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// encode makes the bytes that a row's hash is taken of. Rows have no maps and
// no unknown fields, so one row has one encoding; Deterministic guards what a
// later field might bring.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only a string that is not UTF-8 can fail, and strings come from
		// decoded messages or literals.
		panic(fmt.Sprintf("fsm/state: a row cannot be encoded: %v", err))
	}
	return b
}

func fromMeta(m *Meta) *logpb.Meta {
	return &logpb.Meta{ClusterId: m.ClusterID, Revision: m.Revision, Generation: m.Generation, FeatureLevel: m.FeatureLevel,
		Time: logpb.Nanos(m.Time), AuditHead: m.AuditHead, AuditCount: m.AuditCount, RequestHorizon: m.RequestHorizon}
}

func fromRequest(r *Request) *logpb.Request {
	return &logpb.Request{Id: r.ID, Principal: r.Principal, Mac: r.MAC, OperationId: r.OperationID, ResultId: r.ResultID, Revision: r.Revision}
}

func newTables() tables {
	return tables{
		racks:      newTable('r', func(v *metal.Rack) []byte { return encode(logpb.FromRack(v)) }),
		sizes:      newTable('z', func(v *metal.Size) []byte { return encode(logpb.FromSize(v)) }),
		servers:    newTable('s', func(v *metal.Server) []byte { return encode(logpb.FromServer(v)) }),
		operations: newTable('o', func(v *metal.Operation) []byte { return encode(logpb.FromOperation(v)) }),
		addresses:  newTable('d', func(v *metal.AddressAssignment) []byte { return encode(logpb.FromAddress(v)) }),
		images:     newTable('i', func(v *metal.Image) []byte { return encode(logpb.FromImage(v)) }),
		projects:   newTable('p', func(v *metal.Project) []byte { return encode(logpb.FromProject(v)) }),
		keys:       newTable('k', func(v *metal.SSHKey) []byte { return encode(logpb.FromSSHKey(v)) }),
		tokens:     newTable('t', func(v *metal.Token) []byte { return encode(logpb.FromToken(v)) }),
		agents:     newTable('a', func(v *metal.Agent) []byte { return encode(logpb.FromAgent(v)) }),
		nodes:      newTable('n', func(v *metal.Node) []byte { return encode(logpb.FromNode(v)) }),
		events:     newTable('e', func(v *metal.Event) []byte { return encode(logpb.FromEvent(v)) }),
		audit:      newTable('u', func(v *metal.AuditEntry) []byte { return encode(logpb.FromAudit(v)) }),
		requests:   newTable('q', func(v *Request) []byte { return encode(fromRequest(v)) }),
		models:     newTable('l', func(v *metal.Model) []byte { return encode(logpb.FromModel(v)) }),

		rackName: newIndex(), serverMAC: newIndex(), serverOOB: newIndex(),
		rentalName: newIndex(), capacity: newIndex(), warm: newIndex(), imageName: newIndex(), keyName: newIndex(), keyPrint: newIndex(),
		projectName: newIndex(), agentName: newIndex(), nodeName: newIndex(), openOps: newIndex(),
		loans: newIndex(), serverOps: newIndex(), createdOps: newIndex(), serverEvents: newIndex(),
		serverName: newCow(func(a, b namedServer) bool {
			if a.name != b.name {
				return a.name < b.name
			}
			return a.id < b.id
		}),
		counts:  newCow(func(a, b counter) bool { return a.key < b.key }),
		changes: newCow(func(a, b change) bool { return a.seq < b.seq }),
	}
}
