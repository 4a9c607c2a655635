//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmc/e2e/harness"
	"bmc/lab/virtualbmc"
)

const warmWait = 4 * time.Minute // for a machine under QEMU to boot the ramdisk

// waitsWarm returns the boot in which the server waits in the ramdisk.
func waitsWarm(t *testing.T, l *harness.Lab) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), warmWait)
	defer cancel()
	boot, err := l.Waits(ctx, "r1-u01")
	if err != nil {
		t.Fatalf("%v\n%s", err, must(t, l, "explain", "r1-u01"))
	}
	return boot
}

// chassis is what the controllers were told to do to a machine's power since a moment.
func chassis(t *testing.T, l *harness.Lab, since time.Time) (out []string) {
	t.Helper()
	f, err := os.Open(filepath.Join(l.Dir(), "oob.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c virtualbmc.Command
		if json.Unmarshal(lines.Bytes(), &c) == nil && c.NetFn == 0 && c.Cmd == 2 && c.Time.After(since) {
			out = append(out, fmt.Sprintf("%s %s %s", c.Time.Format(time.TimeOnly), c.Name, c.Data))
		}
	}
	return out
}

// arrive creates web-1, logs in, and says after how many seconds it could.
func arrive(t *testing.T, l *harness.Lab) float64 {
	t.Helper()
	began := time.Now()
	must(t, l, "create", "--name", "web-1", "--image", "tiny", "--wait", "--timeout", "6m")
	if out := must(t, l, "login", "-i", filepath.Join(l.Home(), ".ssh", "id_ed25519"), "web-1", "--", "hostname"); !strings.Contains(out, "web-1") {
		t.Fatalf("web-1 answered %q", out)
	}
	return time.Since(began).Seconds()
}

// A server that waits in the ramdisk is rented without its power being touched,
// also after all daemons were restarted as it waited; given back, it waits again.
func TestWarmCreate(t *testing.T) {
	l := up(t, nil)
	must(t, l, "image", "push", image(t, "tiny"))
	enrolled(t, l)
	cold := arrive(t, l)
	must(t, l, "destroy", "web-1", "--yes", "--wait", "--timeout", "5m")
	must(t, l, "rack", "warm", "r1", "all")
	boot := waitsWarm(t, l)
	if out := must(t, l, "explain", "r1-u01"); !strings.Contains(out, "waits warm in ramdisk") {
		t.Errorf("explain says\n%s", out)
	}
	for _, d := range []string{"r1-a1", "cp1"} {
		if out, err := l.Lab(t.Context(), "restart", d); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	must(t, l, "cluster", "peers")
	if now := waitsWarm(t, l); now != boot {
		t.Errorf("it waits in another boot")
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if out := must(t, l, "rack", "list"); strings.Contains(out, "1 of 1 (all)") && strings.Contains(out, "120") {
			break
		} else if time.Now().After(end) {
			t.Errorf("its cost is not shown:\n%s", out)
			break
		}
	}
	began := time.Now()
	warm := arrive(t, l)
	if acts := chassis(t, l, began); len(acts) > 0 {
		t.Errorf("its power was touched: %v", acts)
	}
	t.Logf("from create to ssh: cold %.1f s, warm %.1f s", cold, warm)
	if warm >= cold {
		t.Errorf("warm (%.1f s) is not faster than cold (%.1f s)", warm, cold)
	}
	must(t, l, "destroy", "web-1", "--yes", "--wait", "--timeout", "5m")
	if now := waitsWarm(t, l); now == boot {
		t.Error("it waits in the boot from before its tenant")
	}
	must(t, l, "rack", "warm", "r1", "none")
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if out := must(t, l, "power", "status", "r1-u01"); strings.Contains(out, "off") {
			break
		} else if time.Now().After(end) {
			t.Fatal("it was left on")
		}
	}
}
