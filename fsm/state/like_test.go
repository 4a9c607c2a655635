package state

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bmc/metal"
)

// Whoever compares as anything but different is among those that are alike.
func TestServersLike(t *testing.T) {
	x := New().Begin()
	x.SetCommand(1, time.Unix(1, 0))
	uuid := "6b1f0000-1111-2222-3333-444455556666"
	for i, s := range []metal.Server{
		{Serial: "SN1"}, {Serial: "sn1", UUID: uuid}, {Serial: " SN1 "}, {Serial: "SN10", UUID: uuid}, {Serial: "None", UUID: uuid}, {UUID: uuid}, {Serial: "\u017fN1", UUID: uuid},
	} {
		s.ID, s.Name, s.RackID = fmt.Sprint("srv-", i), fmt.Sprint("u", i), "rack-1"
		s.MACs = []string{fmt.Sprintf("52:54:00:00:00:%02x", i), fmt.Sprintf("52:54:00:00:01:%02x", i)}
		x.PutServer(&s)
	}
	moved := *x.server("srv-2")
	moved.Serial = "SN2"
	x.PutServer(&moved)
	x.DeleteServer("srv-5")
	for _, tt := range []struct {
		id   metal.Identity
		want []string
	}{
		{metal.Identity{Serial: "SN1", UUID: uuid}, []string{"srv-0", "srv-1", "srv-6"}},
		{metal.Identity{Serial: "SN2"}, []string{"srv-2"}},
		{metal.Identity{Serial: "none", UUID: uuid}, nil},
		{metal.Identity{UUID: uuid, MACs: []string{"52:54:00:00:00:04"}}, []string{"srv-4"}},
		{metal.Identity{Serial: "SN10", MACs: []string{"52:54:00:00:00:FF", "52:54:00:00:00:00", "52:54:00:00:01:00"}}, []string{"srv-0", "srv-3"}},
		{metal.Identity{}, nil},
	} {
		var got []string
		for _, s := range x.ServersLike(tt.id) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %v, want %v", tt.id, got, tt.want)
		}
		for s := range x.Servers(ServerFilter{}) {
			if s.Identity().Compare(tt.id) != metal.Different && !slices.Contains(got, s.ID) {
				t.Errorf("%+v: %s is the same and not alike", tt.id, s.ID)
			}
		}
	}
}
