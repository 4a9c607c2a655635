package kexec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestCmdline(t *testing.T) {
	for name, tt := range map[string]struct{ image, part, ramdisk, want string }{
		"the image says all": {"root=LABEL=root ro console=ttyS0,115200", "b3c0", "console=ttyS0,115200 panic=30 bmc.x=1",
			"root=LABEL=root ro console=ttyS0,115200"},
		"the machine's console": {"root=LABEL=root console=tty0 console=ttyS0,115200", "b3c0", "quiet console=ttyS1,57600",
			"root=LABEL=root console=tty0 console=ttyS0,115200 console=ttyS1,57600"},
		"no root":         {"quiet", "b3c0", "console=ttyS0", "quiet root=PARTUUID=b3c0 console=ttyS0"},
		"nothing at all":  {"", "", "", ""},
		"console of none": {"root=/dev/vda3", "", "console= console", "root=/dev/vda3"},
	} {
		if got := Cmdline(tt.image, tt.part, tt.ramdisk); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestRefusal(t *testing.T) {
	pci := func(vendor, device string) string {
		root := t.TempDir()
		for _, d := range []struct{ slot, vendor, device string }{{"0000:00:01.0", "0x1af4", "0x1100"}, {"0000:03:00.0", vendor, device}} {
			dir := filepath.Join(root, "sys/bus/pci/devices", d.slot)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, value := range map[string]string{"subsystem_vendor": d.vendor, "subsystem_device": d.device} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		return root
	}
	for name, tt := range map[string]struct {
		root   string
		secure bool
		want   string
	}{
		"nothing known":        {pci("0x8086", "0x0001"), false, ""},
		"no PCI bus":           {t.TempDir(), false, ""},
		"Secure Boot":          {pci("0x8086", "0x0001"), true, "Secure Boot"},
		"a controller that is": {pci("0x103C", "0x323D"), false, "0000:03:00.0 (Smart Array P700m)"},
	} {
		got := Refusal(tt.root, tt.secure)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A path of the image never leaves the image, whatever links it is made of.
func TestOpenStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	dir := t.TempDir()
	for file, text := range map[string]string{outside: "out", filepath.Join(dir, "vmlinuz-1"): "kernel"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"absolute": "/vmlinuz-1", "out": outside, "up": "../../../../../../.." + outside, "dir": "/"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := open(dir, "/absolute")
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel has no openat2")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "kernel" {
		t.Errorf("read %q, %v", b, err)
	}
	for _, name := range []string{"/out", "/up", "/dir", "/missing"} {
		if f, err := open(dir, name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
}

const secret = "a key that must not outlive the jump"

// TestMain is also the process with a secret, of the test below.
func TestMain(m *testing.M) {
	if os.Getenv("BMC_TEST_SECRET") == "" {
		os.Exit(m.Run())
	}
	b := bytes.Repeat([]byte(secret), 100_000)
	fmt.Printf("%d %d\n", uintptr(unsafe.Pointer(&b[0])), len(b))
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(b)
}

// A process that is stopped has nothing left in its memory.
func TestZero(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "BMC_TEST_SECRET=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	var size int
	if _, err := fmt.Sscanf(line, "%d %d", &at, &size); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	read := func() []byte {
		mem, err := os.Open(filepath.Join(proc, "mem"))
		if err != nil {
			t.Skip("no access to another process's memory: ", err)
		}
		defer mem.Close()
		b := make([]byte, size)
		if _, err := mem.ReadAt(b, at); err != nil {
			t.Skip("no access to another process's memory: ", err)
		}
		return b
	}
	if !bytes.Contains(read(), []byte(secret)) {
		t.Fatal("the process has no secret to begin with")
	}
	if err := zero(proc); err != nil {
		t.Fatal(err)
	}
	if b := read(); len(bytes.Trim(b, "\x00")) != 0 {
		t.Error("something is left")
	}
}
