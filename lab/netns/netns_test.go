package netns

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testNamespace(t *testing.T, name string) *Namespace {
	t.Helper()
	n, err := New(name)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("no right to make a network namespace here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestWire(t *testing.T) {
	a, b := testNamespace(t, "a"), testNamespace(t, "b")
	if err := a.Do(func() error {
		return errors.Join(
			AddBridge("br0"),
			AddAddress("br0", netip.MustParsePrefix("10.76.0.1/24")),
			AddVeth("to-b", "br0", b, "eth0"),
		)
	}); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if err := b.Do(func() (err error) {
		if err := AddAddress("eth0", netip.MustParsePrefix("10.76.0.11/24")); err != nil {
			return err
		}
		l, err = net.Listen("tcp", "10.76.0.11:7443")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte("hello"))
		_ = c.Close()
	}()
	var c net.Conn
	if err := a.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", "10.76.0.11:7443", 5*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 16)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
}

func TestFrames(t *testing.T) {
	for name, open := range map[string]func(string, net.HardwareAddr) (Frames, error){
		"tap":  func(n string, m net.HardwareAddr) (Frames, error) { return OpenTap(n, m) },
		"pair": func(n string, m net.HardwareAddr) (Frames, error) { return openPair(n, m, 0) },
	} {
		t.Run(name, func(t *testing.T) { testFrames(t, open) })
	}
}

func testFrames(t *testing.T, open func(string, net.HardwareAddr) (Frames, error)) {
	n := testNamespace(t, "tap")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	var tap Frames
	err := n.Do(func() (err error) {
		if tap, err = open("rack0", mac); err != nil {
			return err
		}
		if err := AddAddress("rack0", netip.MustParsePrefix("10.77.1.1/24")); err != nil {
			return err
		}
		c, err := net.Dial("udp", "10.77.1.20:9")
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("x"))
		return errors.Join(err, c.Close())
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for { // until the ARP request for 10.77.1.20
		k, err := tap.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if k >= 42 && buf[12] == 8 && buf[13] == 6 && buf[41] == 20 {
			if got := net.HardwareAddr(buf[6:12]); got.String() != mac.String() {
				t.Fatalf("sender %s, want %s", got, mac)
			}
			break
		}
	}
	read := make(chan error, 1)
	go func() {
		for {
			if _, err := tap.Read(buf); err != nil {
				read <- err
				return
			}
		}
	}()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err == nil {
		t.Fatal("Read went on after Close")
	}
}

func TestDoAfterClose(t *testing.T) {
	n, err := Current("here")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Fatalf("error %v", err)
	}
}

// TestChildDiesWithThread: a child is killed when the thread that holds its
// namespace ends, as it does when the process is killed.
func TestChildDiesWithThread(t *testing.T) {
	n, err := Current("here")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child ended with %v, want SIGKILL", err)
	}
}

// TestThreadsStayClean: goroutines that are not in Do see the process's own
// namespace, also after many threads were made.
func TestThreadsStayClean(t *testing.T) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := testNamespace(t, "other")
	var inside string
	if err := n.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside == here || !strings.HasPrefix(inside, "net:") {
		t.Fatalf("inside is %s, outside %s", inside, here)
	}
	errs := make(chan string, 32)
	for range cap(errs) {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			l, _ := os.Readlink("/proc/thread-self/ns/net")
			errs <- l
		}()
	}
	for range cap(errs) {
		if l := <-errs; l != here {
			t.Fatalf("a thread is in %s, want %s", l, here)
		}
	}
}

// TestTCPOverFrames: what one namespace sends arrives whole in another, over the
// two interfaces' far ends tied together; checksums and segment sizes are what a
// machine on the wire accepts.
func TestTCPOverFrames(t *testing.T) {
	for name, open := range map[string]func(string, net.HardwareAddr) (Frames, error){
		"tap":       func(n string, m net.HardwareAddr) (Frames, error) { return OpenTap(n, m) },
		"pair":      func(n string, m net.HardwareAddr) (Frames, error) { return openPair(n, m, 0) },
		"jumbo tap": func(n string, m net.HardwareAddr) (Frames, error) { return OpenFrames(n, m, 9000) },
	} {
		t.Run(name, func(t *testing.T) { testTCP(t, open) })
	}
}

func testTCP(t *testing.T, open func(string, net.HardwareAddr) (Frames, error)) {
	a, b := testNamespace(t, "a"), testNamespace(t, "b")
	var ends [2]Frames
	for i, n := range []*Namespace{a, b} {
		err := n.Do(func() (err error) {
			if ends[i], err = open("rack0", net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}); err != nil {
				return err
			}
			return AddAddress("rack0", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 1)}), 24))
		})
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	defer ends[0].Close()
	defer ends[1].Close()
	for i := range ends {
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := ends[i].Read(buf)
				if err != nil {
					return
				}
				if n > 9014 {
					t.Errorf("a frame of %d bytes", n)
				}
				if _, err := ends[1-i].Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
	var l net.Listener
	if err := b.Do(func() (err error) {
		l, err = net.Listen("tcp", "10.77.1.2:80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write(want)
		_ = c.Close()
	}()
	var c net.Conn
	if err := a.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", "10.77.1.2:80", 10*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes: %v", len(got), len(want), err)
	}
	t.Logf("%.0f MB/s", float64(len(got))/1e6/time.Since(begin).Seconds())
}
