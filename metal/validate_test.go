package metal

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// checkField wants an INVALID_ARGUMENT on a field, or nothing for "".
func checkField(t *testing.T, err error, field string) {
	t.Helper()
	if field == "" {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeInvalid || e.Field != field || !strings.HasPrefix(e.Message, field+": ") {
		t.Fatalf("got %#v, want a refusal of %s", err, field)
	}
	if strings.HasSuffix(e.Message, ".") {
		t.Fatalf("%q ends in a full stop", e.Message)
	}
}

func TestValidateName(t *testing.T) {
	for name, ok := range map[string]bool{"web-1": true, "a": true, "0": true, strings.Repeat("a", 63): true, "": false, "-a": false, "a-": false,
		"Web": false, "a.b": false, "a_b": false, "a b": false, "ä": false, "a\x00": false, strings.Repeat("a", 64): false} {
		t.Run(name, func(t *testing.T) {
			field := "name"
			if ok {
				field = ""
			}
			checkField(t, ValidateName("name", name), field)
		})
	}
}

func TestNormalizeMAC(t *testing.T) {
	for in, want := range map[string]string{
		"52:54:00:AB:cd:ef": "52:54:00:ab:cd:ef", "52-54-00-ab-cd-ef": "52:54:00:ab:cd:ef", "5254.00ab.cdef": "52:54:00:ab:cd:ef",
		"525400abcdef": "52:54:00:ab:cd:ef", "": "", "52:54:00:ab:cd": "", "52:54:00:ab:cd:eg": "", "53:54:00:ab:cd:ef": "",
		"00:00:00:00:00:00": "", "52:54:00:ab:cd:ef:00:01": "", "ff:ff:ff:ff:ff:ff": "", "+1:54:00:ab:cd:ef": "",
	} {
		got, err := NormalizeMAC("macs", in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestValidateHostPort(t *testing.T) {
	for _, tt := range []struct {
		in       string
		required bool
		ok       bool
	}{
		{"10.0.0.1", false, true}, {"10.0.0.1:623", false, true}, {"cp1.example.org:7443", true, true}, {"[2001:db8::1]:7443", true, true},
		{"2001:db8::1", false, true}, {"10.0.0.1", true, false}, {"10.0.0.1:0", false, false}, {"10.0.0.1:66000", false, false},
		{"", false, false}, {":7443", true, false}, {"a b:1", false, false}, {"[::1", false, false}, {"[::1]x", false, false}, {"-x", false, false},
	} {
		if err := ValidateHostPort("address", tt.in, tt.required); (err == nil) != tt.ok {
			t.Errorf("%q (port required %v): %v", tt.in, tt.required, err)
		}
	}
}

func rack() *Rack {
	a := netip.MustParseAddr
	return &Rack{Name: "r1", Subnet: netip.MustParsePrefix("10.77.0.0/24"), Gateway: a("10.77.0.1"), DNS: []netip.Addr{a("10.77.0.1")},
		Domain: "rack.example", RangeFrom: a("10.77.0.10"), RangeTo: a("10.77.0.250"), LeaseTime: time.Hour}
}

func TestRackValidate(t *testing.T) {
	a := netip.MustParseAddr
	for _, tt := range []struct {
		name, field string
		change      func(*Rack)
	}{
		{"fine", "", func(*Rack) {}},
		{"no gateway", "", func(r *Rack) { r.Gateway = netip.Addr{} }},
		{"name", "r.name", func(r *Rack) { r.Name = "R1" }},
		{"IPv6", "r.subnet", func(r *Rack) { r.Subnet = netip.MustParsePrefix("2001:db8::/64") }},
		{"host bits", "r.subnet", func(r *Rack) { r.Subnet = netip.MustParsePrefix("10.77.0.5/24") }},
		{"no subnet", "r.subnet", func(r *Rack) { r.Subnet = netip.Prefix{} }},
		{"too narrow", "r.subnet", func(r *Rack) { r.Subnet = netip.MustParsePrefix("10.77.0.0/31") }},
		{"gateway outside", "r.gateway", func(r *Rack) { r.Gateway = a("10.78.0.1") }},
		{"gateway is broadcast", "r.gateway", func(r *Rack) { r.Gateway = a("10.77.0.255") }},
		{"no range", "r.range_from", func(r *Rack) { r.RangeFrom = netip.Addr{} }},
		{"range outside", "r.range_to", func(r *Rack) { r.RangeTo = a("10.77.1.9") }},
		{"range from network", "r.range_from", func(r *Rack) { r.RangeFrom = a("10.77.0.0") }},
		{"range backwards", "r.range_to", func(r *Rack) { r.RangeTo = a("10.77.0.9") }},
		{"dns", "r.dns", func(r *Rack) { r.DNS = []netip.Addr{a("0.0.0.0")} }},
		{"domain", "r.domain", func(r *Rack) { r.Domain = "no domain" }},
		{"lease time", "r.lease_time", func(r *Rack) { r.LeaseTime = time.Second }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := rack()
			tt.change(r)
			checkField(t, r.Validate("r"), tt.field)
		})
	}
	r := rack()
	for s, in := range map[string]bool{"10.77.0.10": true, "10.77.0.250": true, "10.77.0.9": false, "10.77.0.251": false, "10.78.0.20": false} {
		if r.InRange(a(s)) != in {
			t.Errorf("%s in range: %v", s, !in)
		}
	}
	if r.Gateway = a("10.77.0.20"); r.InRange(r.Gateway) {
		t.Error("the gateway's address may be assigned")
	}
}

func TestServerValidate(t *testing.T) {
	for _, tt := range []struct {
		name, field string
		change      func(*Server)
	}{
		{"fine", "", func(*Server) {}},
		{"name", "s.name", func(s *Server) { s.Name = "r1_u1" }},
		{"no MAC", "s.macs", func(s *Server) { s.MACs = nil }},
		{"MAC twice", "s.macs", func(s *Server) { s.MACs = append(s.MACs, s.MACs[0]) }},
		{"MAC not normal", "s.macs", func(s *Server) { s.MACs = []string{"52-54-00-00-00-01"} }},
		{"protocol", "s.oob.protocol", func(s *Server) { s.OOB.Protocol = "telnet" }},
		{"oob address", "s.oob.address", func(s *Server) { s.OOB.Address = "" }},
		{"long IPMI user", "s.oob.username", func(s *Server) { s.OOB.Username = strings.Repeat("u", 17) }},
		{"cipher", "s.oob.cipher_suite", func(s *Server) { s.OOB.CipherSuite = 99 }},
		{"label", "labels", func(s *Server) { s.Labels = map[string]string{"a b": "c"} }},
		{"serial", "s.serial", func(s *Server) { s.Serial = "a\nb" }},
		{"console", "s.console_tty", func(s *Server) { s.ConsoleTTY = "ttyS0 init=/bin/sh" }},
		{"console fine", "", func(s *Server) { s.ConsoleTTY = "ttyS0,115200n8" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Server{Name: "r1-u1", MACs: []string{"52:54:00:00:00:01"}, OOB: OOB{Protocol: "ipmi", Address: "10.9.0.1:623", Username: "bmc"}}
			tt.change(s)
			checkField(t, s.Validate("s"), tt.field)
		})
	}
}

func TestSelector(t *testing.T) {
	labels := map[string]string{"tier": "web", "env": "prod"}
	for in, want := range map[string]bool{"": true, "tier=web": true, "tier=db": false, "tier!=db": true, "tier!=web": false, "gone!=x": true,
		"tier": true, "gone": false, "tier=web,env=prod": true, "tier=web, env!=prod": false, "tier=": false} {
		sel, err := ParseSelector(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if sel.Matches(labels) != want {
			t.Errorf("%q matches: %v", in, !want)
		}
	}
	for _, in := range []string{",", "a b=c", "=x", "k=v w", "k==v"} {
		if _, err := ParseSelector(in); CodeOf(err) != CodeInvalid {
			t.Errorf("%q: %v", in, err)
		}
	}
}

const goodKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"

func TestParseSSHKey(t *testing.T) {
	line, fp, err := ParseSSHKey("public_key", "  "+goodKey+"   ann@laptop\n")
	if err != nil || line != goodKey+" ann@laptop" || !strings.HasPrefix(fp, "SHA256:") || len(fp) != len("SHA256:")+43 {
		t.Fatalf("%q %q %v", line, fp, err)
	}
	for name, in := range map[string]string{
		"empty":        "",
		"type only":    "ssh-ed25519",
		"unknown type": strings.Replace(goodKey, "ssh-ed25519", "ssh-dss", 1),
		"wrong type":   strings.Replace(goodKey, "ssh-ed25519", "ssh-rsa", 1),
		"cut":          goodKey[:len(goodKey)-4],
		"bad base64":   goodKey[:len(goodKey)-1] + "!",
		"two lines":    goodKey + "\n" + goodKey,
		"options":      `command="/bin/sh" ` + goodKey,
		"private":      "-----BEGIN OPENSSH PRIVATE KEY-----",
		"escape":       goodKey + " \x1b[2J",
		"long":         goodKey + " " + strings.Repeat("x", MaxSSHKey),
		"trailing":     goodKey + "AAAA",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ParseSSHKey("public_key", in)
			checkField(t, err, "public_key")
		})
	}
}

func FuzzParseSSHKey(f *testing.F) {
	f.Add(goodKey + " ann@laptop")
	f.Add("ssh-rsa AAAAB3NzaC1yc2E=")
	f.Fuzz(func(t *testing.T, in string) {
		line, fp, err := ParseSSHKey("k", in)
		if err != nil {
			return
		}
		again, fp2, err := ParseSSHKey("k", line)
		if err != nil || again != line || fp2 != fp {
			t.Fatalf("%q is not canonical: %q %v", line, again, err)
		}
	})
}

func TestErrors(t *testing.T) {
	e := Errorf(CodeNotFound, "there is no server %q", "x").WithHint("bmc %s", "list")
	if e.Hint != "bmc list" || CodeOf(e) != CodeNotFound || !errors.Is(e, &Error{Code: CodeNotFound}) || errors.Is(e, &Error{Code: CodeBusy}) {
		t.Fatalf("%+v", e)
	}
	if CodeOf(nil) != "" || CodeOf(errors.New("x")) != CodeInternal {
		t.Fatal("codes of other errors")
	}
}

func TestSizes(t *testing.T) {
	h := &Hardware{CPUThreads: 8, MemoryBytes: 31 << 30, Disks: []Disk{{SizeBytes: 500 << 30}, {SizeBytes: 9 << 40, Removable: true}}}
	for _, tt := range []struct {
		size Size
		fits bool
	}{
		{Size{Name: "a", MinMemoryBytes: 32 << 30}, true}, // firmware keeps some
		{Size{Name: "b", MinMemoryBytes: 64 << 30}, false},
		{Size{Name: "c", MinCPUThreads: 9}, false},
		{Size{Name: "d", MinDiskBytes: 501 << 30}, false}, // removable disks do not count
	} {
		if lack := tt.size.Lacks(h); (lack == "") != tt.fits {
			t.Errorf("%s: %q", tt.size.Name, lack)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 20 << 30: "20 GiB", 1 << 63: "8 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
