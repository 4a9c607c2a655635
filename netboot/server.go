package netboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"bmc/netboot/dhcp"
	"bmc/netboot/httpboot"
	"bmc/netboot/ipxe"
	"bmc/netboot/tftp"
)

// DefaultHTTPPort is used where Config has zero. Scripts need no port then.
const DefaultHTTPPort = 80

// DefaultConsole is the console of machines whose BootSpec names none.
const DefaultConsole = "ttyS0,115200"

// baseArgs are on every ramdisk's kernel line: emulated and some real boards hang
// in the timer check, and a panic shall not wait for a person. The kernel's notices
// (errors stay) would take two seconds of a serial console at 115,200 baud.
var baseArgs = []string{"no_timer_check", "panic=30", "quiet"}

// Config of a Server.
type Config struct {
	Interface string     // on the rack's provisioning network, or where relayed requests arrive
	Addr      netip.Addr // the agent's own address there
	HTTPPort  int        // 0: DefaultHTTPPort
	Kernel    string     // path of the ramdisk's kernel
	Initrd    string     // path of its initramfs
	LoaderDir string     // files here replace the built-in boot loaders of the same name; "": none
	Directory Directory  // of the rack on the interface's own network; nil: there is none
	Relayed   []Rack     // racks that reach Addr through relays; their subnets do not overlap
	Seeder    Seeder
	Chunks    http.Handler // mounted at /images/; nil: none
	Events    Events       // of the rack on the interface's own network, and strays; may be nil
	Log       *slog.Logger // may be nil
}

// Server answers the racks that share an interface and an address. What it says to
// a machine comes from the directory of that machine's rack alone.
type Server struct {
	cfg     Config
	own     *Rack // nil without Config.Directory
	loaders map[string][]byte
	tries   dhcp.Tries
}

// New checks a configuration and reads the boot loaders. It opens no socket.
func New(cfg Config) (*Server, error) {
	if cfg.HTTPPort == 0 {
		cfg.HTTPPort = DefaultHTTPPort
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Events == nil {
		cfg.Events = func(Event) {}
	}
	switch {
	case cfg.Interface == "":
		return nil, errors.New("netboot: no interface")
	case !cfg.Addr.Is4():
		return nil, fmt.Errorf("netboot: address %v is not IPv4", cfg.Addr)
	case cfg.HTTPPort < 0 || cfg.HTTPPort > 65535:
		return nil, fmt.Errorf("netboot: HTTP port %d is not 1 to 65535", cfg.HTTPPort)
	case cfg.Directory == nil && len(cfg.Relayed) == 0 || cfg.Seeder == nil:
		return nil, errors.New("netboot: a directory and a seeder are needed")
	}
	cfg.Relayed = slices.Clone(cfg.Relayed)
	for i := range cfg.Relayed {
		r := &cfg.Relayed[i]
		if r.Subnet == nil || r.Directory == nil {
			return nil, errors.New("netboot: a rack behind a relay needs a subnet and a directory")
		}
		if r.Events == nil {
			r.Events = func(Event) {}
		}
	}
	loaders, err := ipxe.Loaders(cfg.LoaderDir)
	if err != nil {
		return nil, fmt.Errorf("netboot: %w", err)
	}
	s := &Server{cfg: cfg, loaders: loaders}
	if cfg.Directory != nil {
		s.own = &Rack{Directory: cfg.Directory, Events: cfg.Events}
	}
	return s, nil
}

// Run serves until ctx ends, then returns nil. It returns an error if a port
// cannot be had, and if one of the servers fails, once all have ended. Without
// IPv6 there are no router advertisements; the log says so.
func (s *Server) Run(ctx context.Context) error {
	cfg := s.cfg
	d, err := dhcp.Listen(dhcp.Config{
		Interface: cfg.Interface,
		Identity:  dhcp.Identity{Addr: cfg.Addr, Base: ipxe.Base(s.httpAddr())},
		Lookup:    s.lease,
		Seen:      s.seenDHCP,
		Tries:     &s.tries,
		Log:       cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("netboot: %w", err)
	}
	t, err := tftp.Listen(tftp.Config{
		Addr:  netip.AddrPortFrom(cfg.Addr, 69),
		Files: s.loaders,
		Sent:  func(client netip.Addr, name string) { s.loaderSent(client, name) },
		Log:   cfg.Log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("netboot: %w", err), d.Close())
	}
	h, err := httpboot.Listen(httpboot.Config{
		Addr:    s.httpAddr(),
		Source:  source{s},
		Kernel:  cfg.Kernel,
		Initrd:  cfg.Initrd,
		Loaders: s.loaders,
		Chunks:  cfg.Chunks,
		Served:  s.served,
		Log:     cfg.Log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("netboot: %w", err), d.Close(), t.Close())
	}
	cfg.Log.Info("network boot ready", "interface", cfg.Interface, "addr", cfg.Addr)
	return s.serve(ctx, d.Serve, t.Serve, h.Serve, s.advertise)
}

// serve runs all servers; the first that fails ends the others.
func (s *Server) serve(ctx context.Context, servers ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, serve := range servers {
		wg.Go(func() {
			if errs[i] = serve(ctx); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("netboot: %w", err)
	}
	return nil
}

// advertise never fails: IPv6 is a help, not a need. Advertisements do not pass
// relays.
func (s *Server) advertise(ctx context.Context) error {
	if s.own == nil {
		return nil
	}
	a, err := listenAdvertiser(s.cfg.Interface, s.cfg.Log)
	if err != nil {
		s.cfg.Log.Warn("no router advertisements, network boots take longer", "interface", s.cfg.Interface, "err", err)
		return nil
	}
	a.serve(ctx)
	return nil
}

func (s *Server) httpAddr() netip.AddrPort {
	return netip.AddrPortFrom(s.cfg.Addr, uint16(s.cfg.HTTPPort))
}
