package light

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"bmc/lab/netns"
	"bmc/lab/vswitch"
)

const (
	// interfaceName is where the kernel has the machines' addresses, and kernelMAC
	// that interface's, which no wire of the rack sees.
	interfaceName = "light0"
	portQueue     = 256 // frames of one machine that wait for the switch
	dhcpQueue     = 8
)

var kernelMAC = mac{0x02, 0x4c, 0x49, 0, 0, 1}

// keepsRoutes is an address for documentation (RFC 5737), never heard on a wire:
// the kernel forgets an interface's routes with its last address.
var keepsRoutes = netip.MustParsePrefix("192.0.2.1/32")

// Rack is a rack's network as its light machines see it: the kernel's TCP behind
// the machines' own MACs.
type Rack struct {
	subnet netip.Prefix
	router netip.Addr // of the rack; zero: nothing routes
	space  *netns.Namespace
	sw     *vswitch.Switch
	tap    netns.Frames
	log    *slog.Logger
	files  files // what the machines have loaded, see fetch.go
	wg     sync.WaitGroup

	mu     sync.RWMutex
	byAddr map[netip.Addr]*nic
}

// NewRack uses a namespace that has no other interface. router is what leads to
// other networks; zero: nothing. Close it after the machines, and before the
// namespace.
func NewRack(space *netns.Namespace, sw *vswitch.Switch, subnet netip.Prefix, router netip.Addr, log *slog.Logger) (*Rack, error) {
	r := &Rack{subnet: subnet, router: router, space: space, sw: sw, log: log, byAddr: map[netip.Addr]*nic{}}
	if err := space.Do(func() (err error) {
		if r.tap, err = netns.OpenFrames(interfaceName, kernelMAC[:], 0); err != nil {
			return err
		}
		if err := netns.AddAddress(interfaceName, keepsRoutes); err != nil {
			return err
		}
		if err := netns.AddRoute(interfaceName, subnet); err != nil || !router.IsValid() {
			return err
		}
		return netns.AddRouteVia(interfaceName, netip.PrefixFrom(netip.IPv4Unspecified(), 0), router)
	}); err != nil {
		if r.tap != nil {
			err = errors.Join(err, r.tap.Close())
		}
		return nil, fmt.Errorf("light machines' network: %w", err)
	}
	r.wg.Go(r.fromKernel)
	return r, nil
}

// Close ends the machines' TCP.
func (r *Rack) Close() error {
	err := r.tap.Close()
	r.wg.Wait()
	return err
}

// fromKernel puts each machine's frames on that machine's port.
func (r *Rack) fromKernel() {
	buf := make([]byte, vswitch.MaxFrame)
	for {
		n, err := r.tap.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				r.log.Error("light machines' network lost", "err", err)
			}
			return
		}
		f := buf[:n]
		switch {
		case isIPv4(f):
			if c := r.owner(ipSource(f)); c != nil && c.reaches(ipTarget(f)) {
				out := append([]byte(nil), f...)
				copy(out[6:12], c.mac[:])
				c.send(out)
			}
		case isARP(f):
			if c := r.owner(netip.AddrFrom4([4]byte(f[arpSender+6:]))); c != nil {
				out := append([]byte(nil), f...)
				copy(out[6:12], c.mac[:])
				copy(out[arpSender:], c.mac[:])
				c.send(out)
			}
		}
	}
}

func (r *Rack) owner(a netip.Addr) *nic {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byAddr[a]
}

// nic is a machine's cable while the machine has power. It is the switch's Link.
type nic struct {
	rack *Rack
	mac  mac
	port *vswitch.Port
	out  chan []byte
	dhcp chan *message
	// heard is told of every DHCP answer that reaches the machine.
	heard func(*message)
	done  chan struct{}
	once  sync.Once

	mu    sync.Mutex
	addr  netip.Addr
	hop   netip.Addr // the router that DHCP named; zero: none
	conns map[*conn]struct{}
}

// plug connects a machine. heard must not block.
func (r *Rack) plug(name string, hw mac, heard func(*message)) (*nic, error) {
	c := &nic{
		rack: r, mac: hw, out: make(chan []byte, portQueue), dhcp: make(chan *message, dhcpQueue), heard: heard,
		done: make(chan struct{}), conns: map[*conn]struct{}{},
	}
	var err error
	c.port, err = r.sw.Attach(name, c)
	return c, err
}

// unplug is a power cut: nothing is said to anybody any more, then the kernel
// forgets the machine's connections and its address.
func (c *nic) unplug() error {
	err := c.port.Close()
	c.mu.Lock()
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for k := range conns {
		k.cut()
	}
	return errors.Join(err, c.setAddr(netip.Addr{}))
}

// cutConns forgets all connections of a machine that stays plugged in: a reset.
// The kernel says RST, which a real machine does a moment later.
func (c *nic) cutConns() {
	c.mu.Lock()
	conns := c.conns
	c.conns = map[*conn]struct{}{}
	c.mu.Unlock()
	for k := range conns {
		k.cut()
	}
}

// setAddr gives the machine an address, or none.
func (c *nic) setAddr(a netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.addr == a {
		return nil
	}
	r := c.rack
	if old := c.addr; old.IsValid() {
		r.mu.Lock()
		mine := r.byAddr[old] == c
		if mine {
			delete(r.byAddr, old)
		}
		r.mu.Unlock()
		if mine {
			if err := r.space.Do(func() error { return netns.DelAddress(interfaceName, netip.PrefixFrom(old, 32)) }); err != nil {
				return err
			}
		}
		c.addr = netip.Addr{}
	}
	if !a.IsValid() {
		return nil
	}
	r.mu.Lock()
	other := r.byAddr[a]
	if other == nil {
		r.byAddr[a] = c
	}
	r.mu.Unlock()
	if other != nil {
		return fmt.Errorf("address %s is in use by %s", a, net.HardwareAddr(other.mac[:]))
	}
	c.addr = a
	return r.space.Do(func() error { return netns.AddAddress(interfaceName, netip.PrefixFrom(a, 32)) })
}

// setRouter notes what DHCP said.
func (c *nic) setRouter(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hop = a
}

// reaches says whether the machine knows a way: the kernel has the rack's router
// for all its machines, but only who was told of it may use it.
func (c *nic) reaches(to netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rack.subnet.Contains(to) || c.hop.IsValid() && c.hop == c.rack.router
}

func (c *nic) address() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addr
}

// Read gives the switch what the machine sends.
func (c *nic) Read(b []byte) (int, error) {
	select {
	case f := <-c.out:
		return copy(b, f), nil
	case <-c.done:
		return 0, io.EOF
	}
}

func (c *nic) send(f []byte) {
	select {
	case c.out <- f:
	default: // full: dropped, as on a wire
	}
}

// Close is the switch's, when the port goes.
func (c *nic) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// Write takes a frame from the switch: DHCP for the machine's firmware or
// operating system, ARP for its address, the rest for the kernel.
func (c *nic) Write(f []byte) (int, error) {
	if dst := mac(f); dst != c.mac && dst != broadcast {
		return len(f), nil
	}
	if p, ok := udpPayload(f, clientPort); ok {
		if m, err := parseMessage(p); err == nil && m.reply && m.chaddr == c.mac {
			c.heard(m)
			select {
			case c.dhcp <- m:
			default: // nobody listens
			}
		}
		return len(f), nil
	}
	a := c.address()
	switch {
	case !a.IsValid():
	case isARP(f):
		if netip.AddrFrom4([4]byte(f[arpTarget+6:])) != a {
			break
		}
		if f[arpOp] == 0 && f[arpOp+1] == arpRequest {
			c.send(answerARP(f, c.mac))
			break
		}
		in := append([]byte(nil), f...)
		copy(in[0:6], kernelMAC[:])
		copy(in[arpTarget:], kernelMAC[:])
		return c.toKernel(f, in)
	case isIPv4(f) && ipTarget(f) == a:
		in := append([]byte(nil), f...)
		copy(in[0:6], kernelMAC[:])
		return c.toKernel(f, in)
	}
	return len(f), nil
}

func (c *nic) toKernel(f, in []byte) (int, error) {
	if _, err := c.rack.tap.Write(in); err != nil {
		return 0, err
	}
	return len(f), nil
}

// conn is a TCP connection that does not outlive its machine's power.
type conn struct {
	*net.TCPConn
	nic *nic
}

func (k *conn) Close() error {
	k.nic.mu.Lock()
	delete(k.nic.conns, k)
	k.nic.mu.Unlock()
	return k.TCPConn.Close()
}

// cut ends a connection without a word to the peer that could still be sent.
func (k *conn) cut() {
	_ = k.SetLinger(0)
	_ = k.TCPConn.Close()
}

func (c *nic) hold(t net.Conn) (net.Conn, error) {
	tcp, ok := t.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a %T is no TCP connection", t), t.Close())
	}
	k := &conn{tcp, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		k.cut()
		return nil, net.ErrClosed
	}
	c.conns[k] = struct{}{}
	return k, nil
}

// dial connects from the machine's address. Only the start of it is on the
// namespace's thread, which all machines of the rack share.
func (c *nic) dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	from := c.address()
	if !from.IsValid() || !to.Addr().Is4() {
		return nil, fmt.Errorf("dial %s without an address", addr)
	}
	var f *os.File
	if err := c.rack.space.Do(func() (err error) {
		f, err = startConnect(from, to)
		return err
	}); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	defer f.Close()
	if err := awaitConnect(ctx, f); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	t, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c.hold(t)
}

func startConnect(from netip.Addr, to netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tcp"), nil
}

func awaitConnect(ctx context.Context, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if d, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(d); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(past) })
	defer stop()
	var failed error
	err = rc.Write(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(p, 0); err != nil || n == 0 {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if failed = err; err == nil && code != 0 {
			failed = unix.Errno(code)
		}
		return true
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, failed)
}

// listen accepts on the machine's address.
func (c *nic) listen(port uint16) (net.Listener, error) {
	var l net.Listener
	err := c.rack.space.Do(func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.address(), port)))
		return err
	})
	return l, err
}

// udp opens a socket on the machine's address; port 0 is any.
func (c *nic) udp(port uint16) (*net.UDPConn, error) {
	var u *net.UDPConn
	err := c.rack.space.Do(func() (err error) {
		u, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.address(), port)))
		return err
	})
	return u, err
}
