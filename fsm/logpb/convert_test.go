package logpb

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bmc/metal"
)

// fill sets every field of a value to something that is not its zero, so that
// a field that a conversion forgets is seen.
func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Unix(int64(1_700_000_000+*n), int64(*n)).UTC()
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, byte(*n >> 8), byte(*n)})
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(*n), 0}), 24)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n) & 0xff)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 5 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(k, n)
			fill(e, n)
			v.SetMapIndex(k, e)
		}
	default:
		panic("no way to fill " + v.Type().String())
	}
}

func roundTrip[T any, P proto.Message](t *testing.T, to func(*T) P, from func(P) (*T, error)) {
	t.Helper()
	t.Run(reflect.TypeFor[T]().Name(), func(t *testing.T) {
		full, zero := new(T), new(T)
		n := 0
		fill(reflect.ValueOf(full).Elem(), &n)
		for _, want := range []*T{full, zero} {
			row := to(want)
			b, err := proto.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			back := row.ProtoReflect().New().Interface().(P)
			if err := proto.Unmarshal(b, back); err != nil {
				t.Fatal(err)
			}
			got, err := from(back)
			if err != nil {
				if want == zero {
					continue // a rack without a subnet is none
				}
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got  %+v\nwant %+v", got, want)
			}
			// One value, one encoding, in whatever order its maps are walked.
			for range 20 {
				again, err := proto.Marshal(to(want))
				if err != nil || string(again) != string(b) {
					t.Fatal("one value has two encodings")
				}
			}
		}
	})
}

func certain[T any, P any](f func(P) *T) func(P) (*T, error) {
	return func(p P) (*T, error) { return f(p), nil }
}

func TestRoundTrips(t *testing.T) {
	roundTrip[metal.Server](t, FromServer, (*Server).Metal)
	roundTrip[metal.Rack](t, FromRack, (*Rack).Metal)
	roundTrip[metal.AddressAssignment](t, FromAddress, (*AddressAssignment).Metal)
	roundTrip(t, FromSize, certain((*Size).Metal))
	roundTrip(t, FromModel, certain((*Model).Metal))
	roundTrip(t, FromOperation, certain((*Operation).Metal))
	roundTrip(t, FromImage, certain((*Image).Metal))
	roundTrip(t, FromProject, certain((*Project).Metal))
	roundTrip(t, FromSSHKey, certain((*SSHKey).Metal))
	roundTrip(t, FromToken, certain((*Token).Metal))
	roundTrip(t, FromAgent, certain((*Agent).Metal))
	roundTrip(t, FromNode, certain((*Node).Metal))
	roundTrip(t, FromEvent, certain((*Event).Metal))
	roundTrip(t, FromAudit, certain((*AuditEntry).Metal))
}

func TestAddressesThatDoNotParse(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  func() error
	}{
		{"server", func() error { _, err := (&Server{Address: "10.0.0"}).Metal(); return err }},
		{"rack subnet", func() error { _, err := (&Rack{Subnet: "x"}).Metal(); return err }},
		{"rack dns", func() error { _, err := (&Rack{Subnet: "10.0.0.0/8", Dns: []string{"x"}}).Metal(); return err }},
		{"assignment", func() error { _, err := (&AddressAssignment{Address: "::g"}).Metal(); return err }},
	} {
		if tt.err() == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}
