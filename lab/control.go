package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
)

// simFailed is IPMI's completion code "unspecified error", which ipmi_sim answers
// with when its control program fails.
const simFailed = 0xff

// control answers the lab's commands on a Unix socket in its folder.
type control struct {
	lab  *Lab
	srv  *http.Server
	done chan error
}

func serveControl(l *Lab) (*control, error) {
	path, done, err := socketPath(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer done()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// The name may go through a descriptor that is closed by then: Clean removes it.
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(l.cfg.path(socketName), 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	c := &control{lab: l, done: make(chan error, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.status)
	mux.HandleFunc("POST /power", c.power)
	mux.HandleFunc("POST /boot", c.boot)
	mux.HandleFunc("POST /chassis", c.chassis)
	mux.HandleFunc("GET /faults", c.listFaults)
	mux.HandleFunc("POST /faults", c.fault)
	mux.HandleFunc("POST /heal", func(w http.ResponseWriter, r *http.Request) { answer(w, c.lab.Heal(r.URL.Query().Get("id"))) })
	mux.HandleFunc("POST /daemon", c.daemon)
	mux.HandleFunc("POST /down", func(http.ResponseWriter, *http.Request) { l.askDown() })
	c.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { c.done <- c.srv.Serve(listener) }()
	return c, nil
}

func (c *control) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := c.srv.Shutdown(ctx)
	if serr := <-c.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

func (c *control) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(c.lab.Status()); err != nil {
		c.lab.log.Debug("status not sent", "err", err)
	}
}

// server finds the machine that a request names, or answers that there is none.
func (c *control) server(w http.ResponseWriter, r *http.Request) *server {
	name := r.URL.Query().Get("server")
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	var names []string
	for _, s := range c.lab.servers {
		if s.name == name {
			return s
		}
		names = append(names, s.name)
	}
	http.Error(w, fmt.Sprintf("no machine %q; there are: %s", name, strings.Join(names, " ")), http.StatusNotFound)
	return nil
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

func (c *control) power(w http.ResponseWriter, r *http.Request) {
	s := c.server(w, r)
	if s == nil {
		return
	}
	switch do := r.URL.Query().Get("do"); do {
	case "on":
		answer(w, s.machine.PowerOn(r.Context()))
	case "off":
		answer(w, s.machine.PowerOff(r.Context()))
	case "soft":
		answer(w, s.machine.SoftOff(r.Context()))
	case "reset":
		answer(w, s.machine.Reset(r.Context()))
	default:
		http.Error(w, fmt.Sprintf("cannot do %q: on, off, soft or reset", do), http.StatusBadRequest)
	}
}

func (c *control) boot(w http.ResponseWriter, r *http.Request) {
	if s := c.server(w, r); s != nil {
		q := r.URL.Query()
		answer(w, s.machine.SetBoot(r.Context(), machine.Override{Device: machine.Device(q.Get("device")), Persistent: q.Get("persistent") == "true"}))
	}
}

// chassis is ipmi_sim asking; it goes into the record as the Go controller's
// commands do.
func (c *control) chassis(w http.ResponseWriter, r *http.Request) {
	s := c.server(w, r)
	if s == nil {
		return
	}
	var args []string
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&args); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	begin := time.Now()
	told := virtualbmc.SimCommands(s.name, args, s.machine.State().On)
	var out bytes.Buffer
	err := virtualbmc.Chassis(r.Context(), s.machine, args, &out)
	for _, k := range told {
		k.Time, k.Took, k.OK = begin.UTC(), time.Since(begin), err == nil
		if err != nil {
			k.Result, k.Answer = simFailed, ""
		}
		c.lab.record.Add(k)
	}
	if err != nil {
		answer(w, err)
		return
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		c.lab.log.Debug("chassis answer not sent", "server", s.name, "err", err)
	}
}

// Client asks a running lab.
type Client struct {
	dir  string
	http *http.Client
}

// NewClient is for the lab in dir.
func NewClient(dir string) *Client {
	c := &Client{dir: dir}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, done, err := socketPath(dir)
			if err != nil {
				return nil, err
			}
			defer done()
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	return c
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, body io.Reader) ([]byte, error) {
	u := url.URL{Scheme: "http", Host: "lab", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no lab answers in %s (bmc-lab up --dir %s): %w", c.dir, c.dir, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(raw)))
	}
	return raw, err
}

// Status asks for the lab's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	raw, err := c.call(ctx, http.MethodGet, "/status", nil, nil)
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	return s, err
}

// Power does on, off, soft or reset to a machine, past its controller.
func (c *Client) Power(ctx context.Context, server, do string) error {
	_, err := c.call(ctx, http.MethodPost, "/power", url.Values{"server": {server}, "do": {do}}, nil)
	return err
}

// Chassis passes a call of ipmi_sim's control program on.
func (c *Client) Chassis(ctx context.Context, server string, args []string) ([]byte, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodPost, "/chassis", url.Values{"server": {server}}, bytes.NewReader(raw))
}

// Down asks the lab to end; it does so after the answer.
func (c *Client) Down(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/down", nil, nil)
	return err
}

// socketPath is the control socket's path, by way of a descriptor where the real
// one is too long for a Unix address (107 bytes). Call done after its use.
func socketPath(dir string) (path string, done func(), err error) {
	path = filepath.Join(dir, socketName)
	if len(path) < 100 {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), func() { _ = d.Close() }, nil
}
