package goipmi

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Outside of a session only answers of the handshake are heard, and only refusals
// may keep silent about whose they are.
func TestPacketsWithoutSession(t *testing.T) {
	var h Hub
	addr := netip.MustParseAddrPort("127.0.0.1:623")
	o, err := h.dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	const ours, others = 1, 2
	packet := func(kind, status byte, whose uint32, length int) []byte {
		p := append(make([]byte, 0, 64), rmcpHeader...)
		p = append(p, rmcpPlus, kind, 0, 0, 0, 0, 0, 0, 0, 0, byte(length), 0)
		p = append(p, 7, status, 0, 0)
		switch whose {
		case ours:
			whose = o.id
		case others:
			whose = o.id + 1
		}
		p = binary.LittleEndian.AppendUint32(p, whose)
		return append(p, make([]byte, 20)...)[:payloadAt+length]
	}
	for _, tc := range []struct {
		name  string
		p     []byte
		from  netip.AddrPort
		heard bool
	}{
		{"opened", packet(openSession+1, 0, ours, 28), addr, true},
		{"RAKP 2", packet(rakp1+1, 0, ours, 28), addr, true},
		{"RAKP 4", packet(rakp3+1, 0, ours, 28), addr, true},
		{"refused, ours", packet(rakp3+1, 0x0f, ours, 8), addr, true},
		{"refused, without an ID", packet(openSession+1, 0x11, 0, 8), addr, true},
		{"RAKP 2 refused, without an ID", packet(rakp1+1, 0x0d, 0, 8), addr, true},
		{"refused, cut", packet(openSession+1, 0x11, 0, 2), addr, true},
		{"refused by another", packet(openSession+1, 0x11, 0, 8), netip.MustParseAddrPort("127.0.0.2:623"), false},
		{"cut before its status", packet(openSession+1, 0x11, 0, 1), addr, false},
		{"opened, without an ID", packet(openSession+1, 0, 0, 28), addr, false},
		{"RAKP 2 without an ID", packet(rakp1+1, 0, 0, 28), addr, false},
		{"RAKP 4 without an ID", packet(rakp3+1, 0, 0, 28), addr, false},
		{"another's", packet(openSession+1, 0, others, 28), addr, false},
		{"a request", packet(openSession, 1, 0, 28), addr, false},
		{"a message", packet(payloadIPMI, 1, 0, 28), addr, false},
		{"a message, with our ID where the handshake has it", packet(payloadIPMI, 0, ours, 28), addr, false},
	} {
		h.took(tc.p, tc.from)
		select {
		case <-o.in:
			if !tc.heard {
				t.Errorf("%s is heard", tc.name)
			}
		default:
			if tc.heard {
				t.Errorf("%s is not heard", tc.name)
			}
		}
	}
}

// A socket that only fails is looked at once a second in the end, works again
// when it does, and is left when it is closed.
func TestLastingReadError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hub
		began, reads, works, worked := time.Now(), 0, 30, time.Duration(0)
		read := func(b []byte) (int, netip.AddrPort, error) {
			if reads++; reads == works {
				worked = time.Since(began)
				return 1, netip.AddrPort{}, nil
			}
			return 0, netip.AddrPort{}, errors.New("no buffer space available")
		}
		h.receive(read, func() bool { return time.Since(began) > time.Minute })
		if reads < 60 || reads > 100 || worked == 0 || worked > 25*time.Second {
			t.Errorf("%d reads in %v, the one that worked after %v", reads, time.Since(began), worked)
		}
	})
}
