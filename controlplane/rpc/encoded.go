package rpc

import (
	"fmt"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// maxPageBytes is how large a page of servers grows; more are on the next one.
const maxPageBytes = 8 << 20

// typicalServer is room for one in a page, in bytes; a larger one costs a copy.
const typicalServer = 256

// fieldServers is the number of ListServersResponse.servers.
const fieldServers = 1

// encodedServer is a server as ListServersResponse has it, kept beside its row: it
// stands as long as the row and its operation do (state.ServerRow) and the names in
// it are the same. toServer must read nothing else.
type encodedServer struct {
	rack, project string    // names
	field         [2][]byte // tag, length and message; for tenants, for operators
}

// serverPage collects encoded servers. It is for one goroutine.
type serverPage struct {
	v        *state.View
	operator bool
	racks    map[string]string // names by ID
	projects map[string]string
	encoded  []byte
	rows     int
	last     string // name of the newest server in it
}

// newServerPage begins a page of at most some rows.
func newServerPage(v *state.View, rows int, operator bool) *serverPage {
	return &serverPage{v: v, operator: operator, racks: map[string]string{}, projects: map[string]string{},
		encoded: make([]byte, 0, min(rows, v.CountServers(""))*typicalServer)}
}

func (p *serverPage) full() bool { return len(p.encoded) >= maxPageBytes }

func (p *serverPage) add(row state.ServerRow) error {
	rack, project := named(p.racks, row.RackID, p.v, rackName), ""
	if row.Rental != nil {
		project = named(p.projects, row.Rental.Project, p.v, projectName)
	}
	b, err := encoded(p.v, row, p.operator, rack, project)
	if err != nil {
		return err
	}
	p.encoded = append(p.encoded, b...)
	p.rows, p.last = p.rows+1, row.Name
	return nil
}

// encoded is a server as ListServersResponse has it, for those who see it as
// operators or not; rack and project are the names of its own.
func encoded(v *state.View, row state.ServerRow, operator bool, rack, project string) ([]byte, error) {
	who := 0
	if operator {
		who = 1
	}
	e, ok := row.Memo().(*encodedServer)
	if !ok || e.rack != rack || e.project != project {
		e = &encodedServer{rack: rack, project: project}
	}
	if e.field[who] == nil {
		b, err := proto.Marshal(toServer(v, row.Server, operator))
		if err != nil {
			return nil, fmt.Errorf("encode server %s: %w", row.ID, err)
		}
		changed := *e
		changed.field[who] = protowire.AppendBytes(protowire.AppendTag(nil, fieldServers, protowire.BytesType), b)
		e = &changed
		row.SetMemo(e)
	}
	return e.field[who], nil
}

// sentServer is toServer for an answer that is sent and not looked at: the bytes that
// are kept beside the row, as serverPage.into sends them.
func sentServer(v *state.View, s *metal.Server, operator bool) (*bmcv1.Server, error) {
	row, ok := v.ServerRow(s.ID)
	if !ok {
		return nil, fmt.Errorf("server %s is not in the view that it was found in", s.ID)
	}
	project := ""
	if s.Rental != nil {
		project = projectName(v, s.Rental.Project)
	}
	field, err := encoded(v, row, operator, rackName(v, s.RackID), project)
	if err != nil {
		return nil, err
	}
	_, _, tag := protowire.ConsumeTag(field)
	message, n := protowire.ConsumeBytes(field[tag:])
	if n < 0 {
		return nil, fmt.Errorf("the encoding of server %s is broken: %w", s.ID, protowire.ParseError(n))
	}
	out := &bmcv1.Server{}
	out.ProtoReflect().SetUnknown(message)
	return out, nil
}

func named(known map[string]string, id string, v *state.View, find func(*state.View, string) string) string {
	name, ok := known[id]
	if !ok {
		name = find(v, id)
		known[id] = name
	}
	return name
}

// into adds the servers to a response, as the bytes that they are on the wire: a
// message may carry fields that are encoded already as if it did not know them.
func (p *serverPage) into(r *bmcv1.ListServersResponse) { r.ProtoReflect().SetUnknown(p.encoded) }
