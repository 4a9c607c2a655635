package oob

import (
	"net"
	"strings"
	"testing"
	"time"
)

// late stands between an agent and a controller, and has the first RAKP message 1 of
// some handshakes arrive once more, right before their RAKP message 3. The answer to it
// reaches the agent late, when that waits for the RAKP message 2 of its next handshake.
func late(t *testing.T, controller string, handshakes int) (addr string) {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", controller)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close(); back.Close() })
	const payloadType, tag, rakp1, rakp3 = 5, 16, 0x12, 0x14
	go func() {
		p, again, first, answer := make([]byte, 1500), make([]byte, 1500), []byte(nil), []byte(nil)
		for {
			n, from, err := front.ReadFrom(p)
			if err != nil {
				return
			}
			switch p[payloadType] & 0x3f {
			case rakp1:
				first = append([]byte(nil), p[:n]...)
				first[tag]++ // of another message
				if len(answer) > 0 {
					_, _ = front.WriteTo(answer, from)
				}
				answer = nil
			case rakp3:
				if handshakes > 0 {
					handshakes--
					_, _ = back.Write(first)
					// Its answer is what it waits for: the controller works side by side.
					if n, err := back.Read(again); err == nil && n > tag {
						answer = again[:n]
						answer[tag]-- // the agent had sent this one first, and another since
					}
				}
			}
			_, _ = back.Write(p[:n])
			if err := back.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return
			}
			if n, err = back.Read(p); err == nil {
				_, _ = front.WriteTo(p[:n], from)
			}
		}
	}()
	return front.LocalAddr().String()
}

// A message of the handshake that arrives after a later one has the controller refuse
// a password that is right: the agent begins again, and says what happened where that
// does not help.
func TestOvertakenHandshake(t *testing.T) {
	for _, tc := range []struct {
		name       string
		handshakes int
		opens      bool
	}{{"once", 1, true}, {"twice", 2, true}, {"always", 1000, false}} {
		t.Run(tc.name, func(t *testing.T) {
			_, cfg, _ := startLab(t)
			cfg.Address = late(t, cfg.Address, tc.handshakes)
			c, err := Dial(t.Context(), cfg)
			if (err == nil) != tc.opens {
				t.Fatal(err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "overtaken") {
					t.Error(err)
				}
				return
			}
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
