package rpc

import (
	"strings"
	"testing"

	"bmc/fsm/state"
	"bmc/metal"
)

func TestKexecOff(t *testing.T) {
	x := state.New().Begin()
	x.PutModel(&metal.Model{Vendor: "Acme", Product: "3000", KexecOff: true, Reason: "2 systems came up from disk"})
	x.PutModel(&metal.Model{Vendor: "Acme", Product: "4000", KexecFailures: 1})
	v := x.Commit()
	for name, tt := range map[string]struct {
		server metal.Server
		want   string
	}{
		"not inspected": {metal.Server{}, ""},
		"unknown model": {metal.Server{Hardware: &metal.Hardware{Vendor: "Other", Product: "3000"}}, ""},
		"one failure":   {metal.Server{Hardware: &metal.Hardware{Vendor: "Acme", Product: "4000"}}, ""},
		"off":           {metal.Server{Hardware: &metal.Hardware{Vendor: "Acme", Product: "3000"}}, "kexec is off for Acme/3000: 2 systems"},
		"Secure Boot":   {metal.Server{Hardware: &metal.Hardware{SecureBoot: true}}, "Secure Boot"},
		"held":          {metal.Server{Name: "r1-u01", Holds: map[metal.Hold]bool{metal.HoldNoKexec: true}}, "r1-u01"},
	} {
		if got := kexecOff(v, &tt.server); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
