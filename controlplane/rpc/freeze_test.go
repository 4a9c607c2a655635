package rpc

import (
	"slices"
	"strings"
	"testing"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// Without names all racks are frozen; each says by whom and why, and so does the audit.
func TestFreezeRacks(t *testing.T) {
	b, _ := rentable(t, 1)
	b.inventory("r2", 2, 1)
	u, before := b.user(0), b.fsm.View()
	frozen := func() (names []string) {
		list, err := u.inv.ListRacks(b.admin(), &bmcv1.ListRacksRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.GetRacks() {
			if r.GetFrozenBy() != "" {
				if r.GetFrozenWhy() != "feed B" || r.GetFrozenSince() == nil || r.GetFrozen() {
					t.Errorf("%v", r)
				}
				names = append(names, r.GetName())
			}
		}
		st, err := u.clu.Status(b.admin(), &bmcv1.StatusRequest{})
		if err != nil || int(st.GetFrozenRacks()) != len(names) {
			t.Errorf("status says %v, %v", st.GetFrozenRacks(), err)
		}
		return names
	}
	for _, tt := range []struct {
		req  *bmcv1.FreezeRacksRequest
		want []string
	}{
		{&bmcv1.FreezeRacksRequest{Reason: "feed B"}, []string{"r1", "r2"}},
		{&bmcv1.FreezeRacksRequest{Refs: []string{"r1"}, Thaw: true}, []string{"r2"}},
		{&bmcv1.FreezeRacksRequest{Thaw: true}, nil},
		{&bmcv1.FreezeRacksRequest{Refs: []string{"r1"}, Reason: "feed B"}, []string{"r1"}},
	} {
		resp, err := u.inv.FreezeRacks(b.admin(), tt.req)
		if err != nil || len(resp.GetRacks()) == 0 {
			t.Fatalf("%v: %v, %v", tt.req, resp, err)
		}
		if got := frozen(); !slices.Equal(got, tt.want) {
			t.Errorf("%v: frozen are %v, want %v", tt.req, got, tt.want)
		}
	}
	// A restore would take the word of a backup of before, and of one of now.
	if got := forgotten(b.fsm.View(), before); !slices.Equal(got, []string{"r1"}) {
		t.Errorf("a backup of before forgets %v", got)
	}
	if got := forgotten(b.fsm.View(), b.fsm.View()); len(got) > 0 {
		t.Errorf("a backup of now forgets %v", got)
	}
	_, err := u.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Rack: "r1"})
	refused(t, err, codes.FailedPrecondition, metal.CodeRackFrozen, "bmc cluster thaw r1")
	for _, bad := range []*bmcv1.FreezeRacksRequest{{Reason: strings.Repeat("x", fsm.MaxReason+1)}, {Thaw: true, Reason: "why"}} {
		_, err := u.inv.FreezeRacks(b.admin(), bad)
		refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
	}
	_, err = u.inv.FreezeRacks(b.admin(), &bmcv1.FreezeRacksRequest{Refs: []string{"r9"}})
	refused(t, err, codes.NotFound, metal.CodeNotFound, "bmc rack list")
	audited := 0
	for e := range b.fsm.View().Audit(0) {
		if e.Command == "freeze_racks" && e.Outcome == "" {
			audited++
		}
	}
	if audited != 4 {
		t.Errorf("%d entries in the audit", audited)
	}
}
