package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"bmc/agent/oob/oobtest"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
	"bmc/imagestore"
	"bmc/internal/bootseed"
	"bmc/internal/freeport"
	"bmc/internal/manifest"
	"bmc/internal/pause"
	"bmc/metal"
	"bmc/netboot"
	"bmc/ramdisk/session"
)

const (
	testServer = "srv-aaaaaaaaaaaaaaaa"
	testMAC    = "52:54:00:00:00:01"
	testOp     = "op-"
)

// bench is an agent with everything around it: a control plane, a management
// controller that speaks IPMI, and a machine that boots through the agent.
type bench struct {
	t       *testing.T
	cluster *cluster
	bmc     *oobtest.BMC
	cfg     Config
	image   image
	hostKey ssh.Signer
	sshPort string
	logs    *lockedBuffer

	mu      sync.Mutex
	netboot netboot.Config // of the agent that runs
	tasks   []string
	slow    chan struct{} // a wipe waits for it, where not nil
	wiping  chan struct{}
	stop    context.CancelFunc // of the machine
	agent   *Agent             // that runs, or ran last
	wg      sync.WaitGroup
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// image is a built one; it is its own store.
type image struct {
	manifest []byte
	chunks   map[manifest.Digest][]byte
	raw      []byte
}

func (i image) Get(_ context.Context, d manifest.Digest) (io.ReadCloser, int64, error) {
	c, ok := i.chunks[d]
	if !ok {
		return nil, 0, metal.Errorf(metal.CodeImageUnavailable, "no such chunk")
	}
	return io.NopCloser(bytes.NewReader(c)), int64(len(c)), nil
}

func buildImage(t *testing.T, size, chunk int) image {
	t.Helper()
	img := image{chunks: make(map[manifest.Digest][]byte), raw: make([]byte, size)}
	_, _ = rand.Read(img.raw)
	spec := manifest.Spec{
		Name: "tiny", OS: "Test 1", Arch: "x86_64", User: "root", Firmware: []string{"bios"}, RootPartition: 1, Filesystem: "ext4", Configure: "files", Network: "busybox", ChunkSize: chunk,
	}.WithDefaults()
	m, err := manifest.Build(t.Context(), bytes.NewReader(img.raw), int64(len(img.raw)), spec, func(f manifest.ChunkFrame) error {
		img.chunks[f.Chunk.StoredSHA256] = bytes.Clone(f.Data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	img.manifest = m.Canonical()
	return img
}

func newBench(t *testing.T, nodes int) *bench {
	t.Helper()
	b := &bench{t: t, cluster: newCluster(t, nodes), bmc: oobtest.Start(t), image: buildImage(t, 9<<20, manifest.DefaultChunkSize), logs: &lockedBuffer{}}
	b.sshServer()
	b.cfg = Config{
		Name: "r1-a1", DataDir: filepath.Join(t.TempDir(), "data"), TokenFile: b.cluster.tokenFile(t),
		Racks:    []RackConfig{{Name: "r1", Interface: "rack0", Address: "127.0.0.1/24"}},
		HTTPPort: freeport.Port(t), TLSPort: freeport.Port(t), Ramdisk: RamdiskConfig{Kernel: "vmlinuz", Initrd: "initrd.img"},
		ImageStore: imagestore.Config{Endpoint: "https://127.0.0.1:1", Bucket: "bmc-images", AccessKey: "bmc", SecretKeyFile: "/nowhere"},
		Cache:      CacheConfig{MaxBytes: 64 << 20}, LogLevel: "debug",
	}
	b.cluster.edit(func() {
		b.cluster.rack = &agentv1.RackSpec{Id: "rack-1", Name: "r1", Subnet: "127.0.0.0/24", Domain: "lab"}
		b.cluster.servers = []*agentv1.ServerSpec{{
			Id: testServer, Name: "r1-u01", State: string(metal.StateEnrolling), Hostname: "r1-u01", Macs: []string{testMAC}, Address: "127.0.0.1",
			Oob: &agentv1.OOB{Protocol: "ipmi", Address: b.bmc.Address, Username: oobtest.Username, Password: oobtest.Password}, Serial: "SN1",
		}}
	})
	b.bmc.OnPowerOn(func(device string) { b.wg.Go(func() { b.boot(device) }) })
	b.bmc.OnPowerOff(b.powerLost)
	t.Cleanup(func() {
		b.powerLost()
		b.wg.Wait()
	})
	return b
}

// fakeNetboot serves chunks and nothing else; the machine asks the directory
// and the seeder itself.
type fakeNetboot struct{ cfg netboot.Config }

func (f fakeNetboot) Run(ctx context.Context) error {
	srv := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", f.cfg.HTTPPort), Handler: f.cfg.Chunks, ReadHeaderTimeout: time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return nil
}

func (b *bench) fakeNetboot(c netboot.Config) (runner, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.netboot = c
	return fakeNetboot{c}, nil
}

// run starts an agent; the returned function stops it and waits.
func (b *bench) run() (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	_, done := b.begin(ctx)
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("agent: %v", err)
		}
	})
}

// begin starts an agent, and returns it with the place where its end is told.
func (b *bench) begin(ctx context.Context) (*Agent, <-chan error) {
	b.t.Helper()
	a, err := New(b.cfg, slog.New(slog.NewTextHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.agent = a
	b.mu.Unlock()
	a.seams.netboot = b.fakeNetboot
	a.seams.fetcher, a.seams.sshPort = b.image, b.sshPort
	a.seams.timing = operation.Timing{BootWait: 20 * time.Second, PowerPoll: 50 * time.Millisecond, ReadyPoll: 50 * time.Millisecond, SoftStop: 2 * time.Second, Quiet: 500 * time.Millisecond}
	ready := make(chan struct{})
	a.OnReady(func() { close(ready) })
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		b.t.Fatalf("agent ended: %v", err)
	}
	return a, done
}

// sshServer is the operating system's sshd, up to the host key.
func (b *bench) sshServer() {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.hostKey, err = ssh.NewSignerFromKey(key); err != nil {
		b.t.Fatal(err)
	}
	conf := &ssh.ServerConfig{NoClientAuth: true}
	conf.AddHostKey(b.hostKey)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { lis.Close() })
	_, b.sshPort, _ = net.SplitHostPort(lis.Addr().String())
	go func() { // ends with the listener
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			_, _, _, _ = ssh.NewServerConn(conn, conf) // the prober ends it
			conn.Close()
		}
	}()
}

// boot is the machine with power: the loader's questions, then the ramdisk.
func (b *bench) boot(device string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.mu.Lock()
	b.stop = cancel
	b.mu.Unlock()
	if device != "pxe" {
		return
	}
	for ctx.Err() == nil {
		b.mu.Lock()
		nb := b.netboot
		b.mu.Unlock()
		m, ok := nb.Directory.Lookup(testMAC)
		if ok {
			nb.Events(netboot.Event{Kind: netboot.EventDHCP, MAC: testMAC, ServerID: m.ServerID})
		}
		if ok && m.Boot.Ramdisk {
			cpio, err := nb.Seeder.Seed(ctx, testMAC)
			if err == nil {
				b.ramdisk(ctx, cpio)
				return
			}
		}
		_ = pause.For(ctx, 20*time.Millisecond)
	}
}

// powerLost ends the machine.
func (b *bench) powerLost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
	}
}

// ramdisk is the real session of a ramdisk on a machine that does nothing.
func (b *bench) ramdisk(ctx context.Context, cpio []byte) {
	start := bytes.Index(cpio, []byte(`{"server_id"`))
	end := bytes.LastIndexByte(cpio, '}')
	seed, err := bootseed.Parse(cpio[start : end+1])
	if err != nil {
		b.t.Errorf("seed: %v", err)
		return
	}
	s := session.New(session.Config{
		Seed: seed, BootID: fmt.Sprint(time.Now().UnixNano()), Version: "test", Log: slog.New(slog.DiscardHandler),
		Identity: &agentv1.Hardware{Serial: "SN1", Firmware: "bios", Nics: []*agentv1.NIC{{Mac: testMAC}}}, Run: b.perform,
	})
	defer s.Close()
	if err := s.Hello(ctx); err != nil {
		if ctx.Err() == nil {
			b.t.Errorf("hello: %v", err)
		}
		return
	}
	if _, err := s.Serve(ctx); err != nil && ctx.Err() == nil {
		b.t.Logf("ramdisk ended: %v", err)
	}
}

func (b *bench) perform(ctx context.Context, task *agentv1.Task, p session.Progress) (*agentv1.CompleteTaskRequest, error) {
	b.mu.Lock()
	b.tasks = append(b.tasks, path.Base(task.GetId()))
	slow, wiping := b.slow, b.wiping
	b.mu.Unlock()
	switch k := task.GetKind().(type) {
	case *agentv1.Task_Inspect:
		return &agentv1.CompleteTaskRequest{Hardware: &agentv1.Hardware{Serial: "SN1"}}, nil
	case *agentv1.Task_Wipe:
		if slow != nil {
			close(wiping)
			<-slow
		}
		return &agentv1.CompleteTaskRequest{Wipes: []*agentv1.WipeEvidence{{Disk: "vda", Bytes: 1, BytesReadBack: 1}}}, ctx.Err()
	case *agentv1.Task_WriteImage:
		n, err := b.write(ctx, k.WriteImage, p)
		return &agentv1.CompleteTaskRequest{Installed: &agentv1.Installed{RootDisk: "vda", BytesWritten: n, BytesVerified: n}}, err
	case *agentv1.Task_Configure:
		if k.Configure.GetRootDisk() != "vda" || k.Configure.GetHostname() != "web-1" || string(k.Configure.GetUserData()) != "user data" {
			b.t.Errorf("configure task = %v", k.Configure)
		}
		key := string(ssh.MarshalAuthorizedKey(b.hostKey.PublicKey()))
		return &agentv1.CompleteTaskRequest{Installed: &agentv1.Installed{SshHostKeys: []string{strings.TrimSpace(key)}}}, nil
	}
	return nil, metal.Errorf(metal.CodeInternal, "no such task")
}

// write fetches every chunk through the agent and compares.
func (b *bench) write(ctx context.Context, task *agentv1.WriteImageTask, p session.Progress) (uint64, error) {
	m, err := manifest.Parse(task.GetManifest())
	if err != nil {
		return 0, err
	}
	for i, c := range m.Chunks {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf(task.GetChunkUrl(), c.StoredSHA256), nil)
		if err != nil {
			return 0, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		stored, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("chunk %d: %s, %w", i, resp.Status, err)
		}
		raw, err := manifest.DecodeChunk(c, stored, nil)
		if err != nil || !bytes.Equal(raw, b.image.raw[c.Offset:c.Offset+c.Size]) {
			return 0, fmt.Errorf("chunk %d differs: %w", i, err)
		}
		p(uint64(i+1), uint64(len(m.Chunks)), "writing")
	}
	// The step lasts until the control plane has heard of it; checkReports tells if it does not.
	b.heard(ctx, 20*time.Second, func() bool { return b.progressOf(metal.StepWriteImage) })
	return uint64(len(b.image.raw)), nil
}

// assign lets the control plane assign an operation.
func (b *bench) assign(kind metal.OperationKind) {
	a := &agentv1.Assignment{OperationId: testOp + string(kind), Kind: string(kind), ServerId: testServer, Attempt: 1, Epoch: testLease, Enroll: &agentv1.EnrollSpec{Wipe: true}}
	if kind == metal.KindDeploy {
		a.Deploy = &agentv1.DeploySpec{Manifest: b.image.manifest, Hostname: "web-1", Address: "127.0.0.1/24", UserData: []byte("user data")}
	}
	b.cluster.edit(func() { b.cluster.assigned, b.cluster.reports = a, nil })
	b.mu.Lock()
	b.tasks = nil
	b.mu.Unlock()
}

// unheard is between looks at what comes with no call of the agent's: sessions,
// connections, files.
const unheard = 20 * time.Millisecond

// heard waits until a condition holds, which most do upon a call to the cluster.
func (b *bench) heard(ctx context.Context, limit time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	look := time.NewTicker(unheard)
	defer look.Stop()
	for {
		news := b.cluster.news()
		if ok() {
			return true
		}
		select {
		case <-news:
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
}

// eventually is heard of a condition that must come to hold.
func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	if !b.heard(context.Background(), 60*time.Second, ok) {
		b.t.Fatalf("never: %s\nreports: %v\n%s", what, b.cluster.edges(), b.logs.String())
	}
}

func (b *bench) ended() {
	b.t.Helper()
	b.eventually("the operation ends", func() bool {
		b.cluster.mu.Lock()
		defer b.cluster.mu.Unlock()
		return b.cluster.assigned == nil
	})
}

func planEdges(kind metal.OperationKind) []string {
	var out []string
	for _, s := range metal.Plan(kind) {
		out = append(out, string(s)+" started", string(s)+" done")
	}
	return out
}

func (b *bench) walked(kind metal.OperationKind, tasks, power []string) {
	b.t.Helper()
	b.ended()
	if got, want := b.cluster.edges(), planEdges(kind); !slices.Equal(got, want) {
		b.t.Errorf("%s:\n got %v\nwant %v", kind, got, want)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.tasks, tasks) {
		b.t.Errorf("%s: tasks %v, want %v", kind, b.tasks, tasks)
	}
	if got := b.bmc.Log(); !slices.Equal(got, power) {
		b.t.Errorf("%s: the controller got %v, want %v", kind, got, power)
	}
}

// The whole way: join by token (whose first answer is lost), enroll, deploy,
// restart, over real TLS, gRPC, IPMI and HTTP.
func TestEnrollAndDeploy(t *testing.T) {
	b := newBench(t, 3)
	stop := b.run()
	defer stop()

	b.assign(metal.KindEnroll)
	enrolled := []string{"boot pxe once", "on", "off"}
	b.walked(metal.KindEnroll, []string{"inspect", "wipe"}, enrolled)

	b.assign(metal.KindDeploy)
	b.walked(metal.KindDeploy, []string{"write-image", "configure"}, slices.Concat(enrolled, []string{"boot pxe once", "on", "boot disk persistent"}))
	b.checkReports(t)
	b.checkDisk(t)
	stop()
	if n := b.bmc.Sessions(); n != 0 {
		t.Errorf("%d sessions left at the controller", n)
	}
	for _, secret := range []string{oobtest.Password, testSecret, "user data"} {
		if strings.Contains(b.logs.String(), secret) {
			t.Errorf("the log shows %q", secret)
		}
	}
}

// progressOf says whether the control plane has heard how far a step is.
func (b *bench) progressOf(step metal.Step) bool {
	b.cluster.mu.Lock()
	defer b.cluster.mu.Unlock()
	return slices.ContainsFunc(b.cluster.progress, func(p *agentv1.ReportProgressRequest) bool {
		return p.Step == string(step) && p.Total > 0
	})
}

func (b *bench) checkReports(t *testing.T) {
	if !b.progressOf(metal.StepWriteImage) {
		t.Error("no progress of the image was reported")
	}
	b.cluster.mu.Lock()
	defer b.cluster.mu.Unlock()
	for _, r := range b.cluster.reports {
		if r.Step == string(metal.StepConfigure) && r.Phase == "done" && (len(r.Installed.GetSshHostKeys()) != 1 || r.Installed.GetBytesVerified() != uint64(len(b.image.raw))) {
			t.Errorf("installed = %v", r.Installed)
		}
	}
}

// checkDisk: secrets are 0600 and the rack's file has no credentials.
func (b *bench) checkDisk(t *testing.T) {
	for _, name := range []string{"identity.json", "racks/r1.json", "chunk.key"} {
		path := filepath.Join(b.cfg.DataDir, name)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		data, _ := os.ReadFile(path)
		if bytes.Contains(data, []byte(oobtest.Password)) {
			t.Errorf("%s has the controller's password", name)
		}
	}
}

// runUntilWipe runs the agent and an enrolment until its wipe is under way; it
// goes on when slow is closed.
func (b *bench) runUntilWipe() (slow chan struct{}, stop func()) {
	b.t.Helper()
	slow = make(chan struct{})
	b.slow, b.wiping = slow, make(chan struct{})
	stop = b.run()
	b.assign(metal.KindEnroll)
	select {
	case <-b.wiping:
	case <-time.After(30 * time.Second):
		b.t.Fatalf("no wipe: %v\n%s", b.cluster.edges(), b.logs.String())
	}
	return slow, stop
}

// The agent restarts while a wipe is under way: the ramdisk goes on, and
// nothing is done twice.
func TestRestartDuringWipe(t *testing.T) {
	b := newBench(t, 1)
	slow, stop := b.runUntilWipe()
	stop()
	defer b.run()()
	close(slow)
	b.walked(metal.KindEnroll, []string{"inspect", "wipe"}, []string{"boot pxe once", "on", "off"})
}
