package rpc

import (
	"fmt"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"

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
	who := 0
	if p.operator {
		who = 1
	}
	rack, project := named(p.racks, row.RackID, p.v, rackName), ""
	if row.Rental != nil {
		project = named(p.projects, row.Rental.Project, p.v, projectName)
	}
	e, ok := row.Memo().(*encodedServer)
	if !ok || e.rack != rack || e.project != project {
		e = &encodedServer{rack: rack, project: project}
	}
	if e.field[who] == nil {
		b, err := proto.Marshal(toServer(p.v, row.Server, p.operator))
		if err != nil {
			return fmt.Errorf("encode server %s: %w", row.ID, err)
		}
		changed := *e
		changed.field[who] = protowire.AppendBytes(protowire.AppendTag(nil, fieldServers, protowire.BytesType), b)
		e = &changed
		row.SetMemo(e)
	}
	p.encoded = append(p.encoded, e.field[who]...)
	p.rows, p.last = p.rows+1, row.Name
	return nil
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
