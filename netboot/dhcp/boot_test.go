package dhcp

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// captured reads a packet that a real client sent. They were recorded from
// QEMU's iPXE ROM, OVMF (EDK2) and ipxedust's ipxe.efi.
func captured(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "packets", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestBootCaptured(t *testing.T) {
	const script = "http://10.77.0.1/boot/ipxe?mac=52:54:00:00:00:01"
	tests := []struct {
		packet  string
		outcome Outcome
		file    string
		local   string // file when the machine boots its own disk
		class   string
		option  bool // option 67
		ipxe    bool // option 175
	}{
		{"ipxe-rom-bios-discover", Offered, script, script, "", false, true},
		{"ipxe-rom-bios-request", Acked, script, script, "", false, true},
		{"edk2-pxe-discover", Offered, "ipxe.efi", LoaderNone, "PXEClient", true, false},
		{"edk2-pxe-request", Acked, "ipxe.efi", LoaderNone, "PXEClient", true, false},
		{"edk2-http-discover", Offered, "http://10.77.0.1/loader/ipxe.efi", "http://10.77.0.1/loader/" + LoaderNone, "HTTPClient", true, false},
		{"edk2-http-request", Acked, "http://10.77.0.1/loader/ipxe.efi", "http://10.77.0.1/loader/" + LoaderNone, "HTTPClient", true, false},
		{"ipxedust-efi-discover", Offered, script, script, "", false, true},
		{"ipxedust-efi-request", Acked, script, script, "", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.packet, func(t *testing.T) {
			req, err := dhcpv4.FromBytes(captured(t, tt.packet))
			if err != nil {
				t.Fatal(err)
			}
			if why := Check(req); why != "" {
				t.Fatal(why)
			}
			d := testID.Decide(req, testLease)
			if d.Outcome != tt.outcome {
				t.Fatalf("outcome %v (%s), want %v", d.Outcome, d.Reason, tt.outcome)
			}
			checkReply(t, req, d)
			r := d.Reply
			if r.BootFileName != tt.file || string(r.Options[60]) != tt.class {
				t.Errorf("file %q class %q, want %q %q", r.BootFileName, r.Options[60], tt.file, tt.class)
			}
			if got := string(r.Options[67]); tt.option != (got == tt.file) {
				t.Errorf("option 67 %q", got)
			}
			if got := string(r.Options[175]) == "\xb0\x01\x01"; got != tt.ipxe {
				t.Errorf("option 175 %x", r.Options[175])
			}
			local := testLease
			local.Local = true
			if got := testID.Decide(req, local).Reply.BootFileName; got != tt.local {
				t.Errorf("local: file %q, want %q", got, tt.local)
			}
		})
	}
}

func TestBoot(t *testing.T) {
	const script = "http://10.77.0.1/boot/ipxe?mac=52:54:00:00:00:01"
	arch := func(n byte) string { return string([]byte{0, n}) }
	tests := []struct {
		name    string
		options map[uint8]string
		file    string
		local   string // "": as file
		class   string
	}{
		{name: "an operating system"},
		{name: "an operating system with a vendor class", options: map[uint8]string{60: "udhcp 1.35.0"}},
		{name: "BIOS", options: map[uint8]string{60: "PXEClient:Arch:00000:UNDI:002001", 93: arch(0)}, file: LoaderBIOS, class: "PXEClient"},
		{name: "x64 as 7", options: map[uint8]string{60: "PXEClient:Arch:00007", 93: arch(7)}, file: LoaderX64, local: LoaderNone, class: "PXEClient"},
		{name: "x64 as 9", options: map[uint8]string{60: "PXEClient:Arch:00009", 93: arch(9)}, file: LoaderX64, local: LoaderNone, class: "PXEClient"},
		{name: "arm64", options: map[uint8]string{60: "PXEClient:Arch:00011", 93: arch(11)}, file: LoaderARM64, local: LoaderNone, class: "PXEClient"},
		{name: "several architectures, the first counts", options: map[uint8]string{60: "PXEClient", 93: arch(7) + arch(0)}, file: LoaderX64, local: LoaderNone, class: "PXEClient"},
		{name: "x64 without a vendor class", options: map[uint8]string{93: arch(7)}, file: LoaderX64, local: LoaderNone},
		{name: "IA32 UEFI has no loader", options: map[uint8]string{60: "PXEClient", 93: arch(6)}},
		{name: "a cut option 93", options: map[uint8]string{60: "PXEClient", 93: "\x00"}},
		{name: "HTTP x64", options: map[uint8]string{60: "HTTPClient:Arch:00016", 93: arch(16)}, file: "http://10.77.0.1/loader/ipxe.efi", local: "http://10.77.0.1/loader/" + LoaderNone, class: "HTTPClient"},
		{name: "HTTP arm64", options: map[uint8]string{60: "HTTPClient:Arch:00019", 93: arch(19)}, file: "http://10.77.0.1/loader/snp.efi", local: "http://10.77.0.1/loader/" + LoaderNone, class: "HTTPClient"},
		{name: "HTTP with a TFTP architecture", options: map[uint8]string{60: "HTTPClient", 93: arch(7)}},
		{name: "HTTP architecture without its class", options: map[uint8]string{60: "PXEClient", 93: arch(16)}},
		{name: "iPXE, plain", options: map[uint8]string{77: "iPXE", 93: arch(0), 60: "PXEClient"}, file: script},
		{name: "iPXE, plain with a zero", options: map[uint8]string{77: "iPXE\x00"}, file: script},
		{name: "iPXE, RFC 3004", options: map[uint8]string{77: "\x04iPXE", 93: arch(7)}, file: script},
		{name: "Tinkerbell, plain", options: map[uint8]string{77: "Tinkerbell", 93: arch(7)}, file: script},
		{name: "Tinkerbell, RFC 3004, second of two", options: map[uint8]string{77: "\x03abc\x0aTinkerbell", 93: arch(7)}, file: script},
		{name: "another user class", options: map[uint8]string{77: "iPXE2", 93: arch(0)}, file: LoaderBIOS},
		{name: "a user class with a wrong length", options: map[uint8]string{77: "\x09iPXE", 93: arch(0)}, file: LoaderBIOS},
		{name: "iPXE with HTTP", options: map[uint8]string{77: "iPXE", 175: "\x13\x01\x01\x27\x01\x01", 93: arch(0)}, file: script},
		{name: "iPXE without HTTP", options: map[uint8]string{77: "iPXE", 175: "\x27\x01\x01", 93: arch(0), 60: "PXEClient"}, file: LoaderBIOS},
		{name: "iPXE with cut features", options: map[uint8]string{77: "iPXE", 175: "\x27\x09\x01", 93: arch(7)}, file: LoaderX64, local: LoaderNone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request{kind: discover, options: tt.options}.packet(t)
			r := testID.Decide(req, testLease).Reply
			if r.BootFileName != tt.file || string(r.Options[60]) != tt.class {
				t.Errorf("file %q class %q, want %q %q", r.BootFileName, r.Options[60], tt.file, tt.class)
			}
			if (string(r.Options[43]) == "\x06\x01\x08\xff") != (tt.class == "PXEClient") {
				t.Errorf("option 43 %x with class %q", r.Options[43], tt.class)
			}
			local := testLease
			local.Local = true
			want := tt.local
			if want == "" {
				want = tt.file
			}
			if got := testID.Decide(req, local).Reply.BootFileName; got != want {
				t.Errorf("local: file %q, want %q", got, want)
			}
		})
	}
}

// PXE firmware wants its machine identifier back.
func TestMachineIdentifier(t *testing.T) {
	uuid := "\x00" + strings.Repeat("u", 16)
	opts := map[uint8]string{60: "PXEClient", 93: "\x00\x07", 97: uuid}
	if got := string(testID.Decide(request{kind: discover, options: opts}.packet(t), testLease).Reply.Options[97]); got != uuid {
		t.Errorf("option 97 %x", got)
	}
	opts[97] = "short"
	if got, ok := testID.Decide(request{kind: discover, options: opts}.packet(t), testLease).Reply.Options[97]; ok {
		t.Errorf("a malformed option 97 came back: %x", got)
	}
}
