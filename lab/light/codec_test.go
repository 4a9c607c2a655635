package light

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSharesNoParser: the machines test the agent, so they must not have its bugs.
func TestSharesNoParser(t *testing.T) {
	names, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), ".go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), n.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			for _, no := range []string{"bmc/netboot", "bmc/agent", "bmc/ramdisk", "bmc/internal", "github.com/insomniacslk", "github.com/pin/tftp"} {
				if p == no || strings.HasPrefix(p, no+"/") {
					t.Errorf("%s imports %s", n.Name(), p)
				}
			}
		}
	}
}

func TestMessage(t *testing.T) {
	m := &message{
		xid: 0x01020304, secs: 3, flags: broadcast4, chaddr: mac{0x52, 0x54, 0, 1, 0, 9}, ciaddr: netip.MustParseAddr("10.77.1.9"),
		options: map[byte][]byte{optType: {dhcpDiscover}, optArch: {0, 7}, optUUID: bytes.Repeat([]byte{7}, 17), 200: bytes.Repeat([]byte{9}, 600)},
	}
	raw := m.marshal()
	if raw[240] != optType { // many a server looks no further for it
		t.Errorf("the type is not the first option")
	}
	back, err := parseMessage(raw)
	if err != nil {
		t.Fatal(err)
	}
	if back.xid != m.xid || back.secs != 3 || back.chaddr != m.chaddr || back.ciaddr != m.ciaddr || back.kind() != dhcpDiscover || !bytes.Equal(back.options[200], m.options[200]) {
		t.Errorf("%+v", back)
	}
	for n := range raw[:300] {
		_, _ = parseMessage(raw[:n]) // must not panic
	}
}

// TestRecordedOffer reads what busybox's udhcpd answered to a PXE client.
func TestRecordedOffer(t *testing.T) {
	raw, err := os.ReadFile("testdata/udhcpd-offer.hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(raw)), ""))
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	if m.kind() != dhcpOffer || m.server() != netip.MustParseAddr("10.9.0.1") || m.yiaddr != netip.MustParseAddr("10.9.0.50") ||
		m.file != "undionly.kpxe" || m.siaddr != netip.MustParseAddr("10.9.0.1") || m.lease() != time.Hour || !m.reply {
		t.Errorf("%+v", m)
	}
}

func TestFrames(t *testing.T) {
	src, dst := mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}
	f := udpFrame(dst, src, netip.MustParseAddrPort("10.0.0.1:68"), netip.MustParseAddrPort("10.0.0.2:67"), []byte("hello"))
	if p, ok := udpPayload(f, 67); !ok || string(p) != "hello" {
		t.Errorf("%q, %v", p, ok)
	}
	if _, ok := udpPayload(f, 68); ok {
		t.Error("another port's")
	}
	if checksum(f[etherLen:etherLen+ipLen]) != 0 || ipSource(f) != netip.MustParseAddr("10.0.0.1") {
		t.Error("the header is wrong")
	}
	ask := append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 10, 0, 0, 2)
	if !isARP(ask) {
		t.Fatal("an ARP request is none")
	}
	want := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 2, 0, 0, 0, 0, 1}, 10, 0, 0, 1)
	if got := answerARP(ask, dst); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	for n := range f {
		_, _ = udpPayload(f[:n], 67)
		_ = isARP(ask[:min(n, len(ask))])
	}
}

// fakeTFTP plays a server whose answers are given.
type fakeTFTP struct {
	answers [][]byte // nil: silence
	said    [][]byte
}

var tftpServer = netip.MustParseAddr("10.0.0.1")

func (f *fakeTFTP) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) {
	f.said = append(f.said, bytes.Clone(b))
	return len(b), nil
}

func (f *fakeTFTP) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	if len(f.answers) == 0 {
		return 0, netip.AddrPort{}, net.ErrClosed
	}
	a := f.answers[0]
	if f.answers = f.answers[1:]; a == nil {
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	}
	return copy(b, a), netip.AddrPortFrom(tftpServer, 4000), nil
}

func (f *fakeTFTP) SetReadDeadline(time.Time) error { return nil }

func TestTFTP(t *testing.T) {
	data := func(block byte, n int) []byte { return append([]byte{0, tftpData, 0, block}, make([]byte, n)...) }
	oack := func(s string) []byte {
		return append([]byte{0, tftpOACK}, strings.ReplaceAll(s, " ", "\x00")+"\x00"...)
	}
	for _, tt := range []struct {
		name    string
		answers [][]byte
		size    int64
		said    int
		err     string
	}{
		{"options", [][]byte{oack("tsize 1500 blksize 1432"), data(1, 1432), data(2, 68)}, 1500, 4, ""},
		{"a server without options", [][]byte{data(1, 512), data(2, 0)}, 512, 3, ""},
		{"lost and repeated packets", [][]byte{nil, oack("blksize 1000"), nil, data(1, 1000), data(1, 1000), nil, data(2, 1)}, 1001, 7, ""},
		{"empty", [][]byte{data(1, 0)}, 0, 2, ""},
		{"refused", [][]byte{append([]byte{0, tftpError, 0, 1}, "no such file\x00"...)}, 0, 1, "no such file"},
		{"cut short", [][]byte{oack("tsize 1500 blksize 1432"), data(1, 100)}, 0, 3, "promised 1500"},
		{"an option of its own", [][]byte{oack("windowsize 4")}, 0, 1, "not asked for"},
		{"a block too long", [][]byte{data(1, 513)}, 0, 1, "513 bytes"},
		{"silence", [][]byte{nil, nil, nil, nil, nil, nil}, 0, 6, "no answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakeTFTP{answers: tt.answers}
			size, err := tftpGet(t.Context(), f, tftpServer, "ipxe.efi")
			if fmt.Sprint(err) != "<nil>" && (tt.err == "" || !strings.Contains(err.Error(), tt.err)) || err == nil && tt.err != "" {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if err == nil && size != tt.size || len(f.said) != tt.said {
				t.Errorf("%d bytes, %d packets sent; want %d, %d", size, len(f.said), tt.size, tt.said)
			}
		})
	}
}

// host is a loader's world in tests.
type host struct {
	fail map[string]int // how often a URL fails first
	log  []string
	file string
}

func (h *host) load(_ context.Context, url string, keep bool) ([]byte, error) {
	h.log = append(h.log, url)
	if h.fail[url] > 0 {
		h.fail[url]--
		return nil, errors.New("not there")
	}
	if keep {
		return []byte("#!ipxe\nexit 1\n"), nil
	}
	return nil, nil
}
func (h *host) dhcp(context.Context) (string, error) {
	h.log = append(h.log, "dhcp")
	return h.file, nil
}
func (h *host) wait(_ context.Context, n int) error {
	h.log = append(h.log, fmt.Sprint("sleep ", n))
	return nil
}

// The scripts as an agent sends them, shortened.
const (
	ramdiskScript = `#!ipxe
set try:int32 1
:load
imgfree
kernel http://10.0.0.1/k initrd=initrd.img initrd=seed.cpio console=ttyS0 || goto again
initrd --name initrd.img http://10.0.0.1/i || goto again
initrd --name seed.cpio http://10.0.0.1/s || goto again
boot || goto again
:again
iseq ${try} 4 && goto anew ||
inc try
sleep 2
goto load
:anew
sleep 5
dhcp || goto anew
chain --replace --autofree ${filename} || goto anew
`
	localScript = `#!ipxe
iseq ${platform} efi && goto efi ||
sanboot --no-describe --drive 0x80 || exit 1
:efi
iseq ${user-class} Tinkerbell && reboot ||
exit 1
`
)

func TestScripts(t *testing.T) {
	const k, i, s = "http://10.0.0.1/k", "http://10.0.0.1/i", "http://10.0.0.1/s"
	for _, tt := range []struct {
		name, script    string
		platform, class string
		fail            map[string]int
		want            outcome
		log             string
		err             error
	}{
		{"ramdisk", ramdiskScript, "efi", "iPXE", nil, boots, k + " " + i + " " + s, nil},
		{"once more", ramdiskScript, "efi", "iPXE", map[string]int{i: 1}, boots, k + " " + i + " sleep 2 " + k + " " + i + " " + s, nil},
		{"anew", ramdiskScript, "efi", "iPXE", map[string]int{k: 9}, fails, strings.Repeat(k+" sleep 2 ", 3) + k + " sleep 5 dhcp http://10.0.0.1/new", nil},
		{"local, BIOS", localScript, "pcbios", "iPXE", nil, sanboot, "", nil},
		{"local, UEFI", localScript, "efi", "iPXE", nil, fails, "", nil},
		{"local, UEFI that always leaves with success", localScript, "efi", "Tinkerbell", nil, restart, "", nil},
		{"unknown command", "#!ipxe\nshell\n", "", "", nil, fails, "", errCommand},
		{"unknown option", "#!ipxe\nsanboot --drive 0x81\n", "", "", nil, fails, "", errCommand},
		{"no label", "#!ipxe\ngoto away\n", "", "", nil, fails, "", errCommand},
		{"a failure that nobody takes", "#!ipxe\niseq a b\nreboot\n", "", "", nil, fails, "", nil},
		{"its end", "#!ipxe\nset a b\n", "", "", nil, exits, "", nil},
		{"boot without a kernel", "#!ipxe\nboot\n", "", "", nil, fails, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &host{fail: tt.fail, file: "http://10.0.0.1/new"}
			p := &ipxe{host: h, settings: map[string]string{"platform": tt.platform, "user-class": tt.class}}
			got, err := p.run(t.Context(), []byte(tt.script))
			if got != tt.want || !errors.Is(err, tt.err) || strings.Join(h.log, " ") != tt.log {
				t.Fatalf("ends as %d with %v after %q; want %d with %v after %q", got, err, strings.Join(h.log, " "), tt.want, tt.err, tt.log)
			}
			if got == boots {
				if _, err := p.image.seed(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestSeed(t *testing.T) {
	raw, err := os.ReadFile("testdata/seed.cpio") // made by GNU cpio
	if err != nil {
		t.Fatal(err)
	}
	s, err := readSeed(raw)
	if err != nil {
		t.Fatal(err)
	}
	if s.ServerID == "" || s.Token == "" || s.Agent != "10.77.1.1:8443" || s.MAC != "52:54:00:01:00:01" || len(s.ca) < 100 {
		t.Errorf("%+v", s)
	}
	for n := range raw {
		if _, err := readSeed(raw[:n]); err == nil {
			t.Fatalf("%d of %d bytes are an initrd, too", n, len(raw))
		}
	}
}
