package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"

	"bmc/lab/vswitch"
)

// rogueDHCP plugs a DHCP server into racks that offers everybody 192.0.2.66 and a
// file that nobody has.
func (l *Lab) rogueDHCP(_ context.Context, a *activeFault) error {
	for _, rack := range a.Targets {
		var racks []string
		for _, r := range l.plan.racks {
			racks = append(racks, r.name)
		}
		if !slices.Contains(racks, rack) {
			return fmt.Errorf("no rack %q; there are: %s", rack, strings.Join(racks, " "))
		}
		mine, port := vswitch.Pipe()
		p, err := l.net.switches[rack].Attach(rack+"-rogue", port)
		if err != nil {
			return err
		}
		hits := new(atomic.Uint64)
		done := make(chan struct{})
		go func() {
			defer close(done)
			rogue(mine, hits)
		}()
		a.undos = append(a.undos, func() error {
			err := p.Close() // ends the read
			<-done
			return err
		})
		a.count = append(a.count, hits.Load)
	}
	return nil
}

var (
	rogueMAC = net.HardwareAddr{0x02, 0x4c, 0x41, 0x66, 0x66, 0x66}
	rogueIP  = []byte{192, 0, 2, 1}
)

// rogue answers DISCOVER with OFFER and REQUEST with ACK until the port is gone.
func rogue(link vswitch.Link, hits *atomic.Uint64) {
	buf := make([]byte, vswitch.MaxFrame)
	for {
		n, err := link.Read(buf)
		if err != nil {
			return
		}
		f := buf[:n]
		// Ethernet 14, IPv4 without options 20, UDP 8, DHCP's fixed part 240,
		// and option 53 first, as clients write it.
		if n < 14+20+8+240+3 || f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[23] != 17 || binary.BigEndian.Uint16(f[36:]) != 67 {
			continue
		}
		req := f[42:]
		if req[240] != 53 {
			continue
		}
		kind := byte(2) // OFFER
		if req[242] == 3 {
			kind = 5 // ACK
		}
		if _, err := link.Write(rogueAnswer(req, kind)); err != nil {
			return
		}
		hits.Add(1)
	}
}

func rogueAnswer(req []byte, kind byte) []byte {
	d := make([]byte, 240, 320)
	d[0], d[1], d[2] = 2, 1, 6
	copy(d[4:8], req[4:8])                // xid
	copy(d[16:20], []byte{192, 0, 2, 66}) // yiaddr
	copy(d[20:24], rogueIP)               // siaddr
	copy(d[28:44], req[28:44])            // chaddr
	copy(d[108:236], "rogue.0")
	copy(d[236:240], []byte{99, 130, 83, 99})
	d = append(d, 53, 1, kind, 54, 4)
	d = append(append(d, rogueIP...), 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 255)

	f := make([]byte, 42, 42+len(d))
	copy(f, []byte{255, 255, 255, 255, 255, 255})
	copy(f[6:], rogueMAC)
	f[12], f[14], f[22], f[23] = 8, 0x45, 64, 17
	binary.BigEndian.PutUint16(f[16:], uint16(28+len(d)))
	copy(f[26:], rogueIP)
	copy(f[30:], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(f[24:], checksum(f[14:34]))
	binary.BigEndian.PutUint16(f[34:], 67)
	binary.BigEndian.PutUint16(f[36:], 68)
	binary.BigEndian.PutUint16(f[38:], uint16(8+len(d))) // no UDP checksum: allowed in IPv4
	return append(f, d...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
