// Package ramdisk does an agent's tasks on the machine that it runs on.
package ramdisk

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
	"bmc/ramdisk/efiboot"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/imaging"
	"bmc/ramdisk/network"
	"bmc/ramdisk/session"
)

const linkWait = 5 * time.Second // gigabit copper takes three

// Machine is the hardware at hand. It does one task at a time.
type Machine struct {
	log *slog.Logger
	// Prepare is called before an inspection, to load what only that needs; may be nil.
	Prepare func(*slog.Logger)
	// root is "/". Tests have a tree with sys, proc and dev of their own, in
	// which disks are regular files; only what mounts needs a real machine.
	root    string
	written imageBytes // by this boot's last write-image, for configure's report

	mu      sync.Mutex
	fetcher *imaging.Fetcher // of the image that is being written
}

type imageBytes struct{ written, verified uint64 }

// NewMachine returns the machine that this program runs on.
func NewMachine(log *slog.Logger) *Machine { return &Machine{log: log, root: "/"} }

// Run does one task. It is what session.Config.Run wants.
func (m *Machine) Run(ctx context.Context, task *agentv1.Task, progress session.Progress) (*agentv1.CompleteTaskRequest, error) {
	switch k := task.GetKind().(type) {
	case *agentv1.Task_Inspect:
		return m.inspect(ctx)
	case *agentv1.Task_Wipe:
		return m.wipe(ctx, k.Wipe, progress)
	case *agentv1.Task_WriteImage:
		return m.write(ctx, k.WriteImage, progress)
	case *agentv1.Task_Configure:
		return m.configure(k.Configure)
	case *agentv1.Task_Kexec:
		return nil, m.loadKernel(k.Kexec)
	}
	return nil, metal.Errorf(metal.CodeInternal, "this ramdisk does not know the task %T", task.GetKind())
}

// MoveChunks has the image that is being written come from another URL. It is
// what session.Config.ChunkURL wants.
func (m *Machine) MoveChunks(url string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fetcher != nil {
		m.fetcher.Move(url)
	}
}

func (m *Machine) fetches(f *imaging.Fetcher) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fetcher = f
}

func (m *Machine) inspect(ctx context.Context) (*agentv1.CompleteTaskRequest, error) {
	return &agentv1.CompleteTaskRequest{Hardware: m.Inspect(ctx)}, nil
}

// Inspect looks at all of the hardware. It writes to no disk.
func (m *Machine) Inspect(ctx context.Context) *agentv1.Hardware {
	if m.Prepare != nil {
		m.Prepare(m.log)
	}
	if m.root == "/" {
		if err := network.LinksUp(); err != nil {
			m.log.Warn("not every link is up", "err", err)
		}
		m.waitLinks(ctx)
	}
	h := hardware.Inspect(m.root)
	if m.root != "/" {
		return h
	}
	listener := hardware.Listen(ctx, h.GetNics())
	hardware.Probe(h) // meanwhile
	for mac, p := range listener.Heard(ctx) {
		for _, n := range h.GetNics() {
			if n.GetMac() == mac {
				n.Neighbour = p
			}
		}
	}
	return h
}

// waitLinks gives ports time to negotiate. One without a cable costs all of it.
func (m *Machine) waitLinks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, linkWait)
	defer cancel()
	for {
		up := true
		for _, n := range hardware.NICs(m.root) {
			up = up && n.GetLink()
		}
		if up {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (m *Machine) uefi() bool { return hardware.Firmware(m.root) == "uefi" }

func (m *Machine) efivars() string { return filepath.Join(m.root, efiboot.Dir) }
