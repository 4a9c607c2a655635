package client

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	bmcv1 "bmc/api/bmc/v1"
)

// Whatever field of whatever message of the API has a revision, however deep, it is
// found; every singular message and uint64 field of each is set for that.
func TestEveryRevisionIsFound(t *testing.T) {
	all := bmcv1.File_bmc_proto.Messages()
	found := 0
	for i := range all.Len() {
		d := all.Get(i)
		typ, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		m := typ.New()
		want := fill(m, 1, 3)
		if got := revisionOf(m); got != want {
			t.Errorf("%s: revision %d, want %d", d.Name(), got, want)
		}
		if want > 0 {
			found++
		}
	}
	if found < 5 {
		t.Errorf("only %d messages have a revision", found)
	}
}

// fill sets what may be a revision, deeper ones higher, to a depth, and returns the
// highest.
func fill(m protoreflect.Message, value uint64, depth int) (highest uint64) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList(), f.IsMap(), f.ContainingOneof() != nil && m.WhichOneof(f.ContainingOneof()) != nil:
		case f.Kind() == protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(1_000_000))
			if f.Name() == "revision" || f.Name() == "resource_version" {
				m.Set(f, protoreflect.ValueOfUint64(value))
				highest = max(highest, value)
			}
		case f.Kind() == protoreflect.MessageKind && depth > 0:
			highest = max(highest, fill(m.Mutable(f).Message(), value+1, depth-1))
		}
	}
	return highest
}
