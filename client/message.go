package client

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	bmcv1 "bmc/api/bmc/v1"
)

// seen is the highest revision that any answer to this client has shown.
type seen struct{ revision atomic.Uint64 }

// learn takes the revision out of an answer: its own, or the row's. A row that
// lies inside another (a Server in an Operation) may be the newer of the two.
func (s *seen) learn(answer any) {
	if _, foreign := answer.(*bmcv1.InspectSnapshotResponse); foreign {
		return // a file's revision, perhaps of another cluster
	}
	msg, ok := answer.(proto.Message)
	if !ok {
		return
	}
	s.note(revisionOf(msg.ProtoReflect()))
}

func (s *seen) note(revision uint64) {
	for {
		old := s.revision.Load()
		if revision <= old || s.revision.CompareAndSwap(old, revision) {
			return
		}
	}
}

func revisionOf(r protoreflect.Message) (highest uint64) {
	s := shapeOf(r.Descriptor())
	for _, f := range s.revisions {
		highest = max(highest, r.Get(f).Uint())
	}
	for _, f := range s.inside {
		if r.Has(f) {
			highest = max(highest, revisionOf(r.Get(f).Message()))
		}
	}
	return highest
}

// prepared is a request as it is sent: with a request ID (UUIDv7, RFC 9562
// section 5.7) if it is a mutation without one, and with the lowest revision
// that may answer it if it is a read that may be stale: another has all that was
// acknowledged before anyway. The caller's message stays as it was, so that using
// it again is another request.
func (s *seen) prepared(request any) any {
	msg, ok := request.(proto.Message)
	if !ok {
		return request
	}
	r := msg.ProtoReflect()
	shape := shapeOf(r.Descriptor())
	newID, newLeast := "", uint64(0)
	if shape.requestID != nil && r.Get(shape.requestID).String() == "" {
		newID = requestID()
	}
	if shape.minRevision != nil && (shape.allowStale == nil || r.Get(shape.allowStale).Bool()) && r.Get(shape.minRevision).Uint() == 0 {
		newLeast = s.revision.Load()
	}
	if newID == "" && newLeast == 0 {
		return request
	}
	out := proto.Clone(msg).ProtoReflect()
	if newID != "" {
		out.Set(shape.requestID, protoreflect.ValueOfString(newID))
	}
	if newLeast != 0 {
		out.Set(shape.minRevision, protoreflect.ValueOfUint64(newLeast))
	}
	return out.Interface()
}
