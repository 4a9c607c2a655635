package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/net/ipv4"
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

// client is a peer of bare packets.
type client struct {
	t    *testing.T
	conn *net.UDPConn
	peer netip.AddrPort // where the last packet came from
	buf  [2048]byte
}

func dial(t *testing.T) *client {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn}
}

func (c *client) send(to netip.AddrPort, raw []byte) {
	c.t.Helper()
	if _, err := c.conn.WriteToUDPAddrPort(raw, to); err != nil {
		c.t.Fatal(err)
	}
}

// receive waits for a packet; of none within the time it returns false.
func (c *client) receive(within time.Duration) ([]byte, bool) {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		c.t.Fatal(err)
	}
	n, peer, err := c.conn.ReadFromUDPAddrPort(c.buf[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, false
	}
	if err != nil || n < 4 {
		c.t.Fatalf("%d bytes, %v", n, err)
	}
	c.peer = peer
	return c.buf[:n], true
}

// next is the packet that must come, as its kind, its number and the rest.
func (c *client) next() (op, number uint16, rest []byte) {
	c.t.Helper()
	raw, ok := c.receive(10 * time.Second)
	if !ok {
		c.t.Fatal("no packet")
	}
	return binary.BigEndian.Uint16(raw), binary.BigEndian.Uint16(raw[2:]), raw[4:]
}

func (c *client) ack(number uint16) {
	c.t.Helper()
	c.send(c.peer, binary.BigEndian.AppendUint16([]byte{0, opAck}, number))
}

func rrq(fields ...string) []byte {
	return append([]byte{0, opRead}, strings.Join(fields, "\x00")+"\x00"...)
}

// window fetches a file in windows. lose says which arrivals of a block are thrown
// away; the client then acknowledges what it has when the window's last block, or
// its successor, shows the gap (RFC 7440, section 4).
func (c *client) window(server netip.AddrPort, name, size string, lose func(block, arrival int) bool) []byte {
	c.t.Helper()
	c.send(server, rrq(name, "octet", "blksize", "1024", "windowsize", size))
	op, _, rest := c.next()
	if op != opOACK || !bytes.Contains(rest, []byte("windowsize\x00"+size+"\x00")) {
		c.t.Fatalf("answer of kind %d: %q", op, rest)
	}
	n, _ := strconv.Atoi(size)
	c.ack(0)
	var data []byte
	arrivals := map[int]int{}
	for have, inWindow, gap := 0, 0, false; ; {
		op, number, rest := c.next()
		if op != opData {
			c.t.Fatalf("packet of kind %d after %d blocks: %q", op, have, rest)
		}
		block := have + int(int16(number-uint16(have)))
		arrivals[block]++
		if lose(block, arrivals[block]) {
			continue
		}
		if block != have+1 {
			if !gap && block > have {
				c.ack(uint16(have))
				gap, inWindow = true, 0
			}
			continue
		}
		data, have, gap = append(data, rest...), block, false
		if inWindow++; inWindow == n || len(rest) < 1024 {
			c.ack(uint16(have))
			inWindow = 0
		}
		if len(rest) < 1024 {
			return data
		}
	}
}

func TestWindow(t *testing.T) {
	s := start(t, Config{})
	for _, size := range []string{"1", "4", "16", "60"} {
		for _, tt := range []struct {
			name string
			lose func(block, arrival int) bool
		}{
			{"nothing lost", func(int, int) bool { return false }},
			{"within windows", func(block, arrival int) bool { return block%50 == 7 && arrival == 1 }},
			{"the first of a window", func(block, arrival int) bool { return block == 61 && arrival == 1 }},
		} {
			if size == "1" && tt.name != "nothing lost" {
				continue
			}
			if got := dial(t).window(s.Addr(), "ipxe.efi", size, tt.lose); !bytes.Equal(got, loader) {
				t.Errorf("windows of %s, %s: %d bytes", size, tt.name, len(got))
			}
		}
	}
}

// A kernel or card that cuts no datagrams gets them cut.
func TestWindowUnsegmented(t *testing.T) {
	s := start(t, Config{})
	for _, p := range s.ports {
		p.whole.Store(true)
	}
	if got := dial(t).window(s.Addr(), "ipxe.efi", "16", func(int, int) bool { return false }); !bytes.Equal(got, loader) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestCut(t *testing.T) {
	tr := newTransfer(netip.MustParseAddrPort("127.0.0.1:9"), nil, "f", loader[:2500], terms{block: 1000, window: 8}, time.Time{})
	whole := tr.flight([]ipv4.Message{{Buffers: [][]byte{{1}}}}, true)
	parts := cut(whole)
	if len(whole) != 2 || len(parts) != 4 {
		t.Fatalf("%d messages, cut into %d", len(whole), len(parts))
	}
	var got []byte
	for i, m := range parts[1:] {
		if head := m.Buffers[0]; len(m.OOB) != 0 || !bytes.Equal(head, []byte{0, opData, 0, byte(i + 1)}) {
			t.Errorf("part %d: %v", i, head)
		}
		got = append(got, m.Buffers[1]...)
	}
	if !bytes.Equal(got, loader[:2500]) {
		t.Errorf("%d bytes", len(got))
	}
}

// A lost packet is sent again, at last without end no more.
func TestRetransmission(t *testing.T) {
	s := start(t, Config{})
	c := dial(t)
	c.send(s.Addr(), rrq("ipxe.efi", "octet"))
	for range 2 { // the first is lost, say
		if op, number, rest := c.next(); op != opData || number != 1 || !bytes.Equal(rest, loader[:512]) {
			t.Fatalf("kind %d, block %d", op, number)
		}
	}
	c.ack(1)
	c.ack(1) // a duplicate must not double the rest of the transfer
	if op, number, _ := c.next(); op != opData || number != 2 {
		t.Fatalf("kind %d, block %d", op, number)
	}
	if raw, ok := c.receive(300 * time.Millisecond); ok {
		t.Errorf("sent again without need: %v", raw[:4])
	}
}

// A request that comes twice is one transfer; another one from the same port is a
// new transfer from another port of the server's.
func TestRequestAgain(t *testing.T) {
	s := start(t, Config{TransfersPerClient: 1})
	c := dial(t)
	first := rrq("ipxe.efi", "octet", "tsize", "0")
	c.send(s.Addr(), first)
	c.next()
	peer := c.peer
	c.send(s.Addr(), first)
	if op, _, _ := c.next(); op != opOACK || c.peer != peer {
		t.Errorf("answer of kind %d from %v, want from %v", op, c.peer, peer)
	}
	c.send(s.Addr(), rrq("ipxe.efi", "octet"))
	if op, number, _ := c.next(); op != opData || number != 1 || c.peer == peer {
		t.Errorf("answer of kind %d from %v", op, c.peer)
	}
	// A late packet of the former transfer ends nothing: an error would reach the new one.
	c.send(peer, []byte{0, opAck, 0, 0})
	if raw, ok := c.receive(200 * time.Millisecond); ok {
		t.Errorf("answer %q from %v", raw, c.peer)
	}
}

func TestCaps(t *testing.T) {
	s := start(t, Config{Transfers: 3, TransfersPerClient: 2})
	clients := make([]*client, 3)
	ask := func(c *client) (op uint16, rest []byte) {
		c.send(s.Addr(), rrq("ipxe.efi", "octet"))
		op, _, rest = c.next()
		return op, rest
	}
	for i := range clients {
		clients[i] = dial(t)
		op, rest := ask(clients[i])
		if want := i < 2; (op == opData) != want {
			t.Errorf("transfer %d of one client: kind %d, %q", i, op, rest)
		}
	}
	// Others have room until all together are too many.
	now := time.Now()
	other := func(last byte) *refusal {
		return s.handle(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), 9), rrq("ipxe.efi", "octet"), now)
	}
	if refused := other(2); refused != nil {
		t.Errorf("another client: %v", refused)
	}
	if refused := other(3); refused != errBusy {
		t.Errorf("fourth of all: %v", refused)
	}
	// What ends makes room, also by the client's word.
	clients[0].send(clients[0].peer, (&refusal{codeOther, "enough"}).packet())
	deadline := time.Now().Add(10 * time.Second)
	for op := uint16(opError); op != opData; op, _ = ask(clients[2]) {
		if time.Now().After(deadline) {
			t.Fatal("no room after a transfer's end")
		}
	}
}

// A client that acknowledges slowly must not keep a transfer for ever, and one
// whose server ends is told.
func TestTransferEnds(t *testing.T) {
	s := start(t, Config{TransferTime: 200 * time.Millisecond})
	c := dial(t)
	c.send(s.Addr(), rrq("ipxe.efi", "octet", "timeout", "1"))
	for {
		op, _, rest := c.next()
		if op == opError {
			if !bytes.HasPrefix(rest, []byte(errTooLong.text)) {
				t.Errorf("error %q", rest)
			}
			break
		}
	}
	s.mu.Lock()
	if len(s.active) != 0 || len(s.clients) != 0 {
		t.Errorf("left behind: %d transfers, %v", len(s.active), s.clients)
	}
	s.mu.Unlock()

	s, err := Listen(Config{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Files: map[string][]byte{"f": loader}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	c.send(s.Addr(), rrq("f", "octet"))
	c.next()
	cancel()
	if op, _, rest := c.next(); op != opError || !bytes.HasPrefix(rest, []byte(errClosing.text)) {
		t.Errorf("kind %d, %q", op, rest)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// FuzzTFTP sends raw requests to the server as a peer would. Whatever comes, an
// answer with data starts one of the listed files, and the server lives on.
func FuzzTFTP(f *testing.F) {
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
