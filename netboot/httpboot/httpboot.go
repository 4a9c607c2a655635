// Package httpboot is the HTTP server of a rack: boot scripts and seeds for the
// machine that they are meant for, the ramdisk's files and the boot loaders for
// everybody on the rack's network, and a handler for image chunks.
package httpboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Timeouts. The last bounds a whole response: an initrd over the slowest of
// links fits, a client that stops reading does not stay for ever.
const (
	headerTimeout   = 10 * time.Second
	requestTimeout  = 30 * time.Second
	idleTimeout     = time.Minute
	responseTimeout = 15 * time.Minute
	seedTimeout     = 10 * time.Second
	closeTimeout    = 5 * time.Second
)

// ErrNone is returned by a Source for machines without a script or seed.
var ErrNone = errors.New("nothing for this machine")

// Source knows what each machine gets. MACs are in lower case, with colons; client
// is the address that the request came from, which tells the rack.
type Source interface {
	Assigned(mac string, client netip.Addr) (netip.Addr, bool)                                         // the address of an enrolled MAC
	Script(ctx context.Context, mac string, client netip.Addr) (name string, script []byte, err error) // name says which, for Served
	Seed(ctx context.Context, mac string, client netip.Addr) ([]byte, error)
}

// Kind of a Served event.
type Kind int

// The kinds.
const (
	Script Kind = iota
	Seed
	Loader
	Refused // a script or seed for another machine than the one that asks
)

// Served is something that was sent, or refused.
type Served struct {
	Kind Kind
	MAC  string     // "" for Loader
	Addr netip.Addr // of the client
	Name string     // of the loader or the script
}

// Config of a Server.
type Config struct {
	Addr    netip.AddrPort
	Source  Source
	Kernel  string            // path of the ramdisk's kernel
	Initrd  string            // path of its initramfs
	Loaders map[string][]byte // by name
	Chunks  http.Handler      // mounted at /images/; nil: none
	Served  func(Served)      // may be nil; must not block
	Log     *slog.Logger
}

// Server serves a rack.
type Server struct {
	cfg      Config
	listener net.Listener
	http     *http.Server
	started  time.Time // modification time of what lives in memory
}

// Listen binds the port.
func Listen(cfg Config) (*Server, error) {
	l, err := net.Listen("tcp4", cfg.Addr.String())
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	s := newServer(cfg)
	s.listener = l
	return s, nil
}

func newServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Served == nil {
		cfg.Served = func(Served) {}
	}
	s := &Server{cfg: cfg, started: time.Now()}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      responseTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// handler passes the server's own ResponseWriter on: wrapped, it would lose
// sendfile for the ramdisk and the chunks.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot/ipxe", s.script)
	mux.HandleFunc("GET /boot/seed/{file}", s.seed)
	mux.HandleFunc("GET /ramdisk/vmlinuz", func(w http.ResponseWriter, r *http.Request) { s.file(w, r, s.cfg.Kernel) })
	mux.HandleFunc("GET /ramdisk/initrd.img", func(w http.ResponseWriter, r *http.Request) { s.file(w, r, s.cfg.Initrd) })
	mux.HandleFunc("GET /loader/{name}", s.loader)
	if s.cfg.Chunks != nil {
		mux.Handle("/images/", s.cfg.Chunks)
	}
	return mux
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.listener.Addr().(*net.TCPAddr).AddrPort() }

// Close frees the port of a server that does not Serve.
func (s *Server) Close() error { return s.listener.Close() }

// Serve answers until ctx ends, then gives requests under way a moment.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if s.http.Shutdown(end) != nil {
			_ = s.http.Close()
		}
	})
	err := s.http.Serve(s.listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) script(w http.ResponseWriter, r *http.Request) {
	mac, ok := s.owner(w, r, r.URL.Query().Get("mac"))
	if !ok {
		return
	}
	name, data, err := s.cfg.Source.Script(r.Context(), mac, client(r))
	if !s.send(w, r, mac, "text/plain; charset=utf-8", data, err) {
		return
	}
	s.cfg.Served(Served{Kind: Script, MAC: mac, Addr: client(r), Name: name})
}

// seed sends the initrd with the one-time token. Each GET makes a new token, so
// HEAD, which would void the former one for nothing, is not served.
func (s *Server) seed(w http.ResponseWriter, r *http.Request) {
	name, isSeed := strings.CutSuffix(r.PathValue("file"), ".cpio")
	if !isSeed || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	mac, ok := s.owner(w, r, name)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), seedTimeout)
	defer cancel()
	data, err := s.cfg.Source.Seed(ctx, mac, client(r))
	if !s.send(w, r, mac, "application/octet-stream", data, err) {
		return
	}
	s.cfg.Served(Served{Kind: Seed, MAC: mac, Addr: client(r)})
}

// owner returns the MAC that a request names if the request comes from the
// address that is assigned to it. Everybody else learns nothing: 404.
func (s *Server) owner(w http.ResponseWriter, r *http.Request, name string) (string, bool) {
	hw, err := net.ParseMAC(name)
	if err != nil || len(hw) != 6 {
		http.NotFound(w, r)
		return "", false
	}
	mac, addr := hw.String(), client(r)
	if assigned, ok := s.cfg.Source.Assigned(mac, addr); !ok || assigned != addr {
		s.cfg.Log.Warn("boot request refused, it is not from the machine's address", "mac", mac, "addr", addr)
		s.cfg.Served(Served{Kind: Refused, MAC: mac, Addr: addr})
		http.NotFound(w, r)
		return "", false
	}
	return mac, true
}

func (s *Server) send(w http.ResponseWriter, r *http.Request, mac, contentType string, data []byte, err error) bool {
	switch {
	case errors.Is(err, ErrNone):
		http.NotFound(w, r)
		return false
	case err != nil:
		s.cfg.Log.Error("boot request failed", "mac", mac, "addr", client(r), "err", err)
		http.Error(w, "not available", http.StatusServiceUnavailable)
		return false
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", fmt.Sprint(len(data)))
	_, err = w.Write(data)
	return err == nil
}

func (s *Server) loader(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	data, ok := s.cfg.Loaders[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/efi") // what UEFI HTTP boot wants
	http.ServeContent(w, r, "", s.started, bytes.NewReader(data))
	if r.Method == http.MethodGet {
		s.cfg.Served(Served{Kind: Loader, Addr: client(r), Name: name})
	}
}

// file serves a file of the ramdisk, opened anew each time: it may be replaced.
func (s *Server) file(w http.ResponseWriter, r *http.Request, path string) {
	f, err := os.Open(path)
	if err != nil {
		s.cfg.Log.Error("ramdisk file could not be opened", "err", err)
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		s.cfg.Log.Error("ramdisk file is not a regular file", "path", path, "err", err)
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// client is the requester's address.
func client(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
