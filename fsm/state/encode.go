package state

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// encode appends the bytes that a row's hash is taken of. Rows have no maps and
// no unknown fields, so one row has one encoding; Deterministic guards what a
// later field might bring.
func encode(b []byte, m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
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
		racks:      newTable('r', func(b []byte, v *metal.Rack) []byte { return encode(b, logpb.FromRack(v)) }),
		sizes:      newTable('z', func(b []byte, v *metal.Size) []byte { return encode(b, logpb.FromSize(v)) }),
		servers:    newTable('s', func(b []byte, v *metal.Server) []byte { return encode(b, logpb.FromServer(v)) }),
		operations: newTable('o', func(b []byte, v *metal.Operation) []byte { return encode(b, logpb.FromOperation(v)) }),
		addresses:  newTable('d', func(b []byte, v *metal.AddressAssignment) []byte { return encode(b, logpb.FromAddress(v)) }),
		images:     newTable('i', func(b []byte, v *metal.Image) []byte { return encode(b, logpb.FromImage(v)) }),
		projects:   newTable('p', func(b []byte, v *metal.Project) []byte { return encode(b, logpb.FromProject(v)) }),
		keys:       newTable('k', func(b []byte, v *metal.SSHKey) []byte { return encode(b, logpb.FromSSHKey(v)) }),
		tokens:     newTable('t', func(b []byte, v *metal.Token) []byte { return encode(b, logpb.FromToken(v)) }),
		agents:     newTable('a', func(b []byte, v *metal.Agent) []byte { return encode(b, logpb.FromAgent(v)) }),
		nodes:      newTable('n', func(b []byte, v *metal.Node) []byte { return encode(b, logpb.FromNode(v)) }),
		events:     newTable('e', func(b []byte, v *metal.Event) []byte { return encode(b, logpb.FromEvent(v)) }),
		audit:      newTable('u', func(b []byte, v *metal.AuditEntry) []byte { return encode(b, logpb.FromAudit(v)) }),
		requests:   newTable('q', func(b []byte, v *Request) []byte { return encode(b, fromRequest(v)) }),
		models:     newTable('l', func(b []byte, v *metal.Model) []byte { return encode(b, logpb.FromModel(v)) }),

		rackName: newIndex(), serverMAC: newIndex(), serverSerial: newIndex(), serverOOB: newIndex(),
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
