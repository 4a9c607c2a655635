// Package ramdisk does an agent's tasks on the machine that it runs on.
package ramdisk

import (
	"context"
	"log/slog"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
	"bmc/ramdisk/hardware"
	"bmc/ramdisk/network"
	"bmc/ramdisk/session"
)

// Machine is the hardware at hand.
type Machine struct {
	log  *slog.Logger
	root string // "/"; tests have another
}

// NewMachine returns the machine that this program runs on.
func NewMachine(log *slog.Logger) *Machine { return &Machine{log: log, root: "/"} }

// Run does one task. It is what session.Config.Run wants.
func (m *Machine) Run(ctx context.Context, task *agentv1.Task, progress session.Progress) (*agentv1.CompleteTaskRequest, error) {
	switch k := task.GetKind().(type) {
	case *agentv1.Task_Inspect:
		return m.inspect()
	default:
		return nil, metal.Errorf(metal.CodeInternal, "this ramdisk does not know the task %T", k)
	}
}

func (m *Machine) inspect() (*agentv1.CompleteTaskRequest, error) {
	if err := network.LinksUp(); err != nil {
		m.log.Warn("not every link is up", "err", err)
	}
	return &agentv1.CompleteTaskRequest{Hardware: hardware.Inspect(m.root)}, nil
}
