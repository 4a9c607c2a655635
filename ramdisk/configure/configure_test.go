package configure

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"bmc/internal/manifest"
	"bmc/metal"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdKMGqxzt4hPVRyFzLrfQSh4lVCKYhkkIuTQpXyVgyA user@laptop"

// rootfs lays out a small image; a value that starts with "->" is a symlink.
func rootfs(t *testing.T, more map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"etc/passwd":                   fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\ndebian:x:%d:%d::/home/debian:/bin/bash\n", os.Getuid(), os.Getgid()),
		"etc/hosts":                    "127.0.0.1\tlocalhost\n127.0.1.1\timage\n",
		"etc/machine-id":               "0123456789abcdef0123456789abcdef\n",
		"var/lib/dbus/machine-id":      "0123456789abcdef0123456789abcdef\n",
		"etc/ssh/ssh_host_rsa_key":     "the image's own",
		"etc/ssh/ssh_host_ed25519_key": "the image's own",
		"etc/ssh/sshd_config":          "keep",
		"home/debian/.profile":         "",
	}
	for name, content := range more {
		files[name] = content
	}
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func image(network, configure string) *manifest.Manifest {
	return &manifest.Manifest{Spec: manifest.Spec{User: "debian", Network: network, Configure: configure}}
}

func params() Params {
	return Params{Hostname: "web-1", SSHKeys: []string{key, key + "2"}, Address: "10.77.0.11/24", Gateway: "10.77.0.1",
		DNS: []string{"10.77.0.1", "9.9.9.9"}, MAC: "52:54:00:00:00:01", InstanceID: "op-abc"}
}

func get(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	root := rootfs(t, nil)
	r, err := Apply(root, image(manifest.NetworkNetworkd, manifest.ConfigureFiles), params())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"etc/hostname":                       "web-1\n",
		"etc/hosts":                          "127.0.0.1\tlocalhost\n127.0.1.1\tweb-1\n",
		"etc/machine-id":                     "",
		"home/debian/.ssh/authorized_keys":   key + "\n" + key + "2\n",
		"etc/systemd/network/10-bmc.network": "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nAddress=10.77.0.11/24\nGateway=10.77.0.1\nDNS=10.77.0.1\nDNS=9.9.9.9\n",
		"etc/resolv.conf":                    "nameserver 10.77.0.1\nnameserver 9.9.9.9\n",
		"etc/ssh/sshd_config":                "keep",
	} {
		if got := get(t, root, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"etc/ssh/ssh_host_rsa_key", "var/lib/dbus/machine-id", "var/lib/cloud"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for name, mode := range map[string]os.FileMode{"home/debian/.ssh": 0o700, "home/debian/.ssh/authorized_keys": 0o600, "etc/ssh/ssh_host_ed25519_key": 0o600} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	checkHostKey(t, root, r)
}

func checkHostKey(t *testing.T, root string, r Result) {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(get(t, root, "etc/ssh/ssh_host_ed25519_key")))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	if len(r.HostKeys) != 1 || r.HostKeys[0] != want {
		t.Errorf("recorded %q, the disk has %q", r.HostKeys, want)
	}
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		return
	}
	out, err := exec.Command("ssh-keygen", "-y", "-f", filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("ssh-keygen: %v %s", err, out)
	}
}

func TestOtherNetworks(t *testing.T) {
	root := rootfs(t, map[string]string{"etc/resolv.conf": "->../run/systemd/resolve/stub-resolv.conf"})
	if _, err := Apply(root, image(manifest.NetworkIfupdown, manifest.ConfigureFiles), params()); err != nil {
		t.Fatal(err)
	}
	want := "auto lo\niface lo inet loopback\n\nauto mac/52:54:00:00:00:01=bmc\niface bmc inet static\n\taddress 10.77.0.11/24\n\tgateway 10.77.0.1\n\tdns-nameservers 10.77.0.1 9.9.9.9\n"
	if got := get(t, root, "etc/network/interfaces"); got != want {
		t.Errorf("%q", got)
	}
	if _, err := os.Readlink(filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Error("a service's resolv.conf was replaced")
	}
	root = rootfs(t, nil)
	p := params()
	p.Gateway, p.DNS = "", nil
	if _, err := Apply(root, image(manifest.NetworkBusybox, manifest.ConfigureFiles), p); err != nil {
		t.Fatal(err)
	}
	want = "MAC='52:54:00:00:00:01'\nADDRESS='10.77.0.11'\nPREFIX='24'\nGATEWAY=''\nDNS=''\nHOSTNAME='web-1'\n"
	if got := get(t, root, "etc/network.conf"); got != want {
		t.Errorf("%q", got)
	}
}

func TestNoCloud(t *testing.T) {
	root := rootfs(t, nil)
	p := params()
	p.UserData = []byte("#cloud-config\npassword: secret\n")
	if _, err := Apply(root, image(manifest.NetworkNetworkd, manifest.ConfigureNoCloud), p); err != nil {
		t.Fatal(err)
	}
	var meta struct {
		ID   string   `json:"instance-id"`
		Host string   `json:"local-hostname"`
		Keys []string `json:"public-keys"`
	}
	if err := json.Unmarshal([]byte(get(t, root, seedDir+"meta-data")), &meta); err != nil || meta.ID != "op-abc" || meta.Host != "web-1" || len(meta.Keys) != 2 {
		t.Errorf("meta-data %+v, %v", meta, err)
	}
	if get(t, root, seedDir+"user-data") != string(p.UserData) {
		t.Error("user-data differs")
	}
	if info, err := os.Stat(filepath.Join(root, seedDir+"user-data")); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("user-data is readable")
	}
	want := `{"ethernets":{"bmc":{"addresses":["10.77.0.11/24"],"match":{"macaddress":"52:54:00:00:00:01"},"nameservers":{"addresses":["10.77.0.1","9.9.9.9"]},"routes":[{"to":"0.0.0.0/0","via":"10.77.0.1"}]}},"version":2}`
	if got := get(t, root, seedDir+"network-config"); got != want {
		t.Errorf("network-config %s", got)
	}
	if !strings.Contains(get(t, root, "etc/cloud/cloud.cfg.d/99-bmc.cfg"), "ssh_deletekeys: false") {
		t.Error("cloud-init would delete the host key")
	}
}

func TestSymlinksDoNotLeadOut(t *testing.T) {
	outside := t.TempDir()
	for name, link := range map[string]string{
		"absolute etc/systemd": "etc/systemd", "home of the user": "home/debian/.ssh",
		"hosts": "etc/hosts", "host keys": "etc/ssh",
	} {
		root := rootfs(t, nil)
		if err := os.RemoveAll(filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(root, image(manifest.NetworkNetworkd, manifest.ConfigureFiles), params()); metal.CodeOf(err) != metal.CodeConfigureFailed {
			t.Errorf("%s: %v", name, err)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
			t.Fatalf("%s: something was written outside: %v", name, entries)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, edit := range map[string]func(*Params, *manifest.Manifest){
		"host name":   func(p *Params, _ *manifest.Manifest) { p.Hostname = "a b" },
		"newline":     func(p *Params, _ *manifest.Manifest) { p.Hostname = "a\nb" },
		"instance":    func(p *Params, _ *manifest.Manifest) { p.InstanceID = "" },
		"key":         func(p *Params, _ *manifest.Manifest) { p.SSHKeys = []string{"ssh-rsa x"} },
		"two keys":    func(p *Params, _ *manifest.Manifest) { p.SSHKeys = []string{key + "\n" + key} },
		"address":     func(p *Params, _ *manifest.Manifest) { p.Address = "10.0.0.1" },
		"gateway":     func(p *Params, _ *manifest.Manifest) { p.Gateway = "x" },
		"name server": func(p *Params, _ *manifest.Manifest) { p.DNS = []string{"a;reboot"} },
		"mac":         func(p *Params, _ *manifest.Manifest) { p.MAC = "eth0" },
		"user":        func(_ *Params, m *manifest.Manifest) { m.User = "nobody-here" },
		"network":     func(_ *Params, m *manifest.Manifest) { m.Network = "" },
	} {
		p, m := params(), image(manifest.NetworkNetworkd, manifest.ConfigureFiles)
		edit(&p, m)
		if _, err := Apply(rootfs(t, nil), m, p); metal.CodeOf(err) != metal.CodeConfigureFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\ndebian:x:1000:1000::/home/debian:/bin/bash\n", "debian")
	f.Fuzz(func(t *testing.T, passwd, user string) {
		a, ok, err := parsePasswd(passwd, user)
		if ok && (err != nil || a.uid < 0 || !filepath.IsLocal(a.home)) {
			t.Fatalf("%+v, %v", a, err)
		}
	})
}
