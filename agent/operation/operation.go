// Package operation runs operations on servers as journalled steps: observe,
// act, verify. See DESIGN.md.
package operation

import (
	"context"
	"log/slog"
	"time"

	"bmc/agent/boot"
	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// Deps is what operations need of the rest of the agent.
type Deps struct {
	Server   func(id string) (*agentv1.ServerSpec, bool) // the newest that is known
	OOB      func(*agentv1.ServerSpec) oob.Controller
	Lease    Lease
	Ramdisks Ramdisks
	Strange  Strangers
	Reporter Reporter
	Progress func(Progress) // must not block; may be nil
	Ready    Prober
	// ChunkURL is the template for an image's chunks, %s for the digest, that
	// an operation may fetch; release ends that.
	ChunkURL func(serverID, operation string, manifest []byte) (url string, release func(), err error)
	Timing   Timing
	crash    func(r Record, written bool) error // of tests: around every append
	opening  func()                             // of tests: before a journal is opened
	gates    *gates
	health   *health
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger
}

// Lease is the word of who may act on a server's rack.
type Lease interface {
	// Hold waits until the rack's lease is held under the epoch, which may
	// change meanwhile, and returns a context that ends when it no longer is. It
	// fails when ctx ends.
	Hold(ctx context.Context, serverID string, epoch func() uint64) (context.Context, context.CancelFunc, error)
}

// Ramdisks meets machines that boot the ramdisk.
type Ramdisks interface {
	Open(b boot.Binding, saved []boot.Event, record func(boot.Event) error) Ramdisk
}

// Ramdisk is one attempt's dealings with its machine; *boot.Session is one.
type Ramdisk interface {
	Arm() error
	Disarm() error
	Admit(bool)
	Attend(bool)
	Poll()
	Alive() bool
	Called() bool
	Adoptable() bool
	BootID() string
	Version() string
	Firmware() string
	Failure() error
	Changed() <-chan struct{}
	Grant(*agentv1.Task) error
	Result(taskID string) *agentv1.CompleteTaskRequest
	LastProgress() (boot.Progress, time.Time)
	LastSeen() time.Time
	Close()
	Detach()
}

// Strangers tells what came to a rack's network to boot, and who is who there.
type Strangers interface {
	// Since is who came since t, by MAC, beside the server itself and machines
	// that an operation has powered on.
	Since(serverID string, t time.Time) map[string]Stranger
	// Seen says whether the server's own MAC has come since t.
	Seen(serverID string, t time.Time) bool
	// Rack is the name of the server's rack.
	Rack(serverID string) string
}

// Stranger is a machine that came to boot though nothing was asked of it.
type Stranger struct {
	Name  string      // of the server with this MAC; "" when there is none
	State metal.State // of that server
}

// Reporter tells the control plane. It returns when a report is recorded, or
// with the *metal.Error of a refusal; anything else it retries until ctx ends.
type Reporter interface {
	Report(ctx context.Context, rep *agentv1.ReportStepRequest) error
}

// Progress is what never enters the log.
type Progress struct {
	Operation   string
	Attempt     uint32
	Step        metal.Step
	Done, Total uint64
	Message     string
}

// Prober asks a booted operating system for the proof that it is the one that
// was installed. A nil error is the proof.
type Prober interface {
	Probe(ctx context.Context, address string, hostKeys []string) error
}

// Timing bounds the waits; zero fields take the defaults.
type Timing struct {
	BootWait     time.Duration // for a hello after each power-on; 210 s
	StrangerWait time.Duration // for ours once only a stranger has shown up; 60 s
	WaitReport   time.Duration // between two words that a step waits for its turn; 4 min
	Quiet        time.Duration // for a ramdisk to fall silent without power; 5 s
	Inspect      time.Duration // altogether; 15 min
	WipeQuiet    time.Duration // without progress; 10 min
	WriteQuiet   time.Duration // without progress; 2 min
	Configure    time.Duration // altogether; 5 min
	Reboot       time.Duration // until the ramdisk has let go; 60 s
	Ready        time.Duration // altogether; 10 min, half before the recovery
	ReadyPoll    time.Duration // between two probes; 250 ms
	SoftStop     time.Duration // before the power is cut; 60 s
	PowerPoll    time.Duration // between two reads while waiting; 2 s
	Silence      time.Duration // of a ramdisk before its power is read; 45 s
	Adopt        time.Duration // for another agent's ramdisk to call; 45 s
	WarmAdopt    time.Duration // for a ramdisk that waits to call; 10 s
	Meanwhile    time.Duration // between two words about a controller that does not obey; 10 s
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.BootWait, 210*time.Second)
	set(&t.StrangerWait, time.Minute)
	set(&t.WaitReport, 4*time.Minute)
	set(&t.Quiet, 5*time.Second)
	set(&t.Inspect, 15*time.Minute)
	set(&t.WipeQuiet, 10*time.Minute)
	set(&t.WriteQuiet, 2*time.Minute)
	set(&t.Configure, 5*time.Minute)
	set(&t.Reboot, time.Minute)
	set(&t.Ready, 10*time.Minute)
	set(&t.ReadyPoll, 250*time.Millisecond)
	set(&t.SoftStop, time.Minute)
	set(&t.PowerPoll, 2*time.Second)
	set(&t.Meanwhile, 10*time.Second)
	set(&t.Silence, 45*time.Second)
	set(&t.Adopt, 45*time.Second)
	set(&t.WarmAdopt, 10*time.Second)
	return t
}
