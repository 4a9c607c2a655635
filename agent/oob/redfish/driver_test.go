package redfish_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"bmc/agent/oob/goipmi"
	"bmc/agent/oob/redfish"
	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
)

// host is a machine that only remembers its state.
type host struct {
	mu sync.Mutex
	s  machine.State
}

func (h *host) set(f func(*machine.State)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.s)
	return nil
}

func (h *host) State() machine.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.s
}

func (h *host) PowerOn(context.Context) error  { return h.set(func(s *machine.State) { s.On = true }) }
func (h *host) PowerOff(context.Context) error { return h.set(func(s *machine.State) { s.On = false }) }
func (h *host) SoftOff(ctx context.Context) error {
	return h.PowerOff(ctx)
}
func (h *host) Reset(context.Context) error { return nil }
func (h *host) SetBoot(_ context.Context, o machine.Override) error {
	return h.set(func(s *machine.State) { s.Boot = o })
}

const password = "secret-of-the-bmc"

// service is a simulated one, on l or, where that is nil, on a port of its own.
func service(t *testing.T, l net.Listener) (*virtualbmc.Redfish, *host, redfish.Config) {
	t.Helper()
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{}
	r, err := virtualbmc.ServeRedfish(l, virtualbmc.Config{Name: "r1-u01", User: "admin", Password: password, Machine: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	at := l.Addr().(*net.TCPAddr)
	return r, h, redfish.Config{Host: at.IP.String(), Port: at.Port, Username: "admin", Password: password}
}

// open returns a driver with a session.
func open(t *testing.T, cfg redfish.Config) *redfish.Conn {
	t.Helper()
	c := redfish.New(cfg)
	if err := c.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestRefusedLogins(t *testing.T) {
	r, _, cfg := service(t, nil)
	for _, tc := range []struct {
		what  string
		login virtualbmc.Refusal
		want  error
	}{
		{"a wrong password, quoted", virtualbmc.Refusal{Status: 400, ID: "PropertyValueFormatError", Message: "The value '%s' for the property Password is of a different format."}, goipmi.ErrAuth},
		{"quoted where the sentence is cut", virtualbmc.Refusal{Status: 401, ID: "GeneralError", Message: strings.Repeat(".", 190) + "%s"}, goipmi.ErrAuth},
		{"no room", virtualbmc.Refusal{Status: 503, ID: "SessionLimitExceeded"}, goipmi.ErrBusy},
		{"no room, 403", virtualbmc.Refusal{Status: 403, ID: "SessionLimitExceeded"}, goipmi.ErrBusy},
		{"no room, 400", virtualbmc.Refusal{Status: 400, ID: "SessionLimitExceeded"}, goipmi.ErrBusy},
		{"no room, 401", virtualbmc.Refusal{Status: 401, ID: "SessionLimitExceeded"}, goipmi.ErrBusy},
		{"no room, as for any resource", virtualbmc.Refusal{Status: 400, ID: "CreateLimitReachedForResource"}, goipmi.ErrBusy},
		{"forbidden", virtualbmc.Refusal{Status: 403, ID: "InsufficientPrivilege"}, goipmi.ErrAuth},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r.Bend(virtualbmc.RedfishFaults{Login: tc.login})
			err := redfish.New(cfg).Open(t.Context())
			if !errors.Is(err, tc.want) || errors.Is(err, goipmi.ErrAuth) != errors.Is(tc.want, goipmi.ErrAuth) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if strings.Contains(err.Error(), password[:8]) {
				t.Errorf("it tells the password: %v", err)
			}
		})
	}
}

// A machine that has shut itself down since it was read is not turned on.
func TestSoftOffByAButton(t *testing.T) {
	r, h, cfg := service(t, nil)
	r.Bend(virtualbmc.RedfishFaults{ResetTypes: []string{"On", "ForceOff", "PushPowerButton"}})
	c := open(t, cfg)
	if _, err := c.PowerSet(t.Context(), "soft"); !errors.Is(err, goipmi.ErrBusy) || h.State().On {
		t.Errorf("of a machine that is off: %v, on %v", err, h.State().On)
	}
	_ = h.PowerOn(t.Context())
	if _, err := c.PowerSet(t.Context(), "soft"); err != nil || h.State().On {
		t.Errorf("of one that is on: %v, on %v", err, h.State().On)
	}
}

func TestSessionWithoutLocation(t *testing.T) {
	r, _, cfg := service(t, nil)
	r.Bend(virtualbmc.RedfishFaults{NoLocation: true})
	c := open(t, cfg)
	if err := c.Close(t.Context()); err != nil || r.Sessions() != 0 {
		t.Errorf("logout: %v, %d sessions left", err, r.Sessions())
	}
}

func TestCloseOthers(t *testing.T) {
	for _, tc := range []struct {
		what   string
		faults virtualbmc.RedfishFaults
		reads  int // of sessions, each one
		want   error
	}{
		{"among strangers", virtualbmc.RedfishFaults{Strangers: 3}, 5, nil},
		{"paths that end with a slash", virtualbmc.RedfishFaults{Slash: true}, 2, nil},
		{"in a crowd", virtualbmc.RedfishFaults{Strangers: 100}, 32, goipmi.ErrNoFence},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r, _, cfg := service(t, nil)
			r.Bend(tc.faults)
			open(t, cfg)
			open(t, cfg)
			closed, err := open(t, cfg).CloseOthers(t.Context())
			if closed != 2 || !errors.Is(err, tc.want) || r.Sessions() != 1 {
				t.Errorf("%d closed, %v, %d left; want 2, %v, 1", closed, err, r.Sessions(), tc.want)
			}
			reads := 0
			for _, s := range r.Requests() {
				if strings.HasPrefix(s, "GET /redfish/v1/SessionService/Sessions/") {
					reads++
				}
			}
			if reads != tc.reads {
				t.Errorf("%d reads of a session, want %d: %v", reads, tc.reads, r.Requests())
			}
		})
	}
}

func TestBootDeviceWithoutEntityTags(t *testing.T) {
	r, h, cfg := service(t, nil)
	r.Bend(virtualbmc.RedfishFaults{NoMatch: true})
	if _, err := open(t, cfg).BootDeviceSet(t.Context(), "pxe", false, true); err != nil {
		t.Error(err)
	}
	if got, want := h.State().Boot, (machine.Override{Device: machine.Network, EFI: true}); got != want {
		t.Errorf("the machine boots by %+v, want %+v", got, want)
	}
}

// counting is a listener that calls accepted with each connection's number.
type counting struct {
	net.Listener
	n        atomic.Int64
	accepted func(n int64)
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted(l.n.Add(1))
	}
	return c, err
}

// A lease that ends while the command's connection is made keeps the command back.
func TestLookWhenConnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	over := errors.New("the lease is over")
	cl := &counting{Listener: l}
	cl.accepted = func(n int64) { ended.Store(n == 2) } // after a reading
	r, h, cfg := service(t, cl)
	cfg.Look = func(bool) error {
		if ended.Load() {
			return over
		}
		return nil
	}
	r.Bend(virtualbmc.RedfishFaults{Closes: true})
	for what, do := range map[string]func(c *redfish.Conn) error{
		"power": func(c *redfish.Conn) error { _, err := c.PowerSet(t.Context(), "on"); return err },
		"boot":  func(c *redfish.Conn) error { _, err := c.BootDeviceSet(t.Context(), "pxe", false, true); return err },
	} {
		c := open(t, cfg)
		before := len(r.Requests())
		cl.n.Store(0)
		if err := do(c); !errors.Is(err, over) {
			t.Errorf("%s: %v", what, err)
		}
		if got := r.Requests()[before:]; len(got) != 1 || h.State() != (machine.State{}) {
			t.Errorf("%s: the service saw %v, the machine %+v", what, got, h.State())
		}
		ended.Store(false)
		if err := do(c); err != nil {
			t.Errorf("%s, again: %v", what, err)
		}
		r.Bend(virtualbmc.RedfishFaults{}) // a connection that stays
		_ = h.set(func(s *machine.State) { *s = machine.State{} })
		if _, err := c.PowerStateGet(t.Context()); err != nil {
			t.Error(err)
		}
		ended.Store(true)
		if err := do(c); !errors.Is(err, over) || h.State() != (machine.State{}) {
			t.Errorf("%s, on a kept connection: %v, the machine %+v", what, err, h.State())
		}
		ended.Store(false)
		r.Bend(virtualbmc.RedfishFaults{Closes: true})
		_ = h.set(func(s *machine.State) { *s = machine.State{} })
	}
}

// A connection that breaks says nothing of where it was going.
func TestErrorsWithoutPath(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/redfish/v1/" {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte(`{"Systems": {"@odata.id": "/redfish/v1/Systems/401"}}`)) // who asked may be gone
	}))
	defer srv.Close()
	at := srv.Listener.Addr().(*net.TCPAddr)
	err := redfish.New(redfish.Config{Host: at.IP.String(), Port: at.Port}).Open(t.Context())
	var u *url.Error
	if err == nil || errors.As(err, &u) || strings.Contains(err.Error(), "Systems") {
		t.Errorf("%v", err)
	}
}
