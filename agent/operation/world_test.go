package operation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"bmc/agent/boot"
	"bmc/agent/oob"
	agentv1 "bmc/api/agent/v1"
	"bmc/internal/manifest"
	"bmc/metal"
)

const (
	serverID = "srv-aaaaaaaaaaaaaaaa"
	mac      = "52:54:00:00:00:01"
	stranger = "52:54:00:00:00:99"
	hostKey  = "ssh-ed25519 AAAAC3Nz"
	epoch    = 7
)

// world is everything around an agent: the control plane, one server with its
// management controller, its ramdisk and its operating system. The agent in it
// can be stopped and started again.
type world struct {
	t   *testing.T
	dir string

	mu         sync.Mutex
	spec       *agentv1.ServerSpec
	service    *boot.Service // of the agent that was started last
	services   []*boot.Service
	strict     metal.OperationKind // reports are refused as the control plane does
	adopts     string              // boot of the ramdisk in which the server waits for the operation
	reports    []*agentv1.ReportStepRequest
	refuse     func(*agentv1.ReportStepRequest) error
	obeyed     func(cmd uint8, data string, on bool, answer string) // hears what the controller is told, as IPMI has it
	image      []byte                                               // manifest of what is deployed
	held       bool
	epoch      uint64
	leaseSub   chan struct{}
	crash      func(Record, bool) error
	progressed []Progress
	timing     Timing

	machine machine
}

// machine is the server. Its power and its tasks are counted.
type machine struct {
	on        bool
	boots     int
	device    string // next boot's one-shot device
	forGood   string
	log       []string       // power commands that changed something, boot devices
	tasks     []string       // started by a ramdisk
	ran       map[string]int // by boot and task ID
	stop      context.CancelFunc
	wg        sync.WaitGroup
	seen      time.Time // last DHCP
	other     time.Time // a stranger's last DHCP
	ready     bool
	faults    faults
	powerErrs int
}

// faults is what goes wrong on the machine's side.
type faults struct {
	deadBoots   int  // network boots that never reach the ramdisk
	wrongOne    bool // the controller powers another machine
	ignoreSoft  bool
	refuseSoft  bool
	noPersist   bool
	wrongSerial bool
	notReady    int // boots from disk that do not come up
	silent      metal.Step
	failTask    map[string]metal.Code // by kind
	ignoreBoot  bool                  // takes the task that ends the ramdisk and stays
	lostKernel  bool                  // starts the image's kernel by kexec, and it is never seen
	deaf        bool                  // runs on when its controller says off
	slow        time.Duration         // its controller does what it was told so much later, whoever waits for that
	replay      bool                  // says hello twice with another key
	unheard     time.Duration         // hears the answer to its hello so much later
}

// journals is a directory in memory, where there is one: these tests write
// thousands of records, and a busy disk takes a quarter of a second to sync each.
func journals(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "bmc-journals-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, dir: journals(t), image: testImage("/boot/vmlinuz"), held: true, epoch: epoch, leaseSub: make(chan struct{}),
		spec: &agentv1.ServerSpec{
			Id: serverID, Name: "r1-u01", Macs: []string{mac}, Address: "10.77.0.11",
			Oob: &agentv1.OOB{Address: "10.78.0.11"}, Serial: "SN1", SshHostKey: hostKey,
		},
	}
}

// testImage is a manifest with a kernel, "" for none.
func testImage(kernel string) []byte {
	m := manifest.Manifest{Version: manifest.Version, SizeBytes: 512, Spec: manifest.Spec{Name: "test", OS: "Test", User: "root", Firmware: []string{"uefi"},
		RootPartition: 1, Configure: manifest.ConfigureFiles, Network: manifest.NetworkNetworkd, Kernel: kernel}.WithDefaults()}
	return m.Canonical()
}

// clock is the bubble's time, moved to a year that seeds accept.
func clock() time.Time { return time.Now().AddDate(30, 0, 0) }

// start brings up an agent on the world's directory.
func (w *world) start() *Manager { return w.startIn(w.dir) }

// startIn brings up an agent with a directory of its own.
func (w *world) startIn(dir string) *Manager {
	w.t.Helper()
	var svc *boot.Service
	svc = boot.New(boot.Config{
		CAPEM:    testCA(w.t),
		Endpoint: func(string) string { return "10.77.0.1:8443" },
		Issue:    func(context.Context, string, []byte) ([]byte, error) { return []byte("certificate"), nil },
		PeerServer: func(info credentials.TLSInfo) (string, bool) {
			return info.State.ServerName, true
		},
		Waits: func(string) (string, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.spec.GetWarmBootId(), w.held && w.service == svc // one that is dead holds nobody
		},
		Now: clock, Log: discard(),
	})
	m, err := NewManager(dir, Deps{
		Server: func(id string) (*agentv1.ServerSpec, bool) { return w.spec, id == serverID },
		OOB:    func(*agentv1.ServerSpec) oob.Controller { return controller{w} },
		Lease:  w, Ramdisks: sessions{svc}, Strange: w, Reporter: w, Ready: w,
		ChunkURL: func(string, string, []byte) (string, func(), error) { return "http://x/%s", func() {}, nil },
		Progress: w.progress,
		Timing:   w.timing, Now: clock, Log: discard(), crash: func(r Record, written bool) error {
			w.mu.Lock()
			f := w.crash
			w.mu.Unlock()
			if f == nil {
				return nil
			}
			return f(r, written)
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.service, w.services = svc, append(w.services, svc)
	w.mu.Unlock()
	return m
}

func (w *world) progress(p Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progressed = append(w.progressed, p)
}

// words is all progress that was told.
func (w *world) words() []Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.progressed)
}

// glimpse is the machine's state at a moment.
type glimpse struct {
	on         bool
	boots      int
	log, tasks []string
}

func (w *world) look() glimpse {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &w.machine
	return glimpse{on: m.on, boots: m.boots, log: slices.Clone(m.log), tasks: slices.Clone(m.tasks)}
}

// shutdown ends the machine's goroutines.
func (w *world) shutdown() {
	w.mu.Lock()
	if w.machine.stop != nil {
		w.machine.stop()
	}
	w.mu.Unlock()
	w.machine.wg.Wait()
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

type sessions struct{ *boot.Service }

func (s sessions) Open(b boot.Binding, saved []boot.Event, record func(boot.Event) error) Ramdisk {
	return s.Service.Open(b, saved, record)
}

// assignment of a kind, under the world's epoch.
func (w *world) assignment(kind metal.OperationKind) *agentv1.Assignment {
	a := &agentv1.Assignment{
		OperationId: "op-aaaaaaaaaaaaaaaa", Kind: string(kind), ServerId: serverID, Attempt: 1, Epoch: w.epoch,
		Enroll: &agentv1.EnrollSpec{Wipe: true}, Power: &agentv1.PowerSpec{Wanted: "off"},
	}
	if a.BootId = w.adopts; w.adopts != "" {
		a.DoneSteps = []string{string(metal.StepPowerOff)} // its plan has none
	}
	if kind == metal.KindDeploy {
		a.Deploy = &agentv1.DeploySpec{Manifest: w.image, Hostname: "web-1", Address: "10.77.0.11/24"}
	}
	return a
}

// Report implements Reporter.
func (w *world) Report(ctx context.Context, rep *agentv1.ReportStepRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.refuse != nil {
		if err := w.refuse(rep); err != nil {
			return err
		}
	}
	if err := w.judge(rep); err != nil {
		return err
	}
	if n := len(w.reports); n > 0 && w.reports[n-1].Sequence >= rep.Sequence && w.reports[n-1].Epoch == rep.Epoch {
		w.t.Errorf("sequence %d after %d", rep.Sequence, w.reports[n-1].Sequence)
	}
	w.reports = append(w.reports, proto.CloneOf(rep))
	return nil
}

// judge refuses what the control plane would: another lease's word, and one
// about another step. The lock is held.
func (w *world) judge(rep *agentv1.ReportStepRequest) error {
	if w.strict == "" {
		return nil
	}
	if rep.Epoch != w.epoch {
		return metal.Errorf(metal.CodeStaleEpoch, "epoch %d, not %d", rep.Epoch, w.epoch)
	}
	if now := w.current(); string(now) != rep.Step {
		return metal.Errorf(metal.CodeConflict, "at step %q, not %s", now, rep.Step)
	}
	return nil
}

// current is the step that is not done; "" at the end. The lock is held.
func (w *world) current() metal.Step {
	for _, step := range metal.Plan(w.strict) {
		if w.adopts != "" && step == metal.StepPowerOff {
			continue
		}
		if !slices.ContainsFunc(w.reports, func(r *agentv1.ReportStepRequest) bool { return r.Step == string(step) && r.Phase == "done" }) {
			return step
		}
	}
	return ""
}

// told is the edges that the control plane knows, each once.
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, r := range w.reports {
		line := r.Step + " " + r.Phase
		if r.Reason != "" {
			line += " " + r.Reason
		}
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}

func (w *world) last() *agentv1.ReportStepRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reports) == 0 {
		return nil
	}
	return w.reports[len(w.reports)-1]
}

// Hold implements Lease.
func (w *world) Hold(ctx context.Context, _ string, epoch func() uint64) (context.Context, context.CancelFunc, error) {
	for {
		w.mu.Lock()
		ok, changed := w.held && epoch() == w.epoch, w.leaseSub
		w.mu.Unlock()
		if ok {
			held, cancel := context.WithCancel(ctx)
			go func() {
				select {
				case <-changed:
					cancel()
				case <-held.Done():
				}
			}()
			return held, cancel, nil
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (w *world) setLease(held bool, epoch uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.epoch = held, epoch
	close(w.leaseSub)
	w.leaseSub = make(chan struct{})
}

// Since implements Strangers.
func (w *world) Since(_ string, t time.Time) map[string]Stranger {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.machine.other.After(t) {
		return map[string]Stranger{stranger: {}}
	}
	return nil
}

// Rack implements Strangers.
func (w *world) Rack(string) string { return "r1" }

// Seen implements Strangers.
func (w *world) Seen(_ string, t time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine.seen.After(t)
}

// Probe implements Prober.
func (w *world) Probe(_ context.Context, address string, keys []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if address != "10.77.0.11" || len(keys) == 0 {
		w.t.Errorf("probe of %s with keys %v", address, keys)
	}
	if !w.machine.on || !w.machine.ready {
		return errors.New("connection refused")
	}
	return nil
}

// controller is the server's management controller.
type controller struct{ w *world }

func (c controller) Close(context.Context) error { return nil }

func (c controller) Power(ctx context.Context) (metal.Power, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if ctx.Err() != nil {
		return metal.PowerUnknown, metal.Errorf(metal.CodeCancelled, "stopped")
	}
	if c.w.machine.powerErrs > 0 {
		c.w.machine.powerErrs--
		return metal.PowerUnknown, metal.Errorf(metal.CodeOOBUnreachable, "management controller does not answer")
	}
	c.w.read()
	if c.w.machine.on {
		return metal.PowerOn, nil
	}
	return metal.PowerOff, nil
}

func (c controller) SetPower(ctx context.Context, wanted metal.Power) error {
	c.w.mu.Lock()
	slow := c.w.machine.faults.slow
	c.w.mu.Unlock()
	if slow > 0 && ctx.Err() == nil {
		time.Sleep(slow)
		ctx = context.WithoutCancel(ctx)
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	m := &c.w.machine
	switch {
	case ctx.Err() != nil:
		return metal.Errorf(metal.CodeCancelled, "stopped")
	case m.on == (wanted == metal.PowerOn):
		c.w.read()
		return nil
	}
	m.log = append(m.log, string(wanted))
	c.w.chassis(map[metal.Power]string{metal.PowerOff: "00", metal.PowerOn: "01"}[wanted])
	c.w.power(wanted == metal.PowerOn)
	c.w.read()
	return nil
}

func (c controller) SoftOff(context.Context) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	m := &c.w.machine
	if m.faults.refuseSoft {
		return metal.Errorf(metal.CodeOOBRefused, "refused")
	}
	m.log = append(m.log, "soft")
	c.w.chassis("05")
	if !m.faults.ignoreSoft {
		c.w.power(false)
	}
	return nil
}

func (c controller) SetBootDevice(_ context.Context, device string, persistent, efi bool) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	m := &c.w.machine
	if persistent && m.faults.noPersist {
		return metal.Errorf(metal.CodeOOBRefused, "refused")
	}
	if persistent {
		m.forGood = device
	} else {
		m.device = device
	}
	return nil
}

// chassis and read tell who listens; the lock is held.
func (w *world) chassis(data string) {
	if w.obeyed != nil {
		w.obeyed(2, data, w.machine.on, "")
	}
}

func (w *world) read() {
	if w.obeyed != nil {
		w.obeyed(1, "", w.machine.on, map[bool]string{false: "000000", true: "010000"}[w.machine.on])
	}
}

// power switches the machine; the lock is held.
func (w *world) power(on bool) {
	m := &w.machine
	m.on = on
	if !on {
		m.ready = false
		if m.stop != nil && !m.faults.deaf {
			m.stop()
		}
		return
	}
	m.boots++
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	device := m.device
	m.device = ""
	if device == "" {
		device = m.forGood
	}
	m.wg.Go(func() { w.boot(ctx, device) })
}

// boot is what the machine does with power.
func (w *world) boot(ctx context.Context, device string) {
	if sleep(ctx, 10*time.Second) != nil {
		return
	}
	w.mu.Lock()
	f := &w.machine.faults
	wrong, dead := f.wrongOne, f.deadBoots > 0
	if device == "pxe" && dead {
		f.deadBoots--
	}
	w.mu.Unlock()
	switch {
	case wrong:
		w.mu.Lock()
		w.machine.other = clock()
		w.mu.Unlock()
	case device == "disk":
		w.bootDisk(ctx)
	case device == "pxe" && !dead:
		w.mu.Lock()
		w.machine.seen = clock()
		w.mu.Unlock()
		w.runRamdisk(ctx)
	}
}

func (w *world) bootDisk(ctx context.Context) {
	if sleep(ctx, 20*time.Second) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.machine.faults.notReady > 0 {
		w.machine.faults.notReady--
		return
	}
	w.machine.ready = true
}

func (w *world) svc() *boot.Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.service
}

// caller asks the rack's agents as the ramdisk does: the next one whenever one
// has no answer.
type caller struct {
	w  *world
	at int
}

func (c *caller) call(f func(*boot.Service) error) error {
	c.w.mu.Lock()
	svc := c.w.services[c.at%len(c.w.services)]
	c.w.mu.Unlock()
	err := f(svc)
	if err != nil {
		c.at++
	}
	return err
}

// runRamdisk is the ramdisk: it retries what fails until its power goes.
func (w *world) runRamdisk(ctx context.Context) {
	bootID := fmt.Sprintf("boot-%d", time.Now().UnixNano())
	var token string
	for token == "" {
		cpio, err := w.svc().Seed(ctx, w.spec.Macs[0])
		if err == nil {
			token = seedToken(w.t, cpio)
		} else if metal.CodeOf(err) != metal.CodeDenied && metal.CodeOf(err) != metal.CodeNoLeader && metal.CodeOf(err) != metal.CodeInternal {
			w.t.Errorf("no seed: %v", err)
			return
		}
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
	serial := "SN1"
	w.mu.Lock()
	f := w.machine.faults
	w.mu.Unlock()
	if f.wrongSerial {
		serial = "SN2"
	}
	hello := &agentv1.HelloRequest{ServerId: w.spec.Id, Token: token, Csr: []byte("csr"), BootId: bootID, Identity: &agentv1.Hardware{
		Serial: serial, Firmware: "uefi", Nics: []*agentv1.NIC{{Mac: w.spec.Macs[0]}},
	}}
	for {
		_, err := w.svc().Hello(ctx, hello)
		if err == nil {
			break
		}
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
	if f.replay {
		hello.Csr = []byte("a thief's key")
		_, _ = w.svc().Hello(ctx, hello)
	}
	if sleep(ctx, f.unheard) != nil {
		return
	}
	w.tasks(ctx, bootID)
}

func (w *world) tasks(ctx context.Context, bootID string) {
	ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: tlsInfo(w.spec.Id)})
	done := make(map[string]*agentv1.CompleteTaskRequest)
	c := &caller{w: w, at: w.newest()}
	for ctx.Err() == nil {
		var task *agentv1.Task
		err := c.call(func(s *boot.Service) error {
			resp, err := s.NextTask(ctx, &agentv1.NextTaskRequest{BootId: bootID})
			task = resp.GetTask()
			return err
		})
		if err != nil || task == nil {
			_ = sleep(ctx, time.Second)
			continue
		}
		result := done[task.GetId()]
		if result == nil {
			if result = w.perform(ctx, c, bootID, task); result == nil {
				continue
			}
		}
		done[task.GetId()] = result
		for ctx.Err() == nil {
			if c.call(func(s *boot.Service) error { _, err := s.CompleteTask(ctx, result); return err }) == nil {
				break
			}
			_ = sleep(ctx, time.Second)
		}
		w.mu.Lock()
		lost := w.machine.faults.lostKernel
		w.mu.Unlock()
		switch {
		case task.GetReboot() != nil:
			w.bootDisk(ctx)
			return
		case task.GetKexec() != nil && result.GetReason() == "":
			if !lost {
				w.bootDisk(ctx)
			}
			return
		}
	}
}

// newest is the agent that was started last: it had the seed.
func (w *world) newest() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Index(w.services, w.service)
}

// perform does a task; nil: the machine ignores it.
func (w *world) perform(ctx context.Context, c *caller, bootID string, task *agentv1.Task) *agentv1.CompleteTaskRequest {
	_, kind, _ := strings.Cut(fmt.Sprintf("%T", task.Kind), "Task_")
	w.mu.Lock()
	w.machine.tasks = append(w.machine.tasks, kind)
	if w.machine.ran == nil {
		w.machine.ran = make(map[string]int)
	}
	w.machine.ran[bootID+" "+task.Id]++
	f := w.machine.faults
	w.mu.Unlock()
	if strings.HasSuffix(task.Id, string(f.silent)) && f.silent != "" || f.ignoreBoot && (kind == "Reboot" || kind == "Kexec") {
		_ = sleep(ctx, time.Second)
		return nil
	}
	for i := range 20 {
		_ = c.call(func(s *boot.Service) error {
			_, err := s.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: bootID, TaskId: task.Id, Done: uint64(i), Total: 20})
			return err
		})
		if sleep(ctx, time.Second) != nil {
			return nil
		}
	}
	result := &agentv1.CompleteTaskRequest{BootId: bootID, TaskId: task.Id}
	if code := f.failTask[kind]; code != "" {
		result.Reason, result.Message = string(code), "the disk is too small"
		return result
	}
	switch kind {
	case "Inspect":
		result.Hardware = &agentv1.Hardware{Serial: "SN1"}
	case "Wipe":
		result.Wipes = []*agentv1.WipeEvidence{{Disk: "vda", Bytes: 1, BytesReadBack: 1}}
	case "WriteImage":
		result.Installed = &agentv1.Installed{RootDisk: "vda", BytesWritten: 10, BytesVerified: 10}
	case "Configure":
		result.Installed = &agentv1.Installed{SshHostKeys: []string{hostKey}, BootEntry: "Boot0003"}
	}
	return result
}

func seedToken(t *testing.T, cpio []byte) string {
	t.Helper()
	start := bytes.Index(cpio, []byte(`{"server_id"`))
	if start < 0 {
		t.Fatalf("no seed in %d bytes", len(cpio))
	}
	var seed struct{ Token string }
	if err := json.NewDecoder(bytes.NewReader(cpio[start:])).Decode(&seed); err != nil {
		t.Fatal(err)
	}
	return seed.Token
}
