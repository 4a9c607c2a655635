package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"

	"bmc/internal/pause"
	"bmc/netboot"
)

// maxStrangeRelays bounds what relays that are not ours can write to the log.
const maxStrangeRelays = 16

// listener is an interface and the racks that are answered there: at most one on
// the interface's own network, and those behind relays.
type listener struct {
	conf    RackConfig // its interface, address and boot loaders
	own     *rack      // nil: all are behind relays
	relayed []*rack
}

// listeners are the interfaces, in the configuration's order.
func (a *Agent) listeners() []*listener {
	var out []*listener
	by := make(map[string]*listener)
	for _, r := range a.racks {
		l := by[r.conf.Interface]
		if l == nil {
			l = &listener{conf: r.conf}
			by[r.conf.Interface] = l
			out = append(out, l)
		}
		if r.conf.Relayed {
			l.relayed = append(l.relayed, r)
		} else {
			l.own = r
		}
	}
	return out
}

// served tells the racks whether they are answered.
func (l *listener) served(runs bool) {
	if l.own != nil {
		l.own.served(runs)
	}
	for _, r := range l.relayed {
		r.served(runs)
	}
}

func (l *listener) names() string {
	var names []string
	if l.own != nil {
		names = append(names, l.own.conf.Name)
	}
	for _, r := range l.relayed {
		names = append(names, r.conf.Name)
	}
	return strings.Join(names, ",")
}

// answer serves the network boots of a listener's racks, and starts again when that
// fails: an interface may come late, or go and come back.
func (a *Agent) answer(ctx context.Context, l *listener) {
	log := a.log.With("rack", l.names())
	for {
		server, err := a.seams.netboot(a.netbootConfig(l, log))
		if err == nil {
			l.served(true)
			err = server.Run(ctx)
			l.served(false)
		}
		if ctx.Err() != nil {
			return
		}
		log.Error("network boot is down", "err", err)
		if pause.For(ctx, restartPause) != nil {
			return
		}
	}
}

// netbootConfig keeps racks apart: each has its own directory, and its events go to
// its own sightings.
func (a *Agent) netbootConfig(l *listener, log *slog.Logger) netboot.Config {
	c := netboot.Config{
		Interface: l.conf.Interface, Addr: l.conf.addr(), HTTPPort: a.cfg.HTTPPort,
		Kernel: a.cfg.Ramdisk.Kernel, Initrd: a.cfg.Ramdisk.Initrd, LoaderDir: l.conf.LoaderDir,
		Seeder: a.boots, Chunks: a.chunkHandler(), Log: log,
	}
	own := func(netboot.Event) {}
	if l.own != nil {
		c.Directory, own = l.own, a.events(l.own)
	}
	strange := make(map[netip.Addr]bool) // of the one goroutine that answers DHCP
	c.Events = func(e netboot.Event) {
		if e.Kind != netboot.EventStray {
			own(e)
			return
		}
		if !strange[e.Addr] && len(strange) < maxStrangeRelays { // each once
			strange[e.Addr] = true
			log.Warn("DHCP from a network of no rack of this agent", "relay", e.Addr, "mac", e.MAC)
		}
	}
	for _, r := range l.relayed {
		c.Relayed = append(c.Relayed, netboot.Rack{Subnet: r.subnet, Directory: r, Events: a.events(r)})
	}
	return c
}
