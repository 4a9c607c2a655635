package rpc

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/state"
	"bmc/metal"
)

// What a list and a get send are bytes that were made before: after every kind of
// change they must be what the row, its operation and the names are now, for tenants
// and operators alike.
func TestSentServersAreFresh(t *testing.T) {
	b, a := rentable(t, 2)
	callers := map[string]context.Context{"operator": b.admin(), "tenant": b.token("mona", metal.RoleMember, testProject)}
	check := func(after string) {
		t.Helper()
		for name, ctx := range callers {
			for range 2 { // made, then kept
				list, err := b.user(1).ListServers(ctx, &bmcv1.ListServersRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if len(list.ProtoReflect().GetUnknown()) > 0 {
					t.Fatalf("%s: a client cannot read the list", after)
				}
				for _, got := range list.GetServers() {
					one, err := b.user(1).GetServer(ctx, &bmcv1.GetServerRequest{Ref: got.GetId()})
					if err != nil {
						t.Fatal(err)
					}
					row, ok := b.fsm.View().Server(got.GetId())
					if !ok {
						t.Fatalf("after %s there is no %s", after, got.GetId())
					}
					want := toServer(b.fsm.View(), row, name == "operator")
					if !proto.Equal(got, want) || !proto.Equal(one, want) {
						t.Errorf("after %s the %s's list has\n%v, get\n%v, the row\n%v", after, name, got, one, want)
					}
					if name == "tenant" && got.GetOobAddress() != "" {
						t.Errorf("after %s a tenant sees the controller's address", after)
					}
				}
			}
		}
	}
	check("enrolment")
	if _, err := b.user(0).CreateServer(callers["tenant"], &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	check("create")
	list, err := b.user(0).ListServers(callers["tenant"], &bmcv1.ListServersRequest{})
	if err != nil || len(list.GetServers()) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	op := a.begin("web-1") // a new deadline: of the operation, not of the server
	check("the assignment")
	for _, s := range metal.Plan(op.Kind) {
		a.step(op.ID, s)
		check(string(s))
	}
	if _, err := b.user(0).DestroyServer(callers["tenant"], &bmcv1.DestroyServerRequest{Ref: "web-1"}); err != nil {
		t.Fatal(err)
	}
	check("destroy")
}

// A page ends where it is large enough, and the next goes on.
func TestLargePageEndsEarly(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 3)
	v := b.fsm.View()
	page := newServerPage(v, 10, true)
	for row := range v.ServerRows(state.ServerFilter{}) {
		if err := page.add(row); err != nil {
			t.Fatal(err)
		}
		if page.full() {
			t.Fatal("three servers fill a page")
		}
	}
	page.encoded = append(page.encoded, make([]byte, maxPageBytes)...)
	if !page.full() || page.rows != 3 || page.last != "r1-u03" {
		t.Fatalf("%d rows, the last is %s", page.rows, page.last)
	}
}
