// Package deploy holds what a host needs to run the daemons; it has no code.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// program is what a unit starts; it need not be installed where the tests run.
var program = regexp.MustCompile(`/usr/bin/bmc[a-z-]*`)

// exposure is the highest that systemd-analyze may give a service, of 100: an agent
// needs raw sockets and low ports.
var exposure = map[string]string{"bmc-controlplane": "20", "bmc-agent": "25", "bmc-backup": "20"}

// TestUnits has systemd read the units and judge how much they may do.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	files, err := filepath.Glob("systemd/bmc-*.*")
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	dir := t.TempDir()
	var units []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, filepath.Base(f))
		if err := os.WriteFile(unit, program.ReplaceAll(b, []byte("/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	for _, unit := range units {
		name, isService := strings.CutSuffix(filepath.Base(unit), ".service")
		if !isService {
			continue
		}
		out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+exposure[name], unit).CombinedOutput()
		if err != nil {
			t.Errorf("security of %s: %v\n%s", name, err, out)
		}
	}
}

// A node or agent that was removed stays down.
func TestRemovedStaysDown(t *testing.T) {
	for _, name := range []string{"bmc-controlplane", "bmc-agent"} {
		b, err := os.ReadFile(filepath.Join("systemd", name+".service"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"\nType=notify\n", "\nRestart=always\n", "\nRestartPreventExitStatus=5\n", "\nNoNewPrivileges=yes\n", "\nUMask=0077\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q", name, strings.TrimSpace(want))
			}
		}
	}
}
