package hardware

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	agentv1 "bmc/api/agent/v1"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A PDU laid out by hand from IEEE 802.1AB-2016, 8.4 and D.2.1.
const lldpPDU = "0207 04 001b21aabbcc" + // chassis: MAC
	"040e 05 65746865726e6574312f302f37 " + // port: interface name
	"0602 0078 " + // TTL 120
	"0806 72312d753037 " + // port description
	"0a09 746f722d72312d61 2e " + // system name
	"0e04 0014 0004 " + // capabilities: passed over
	"fe06 0080c201 0065 " + // port VLAN 101
	"0000"

func TestParseLLDP(t *testing.T) {
	pdu := unhex(t, lldpPDU)
	want := &agentv1.Neighbour{Chassis: "00:1b:21:aa:bb:cc", Port: "ethernet1/0/7", System: "tor-r1-a.", PortDescription: "r1-u07", Vlan: 101}
	got, ok := parseLLDP(pdu)
	if diff := cmp.Diff(want, got, protocmp.Transform()); !ok || diff != "" {
		t.Errorf("%v %s", ok, diff)
	}
	if _, ok := parseLLDP(pdu[:len(pdu)-2]); !ok {
		t.Error("without an end it is refused")
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "cut off": pdu[:12], "goodbye": bytes.Replace(pdu, []byte{0x06, 0x02, 0, 0x78}, []byte{0x06, 0x02, 0, 0}, 1),
		"port first": pdu[9:], "chassis alone": append(bytes.Clone(pdu[:9]), 0, 0), "no TTL": append(bytes.Clone(pdu[:25]), 0, 0),
	} {
		if n, ok := parseLLDP(bad); ok {
			t.Errorf("%s: %v", name, n)
		}
	}
	own := announcement(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, "bmc-ramdisk")
	if n, ok := parseLLDP(own[14:]); !ok || n.GetChassis() != "52:54:00:00:00:01" || n.GetPort() != n.GetChassis() || n.GetSystem() != "bmc-ramdisk" {
		t.Errorf("our own: %v, %v", n, ok)
	}
}

func FuzzLLDP(f *testing.F) {
	f.Add(unhex(f, lldpPDU))
	f.Add(announcement(net.HardwareAddr{2, 0, 0, 0, 0, 1}, "x")[14:])
	f.Fuzz(func(t *testing.T, pdu []byte) {
		if n, ok := parseLLDP(pdu); ok && len(n.GetSystem())+len(n.GetPort())+len(n.GetChassis()) > 3*512 {
			t.Error("too much was kept")
		}
	})
}

// Nobody is listened to without a link, and an end of the caller is one of the wait.
func TestListenEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if heard := Listen(ctx, []*agentv1.NIC{{Name: "lo", Link: true}, {Name: "none", Link: true}}).Heard(ctx); len(heard) != 0 || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s", heard, time.Since(began))
	}
}

func TestParseNVMe(t *testing.T) {
	log := make([]byte, nvmeLogBytes)
	binary.LittleEndian.PutUint16(log[1:], 273+38)
	log[5] = 12
	binary.LittleEndian.PutUint64(log[128:], 9001)
	binary.LittleEndian.PutUint64(log[160:], 3)
	for _, tt := range []struct {
		name          string
		warning, used byte
		state, reason string
	}{
		{"well", 0, 12, healthOK, ""},
		{"hot", 2, 12, healthOK, ""},
		{"no spare", 1, 12, healthFailing, "spare capacity is below its threshold"},
		{"degraded and hot", 6, 12, healthFailing, "reliability is degraded"},
		{"read-only", 8, 12, healthFailing, "it has become read-only"},
		{"worn", 0, 103, healthFailing, "103 % of its rated endurance is used"},
	} {
		log[0], log[5] = tt.warning, tt.used
		want := &agentv1.DiskHealth{State: tt.state, Reason: tt.reason, PercentUsed: uint32(tt.used), Reallocated: 3, PowerOnHours: 9001, TemperatureCelsius: 38}
		if diff := cmp.Diff(want, parseNVMe(log), protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	if parseNVMe(log[:100]) != nil {
		t.Error("half a log is read")
	}
}

func smartData(attributes map[byte][2]uint64) []byte {
	data := make([]byte, ataDataBytes)
	i := 0
	for id, a := range attributes {
		at := data[2+i*ataAttributeSize:]
		at[0], at[3] = id, byte(a[0])
		var raw [8]byte
		binary.LittleEndian.PutUint64(raw[:], a[1])
		copy(at[5:11], raw[:6])
		i++
	}
	sum := byte(0)
	for _, b := range data {
		sum += b
	}
	data[511] = -sum
	return data
}

func TestParseATA(t *testing.T) {
	data := smartData(map[byte][2]uint64{5: {100, 24}, 9: {90, 41234}, 194: {60, 0x2800001f}, 177: {93, 70}, 240: {1, 1}})
	want := &agentv1.DiskHealth{State: healthOK, Reallocated: 24, PowerOnHours: 41234, TemperatureCelsius: 31, PercentUsed: 7}
	if diff := cmp.Diff(want, parseATA(data, false), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if h := parseATA(data, true); h.GetState() != healthFailing || h.GetReason() == "" {
		t.Errorf("%v", h)
	}
	data[20]++
	if parseATA(data, false) != nil {
		t.Error("a wrong checksum is read")
	}
	passed := make([]byte, 22)
	copy(passed, []byte{0x72, 1, 0, 0x1d, 0, 0, 0, 14, 0x09, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0x50})
	if thresholdExceeded(passed) {
		t.Error("a healthy disk fails")
	}
	passed[17], passed[19] = 0xf4, 0x2c
	if !thresholdExceeded(passed) || thresholdExceeded(passed[:20]) || thresholdExceeded(nil) {
		t.Error("thresholds")
	}
}

func TestParseExceptions(t *testing.T) {
	page := []byte{0x2f, 0, 0, 8, 0, 0, 3, 4, 0, 0, 33, 0}
	if h := parseExceptions(page); h.GetState() != healthOK || h.GetTemperatureCelsius() != 33 {
		t.Errorf("%v", h)
	}
	page[8], page[9] = 0x5d, 0x10
	if h := parseExceptions(page); h.GetState() != healthFailing || !strings.Contains(h.GetReason(), "5d/10") {
		t.Errorf("%v", h)
	}
	if parseExceptions([]byte{0x0d, 0, 0, 8, 0, 0, 3, 4, 0, 0, 33}) != nil || parseExceptions(nil) != nil {
		t.Error("another page is read")
	}
}

func TestModulesAndProcessors(t *testing.T) {
	dimm := make([]byte, 0x28)
	dimm[0], dimm[1], dimm[0x10], dimm[0x12], dimm[0x17], dimm[0x18], dimm[0x1a] = 17, byte(len(dimm)), 1, 0x1a, 2, 3, 4
	binary.LittleEndian.PutUint16(dimm[0x0c:], 16384)
	binary.LittleEndian.PutUint16(dimm[0x15:], 2666)
	cpu := make([]byte, 0x30)
	cpu[0], cpu[1], cpu[5], cpu[0x18], cpu[0x23] = 4, byte(len(cpu)), 3, 0x41, 16
	empty := bytes.Clone(cpu)
	empty[0x18] = 0
	large := bytes.Clone(cpu)
	large[0x23] = 0xff
	binary.LittleEndian.PutUint16(large[0x2a:], 300)
	var table []byte
	table = append(append(table, dimm...), "DIMM_A1\x00Samsung\x00Default string\x00M393A2K43\x00\x00"...)
	for _, p := range [][]byte{cpu, empty, large} {
		table = append(append(table, p...), 0, 0)
	}
	table = append(table, 127, 4, 0, 0, 0, 0)
	want := []*agentv1.DIMM{{Slot: "DIMM_A1", SizeBytes: 16 << 30, SpeedMts: 2666, Kind: "DDR4", Vendor: "Samsung", Part: "M393A2K43"}}
	if diff := cmp.Diff(want, modules(table), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if sockets, cores := processors(table); sockets != 2 || cores != 316 {
		t.Errorf("%d sockets, %d cores", sockets, cores)
	}
}

// Answers as IPMI 2.0 lays them out: the completion code first.
func TestControllerAnswers(t *testing.T) {
	if v := firmwareRevision([]byte{0, 0x20, 0x81, 0x82, 0x14, 0x02, 0xdf}); v != "2.14" {
		t.Errorf("firmware %q", v)
	}
	if v := firmwareRevision([]byte{0xc1, 0x20, 0x81, 2, 0x14}); v != "" {
		t.Errorf("a refusal is version %q", v)
	}
	for want, answer := range map[string][]byte{"10.78.1.7": {0, 0x11, 10, 78, 1, 7}, "": {0, 0x11, 0, 0, 0, 0}} {
		if got := lanAddress(answer); got != want {
			t.Errorf("%q", got)
		}
	}
	if lanAddress([]byte{0x80, 0x11, 10, 78, 1, 7}) != "" || lanAddress([]byte{0, 0x11}) != "" {
		t.Error("a refusal is an address")
	}
}
