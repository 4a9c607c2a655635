package light

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	agentv1 "bmc/api/agent/v1"
	"bmc/lab/machine"
	"bmc/lab/netns"
	"bmc/lab/vswitch"
	"bmc/metal"
)

// site is a rack's other side: a DHCP server, and two agents whose answers a test
// decides.
type site struct {
	t      *testing.T
	space  *netns.Namespace
	rack   *Rack
	out    *events
	m      *Machine
	ca     *x509.Certificate
	key    *ecdsa.PrivateKey
	image  []byte // the manifest
	chunks map[string][]byte
	agents [2]*standIn
}

// standIn is an agent. What a test sets of it is under mu.
type standIn struct {
	agentv1.UnimplementedRamdiskServer
	site *site
	addr string // host:port
	http string // URL
	srv  *grpc.Server

	mu       sync.Mutex
	refuse   error
	list     []string
	tasks    []*agentv1.Task // the first is given until it is completed
	chunkURL string          // answered to progress
	noChunks bool
	asked    []*agentv1.NextTaskRequest
	results  []*agentv1.CompleteTaskRequest
	done     chan struct{}
}

func newSite(t *testing.T) *site {
	rack, sw := testRack(t)
	s := &site{t: t, space: namespace(t, "agents"), rack: rack, out: newEvents(), chunks: map[string][]byte{}}
	if err := s.space.Do(func() error {
		frames, err := netns.OpenFrames("rack0", net.HardwareAddr{2, 0, 0, 0, 9, 1}, 0)
		if err != nil {
			return err
		}
		_, err = sw.Attach("agents", frames)
		return errors.Join(err, netns.AddAddress("rack0", netip.MustParsePrefix("10.9.0.1/24")), netns.AddAddress("rack0", netip.MustParsePrefix("10.9.0.2/24")))
	}); err != nil {
		t.Fatal(err)
	}
	dhcp := &dhcpServer{out: make(chan []byte, 64), done: make(chan struct{})}
	if _, err := sw.Attach("dhcp", dhcp); err != nil {
		t.Fatal(err)
	}
	s.makeCA()
	s.makeImage()
	for i := range s.agents {
		s.agents[i] = s.startAgent(fmt.Sprintf("10.9.0.%d", i+1))
	}
	var err error
	if s.m, err = New(testConfig(t, rack, 9, s.out)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, s.m) })
	return s
}

func (s *site) listen(addr string) net.Listener {
	s.t.Helper()
	var l net.Listener
	if err := s.space.Do(func() (err error) {
		l, err = net.Listen("tcp4", addr) //nolint:noctx // in the namespace
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return l
}

func (s *site) makeCA() {
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		s.t.Fatal(err)
	}
	s.ca = s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, s.key.Public())
}

func (s *site) sign(c, parent *x509.Certificate, pub any) *x509.Certificate {
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// makeImage is a disk of two chunks with a hole between them.
func (s *site) makeImage() {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	const size = 1 << 20
	m := manifest{Version: 1, Name: "mini", Kernel: "/boot/vmlinuz", SectorSize: 512, Firmware: []string{"uefi"}, ChunkSize: size, SizeBytes: 4 * size}
	for i, fill := range []byte{1, 2} {
		raw := bytes.Repeat([]byte{fill}, size)
		raw[510], raw[511] = 0x55, 0xaa
		frame := enc.EncodeAll(raw, nil)
		m.Chunks = append(m.Chunks, chunk{Offset: int64(i) * 2 * size, Size: size, SHA256: hexSum(raw), StoredSize: int64(len(frame)), StoredSHA256: hexSum(frame)})
		s.chunks[hexSum(frame)] = frame
	}
	if s.image, err = json.Marshal(m); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) startAgent(ip string) *standIn {
	a := &standIn{site: s, addr: ip + ":8443", http: "http://" + ip, done: make(chan struct{}, 100)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	leaf := s.sign(&x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "c", Path: "/agent/a"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, s.ca, key.Public())
	a.srv = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}},
	})))
	agentv1.RegisterRamdiskServer(a.srv, a)
	l := s.listen(a.addr)
	served := make(chan struct{})
	go func() { defer close(served); _ = a.srv.Serve(l) }()
	web := &http.Server{Handler: a, ReadHeaderTimeout: time.Second}
	wl := s.listen(ip + ":80")
	go func() { _ = web.Serve(wl) }()
	s.t.Cleanup(func() {
		a.srv.Stop()
		<-served
		_ = web.Close()
	})
	return a
}

func (a *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	base, s := a.http, a.site
	var body []byte
	switch r.URL.Path {
	case "/loader":
		body = []byte("loader")
	case "/script":
		body = []byte(strings.ReplaceAll(ramdiskScript, "http://10.0.0.1", base))
	case "/k", "/i":
		body = bytes.Repeat([]byte(r.URL.Path), 100_000)
	case "/s":
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Raw})
		raw, err := json.Marshal(seed{ServerID: "srv-1", Token: "token", Agent: s.agents[0].addr, CAPEM: string(ca), MAC: "52:54:00:09:00:09"})
		if err != nil {
			s.t.Error(err)
		}
		body = newcOf(seedPath, raw)
	default:
		a.mu.Lock()
		no := a.noChunks
		a.mu.Unlock()
		if body = s.chunks[strings.TrimPrefix(r.URL.Path, "/images/")]; no || body == nil {
			http.NotFound(w, r)
			return
		}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// newcOf is an archive of one file.
func newcOf(name string, data []byte) []byte {
	var b bytes.Buffer
	for _, e := range []struct {
		name string
		data []byte
	}{{name, data}, {newcEnd, nil}} {
		fmt.Fprintf(&b, "%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", newcMagic, 1, 0o100600, 0, 0, 1, 0, len(e.data), 0, 0, 0, 0, len(e.name)+1, 0)
		b.WriteString(e.name + "\x00")
		b.Write(make([]byte, pad4(b.Len())-b.Len()))
		b.Write(e.data)
		b.Write(make([]byte, pad4(b.Len())-b.Len()))
	}
	return b.Bytes()
}

func (a *standIn) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *standIn) Hello(_ context.Context, r *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return nil, a.refuse
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil || r.GetServerId() != "srv-1" || r.GetToken() != "token" || r.GetIdentity().GetSerial() != "SN009" || r.GetIdentity().GetNics()[0].GetMac() != "52:54:00:09:00:09" {
		return nil, status.Errorf(codes.PermissionDenied, "%v, %v", r, err)
	}
	c := a.site.sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, a.site.ca, csr.PublicKey)
	return &agentv1.HelloResponse{Certificate: c.Raw, Agents: a.list}, nil
}

func (a *standIn) NextTask(_ context.Context, r *agentv1.NextTaskRequest) (*agentv1.NextTaskResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return nil, a.refuse
	}
	a.asked = append(a.asked, r)
	resp := &agentv1.NextTaskResponse{Agents: a.list}
	if len(a.tasks) > 0 {
		resp.Task = a.tasks[0]
	}
	return resp, nil
}

func (a *standIn) TaskProgress(context.Context, *agentv1.TaskProgressRequest) (*agentv1.TaskProgressResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &agentv1.TaskProgressResponse{ChunkUrl: a.chunkURL}, a.refuse
}

func (a *standIn) CompleteTask(_ context.Context, r *agentv1.CompleteTaskRequest) (*agentv1.CompleteTaskResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return nil, a.refuse
	}
	a.results = append(a.results, r)
	if len(a.tasks) > 0 && a.tasks[0].GetId() == r.GetTaskId() {
		a.tasks = a.tasks[1:]
	}
	a.done <- struct{}{}
	return &agentv1.CompleteTaskResponse{}, nil
}

// result waits for the n-th result, from 1.
func (a *standIn) result(n int) *agentv1.CompleteTaskRequest {
	a.site.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		a.mu.Lock()
		if len(a.results) >= n {
			defer a.mu.Unlock()
			return a.results[n-1]
		}
		a.mu.Unlock()
		select {
		case <-a.done:
		case <-deadline:
			a.site.t.Fatalf("no result %d:\n%s", n, a.site.out)
		}
	}
}

func (s *site) write(a *standIn) *agentv1.Task {
	return &agentv1.Task{Id: "op/1/write-image", Kind: &agentv1.Task_WriteImage{WriteImage: &agentv1.WriteImageTask{Manifest: s.image, ChunkUrl: a.http + "/images/%s"}}}
}

var wipeTask = &agentv1.Task{Id: "op/1/wipe", Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}}

func (s *site) power(on bool) {
	s.t.Helper()
	f := s.m.PowerOff
	if on {
		f = s.m.PowerOn
	}
	if err := f(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func TestWholeLife(t *testing.T) {
	s := newSite(t)
	a := s.agents[0]
	a.set(func() {
		a.tasks = []*agentv1.Task{
			{Id: "op/1/inspect", Kind: &agentv1.Task_Inspect{Inspect: &agentv1.InspectTask{}}}, wipeTask, s.write(a),
			{Id: "op/1/configure", Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{Manifest: s.image, RootDisk: "SN009-0", Hostname: "web-1", Address: "10.9.0.109/24"}}},
			{Id: "op/1/reboot", Kind: &agentv1.Task_Reboot{Reboot: &agentv1.RebootTask{}}},
		}
	})
	s.power(true)
	if r := a.result(1); r.GetHardware().GetDisks()[0].GetSizeBytes() != 64<<20 || r.GetBootId() == "" {
		t.Fatalf("%v", r)
	}
	if r := a.result(2); r.GetReason() != "" || r.GetWipes()[0].GetBytesReadBack() != 64<<20 {
		t.Fatalf("%v", r)
	}
	if r := a.result(3); r.GetReason() != "" || r.GetInstalled().GetBytesWritten() != 2<<20 || r.GetInstalled().GetBytesVerified() != 4<<20 {
		t.Fatalf("%v", r)
	}
	line := a.result(4).GetInstalled().GetSshHostKeys()[0]
	if err := s.m.SetBoot(t.Context(), machine.Override{Device: machine.Disk, Persistent: true}); err != nil {
		t.Fatal(err)
	}
	a.result(5)
	s.out.await(t, event(Up), 1)
	wanted, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.proves(wanted); err != nil {
		t.Fatal(err)
	}
	if err := s.m.SoftOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.out.await(t, `"event":"power-off","start":1,"detail":"guest"`, 1)
	if err := s.proves(wanted); err == nil {
		t.Fatal("a machine that is off shows its host key")
	}
	// Without power there is no address either: wiped, it does not boot.
	if _, err := s.m.disk.wipe(); err != nil {
		t.Fatal(err)
	}
	s.power(true)
	s.out.await(t, "the disk is empty", 1)
	s.power(false)
	// Each answer, of firmware, loader and two systems, is on record as it was on the wire.
	if n := s.out.count(`"detail":"ack","mac":"52:54:00:09:00:09","address":"10.9.0.109","from":"10.9.0.1"`); n < 4 {
		t.Errorf("%d acknowledged addresses on record:\n%s", n, s.out)
	}
	if n := s.out.count(event(DiskBoot)); n != 1 {
		t.Errorf("booted from disk %d times", n)
	}
	if n := s.out.count(event(Failed)); n != 0 {
		t.Errorf("%d failures:\n%s", n, s.out)
	}
}

// A refused kexec leaves the ramdisk where it was; one that is done starts the
// system without a boot of the firmware.
func TestKexec(t *testing.T) {
	s := newSite(t)
	a := s.agents[0]
	kexec := func(id, disk string) *agentv1.Task {
		return &agentv1.Task{Id: id, Kind: &agentv1.Task_Kexec{Kexec: &agentv1.KexecTask{Manifest: s.image, RootDisk: disk}}}
	}
	a.set(func() {
		a.tasks = []*agentv1.Task{
			s.write(a), kexec("op/1/no-disk", "sdz"),
			{Id: "op/1/configure", Kind: &agentv1.Task_Configure{Configure: &agentv1.ConfigureTask{Manifest: s.image, RootDisk: "SN009-0", Hostname: "web-1", Address: "10.9.0.109/24"}}},
			kexec("op/1/kexec", "SN009-0"),
		}
	})
	s.power(true)
	if r := a.result(2); r.GetReason() != string(metal.CodeKexecRefused) {
		t.Fatalf("a disk that is not there: %v", r)
	}
	if r := a.result(4); r.GetReason() != "" {
		t.Fatalf("%v", r)
	}
	s.out.await(t, event(Up), 1)
	if n := s.out.count(event(Boot)); n != 1 {
		t.Errorf("the firmware booted %d times", n)
	}
	wanted, _, _, _, err := ssh.ParseAuthorizedKey([]byte(a.result(3).GetInstalled().GetSshHostKeys()[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.proves(wanted); err != nil {
		t.Fatal(err)
	}
	s.power(false)
}

// proves reads the host key of 10.9.0.109 from the agents' side.
func (s *site) proves(wanted ssh.PublicKey) error {
	var c net.Conn
	if err := s.space.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", "10.9.0.109:22", time.Second) //nolint:noctx // in the namespace
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	_, _, _, err := ssh.NewClientConn(c, "", &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(wanted), User: "root"})
	if err != nil && strings.Contains(err.Error(), "unable to authenticate") {
		return nil
	}
	return errors.Join(errors.New("no proof"), err)
}

// TestHandOver: the agent dies in the middle of a task; the machine goes on with
// the other, whose chunks it takes, and never does a task twice.
func TestHandOver(t *testing.T) {
	s := newSite(t)
	a, b := s.agents[0], s.agents[1]
	gone := status.Error(codes.FailedPrecondition, "another agent holds the lease")
	a.set(func() {
		a.list, a.tasks, a.noChunks = []string{a.addr, b.addr}, []*agentv1.Task{s.write(a)}, true
	})
	b.set(func() { b.refuse = gone })
	s.power(true)
	s.out.await(t, event(TaskStart), 1)
	a.srv.Stop()
	b.set(func() {
		b.refuse, b.chunkURL, b.list = nil, b.http+"/images/%s", []string{b.addr}
		b.tasks = []*agentv1.Task{wipeTask, s.write(a)} // the write is asked for again, by one who knows nothing of it
	})
	if r := b.result(1); r.GetTaskId() != "op/1/write-image" || r.GetReason() != "" {
		t.Fatalf("%v", r)
	}
	if r := b.result(2); r.GetTaskId() != "op/1/wipe" {
		t.Fatalf("%v", r)
	}
	if r := b.result(3); r.GetTaskId() != "op/1/write-image" || r.GetInstalled() == nil {
		t.Fatalf("%v", r)
	}
	if n := s.out.count(event(TaskStart)); n != 2 || s.out.count(event(TaskAgain)) != 1 {
		t.Errorf("%d tasks started, want 2:\n%s", n, s.out)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.asked[0]; q.GetLastTask() != "op/1/write-image" || q.GetBootId() == "" {
		t.Errorf("asked for the next task by %v", q)
	}
}

// TestHelloRefused: the machine starts again, and the next boot's token is good.
func TestHelloRefused(t *testing.T) {
	s := newSite(t)
	a := s.agents[0]
	a.set(func() { a.refuse = status.Error(codes.PermissionDenied, "no boot is under way") })
	s.power(true)
	s.out.await(t, event(HelloLost), 1)
	a.set(func() { a.refuse = nil })
	s.out.await(t, event(Hello), 1)
	if s.m.State().Resets == 0 {
		t.Error("the machine did not start again")
	}
}

// TestWrongAgent: the token goes to an agent of the seed's CA alone.
func TestWrongAgent(t *testing.T) {
	mine, other := &site{t: t}, &site{t: t}
	mine.makeCA()
	other.makeCA()
	ours := &session{roots: x509.NewCertPool()}
	ours.roots.AddCert(mine.ca)
	use := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	uri := func(path string) []*url.URL { return []*url.URL{{Scheme: "spiffe", Host: "c", Path: path}} }
	for name, c := range map[string]*x509.Certificate{
		"agent":      mine.sign(&x509.Certificate{URIs: uri("/agent/a"), ExtKeyUsage: use}, mine.ca, mine.key.Public()),
		"node":       mine.sign(&x509.Certificate{URIs: uri("/node/a"), ExtKeyUsage: use}, mine.ca, mine.key.Public()),
		"server":     mine.sign(&x509.Certificate{URIs: uri("/agent/a"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, mine.ca, mine.key.Public()),
		"another CA": other.sign(&x509.Certificate{URIs: uri("/agent/a"), ExtKeyUsage: use}, other.ca, other.key.Public()),
	} {
		err := ours.tls().VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}})
		if (err == nil) != (name == "agent") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// dhcpServer is a link of the switch that answers every client with an address
// made of its MAC.
type dhcpServer struct {
	out  chan []byte
	done chan struct{}
	once sync.Once
}

func (d *dhcpServer) Read(b []byte) (int, error) {
	select {
	case f := <-d.out:
		return copy(b, f), nil
	case <-d.done:
		return 0, io.EOF
	}
}

func (d *dhcpServer) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

func (d *dhcpServer) Write(f []byte) (int, error) {
	p, ok := udpPayload(f, serverPort)
	if !ok {
		return len(f), nil
	}
	q, err := parseMessage(p)
	if err != nil {
		return len(f), nil //nolint:nilerr // not for us
	}
	server := netip.MustParseAddr("10.9.0.1")
	r := &message{reply: true, xid: q.xid, chaddr: q.chaddr, yiaddr: netip.AddrFrom4([4]byte{10, 9, 0, 100 + q.chaddr[5]}), siaddr: server, options: map[byte][]byte{
		optType: {dhcpOffer}, optServer: server.AsSlice(), optLease: {0, 0, 14, 16},
	}}
	if q.kind() == dhcpRequest {
		r.options[optType] = []byte{dhcpAck}
	}
	switch {
	case len(q.options[optUserClass]) > 0:
		r.file = "http://10.9.0.1/script"
	case len(q.options[optArch]) > 0:
		r.file = "http://10.9.0.1/loader"
	}
	from := mac{2, 0, 0, 0, 9, 7}
	d.out <- udpFrame(q.chaddr, from, netip.AddrPortFrom(server, serverPort), netip.AddrPortFrom(r.yiaddr, clientPort), r.marshal())
	return len(f), nil
}

var _ vswitch.Link = (*dhcpServer)(nil)
