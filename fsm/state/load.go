package state

import (
	"errors"
	"fmt"
	"iter"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// Rows yields every row as snapshots hold them: Meta first, then table by
// table in order of keys.
func (t *tables) Rows() iter.Seq[*logpb.SnapshotRow] {
	return func(yield func(*logpb.SnapshotRow) bool) {
		ok := yield(&logpb.SnapshotRow{Row: &logpb.SnapshotRow_Meta{Meta: fromMeta(&t.meta)}})
		emit(&ok, yield, &t.racks, func(v *metal.Rack, r *logpb.SnapshotRow) { r.Row = &logpb.SnapshotRow_Rack{Rack: logpb.FromRack(v)} })
		emit(&ok, yield, &t.sizes, func(v *metal.Size, r *logpb.SnapshotRow) { r.Row = &logpb.SnapshotRow_Size{Size: logpb.FromSize(v)} })
		emit(&ok, yield, &t.servers, func(v *metal.Server, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Server{Server: logpb.FromServer(v)}
		})
		emit(&ok, yield, &t.operations, func(v *metal.Operation, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Operation{Operation: logpb.FromOperation(v)}
		})
		emit(&ok, yield, &t.addresses, func(v *metal.AddressAssignment, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Address{Address: logpb.FromAddress(v)}
		})
		emit(&ok, yield, &t.images, func(v *metal.Image, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Image{Image: logpb.FromImage(v)}
		})
		emit(&ok, yield, &t.projects, func(v *metal.Project, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Project{Project: logpb.FromProject(v)}
		})
		emit(&ok, yield, &t.keys, func(v *metal.SSHKey, r *logpb.SnapshotRow) { r.Row = &logpb.SnapshotRow_Key{Key: logpb.FromSSHKey(v)} })
		emit(&ok, yield, &t.tokens, func(v *metal.Token, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Token{Token: logpb.FromToken(v)}
		})
		emit(&ok, yield, &t.agents, func(v *metal.Agent, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Agent{Agent: logpb.FromAgent(v)}
		})
		emit(&ok, yield, &t.nodes, func(v *metal.Node, r *logpb.SnapshotRow) { r.Row = &logpb.SnapshotRow_Node{Node: logpb.FromNode(v)} })
		emit(&ok, yield, &t.events, func(v *metal.Event, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Event{Event: logpb.FromEvent(v)}
		})
		emit(&ok, yield, &t.audit, func(v *metal.AuditEntry, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Audit{Audit: logpb.FromAudit(v)}
		})
		emit(&ok, yield, &t.requests, func(v *Request, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Request{Request: fromRequest(v)}
		})
		emit(&ok, yield, &t.models, func(v *metal.Model, r *logpb.SnapshotRow) {
			r.Row = &logpb.SnapshotRow_Model{Model: logpb.FromModel(v)}
		})
	}
}

func emit[T any](ok *bool, yield func(*logpb.SnapshotRow) bool, t *table[T], wrap func(*T, *logpb.SnapshotRow)) {
	for v := range t.from("") {
		if !*ok {
			return
		}
		row := new(logpb.SnapshotRow)
		wrap(v, row)
		*ok = yield(row)
	}
}

// CountRows is how many rows Rows yields.
func (t *tables) CountRows() uint64 {
	n := 1
	for _, l := range []int{t.racks.len(), t.sizes.len(), t.servers.len(), t.operations.len(), t.addresses.len(), t.images.len(),
		t.projects.len(), t.keys.len(), t.tokens.len(), t.agents.len(), t.nodes.len(), t.events.len(), t.audit.len(), t.requests.len(), t.models.len()} {
		n += l
	}
	return uint64(n)
}

// Loader builds a View of the rows of a snapshot, in the order of Rows.
type Loader struct {
	x      *Txn
	loaded bool // meta has come
}

// NewLoader begins with an empty state.
func NewLoader() *Loader {
	l := &Loader{x: New().Begin()}
	l.x.own.final = true
	return l
}

// View returns what was loaded. Its ring of changes is empty: watchers of
// whatever was before start over.
func (l *Loader) View() (*View, error) {
	if !l.loaded {
		return nil, errors.New("the snapshot has no meta row")
	}
	l.x.ForgetChanges()
	return l.x.Commit(), nil
}

// Load adds one row. Errors: an unknown kind, a key that came before, an
// address that does not parse.
func (l *Loader) Load(row *logpb.SnapshotRow) error {
	if m, ok := row.GetRow().(*logpb.SnapshotRow_Meta); ok {
		return l.loadMeta(m.Meta)
	}
	if !l.loaded {
		return errors.New("the first row is not meta")
	}
	return l.load(row)
}

func (l *Loader) loadMeta(m *logpb.Meta) error {
	if l.loaded {
		return errors.New("there are two meta rows")
	}
	l.loaded = true
	l.x.meta = Meta{ClusterID: m.GetClusterId(), Revision: m.GetRevision(), Generation: m.GetGeneration(),
		FeatureLevel: m.GetFeatureLevel(), Time: logpb.Time(m.GetTime()), AuditHead: m.GetAuditHead(),
		AuditCount: m.GetAuditCount(), RequestHorizon: m.GetRequestHorizon()}
	return nil
}

func (l *Loader) load(row *logpb.SnapshotRow) error {
	x := l.x
	switch r := row.GetRow().(type) {
	case *logpb.SnapshotRow_Rack:
		v, err := r.Rack.Metal()
		if err != nil {
			return err
		}
		x.rackName.swap(x.own, "", v.Name, v.ID)
		return once("rack", v.ID, x.racks.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Size:
		v := r.Size.Metal()
		return once("size", v.Name, x.sizes.put(x.own, v.Name, v))
	case *logpb.SnapshotRow_Server:
		v, err := r.Server.Metal()
		if err != nil {
			return err
		}
		x.indexServer(nil, v)
		old, rec := x.servers.putRecord(x.own, v.ID, v)
		x.nameServer(nil, rec)
		return once("server", v.ID, old)
	case *logpb.SnapshotRow_Operation:
		v := r.Operation.Metal()
		x.indexOperation(nil, v)
		return once("operation", v.ID, x.operations.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Address:
		v, err := r.Address.Metal()
		if err != nil || !v.Address.IsValid() {
			return fmt.Errorf("address assignment %q: %w", r.Address.GetAddress(), errors.Join(err, errors.New("not an address")))
		}
		key := addressKey(v.RackID, v.Address)
		x.loans.swap(x.own, "", loanKey(v), key)
		return once("address", v.Address.String(), x.addresses.put(x.own, key, v))
	case *logpb.SnapshotRow_Image:
		v := r.Image.Metal()
		x.indexImage(nil, v)
		return once("image", v.ID, x.images.put(x.own, join(v.Project, v.ID), v))
	case *logpb.SnapshotRow_Project:
		v := r.Project.Metal()
		x.projectName.swap(x.own, "", v.Name, v.ID)
		return once("project", v.ID, x.projects.put(x.own, v.ID, v))
	}
	return l.loadMore(row)
}

func (l *Loader) loadMore(row *logpb.SnapshotRow) error {
	x := l.x
	switch r := row.GetRow().(type) {
	case *logpb.SnapshotRow_Key:
		v := r.Key.Metal()
		x.indexKey(nil, v, v.ID)
		return once("key", v.ID, x.keys.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Token:
		v := r.Token.Metal()
		return once("token", v.ID, x.tokens.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Agent:
		v := r.Agent.Metal()
		x.agentName.swap(x.own, "", v.Name, v.ID)
		return once("agent", v.ID, x.agents.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Node:
		v := r.Node.Metal()
		x.nodeName.swap(x.own, "", v.Name, v.ID)
		return once("node", v.ID, x.nodes.put(x.own, v.ID, v))
	case *logpb.SnapshotRow_Event:
		v := r.Event.Metal()
		before := x.events.len()
		if x.putEvent(v); x.events.len() == before {
			return fmt.Errorf("event %d/%d came twice", v.Revision, v.Index)
		}
		return nil
	case *logpb.SnapshotRow_Audit:
		v := r.Audit.Metal()
		return once("audit entry", fmt.Sprint(v.Revision), x.audit.put(x.own, be(v.Revision), v))
	case *logpb.SnapshotRow_Model:
		v := r.Model.Metal()
		return once("model", v.Name(), x.models.put(x.own, modelKey(v.Vendor, v.Product), v))
	case *logpb.SnapshotRow_Request:
		q := r.Request
		v := &Request{ID: q.GetId(), Principal: q.GetPrincipal(), MAC: q.GetMac(), OperationID: q.GetOperationId(),
			ResultID: q.GetResultId(), Revision: q.GetRevision()}
		return once("request", v.ID, x.requests.put(x.own, join(v.ID, v.Principal), v))
	}
	return errors.New("a row is of a kind that this version does not know")
}

func once[T any](noun, key string, old *T) error {
	if old != nil {
		return fmt.Errorf("%s %q came twice", noun, clip(key))
	}
	return nil
}
