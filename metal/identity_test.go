package metal

import (
	"fmt"
	"testing"
)

// Every combination of what can be equal, different, unknown and filled in.
func TestCompareIdentities(t *testing.T) {
	serials := map[string]string{"equal": "XJ42", "differs": "XJ43", "unknown": "", "filler": "To be filled by O.E.M.", "zeros": "0000000"}
	uuids := map[string]string{"equal": "6b1f5a10-0000-4000-8000-525400000001", "swapped": "105a1f6b-0000-0040-8000-525400000001",
		"differs": "6b1f5a10-0000-4000-8000-525400000002", "unknown": "", "shared": "03000200-0400-0500-0006-000700080009",
		"zeros": "00000000-0000-0000-0000-000000000000"}
	macs := map[string][]string{"there": {"52:54:00:00:00:09", "52:54:00:00:00:01"}, "gone": {"52:54:00:00:00:09"},
		"second only": {"52:54:00:00:00:02"}, "none": nil}
	want := Identity{Serial: "xj42", UUID: "6B1F5A10-0000-4000-8000-525400000001", MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}}
	for s, serial := range serials {
		for u, uuid := range uuids {
			for m, mac := range macs {
				expect := Different
				switch {
				case m == "there" && s == "equal" && (u == "equal" || u == "swapped"):
					expect = Same
				case m == "there":
					expect = BoardReplaced
				case s == "equal" && (u == "equal" || u == "swapped"):
					expect = NICReplaced
				}
				t.Run(fmt.Sprint(s, "/", u, "/", m), func(t *testing.T) {
					if got := want.Compare(Identity{Serial: serial, UUID: uuid, MACs: mac}); got != expect {
						t.Errorf("%s, want %s", got, expect)
					}
				})
			}
		}
	}
}

// Two machines that share what a vendor put into all of them have nothing in common.
func TestFillersCarryNoWeight(t *testing.T) {
	for _, s := range []string{"To Be Filled By O.E.M.", "Default string", "0123456789", "00000000", "........", "N/A"} {
		for _, u := range []string{"", "ffffffff-ffff-ffff-ffff-ffffffffffff", "03000200-0400-0500-0006-000700080009"} {
			a := Identity{Serial: s, UUID: u, MACs: []string{"52:54:00:00:00:01"}}
			if got := a.Compare(Identity{Serial: s, UUID: u, MACs: []string{"52:54:00:00:00:02"}}); got != Different {
				t.Errorf("%q, %q: %s", s, u, got)
			}
			if got := a.Compare(a); got != Same {
				t.Errorf("%q, %q, its own NIC: %s", s, u, got)
			}
		}
	}
	if got := (Identity{}).Compare(Identity{}); got != Different {
		t.Errorf("nothing and nothing: %s", got)
	}
}

func TestSizeRules(t *testing.T) {
	h := &Hardware{Vendor: "Dell Inc.", Product: "PowerEdge R640", CPUThreads: 32, MemoryBytes: 64 << 30, Disks: []Disk{
		{Name: "nvme0n1", Kind: "nvme", SizeBytes: 1 << 40}, {Name: "nvme1n1", Kind: "nvme", SizeBytes: 1 << 40},
		{Name: "sda", Kind: "hdd", SizeBytes: 4 << 40}, {Name: "sdb", Kind: "ssd", SizeBytes: 1 << 30, Removable: true}}}
	for _, tt := range []struct {
		name string
		rule SizeRule
		fits bool
	}{
		{"nothing asked", SizeRule{}, true},
		{"model", SizeRule{Model: "dell*r640"}, true},
		{"model in the middle", SizeRule{Model: "*PowerEdge*"}, true},
		{"another model", SizeRule{Model: "HPE*"}, false},
		{"model in full", SizeRule{Model: "Dell Inc."}, false},
		{"two NVMe", SizeRule{Disks: []DiskRule{{Kind: "nvme", MinBytes: 1 << 40, Count: 2}}}, true},
		{"three NVMe", SizeRule{Disks: []DiskRule{{Kind: "nvme", Count: 3}}}, false},
		{"any three", SizeRule{Disks: []DiskRule{{Count: 3}}}, true},
		{"removable does not count", SizeRule{Disks: []DiskRule{{Kind: "ssd"}}}, false},
		{"larger", SizeRule{Disks: []DiskRule{{Kind: "hdd", MinBytes: 8 << 40}}}, false},
		{"both lines", SizeRule{Disks: []DiskRule{{Kind: "nvme"}, {Kind: "hdd"}}}, true},
		{"label", SizeRule{Labels: map[string]string{"gpu": "a100"}}, true},
		{"another label", SizeRule{Labels: map[string]string{"gpu": "h100"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			z := &Size{Name: "big", MinCPUThreads: 32, Rule: tt.rule}
			if err := z.Validate("size"); err != nil {
				t.Fatal(err)
			}
			if why := z.Misses(h, map[string]string{"gpu": "a100"}); (why == "") != tt.fits {
				t.Errorf("misses %q", why)
			}
		})
	}
	low, high := &Size{Name: "a", MinMemoryBytes: 1 << 30}, &Size{Name: "b", Rule: SizeRule{Priority: 1}}
	if low.Before(high) || !high.Before(low) {
		t.Error("priority comes before size")
	}
	for _, bad := range []SizeRule{{Priority: 1001}, {Disks: []DiskRule{{Kind: "tape"}}}, {Disks: make([]DiskRule, 9)}, {Model: "\x00"}, {Labels: map[string]string{"": ""}}} {
		if (&Size{Name: "big", Rule: bad}).Validate("size") == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
