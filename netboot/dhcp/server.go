package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Seen is one packet and what became of it.
type Seen struct {
	MAC     string
	From    Origin
	Known   bool // enrolled
	Boots   bool // it is not, and boots from the network
	Outcome Outcome
	Reason  string
	Addr    netip.Addr // assigned; zero when not enrolled
}

// Config of a Server. All fields but Seen and Log are required.
type Config struct {
	Interface string // on the machines' network
	Identity  Identity
	Lookup    func(mac string, from Origin) (Lease, bool) // mac in lower case; answers from memory
	Seen      func(Seen)                                  // called for every packet that Check passes, before its answer is sent; must not block
	Tries     *Tries                                      // nil: one of its own
	Log       *slog.Logger
}

// link is the server's two sockets; tests have their own.
type link interface {
	Read() ([][]byte, error) // some packets, good until the next Read; net.ErrClosed after Close
	Send(payload []byte, to Destination) error
	Flush() error // sends what Send may have kept
	Close() error
}

// Server answers on one interface.
type Server struct {
	cfg  Config
	link link

	req   dhcpv4.DHCPv4 // the packet at hand, used again for each
	reply []byte
}

// Listen opens the sockets. It needs the rights to bind port 67 and to send raw
// frames (CAP_NET_BIND_SERVICE, CAP_NET_RAW).
func Listen(cfg Config) (*Server, error) {
	if !cfg.Identity.Addr.Is4() {
		return nil, fmt.Errorf("dhcp: server address %v is not IPv4", cfg.Identity.Addr)
	}
	l, err := openLink(cfg.Interface, cfg.Identity.Addr)
	if err != nil {
		return nil, fmt.Errorf("dhcp: %w", err)
	}
	return newServer(cfg, l), nil
}

func newServer(cfg Config, l link) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Seen == nil {
		cfg.Seen = func(Seen) {}
	}
	if cfg.Tries == nil {
		cfg.Tries = &Tries{}
	}
	return &Server{cfg: cfg, link: l}
}

// Close frees the sockets of a server that does not Serve.
func (s *Server) Close() error { return s.link.Close() }

// Serve answers until ctx ends and then closes the sockets.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.link.Close() })
	defer func() {
		if stop() {
			_ = s.link.Close()
		}
	}()
	for {
		packets, err := s.link.Read()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // the interface went down, say: it may come back
			s.cfg.Log.Warn("dhcp packet could not be received", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
			continue
		}
		for _, raw := range packets {
			s.handle(raw)
		}
		if err := s.link.Flush(); err != nil {
			s.cfg.Log.Warn("dhcp answer could not be sent", "err", err)
		}
	}
}

// handle answers one packet. It keeps nothing of raw.
func (s *Server) handle(raw []byte) {
	req := &s.req
	if err := decode(req, raw); err != nil {
		s.cfg.Log.Debug("dhcp packet could not be decoded", "err", err)
		return
	}
	if why := Check(req); why != "" {
		s.cfg.Log.Debug("dhcp packet ignored", "reason", why)
		return
	}
	mac, from := req.ClientHWAddr.String(), origin(req)
	lease, known := s.cfg.Lookup(mac, from)
	if !known {
		s.cfg.Seen(Seen{MAC: mac, From: from, Boots: bootsFromNetwork(req)})
		s.cfg.Log.Debug("dhcp packet of a machine that is not enrolled", "mac", mac)
		return
	}
	d := s.decide(mac, req, lease)
	addr := lease.Addr.Addr()
	s.cfg.Seen(Seen{MAC: mac, From: from, Known: true, Outcome: d.Outcome, Reason: d.Reason, Addr: addr})
	switch d.Outcome {
	case Declined:
		s.cfg.Log.Warn("dhcp client found its address in use by another", "mac", mac, "addr", addr)
	case Refused:
		s.cfg.Log.Warn("dhcp request refused", "mac", mac, "addr", addr, "reason", d.Reason)
	case Ignored:
		s.cfg.Log.Debug("dhcp packet ignored", "mac", mac, "addr", addr, "reason", d.Reason)
	default:
		s.cfg.Log.Debug("dhcp packet answered", "mac", mac, "addr", addr, "outcome", d.Outcome)
	}
	if d.Reply == nil {
		return
	}
	s.reply = encode(s.reply[:0], d.Reply)
	if err := s.link.Send(s.reply, d.To); err != nil {
		s.cfg.Log.Warn("dhcp answer could not be sent", "mac", mac, "addr", addr, "err", err)
	}
}

// decide leaves a network boot to other servers first where the lease says so. What
// a client chose of another server says that there is one.
func (s *Server) decide(mac string, req *dhcpv4.DHCPv4, l Lease) Decision {
	if !(l.Late || l.Silent) || !bootsFromNetwork(req) {
		return s.cfg.Identity.Decide(req, l)
	}
	other, chose := serverID(req)
	if chose && other != s.cfg.Identity.Addr {
		s.cfg.Tries.answered(mac)
	} else if s.cfg.Tries.Ask(mac, req.TransactionID) < patience(l.Silent) {
		if l.Silent {
			return Decision{Reason: Elsewhere}
		}
		return Decision{Reason: "left to another server for a moment"}
	} else if l.Spare {
		l.Silent = false
	}
	d := s.cfg.Identity.Decide(req, l)
	if chose && d.Outcome == Acked {
		s.cfg.Tries.follows(mac)
	}
	return d
}
