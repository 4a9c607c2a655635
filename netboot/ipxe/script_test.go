package ipxe

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tinkerbell/ipxedust/binary"
)

var testServer = netip.MustParseAddrPort("10.77.0.1:80")

func TestScript(t *testing.T) {
	got, err := Ramdisk{
		Server: testServer,
		MAC:    "52:54:00:AB:CD:01",
		Args:   []string{"console=ttyS0,115200", "no_timer_check", "panic=30"},
	}.Script()
	if err != nil {
		t.Fatal(err)
	}
	const want = `#!ipxe
set try:int32 1
:load
imgfree
kernel http://10.77.0.1/ramdisk/vmlinuz initrd=initrd.img initrd=seed.cpio console=ttyS0,115200 no_timer_check panic=30 || goto again
initrd --name initrd.img http://10.77.0.1/ramdisk/initrd.img || goto again
initrd --name seed.cpio http://10.77.0.1/boot/seed/52:54:00:ab:cd:01.cpio || goto again
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
	if string(got) != want {
		t.Errorf("script:\n%s\nwant:\n%s", got, want)
	}
}

func TestScriptPort(t *testing.T) {
	got, err := Ramdisk{Server: netip.MustParseAddrPort("10.77.0.1:8080"), MAC: "52:54:00:00:00:01"}.Script()
	if err != nil || !strings.Contains(string(got), "kernel http://10.77.0.1:8080/ramdisk/vmlinuz initrd=") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestScriptRefuses(t *testing.T) {
	good := Ramdisk{Server: testServer, MAC: "52:54:00:00:00:01"}
	tests := map[string]func(*Ramdisk){
		"no server":        func(r *Ramdisk) { r.Server = netip.AddrPort{} },
		"an IPv6 server":   func(r *Ramdisk) { r.Server = netip.MustParseAddrPort("[fe80::1]:80") },
		"no port":          func(r *Ramdisk) { r.Server = netip.AddrPortFrom(testServer.Addr(), 0) },
		"no MAC":           func(r *Ramdisk) { r.MAC = "" },
		"a MAC of 8 bytes": func(r *Ramdisk) { r.MAC = "02:00:5e:10:00:00:00:01" },
		"a MAC with more":  func(r *Ramdisk) { r.MAC = "52:54:00:00:00:01 && shell" },
		"too many words":   func(r *Ramdisk) { r.Args = slices.Repeat([]string{"a"}, maxArgs+1) },
		"too long a word":  func(r *Ramdisk) { r.Args = []string{strings.Repeat("a", maxArgLen+1)} },
		"too long a line":  func(r *Ramdisk) { r.Args = slices.Repeat([]string{strings.Repeat("a", maxArgLen)}, 5) },
		"another initrd":   func(r *Ramdisk) { r.Args = []string{"initrd=evil"} },
	}
	for _, arg := range []string{"", " ", "a b", "a\nshell", "a\rb", "a\tb", "${net0/mac}", "$x", "{", "}", "#c", "a&&b", "a||b", "a;b", "`", "'a'", `"a"`, `a\b`, "a%20b", "-x", "--name", "é", "\x00", "a\x7f", "(", "<", "*", "?", "!", "~"} {
		tests["the word "+arg] = func(r *Ramdisk) { r.Args = []string{arg} }
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			r := good
			change(&r)
			if s, err := r.Script(); err == nil {
				t.Errorf("accepted:\n%s", s)
			}
		})
	}
}

// FuzzIPXE checks that no value changes a script's structure: the kernel line has
// exactly the words that were given, the other lines are always the same.
func FuzzIPXE(f *testing.F) {
	f.Add("52:54:00:00:00:01", "console=ttyS0,115200\nno_timer_check\npanic=30")
	f.Add("52-54-00-00-00-01", "ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off")
	f.Add("5254.0000.0001", "x ${net0/ip}")
	f.Add("52:54:00:00:00:01\nshell", "")
	f.Add("52:54:00:00:00:01", "a||shell\n&&\n#")
	f.Add("52:54:00:00:00:01", "--name\ninitrd=x")
	reference, err := Ramdisk{Server: testServer, MAC: "52:54:00:00:00:01"}.Script()
	if err != nil {
		f.Fatal(err)
	}
	want := strings.Split(string(reference), "\n")
	f.Fuzz(func(t *testing.T, mac, words string) {
		args := strings.Split(words, "\n")
		script, err := Ramdisk{Server: testServer, MAC: mac, Args: args}.Script()
		if err != nil {
			return
		}
		got := strings.Split(string(script), "\n")
		if len(got) != len(want) {
			t.Fatalf("%d lines, want %d:\n%s", len(got), len(want), script)
		}
		for i, line := range got {
			switch {
			case strings.HasPrefix(want[i], "kernel "):
				head := "kernel http://10.77.0.1/ramdisk/vmlinuz initrd=initrd.img initrd=seed.cpio"
				expected := slices.Concat(strings.Split(head, " "), args, []string{"||", "goto", "again"})
				if !slices.Equal(strings.Split(line, " "), expected) || !slices.Equal(strings.Fields(line), expected) {
					t.Fatalf("kernel line %q", line)
				}
				if strings.ContainsAny(line, "${}#&;'\"\\`\r\t") || strings.Count(line, "|") != 2 {
					t.Fatalf("kernel line %q", line)
				}
			case strings.Contains(want[i], SeedPath):
				rest, ok := strings.CutPrefix(line, "initrd --name seed.cpio http://10.77.0.1/boot/seed/")
				if !ok || len(rest) != len("52:54:00:00:00:01.cpio || goto again") || strings.Trim(rest[:17], "0123456789abcdef:") != "" {
					t.Fatalf("seed line %q", line)
				}
			case line != want[i]:
				t.Fatalf("line %q, want %q", line, want[i])
			}
		}
	})
}

func TestLoaders(t *testing.T) {
	builtin, err := Loaders("")
	if err != nil {
		t.Fatal(err)
	}
	if len(builtin) != 3 || string(builtin["ipxe.efi"][:2]) != "MZ" || string(builtin["snp.efi"][:2]) != "MZ" || len(builtin["undionly.kpxe"]) < 1<<16 {
		t.Errorf("%d loaders", len(builtin))
	}
	for name, was := range map[string][]byte{"ipxe.efi": binary.IpxeEFI, "snp.efi": binary.SNP} {
		if now := builtin[name]; len(now) != len(was) || bytes.Contains(now, longPrompt) || !bytes.Contains(now, shortPrompt) {
			t.Errorf("%s waits for a key as it did", name)
		}
	}

	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ipxe.efi", "mine")
	write("other.efi", "not on the list")
	got, err := Loaders(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(got["ipxe.efi"]) != "mine" || len(got["snp.efi"]) != len(builtin["snp.efi"]) || got["other.efi"] != nil || len(got) != 3 {
		t.Errorf("override: %d loaders, ipxe.efi %.10q", len(got), got["ipxe.efi"])
	}

	write("snp.efi", "")
	if _, err := Loaders(dir); err == nil {
		t.Error("an empty loader was accepted")
	}
	if _, err := Loaders(filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing directory was accepted")
	}
}

func TestElsewhere(t *testing.T) {
	got, err := Elsewhere(netip.MustParseAddrPort("10.77.0.2:80"), "52:54:00:00:00:01")
	const want = `#!ipxe
set try:int32 1
:ask
chain --replace --autofree http://10.77.0.2/boot/ipxe?mac=52:54:00:00:00:01 ||
iseq ${try} 4 && goto anew ||
inc try
sleep 2
goto ask
:anew
sleep 5
dhcp || goto anew
chain --replace --autofree ${filename} || goto anew
`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	for _, mac := range []string{"", "x", "02:00:5e:10:00:00:00:01"} {
		if _, err := Elsewhere(testServer, mac); err == nil {
			t.Errorf("MAC %q was taken", mac)
		}
	}
	if _, err := Elsewhere(netip.AddrPort{}, "52:54:00:00:00:01"); err == nil {
		t.Error("a server that is none was taken")
	}
}
