package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"bmc/client"
	"bmc/lab/netns"
	"bmc/lab/virtualbmc"
)

// Lab is a running lab. The process that holds it needs the right to make
// network namespaces: root, or root of a user namespace (see Supervise).
type Lab struct {
	cfg  Config
	plan plan
	log  *slog.Logger
	lock *os.File

	net       *network
	store     storeFile
	forwards  []*forward
	relays    []*dhcpRelay
	ways      []*netns.Namespace // threads that the forwards dial from
	addresses []string           // of the nodes, on the host's loopback
	client    *client.Client
	record    *virtualbmc.Record
	oobFile   *os.File
	lights    lights
	control   *control
	faults    *faults
	starting  sync.Mutex // one daemon at a time
	closing   bool       // no daemon starts any more; under starting
	askDown   func()
	asked     chan struct{}

	mu      sync.Mutex
	ready   bool
	daemons []*process
	env     map[string][]string // more environment, by daemon
	servers []*server
}

// upTimeout bounds Up, on a busy machine.
const upTimeout = 5 * time.Minute

// Asked is closed when somebody asked for the lab's end by its control socket.
func (l *Lab) Asked() <-chan struct{} { return l.asked }

// Progress is told what Up did and how long it took.
type Progress func(step string, took time.Duration)

// Up brings a lab up and returns when every node is a voter, one leads, and all
// agents have joined. On failure it takes everything down again, and the error
// is or wraps a *Failure where a part of the lab is to blame.
func Up(ctx context.Context, cfg Config, log *slog.Logger, progress Progress) (_ *Lab, err error) {
	if err := errors.Join(cfg.complete(), cfg.validate()); err != nil {
		return nil, err
	}
	if err := cfg.requirements(); err != nil {
		return nil, err
	}
	lock, err := claim(cfg.Dir)
	if err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, plan: newPlan(&cfg), log: log, lock: lock, env: map[string][]string{}, asked: make(chan struct{})}
	ctx, cancel := context.WithTimeoutCause(ctx, upTimeout, fmt.Errorf("the lab did not come up within %s", upTimeout))
	defer cancel()
	l.askDown = sync.OnceFunc(func() {
		close(l.asked)
		cancel()
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"folder", func(context.Context) error { return os.MkdirAll(cfg.path("logs"), 0o755) }},
		{"networks", func(context.Context) (err error) { l.net, err = newNetwork(&l.plan, log); return err }},
		{"relays", l.startRelays},
		{"faults' log", func(context.Context) (err error) { l.faults, err = openFaults(l); return err }},
		{"control socket", func(context.Context) (err error) { l.control, err = serveControl(l); return err }},
		{"object store", l.startStore},
		{fmt.Sprintf("%d machines, off, behind %s controllers", len(l.plan.servers()), cfg.BMC), l.startServers},
		{"inventory file", func(context.Context) error { return writeYAML(l.inventoryPath(), cfg.inventory(&l.plan)) }},
		{"nodes' configuration", l.writeNodes},
		{"first node leads", l.startFirstNode},
		{fmt.Sprintf("%d nodes", cfg.Nodes), l.joinNodes},
		{fmt.Sprintf("%d agents", (cfg.Racks-cfg.Relayed)*cfg.Agents), l.startAgents},
	} {
		begin := time.Now()
		if err := s.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		progress(s.name, time.Since(begin))
	}
	l.mu.Lock()
	l.ready = true
	l.mu.Unlock()
	return l, nil
}

func (l *Lab) logFile(name string) string { return l.cfg.path("logs", name+".log") }
func (l *Lab) inventoryPath() string      { return l.cfg.path("inventory.yaml") }

// watch returns a context that ends when a daemon does; because tells why.
func (l *Lab) watch(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	daemons := append([]*process(nil), l.daemons...)
	l.mu.Unlock()
	for _, p := range daemons {
		go func() {
			select {
			case <-p.done:
				cancel(p.alive())
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}

// because prefers the death of a daemon to what followed from it.
func because(ctx context.Context, err error) error {
	var f *Failure
	if err != nil && errors.As(context.Cause(ctx), &f) {
		return f
	}
	return err
}

// Close takes the lab down. It leaves the files in the lab's folder: Clean.
func (l *Lab) Close() error {
	l.starting.Lock()
	l.closing = true
	l.starting.Unlock()
	var errs []error
	if l.faults != nil {
		errs = append(errs, l.faults.close())
	}
	if l.client != nil {
		errs = append(errs, l.client.Close())
	}
	// Agents first, so that they see no node and no controller go; all that is
	// left then at once.
	agents, rest := l.split()
	errs = append(errs, stopAll(agents))
	l.mu.Lock()
	servers := l.servers
	l.mu.Unlock()
	for _, s := range servers {
		errs = append(errs, s.close())
	}
	errs = append(errs, l.lights.close())
	errs = append(errs, stopAll(rest))
	for _, f := range l.forwards {
		errs = append(errs, f.close())
	}
	for _, r := range l.relays {
		errs = append(errs, r.close())
	}
	for _, w := range l.ways {
		errs = append(errs, w.Close())
	}
	if l.control != nil {
		errs = append(errs, l.control.close())
	}
	if l.net != nil {
		errs = append(errs, l.net.close())
	}
	if l.oobFile != nil {
		errs = append(errs, l.record.Err(), l.oobFile.Close())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

func (l *Lab) split() (agents, rest []*process) {
	isAgent := map[string]bool{}
	for _, r := range l.plan.racks {
		for _, a := range r.agents {
			isAgent[a.name] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.daemons {
		if isAgent[p.name] {
			agents = append(agents, p)
		} else {
			rest = append(rest, p)
		}
	}
	return agents, rest
}

func stopAll(ps []*process) error {
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() { errs[i] = p.stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
