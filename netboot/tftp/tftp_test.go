package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pin/tftp/v3"
)

var loader = bytes.Repeat([]byte("iPXE!"), 100_000)

// start serves on loopback until the test ends.
func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Addr = netip.MustParseAddrPort("127.0.0.1:0")
	if cfg.Files == nil {
		cfg.Files = map[string][]byte{"ipxe.efi": loader, "empty": {}}
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Serve did not return")
		}
	})
	return s
}

func fetch(t *testing.T, s *Server, name string, blksize int) ([]byte, int64, error) {
	t.Helper()
	c, err := tftp.NewClient(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetTimeout(5 * time.Second)
	if blksize != 0 {
		c.SetBlockSize(blksize)
	}
	c.RequestTSize(true)
	w, err := c.Receive(name, "octet")
	if err != nil {
		return nil, 0, err
	}
	size, _ := w.(tftp.IncomingTransfer).Size()
	var b bytes.Buffer
	_, err = w.WriteTo(&b)
	return b.Bytes(), size, err
}

func TestFetch(t *testing.T) {
	sent := make(chan string, 10)
	s := start(t, Config{Sent: func(client netip.Addr, name string) { sent <- client.String() + " " + name }})
	for _, tt := range []struct {
		name    string
		blksize int
	}{{"ipxe.efi", 0}, {"/ipxe.efi", 0}, {"ipxe.efi\xff", 0}, {"ipxe.efi", 1468}, {"ipxe.efi", 8192}} {
		got, size, err := fetch(t, s, tt.name, tt.blksize)
		if err != nil || !bytes.Equal(got, loader) || size != int64(len(loader)) {
			t.Errorf("%q with blocks of %d: %d bytes, size %d, %v", tt.name, tt.blksize, len(got), size, err)
		}
		select {
		case v := <-sent:
			if v != "127.0.0.1 ipxe.efi" {
				t.Errorf("sent %q", v)
			}
		case <-time.After(10 * time.Second):
			t.Error("the transfer was not told")
		}
	}
}

func TestRefused(t *testing.T) {
	s := start(t, Config{Sent: func(_ netip.Addr, name string) { t.Errorf("%q was sent", name) }})
	for _, name := range []string{"", "/", "other", "IPXE.EFI", "//ipxe.efi", "./ipxe.efi", "../ipxe.efi", "/etc/passwd", "..\\ipxe.efi", "ipxe.efi/", "boot-local-disk"} {
		if got, _, err := fetch(t, s, name, 0); err == nil {
			t.Errorf("%q: got %d bytes", name, len(got))
		}
	}
	c, err := tftp.NewClient(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Send("ipxe.efi", "octet")
	if err == nil {
		_, err = w.ReadFrom(strings.NewReader("evil"))
	}
	if err == nil {
		t.Error("a write request was accepted")
	}
	if got, ok := s.cfg.Files["ipxe.efi"]; !ok || !bytes.Equal(got, loader) {
		t.Error("a file changed")
	}
}

// transfer is a read request in the server, without a network.
type transfer struct {
	addr    net.UDPAddr
	size    int64
	blocked chan struct{} // closed when ReadFrom has begun
	release chan struct{} // ReadFrom waits for it
	got     bytes.Buffer
}

func (t *transfer) SetSize(n int64)         { t.size = n }
func (t *transfer) RemoteAddr() net.UDPAddr { return t.addr }
func (t *transfer) ReadFrom(r io.Reader) (int64, error) {
	if t.blocked != nil {
		close(t.blocked)
		<-t.release
	}
	return io.Copy(&t.got, r)
}

func TestCaps(t *testing.T) {
	s := newServer(Config{Files: map[string][]byte{"f": loader}, Transfers: 3, TransfersPerClient: 2})
	release := make(chan struct{})
	done := make(chan error, 3)
	begin := func(ip byte) *transfer {
		return &transfer{addr: net.UDPAddr{IP: net.IPv4(10, 0, 0, ip)}, blocked: make(chan struct{}), release: release}
	}
	for _, ip := range []byte{1, 1, 2} {
		tr := begin(ip)
		go func() { done <- s.read("f", tr) }()
		<-tr.blocked
	}
	if err := s.read("f", begin(1)); !errors.Is(err, errBusy) {
		t.Errorf("third transfer of a client: %v", err)
	}
	if err := s.read("f", begin(3)); !errors.Is(err, errBusy) {
		t.Errorf("fourth transfer of all: %v", err)
	}
	close(release)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	tr := &transfer{addr: net.UDPAddr{IP: net.IPv4(10, 0, 0, 1)}}
	if err := s.read("f", tr); err != nil || !bytes.Equal(tr.got.Bytes(), loader) || tr.size != int64(len(loader)) {
		t.Errorf("after the others: %v", err)
	}
	if s.active != 0 || len(s.clients) != 0 {
		t.Errorf("left behind: %d transfers, %v", s.active, s.clients)
	}
}

// A client that acknowledges slowly, or a server that ends, must not keep a
// transfer for ever.
func TestTransferEnds(t *testing.T) {
	s := newServer(Config{Files: map[string][]byte{"f": loader}, TransferTime: -time.Second})
	if err := s.read("f", &transfer{}); !errors.Is(err, errTooLong) {
		t.Errorf("after its time: %v", err)
	}
	s = newServer(Config{Files: map[string][]byte{"f": loader}})
	s.closing.Store(true)
	if err := s.read("f", &transfer{}); !errors.Is(err, errClosing) {
		t.Errorf("after the end: %v", err)
	}
}

// FuzzTFTP sends raw requests to the server as a peer would. Whatever comes, an
// answer with data starts one of the listed files, and the server lives on.
func FuzzTFTP(f *testing.F) {
	rrq := func(fields ...string) []byte {
		return append([]byte{0, 1}, strings.Join(fields, "\x00")+"\x00"...)
	}
	f.Add(rrq("ipxe.efi", "octet"))
	f.Add(rrq("/ipxe.efi\xff\xff", "octet", "blksize", "1468", "tsize", "0"))
	f.Add(rrq("ipxe.efi", "netascii", "blksize", "65535"))
	f.Add(rrq("../../etc/passwd", "octet"))
	f.Add(rrq("ipxe.efi", "octet", "tsize", strings.Repeat("9", 480)))
	f.Add(rrq("ipxe.efi", "octet", "windowsize", "64", "timeout", "1"))
	f.Add([]byte{0, 2, 'x', 0, 'o', 0})
	f.Add([]byte{0, 1, 0, 0})
	f.Add([]byte{0, 4, 0, 0})
	f.Add([]byte{})

	small := []byte("a small loader")
	var transfers atomic.Int64
	s, err := Listen(Config{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Files: map[string][]byte{"ipxe.efi": small},
		Transfers: 1 << 20, TransfersPerClient: 1 << 20, Sent: func(netip.Addr, string) { transfers.Add(1) }})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	f.Cleanup(func() { cancel(); <-done })

	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1400 {
			return
		}
		if name, data, ok := s.file(string(raw)); ok && (name != "ipxe.efi" || !bytes.Equal(data, small)) {
			t.Fatalf("%q is a file", raw)
		}
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		buf := make([]byte, 2048)
		var n int
		var peer netip.AddrPort
		for range 5 { // as clients do: the ones that wait for no answer may have filled the server's queue
			if _, err := conn.WriteToUDPAddrPort(raw, s.Addr()); err != nil {
				t.Fatal(err)
			}
			if !answerable(raw) {
				return
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, peer, err = conn.ReadFromUDPAddrPort(buf); err == nil {
				break
			}
		}
		if err != nil || n < 4 {
			t.Fatalf("%q: no answer: %v", raw, err)
		}
		switch op := binary.BigEndian.Uint16(buf); op {
		case 3: // data
			if got := buf[4:n]; !bytes.Equal(got, small) {
				t.Fatalf("%q: data %q", raw, got)
			}
			_, _ = conn.WriteToUDPAddrPort([]byte{0, 4, buf[2], buf[3]}, peer)
		case 5, 6: // error, options; an error from here ends a transfer
			_, _ = conn.WriteToUDPAddrPort([]byte{0, 5, 0, 8, 'e', 'n', 'd', 0}, peer)
		default:
			t.Fatalf("%q: answer of kind %d", raw, op)
		}
	})
}

// answerable says whether a datagram is a request whose name ends within what
// the server reads of it.
func answerable(raw []byte) bool {
	return len(raw) >= 4 && raw[0] == 0 && (raw[1] == 1 || raw[1] == 2) && bytes.IndexByte(raw[2:min(len(raw), 516)], 0) >= 0
}
