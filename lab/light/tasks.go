package light

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// chunkPatience is how long a chunk that cannot be fetched is asked for again.
const chunkPatience = 2 * time.Minute

// writing bounds how many machines of this process unpack and write, or read
// back, at a time: each needs the memory of a few chunks. Nobody waits for an
// agent meanwhile: machines of another rack would wait with it.
var writing = make(chan struct{}, 16)

// perform does a task. Reboot, power-off and the jump of a kexec are done once the
// agent knows.
func (l *life) perform(ctx context.Context, task *agentv1.Task, r *running) (*agentv1.CompleteTaskRequest, error) {
	if err := l.sleep(ctx, l.m.cfg.Timing.Task); err != nil {
		return nil, err
	}
	switch k := task.GetKind().(type) {
	case *agentv1.Task_Inspect:
		return &agentv1.CompleteTaskRequest{Hardware: l.hardware()}, nil
	case *agentv1.Task_Wipe:
		return l.wipe(task.GetId(), k.Wipe, r)
	case *agentv1.Task_WriteImage:
		return l.writeImage(ctx, task.GetId(), k.WriteImage, r)
	case *agentv1.Task_Configure:
		return l.configure(task.GetId(), k.Configure)
	case *agentv1.Task_Kexec:
		return nil, l.loadKernel(k.Kexec)
	case *agentv1.Task_Reboot, *agentv1.Task_PowerOff:
		return nil, nil
	}
	return nil, metal.Errorf(metal.CodeInternal, "a light machine does not know task %T", task.GetKind())
}

// means says whether somebody's name for a disk is this machine's disk.
func (l *life) means(name string) bool {
	name = strings.TrimPrefix(name, "/dev/")
	return name == diskName || name == l.m.cfg.diskSerial()
}

func (l *life) wipe(task string, t *agentv1.WipeTask, r *running) (*agentv1.CompleteTaskRequest, error) {
	for _, name := range t.GetDisks() {
		if !l.means(name) {
			return nil, metal.Errorf(metal.CodeNoDisk, "no disk is called %q", name)
		}
	}
	l.record(WipeDisk, task, l.m.cfg.diskSerial())
	n, err := l.m.disk.wipe()
	if err != nil {
		return nil, &metal.Error{Code: metal.CodeWipeFailed, Message: err.Error(), Err: err}
	}
	r.total.Store(uint64(n))
	r.done.Store(uint64(n))
	return &agentv1.CompleteTaskRequest{Wipes: []*agentv1.WipeEvidence{{
		Disk: l.m.cfg.diskSerial(), Method: "discard", Bytes: uint64(n), BytesReadBack: uint64(n),
	}}}, nil
}

func (l *life) writeImage(ctx context.Context, task string, t *agentv1.WriteImageTask, r *running) (*agentv1.CompleteTaskRequest, error) {
	m, err := parseManifest(t.GetManifest())
	if err != nil {
		return nil, err
	}
	if hint := t.GetRootDiskHint(); hint != "" && !l.means(hint) {
		return nil, metal.Errorf(metal.CodeNoDisk, "no disk is called %q", hint)
	}
	if err := m.fits(l.m.disk, l.m.cfg.Firmware); err != nil {
		return nil, err
	}
	total := m.SizeBytes
	for _, c := range m.Chunks {
		total += c.Size
	}
	r.total.Store(uint64(total))
	url := t.GetChunkUrl()
	r.chunkURL.CompareAndSwap(nil, &url)
	l.record(WriteDisk, task, m.Name)
	if err := l.m.disk.use(func(f *os.File) error {
		if err := l.write(ctx, f, m, r); err != nil {
			return err
		}
		return inTurn(ctx, func() error {
			if err := l.m.disk.verify(f, m); err != nil {
				return metal.Errorf(metal.CodeVerifyFailed, "%v", err)
			}
			return nil
		})
	}); err != nil {
		return nil, err
	}
	r.done.Store(uint64(total))
	return &agentv1.CompleteTaskRequest{Installed: &agentv1.Installed{
		RootDisk: l.m.cfg.diskSerial(), BytesWritten: uint64(total - m.SizeBytes), BytesVerified: uint64(m.SizeBytes),
	}}, nil
}

func inTurn(ctx context.Context, f func() error) error {
	select {
	case writing <- struct{}{}:
		defer func() { <-writing }()
		return f()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// write discards the disk, then puts every chunk in its place.
func (l *life) write(ctx context.Context, f *os.File, m *manifest, r *running) error {
	if err := l.m.disk.zero(f, 0, l.m.disk.size); err != nil {
		return metal.Errorf(metal.CodeWriteFailed, "%v", err)
	}
	d, err := newDecoder()
	if err != nil {
		return err
	}
	defer d.Close()
	for i := range m.Chunks {
		c := &m.Chunks[i]
		stored, err := l.chunk(ctx, c, r)
		if err != nil {
			return err
		}
		if err := inTurn(ctx, func() error {
			raw, err := c.decode(d, stored)
			if err != nil {
				return err
			}
			if _, err := f.WriteAt(raw, c.Offset); err != nil {
				return metal.Errorf(metal.CodeWriteFailed, "byte %d: %v", c.Offset, err)
			}
			return nil
		}); err != nil {
			return err
		}
		r.done.Add(uint64(c.Size))
	}
	return nil
}

// chunk fetches a frame, from where the agents say at the moment.
func (l *life) chunk(ctx context.Context, c *chunk, r *running) ([]byte, error) {
	began := time.Now()
	for {
		url := strings.NewReplacer("%%", "%", "%s", c.StoredSHA256).Replace(*r.chunkURL.Load())
		data, err := l.nic.get(ctx, url, c.StoredSize)
		if err == nil {
			return data, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Since(began) > chunkPatience {
			return nil, &metal.Error{Code: metal.CodeImageUnavailable, Message: fmt.Sprintf("chunk %s cannot be fetched", c.StoredSHA256), Err: err}
		}
		if err := l.sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

// configure makes the host key and records the installed system.
func (l *life) configure(task string, t *agentv1.ConfigureTask) (*agentv1.CompleteTaskRequest, error) {
	m, err := parseManifest(t.GetManifest())
	if err != nil {
		return nil, err
	}
	if !l.means(t.GetRootDisk()) {
		return nil, metal.Errorf(metal.CodeNoDisk, "no disk is called %q", t.GetRootDisk())
	}
	if t.GetMac() != "" && t.GetMac() != macText(l.m.cfg.MAC) {
		return nil, metal.Errorf(metal.CodeConfigureFailed, "no port has the address %s", t.GetMac())
	}
	if _, err := l.m.disk.boot(); errors.Is(err, errNoSystem) {
		return nil, metal.Errorf(metal.CodeConfigureFailed, "image %s is not on the disk", m.Name)
	} else if err != nil {
		return nil, metal.Errorf(metal.CodeConfigureFailed, "%v", err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, err
	}
	if err := l.m.disk.install(&system{Hostname: t.GetHostname(), Address: t.GetAddress(), HostKey: key.Seed()}); err != nil {
		return nil, metal.Errorf(metal.CodeConfigureFailed, "%v", err)
	}
	l.record(Installed, task, t.GetHostname())
	in := &agentv1.Installed{SshHostKeys: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line)))}, RootDisk: l.m.cfg.diskSerial()}
	if l.m.cfg.Firmware == "uefi" {
		in.BootEntry = "Boot0001"
	}
	return &agentv1.CompleteTaskRequest{Installed: in}, nil
}

// loadKernel refuses what a kernel would not load.
func (l *life) loadKernel(t *agentv1.KexecTask) error {
	m, err := parseManifest(t.GetManifest())
	switch {
	case err != nil:
		return err
	case m.Kernel == "":
		return metal.Errorf(metal.CodeKexecRefused, "image %s names no kernel", m.Name)
	case !l.means(t.GetRootDisk()):
		return metal.Errorf(metal.CodeKexecRefused, "no disk is called %q", t.GetRootDisk())
	}
	if _, err := l.m.disk.boot(); err != nil {
		return metal.Errorf(metal.CodeKexecRefused, "%v", err)
	}
	return nil
}

// hostKeyOf is an installed system's.
func hostKeyOf(s *system) (ssh.Signer, error) {
	if len(s.HostKey) != ed25519.SeedSize {
		return nil, errors.New("no host key")
	}
	return ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(s.HostKey))
}
