//go:build e2e

package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"bmc/lab/light"
)

const tinySpec = `name: mini
os: light
user: root
root_partition: 1
firmware: [bios, uefi]
configure: files
network: busybox
chunk_size: 1048576
`

// rented is a lab of the real daemons, and a user's way to it.
type rented struct {
	t   *testing.T
	cfg Config
	env []string
}

// rent starts a lab without QEMU. No machine runs the ramdisk, so that any two
// files will do for it.
func rent(t *testing.T, change func(*Config)) *rented {
	lab := startReal(t, func(c *Config) {
		for _, f := range []string{c.kernel(), c.initrd()} {
			if err := os.WriteFile(f, bytes.Repeat([]byte(f), 10_000), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.Servers, c.Firmware, c.DiskBytes = 0, nil, 64<<20
		change(c)
	})
	env, err := lab.status.Environ()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	return &rented{t, lab.cfg, append(append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home), env...)}
}

func (r *rented) bmc(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.cfg.Bin, "bmc"), args...)
	cmd.Env = r.env
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("bmc %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

func (r *rented) must(args ...string) string {
	r.t.Helper()
	began := time.Now()
	out, err := r.bmc(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s: %.1f s", args[0], time.Since(began).Seconds())
	return out
}

// files makes an image of a few chunks, and a key.
func (r *rented) files() (image, key string) {
	r.t.Helper()
	dir := r.t.TempDir()
	image, key = filepath.Join(dir, "mini.img"), filepath.Join(dir, "id.pub")
	raw := make([]byte, 3<<20)
	_, _ = rand.Read(raw[:1<<20]) // never fails
	raw[510], raw[511], raw[len(raw)-1] = 0x55, 0xaa, 1
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(image, raw, 0o600), os.WriteFile(filepath.Join(dir, "mini.yaml"), []byte(tinySpec), 0o600),
		os.WriteFile(key, ssh.MarshalAuthorizedKey(line), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return image, key
}

// TestLightMachines: real nodes and agents, and 20 machines that are enrolled,
// rented, restarted and given back at once.
func TestLightMachines(t *testing.T) {
	const n = 20
	r := rent(t, func(c *Config) { c.Nodes, c.Agents, c.Light, c.LightSeed = 3, 2, n, 1 })
	image, key := r.files()
	r.must("image", "push", image)
	r.must("inventory", "apply", "-f", r.cfg.path("inventory.yaml"), "--wait", "--timeout", "170s")
	r.must("create", "--name", "web", "--count", fmt.Sprint(n), "--image", "mini", "--ssh-key", "@"+key, "--wait", "--timeout", "170s")
	names := strings.Fields(r.must("list", "-o", "name"))
	if len(names) != n {
		t.Fatalf("%d servers", len(names))
	}
	began := time.Now()
	each, ctx := errgroup.WithContext(t.Context())
	for _, name := range names {
		each.Go(func() error {
			_, err := r.bmc(ctx, "restart", name, "--wait", "--timeout", "170s")
			return err
		})
	}
	if err := each.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("restart: %.1f s", time.Since(began).Seconds())
	r.must(append([]string{"destroy", "--yes", "--wait", "--timeout", "170s"}, names...)...)
	var servers []struct{ State string }
	if err := json.Unmarshal([]byte(r.must("inventory", "list", "-o", "json")), &servers); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if s.State != "available" {
			t.Errorf("a server is %s", s.State)
		}
	}
	if len(servers) != n {
		t.Errorf("%d servers in the inventory", len(servers))
	}
	checkMachines(t, r.cfg.path("machines.jsonl"), n)
}

// checkMachines reads what the machines say of it: no task began twice, each disk
// was wiped at its enrolment and at its return, and each system ran twice.
func checkMachines(t *testing.T, path string, n int) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	count, tasks := map[string]int{}, map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e light.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		count[e.Event]++
		switch e.Event {
		case light.TaskStart:
			if tasks[e.Task]++; tasks[e.Task] > 1 {
				t.Errorf("%s began task %s again", e.Server, e.Task)
			}
		case light.Answered:
			if strings.HasSuffix(e.Server, "-stranger") {
				t.Errorf("%s was given %s by %s", e.Server, e.Address, e.From)
			}
		case light.Failed:
			t.Errorf("%s: %s", e.Server, e.Detail)
		}
	}
	if count[light.Asked] == 0 || count[light.Answered] == 0 {
		t.Error("the wire's DHCP is not on record")
	}
	for kind, want := range map[string]int{light.WipeDisk: 2 * n, light.WriteDisk: n, light.Installed: n, light.Up: 2 * n} {
		if count[kind] != want {
			t.Errorf("%d times %s, want %d", count[kind], kind, want)
		}
	}
}
