package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"syscall"
)

func (c *control) listFaults(w http.ResponseWriter, _ *http.Request) { c.say(w, c.lab.Faults()) }

func (c *control) say(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		c.lab.log.Debug("answer not sent", "err", err)
	}
}

func (c *control) fault(w http.ResponseWriter, r *http.Request) {
	var spec FaultSpec
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&spec); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f, err := c.lab.Fault(r.Context(), spec)
	if err != nil {
		answer(w, err)
		return
	}
	c.say(w, f)
}

func (c *control) daemon(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	switch do := r.URL.Query().Get("do"); do {
	case "start":
		answer(w, c.lab.StartDaemon(name))
	case "restart":
		answer(w, c.lab.RestartDaemon(name))
	case "cont":
		answer(w, c.lab.signal(name, syscall.SIGCONT))
	default:
		http.Error(w, fmt.Sprintf("cannot %q a daemon: start, restart or cont", do), http.StatusBadRequest)
	}
}

// Fault does harm to the lab; see FaultSpec. Heal undoes it.
func (c *Client) Fault(ctx context.Context, spec FaultSpec) (Fault, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return Fault{}, err
	}
	var f Fault
	if raw, err = c.call(ctx, http.MethodPost, "/faults", nil, bytes.NewReader(raw)); err == nil {
		err = json.Unmarshal(raw, &f)
	}
	return f, err
}

// Heal undoes a fault by its ID, or "all".
func (c *Client) Heal(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodPost, "/heal", url.Values{"id": {id}}, nil)
	return err
}

// Faults lists all faults since the lab came up, healed ones too.
func (c *Client) Faults(ctx context.Context) ([]Fault, error) {
	var all []Fault
	raw, err := c.call(ctx, http.MethodGet, "/faults", nil, nil)
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	return all, err
}

// StartDaemon starts a daemon that has ended; one that runs is left alone.
func (c *Client) StartDaemon(ctx context.Context, name string) error {
	return c.daemon(ctx, name, "start")
}

// RestartDaemon ends a daemon in order and starts it again.
func (c *Client) RestartDaemon(ctx context.Context, name string) error {
	return c.daemon(ctx, name, "restart")
}

// Cont sends SIGCONT to a daemon.
func (c *Client) Cont(ctx context.Context, name string) error { return c.daemon(ctx, name, "cont") }

func (c *Client) daemon(ctx context.Context, name, do string) error {
	_, err := c.call(ctx, http.MethodPost, "/daemon", url.Values{"name": {name}, "do": {do}}, nil)
	return err
}
