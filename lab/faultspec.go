package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bmc/internal/failpoint"
	"bmc/lab/virtualbmc"
)

// Kinds of faults. Those of a controller are "bmc-" and virtualbmc's kinds.
const (
	FaultPartition = "partition" // A from B,C; both ways or one
	FaultLoss      = "loss"
	FaultDelay     = "delay"
	FaultReorder   = "reorder"
	FaultDuplicate = "duplicate"
	FaultBlock     = "block"    // a port is dead for a while after it comes up (spanning tree)
	FaultFirewall  = "firewall" // drops one TCP or UDP port
	FaultKill      = "kill"     // SIGKILL; healed by a start
	FaultStop      = "stop"     // SIGSTOP; healed by SIGCONT
	FaultPoint     = "failpoint"
	FaultDiskFull  = "disk-full" // ENOSPC at each write to a node's log or an agent's journal
	FaultLogHang   = "log-hang"  // the same write hangs
	FaultRogueDHCP = "rogue-dhcp"

	bmcPrefix = "bmc-"
)

var (
	networkFaults = []string{FaultLoss, FaultDelay, FaultReorder, FaultDuplicate, FaultBlock, FaultFirewall}
	daemonFaults  = []string{FaultKill, FaultStop, FaultPoint, FaultDiskFull, FaultLogHang}
	bmcFaults     = []string{virtualbmc.Hang, virtualbmc.Lie, virtualbmc.Refuse, virtualbmc.Drop, virtualbmc.Slow, virtualbmc.Sessions}
)

// FaultKinds lists all kinds.
func FaultKinds() []string {
	all := append([]string{FaultPartition, FaultRogueDHCP}, networkFaults...)
	all = append(all, daemonFaults...)
	for _, k := range bmcFaults {
		all = append(all, bmcPrefix+k)
	}
	slices.Sort(all)
	return all
}

// FaultSpec asks for a fault. Targets are names that Status knows: nodes, agents,
// servers, s3, mgmt (the users' side), and a rack for its controllers' network.
type FaultSpec struct {
	Kind    string   `json:"kind"`
	Targets []string `json:"targets"` // a partition: one side first, then the other, or "rest"
	Seed    uint64   `json:"seed"`
	For     Duration `json:"for,omitempty"` // heals by itself after that; 0: never

	OneWay   bool     `json:"one_way,omitempty"`  // a partition: from the first to the others only
	Network  string   `json:"network,omitempty"`  // mgmt, a rack, RACK-oob; empty: every one that the targets are on
	Fraction float64  `json:"fraction,omitempty"` // of frames or packets, 0 to 1
	Delay    Duration `json:"delay,omitempty"`
	Jitter   Duration `json:"jitter,omitempty"`
	Port     uint16   `json:"port,omitempty"`   // only packets from or to it, of a network's fault
	Point    string   `json:"point,omitempty"`  // failpoint, e.g. raft/log/before
	Action   string   `json:"action,omitempty"` // of a failpoint, e.g. "times 1 kill"
}

// Options tells for people what is not a default of the type.
func (s *FaultSpec) Options() string {
	var all []string
	add := func(is bool, format string, v ...any) {
		if is {
			all = append(all, fmt.Sprintf(format, v...))
		}
	}
	add(s.Point != "", "%s: %s", s.Point, s.Action)
	add(s.OneWay, "one way")
	add(s.Network != "", "on %s", s.Network)
	add(s.Port != 0, "port %d", s.Port)
	add(s.Fraction != 0, "%g", s.Fraction)
	add(s.Delay != 0, "%s", time.Duration(s.Delay))
	add(s.Jitter != 0, "and up to %s", time.Duration(s.Jitter))
	add(s.For != 0, "for %s", time.Duration(s.For))
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ", ")
}

// Fault is a fault that was asked for.
type Fault struct {
	ID string `json:"id"`
	FaultSpec
	Applied time.Time  `json:"applied"`
	Healed  *time.Time `json:"healed,omitempty"`
	Fired   uint64     `json:"fired"` // frames, packets, commands, hits of a point, or signals
}

// Duration is written as text: "1.5s".
type Duration time.Duration

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

func (s *FaultSpec) validate() error {
	bmc, isBMC := strings.CutPrefix(s.Kind, bmcPrefix)
	switch {
	case !slices.Contains(FaultKinds(), s.Kind):
		return fmt.Errorf("unknown fault %q; there are: %s", s.Kind, strings.Join(FaultKinds(), " "))
	case len(s.Targets) == 0:
		return fmt.Errorf("fault %s: on what? bmc-lab status lists what there is", s.Kind)
	case s.Kind == FaultPartition && len(s.Targets) < 2:
		return fmt.Errorf("a partition has two sides: bmc-lab fault partition cp1 cp2,cp3")
	case s.Fraction < 0 || s.Fraction > 1:
		return fmt.Errorf("a fraction of %g: between 0 and 1", s.Fraction)
	case s.Delay < 0 || s.Jitter < 0 || s.For < 0:
		return fmt.Errorf("fault %s: a duration below zero", s.Kind)
	case s.Kind == FaultPoint && (s.Point == "" || s.Action == ""):
		return fmt.Errorf("a failpoint needs its name and an action: bmc-lab fault failpoint cp1 raft/log/before kill")
	case s.Kind == FaultPartition && len(s.Targets) > 2 && slices.Contains(s.Targets, restName):
		return fmt.Errorf("a partition from the rest needs no more names: bmc-lab fault partition cp1,cp2 rest")
	case s.Kind == FaultFirewall && s.Port == 0:
		return fmt.Errorf("a firewall drops one port: bmc-lab fault firewall r1-a1 --port 7946")
	case s.Port != 0 && s.Kind != FaultPartition && !slices.Contains(networkFaults, s.Kind):
		return fmt.Errorf("fault %s: knows no port", s.Kind)
	case strings.Contains(s.Point, "..") || strings.HasPrefix(s.Point, "."):
		return fmt.Errorf("failpoint %q: a name like raft/log/before", s.Point)
	}
	if s.Kind == FaultPoint {
		if err := failpoint.CheckPoint(s.Point); err != nil {
			return err
		}
		if err := failpoint.Check(s.Action); err != nil {
			return fmt.Errorf("failpoint's action: %w", err)
		}
	}
	s.defaults(bmc, isBMC)
	return nil
}

func (s *FaultSpec) defaults(bmc string, isBMC bool) {
	if s.Fraction == 0 && (s.Kind == FaultLoss || s.Kind == FaultReorder || s.Kind == FaultDuplicate || isBMC && bmc == virtualbmc.Drop) {
		s.Fraction = 0.2
	}
	if s.Delay == 0 {
		switch {
		case s.Kind == FaultDelay:
			s.Delay = Duration(100 * time.Millisecond)
		case s.Kind == FaultBlock:
			s.Delay = Duration(30 * time.Second) // 802.1D: listening and learning, 15 s each
		case isBMC && bmc == virtualbmc.Slow:
			s.Delay = Duration(3 * time.Second)
		}
	}
}

// faultEvent is a line of faults.jsonl.
type faultEvent struct {
	Time  time.Time `json:"time"`  // of "fired": at most faultPoll after it
	Event string    `json:"event"` // applied, fired (the first time), healed
	ID    string    `json:"id"`
	FaultSpec
	Fired uint64 `json:"fired"` // so far
}
