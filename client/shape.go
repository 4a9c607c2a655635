package client

import (
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape is which of a message's fields the client looks at: found once a type, as
// every call asks.
type shape struct {
	requestID   protoreflect.FieldDescriptor   // nil: it is no mutation
	minRevision protoreflect.FieldDescriptor   // nil: it is no read
	allowStale  protoreflect.FieldDescriptor   // likewise
	revisions   []protoreflect.FieldDescriptor // its own
	inside      []protoreflect.FieldDescriptor // messages that have revisions
}

// shapes by message type.
var shapes sync.Map

func shapeOf(d protoreflect.MessageDescriptor) *shape {
	if s, ok := shapes.Load(d); ok {
		return s.(*shape) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	s := newShape(d)
	shapes.Store(d, s)
	return s
}

func newShape(d protoreflect.MessageDescriptor) *shape {
	of := func(name protoreflect.Name, kind protoreflect.Kind) protoreflect.FieldDescriptor {
		if f := d.Fields().ByName(name); f != nil && f.Kind() == kind && !f.IsList() {
			return f
		}
		return nil
	}
	s := &shape{
		requestID:   of("request_id", protoreflect.StringKind),
		minRevision: of("min_revision", protoreflect.Uint64Kind),
		allowStale:  of("allow_stale", protoreflect.BoolKind),
	}
	for _, name := range []protoreflect.Name{"revision", "resource_version"} {
		if f := of(name, protoreflect.Uint64Kind); f != nil {
			s.revisions = append(s.revisions, f)
		}
	}
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); oneMessage(f) && hasRevision(f.Message(), map[protoreflect.FullName]bool{}) {
			s.inside = append(s.inside, f)
		}
	}
	return s
}

// oneMessage says whether a field is one message.
func oneMessage(f protoreflect.FieldDescriptor) bool {
	return f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap()
}

// hasRevision says whether a message or one inside it has a revision.
func hasRevision(d protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if seen[d.FullName()] {
		return false
	}
	seen[d.FullName()] = true
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Kind() == protoreflect.Uint64Kind && !f.IsList() && (f.Name() == "revision" || f.Name() == "resource_version") {
			return true
		}
		if oneMessage(f) && hasRevision(f.Message(), seen) {
			return true
		}
	}
	return false
}
