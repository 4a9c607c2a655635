package dhcp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A reply never exceeds what the client takes; what matters most stays.
func TestReplyFits(t *testing.T) {
	lease := testLease
	lease.Domain = strings.Repeat("d", 200)
	lease.Hostname = strings.Repeat("h", 63)
	big := strings.Repeat("x", 255)
	tests := []struct {
		name    string
		options map[uint8]string
		limit   int
		keeps   []uint8
		drops   []uint8
	}{
		{"default", nil, 576, []uint8{53, 54, 51, 1, 3, 6, 12}, nil},
		{"option 82 of full length", map[uint8]string{82: big}, 576, []uint8{53, 54, 51, 82, 1, 3, 6}, []uint8{12, 15}},
		{"option 82 and a long identifier", map[uint8]string{61: big, 82: big}, 576, []uint8{53, 54, 51, 82, 1, 3}, []uint8{61}},
		{"option 82 of two parts", map[uint8]string{82: big + "yy"}, 576, []uint8{53, 54, 51, 82, 1}, nil},
		{"the client takes more", map[uint8]string{57: "\x05\xdc", 61: big, 82: big}, 1500, []uint8{53, 54, 51, 82, 61, 1, 3, 12, 15}, nil},
		{"the client claims too much", map[uint8]string{57: "\xff\xff", 61: big, 82: big}, 1500, []uint8{61, 82, 15}, nil},
		{"the client claims too little", map[uint8]string{57: "\x00\x10"}, 576, []uint8{53, 54, 51, 1, 3, 6}, nil},
		{"a malformed option 57", map[uint8]string{57: "\x05"}, 576, []uint8{53, 54, 51, 1, 3, 6}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := testID.Decide(request{kind: discover, options: tt.options}.packet(t), lease).Reply
			if n := len(r.ToBytes()) + 28; n > tt.limit {
				t.Errorf("datagram of %d bytes, limit %d", n, tt.limit)
			}
			for _, code := range tt.keeps {
				if _, ok := r.Options[code]; !ok {
					t.Errorf("option %d is missing", code)
				}
			}
			for _, code := range tt.drops {
				if _, ok := r.Options[code]; ok {
					t.Errorf("option %d is there", code)
				}
			}
		})
	}
}

// Old relays and clients drop what is shorter than BOOTP's 300 bytes.
func TestReplyMinimum(t *testing.T) {
	lease := Lease{Addr: netip.MustParsePrefix("10.77.0.101/24")}
	if n := len(testID.Decide(request{kind: discover}.packet(t), lease).Reply.ToBytes()); n < 300 {
		t.Errorf("reply of %d bytes", n)
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "\x00\x00\x0e\x10",
		-time.Second:              "\x00\x00\x0e\x10",
		time.Minute:               "\x00\x00\x00\x3c",
		1<<63 - 1:                 "\xff\xff\xff\xfe",
		10 * 365 * 24 * time.Hour: "\x12\xcc\x03\x00",
	} {
		if got := string(seconds(d)); got != want {
			t.Errorf("seconds(%v) = %x, want %x", d, got, want)
		}
	}
}
