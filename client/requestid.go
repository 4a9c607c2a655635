package client

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// mint gives a mutation its request ID (UUIDv7, RFC 9562 section 5.7) unless
// its caller already chose one. Messages without the field pass unchanged.
func mint(m any) {
	msg, ok := m.(proto.Message)
	if !ok {
		return
	}
	r := msg.ProtoReflect()
	f := r.Descriptor().Fields().ByName("request_id")
	if f == nil || f.Kind() != protoreflect.StringKind || r.Get(f).String() != "" {
		return
	}
	id, err := uuid.NewV7()
	if err != nil {
		return // the node mints one then; only a blind retry loses its protection
	}
	r.Set(f, protoreflect.ValueOfString(id.String()))
}
