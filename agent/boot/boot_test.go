package boot

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

const (
	server = "srv-aaaaaaaaaaaaaaaa"
	mac    = "52:54:00:00:00:01"
)

// desk is a service with one session and its journal.
type desk struct {
	t       *testing.T
	service *Service
	session *Session
	journal []Event
	full    bool // the journal cannot be written
}

var binding = Binding{Operation: "op-a", Attempt: 1, Server: server, Name: "r1-u01", MAC: mac, Serial: "SN1", UUID: "6B1F"}

func newDesk(t *testing.T) *desk {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join("testdata", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t}
	d.service = New(Config{
		CAPEM: string(ca), Endpoint: func(string) string { return "10.77.0.1:8443" },
		Issue:      func(context.Context, string, []byte) ([]byte, error) { return []byte("certificate"), nil },
		PeerServer: func(i credentials.TLSInfo) (string, bool) { return i.State.ServerName, i.State.ServerName != "" },
		Now:        func() time.Time { return time.Now().AddDate(30, 0, 0) }, Log: slog.New(slog.DiscardHandler),
	})
	d.open(nil)
	return d
}

func (d *desk) open(saved []Event) { d.openAs(binding, saved) }

func (d *desk) openAs(b Binding, saved []Event) {
	d.session = d.service.Open(b, saved, func(e Event) error {
		if d.full {
			return errors.New("disk full")
		}
		d.journal = append(d.journal, e)
		return nil
	})
}

func (d *desk) seed() string {
	d.t.Helper()
	cpio, err := d.service.Seed(d.t.Context(), mac)
	if err != nil {
		d.t.Fatal(err)
	}
	var seed struct{ Token string }
	if err := json.NewDecoder(bytes.NewReader(cpio[bytes.Index(cpio, []byte(`{"server_id"`)):])).Decode(&seed); err != nil {
		d.t.Fatal(err)
	}
	return seed.Token
}

func identity() *agentv1.Hardware {
	return &agentv1.Hardware{Serial: "SN1", Uuid: "6b1f", Firmware: "uefi", Nics: []*agentv1.NIC{{Mac: "52:54:00:00:00:02"}, {Mac: mac}}}
}

func (d *desk) hello(token, key string, edit ...func(*agentv1.HelloRequest)) metal.Code {
	req := &agentv1.HelloRequest{ServerId: server, Token: token, Csr: []byte(key), BootId: "boot-1", Identity: identity()}
	for _, f := range edit {
		f(req)
	}
	_, err := d.service.Hello(d.t.Context(), req)
	if err == nil {
		return ""
	}
	e, _ := rpcerr.Decode(err)
	return e.Code
}

// as is the context of a call with a server's certificate.
func as(ctx context.Context, id string) context.Context {
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{ServerName: id}}})
}

func (d *desk) armed() {
	d.t.Helper()
	if err := d.session.Arm(); err != nil {
		d.t.Fatal(err)
	}
}

func wanted(d *desk, mac string) bool {
	_, here := d.service.Wanted(mac)
	return here
}

func TestToken(t *testing.T) {
	d := newDesk(t)
	if _, err := d.service.Seed(t.Context(), mac); metal.CodeOf(err) != metal.CodeDenied || wanted(d, mac) {
		t.Fatalf("a seed without an intent: %v", err)
	}
	d.armed()
	if !wanted(d, mac) || wanted(d, "52:54:00:00:00:77") {
		t.Error("the intent is for one MAC")
	}
	old := d.seed()
	token := d.seed()
	if code := d.hello(old, "key"); code != metal.CodeDenied {
		t.Errorf("a token that was replaced: %q", code)
	}
	if code := d.hello("guess", "key"); code != metal.CodeDenied || d.session.Failure() != nil {
		t.Errorf("a guess: %q, %v", code, d.session.Failure())
	}
	if code := d.hello(token, "key"); code != "" || !d.session.Alive() || d.session.Firmware() != "uefi" {
		t.Errorf("the right token: %q", code)
	}
	if wanted(d, mac) {
		t.Error("the intent outlives the hello")
	}
	if d.session.Called() {
		t.Error("the certificate was not used yet")
	}
	if code := d.hello(token, "key"); code != "" {
		t.Errorf("the same request again, its answer was lost: %q", code)
	}
	if code := d.hello(token, "another key"); code != metal.CodeTokenReplayed || metal.CodeOf(d.session.Failure()) != metal.CodeTokenReplayed {
		t.Errorf("a second use: %q, %v", code, d.session.Failure())
	}
	if code := d.hello(token, "key"); code != metal.CodeTokenReplayed {
		t.Errorf("after the alarm: %q", code)
	}
	for _, e := range d.journal {
		if data, _ := json.Marshal(e); strings.Contains(string(data), token) {
			t.Errorf("the journal has the token: %s", data)
		}
	}
}

func TestIdentity(t *testing.T) {
	for name, edit := range map[string]func(*agentv1.HelloRequest){
		"no such port":   func(r *agentv1.HelloRequest) { r.Identity.Nics = r.Identity.Nics[:1] },
		"another serial": func(r *agentv1.HelloRequest) { r.Identity.Serial = "SN2" },
		"another UUID":   func(r *agentv1.HelloRequest) { r.Identity.Uuid = "7c2e" },
		"nothing":        func(r *agentv1.HelloRequest) { r.Identity = nil },
	} {
		d := newDesk(t)
		unproven := binding
		unproven.Unproven = true
		d.openAs(unproven, nil)
		d.session.Admit(true)
		d.armed()
		if code := d.hello(d.seed(), "key", edit); code != metal.CodeBMCMismatch || d.session.Alive() {
			t.Errorf("%s: %q", name, code)
		}
	}
}

// A new boot forgets the one before: its token, its boot ID and its results.
func TestArmForgets(t *testing.T) {
	d := newDesk(t)
	d.armed()
	first := d.seed()
	if code := d.hello(first, "key"); code != "" {
		t.Fatal(code)
	}
	d.armed()
	if d.session.Alive() {
		t.Error("the former hello counts")
	}
	if _, err := d.service.NextTask(as(t.Context(), server), &agentv1.NextTaskRequest{BootId: "boot-1"}); err == nil {
		t.Error("the former boot may ask for tasks")
	}
	second := d.seed()
	if code := d.hello(second, "key", func(r *agentv1.HelloRequest) { r.BootId = "boot-2" }); code != "" {
		t.Errorf("the new boot: %q", code)
	}
	if code := d.hello(first, "key"); code != metal.CodeTokenReplayed {
		t.Errorf("the former boot's token: %q", code)
	}
}

func TestTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.armed()
		if code := d.hello(d.seed(), "key"); code != "" {
			t.Fatal(code)
		}
		ctx := as(t.Context(), server)
		next := func() string {
			resp, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"})
			if err != nil {
				t.Fatal(err)
			}
			return resp.GetTask().GetId()
		}
		if id := next(); id != "" { // after 25 s of the bubble's time
			t.Fatalf("task %q before one was granted", id)
		}
		task := &agentv1.Task{Id: "op-a/1/wipe", Kind: &agentv1.Task_Wipe{Wipe: &agentv1.WipeTask{}}}
		if err := errors.Join(d.session.Grant(task), d.session.Grant(task)); err != nil {
			t.Fatal(err)
		}
		if err := d.session.Grant(&agentv1.Task{Id: "op-a/1/inspect"}); err == nil {
			t.Error("a second task before the first is complete")
		}
		if a, b := next(), next(); a != task.Id || b != task.Id {
			t.Errorf("tasks %q, %q: the same is answered until it is complete", a, b)
		}
		// The agent restarts: the session comes back from its events.
		d.session.Detach()
		if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"}); err == nil {
			t.Error("a detached session answers")
		}
		d.open(slices.Clone(d.journal))
		if !d.session.Alive() {
			t.Fatal("the hello was forgotten")
		}
		if resp, err := d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: task.Id, Done: 5}); err != nil || resp.Cancel {
			t.Errorf("progress: %v, %v", resp, err)
		}
		done := &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: task.Id, Wipes: []*agentv1.WipeEvidence{{Disk: "vda"}}}
		for range 2 {
			if _, err := d.service.CompleteTask(ctx, done); err != nil {
				t.Fatal(err)
			}
		}
		if r := d.session.Result(task.Id); len(r.GetWipes()) != 1 {
			t.Errorf("result = %v", r)
		}
		if grants := slices.IndexFunc(d.journal, func(e Event) bool { return e.Kind == Granted }); grants < 0 {
			t.Error("the grant is not in the journal")
		}
		if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: "boot-1", TaskId: "op-a/1/other"}); codeOf(err) != metal.CodeStaleAttempt {
			t.Error("a result of a task that was never granted")
		}
		d.session.Close()
	})
}

func TestWhoMayCall(t *testing.T) {
	d := newDesk(t)
	d.armed()
	if code := d.hello(d.seed(), "key"); code != "" {
		t.Fatal(code)
	}
	for name, ctx := range map[string]context.Context{"nobody": t.Context(), "no certificate": as(t.Context(), ""), "another server": as(t.Context(), "srv-b")} {
		if _, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"}); err == nil {
			t.Errorf("%s got a task", name)
		}
		if _, err := d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{}); err == nil {
			t.Errorf("%s completed a task", name)
		}
	}
	if code := d.hello("x", "key", func(r *agentv1.HelloRequest) { r.ServerId = "srv-b" }); code != metal.CodeDenied {
		t.Errorf("a server without a boot: %q", code)
	}
	if code := d.hello("x", "key", func(r *agentv1.HelloRequest) { r.BootId = strings.Repeat("x", 1000) }); code != metal.CodeInvalid {
		t.Errorf("too large: %q", code)
	}
}

// Who calls must be of the boot that said hello, and have its key: a certificate
// that was bought for an earlier boot of the server counts no more.
func TestCallsAreOfThisBootAndKey(t *testing.T) {
	newKey := func() (csr []byte, ctx context.Context) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k); err != nil {
			t.Fatal(err)
		}
		tpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
		der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return csr, peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			ServerName: server, PeerCertificates: []*x509.Certificate{leaf}}}})
	}
	csr, own := newKey()
	_, other := newKey()
	task := &agentv1.Task{Id: "op-a/1/wipe"}
	check := func(d *desk, name string, ctx context.Context, boot string, want metal.Code) {
		t.Helper()
		_, err := d.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: boot})
		if codeOf(err) != want {
			t.Errorf("%s asks: %v", name, err)
		}
		if _, err = d.service.TaskProgress(ctx, &agentv1.TaskProgressRequest{BootId: boot, TaskId: task.Id}); codeOf(err) != want {
			t.Errorf("%s tells of progress: %v", name, err)
		}
		if _, err = d.service.CompleteTask(ctx, &agentv1.CompleteTaskRequest{BootId: boot, TaskId: task.Id}); codeOf(err) != want {
			t.Errorf("%s has a result: %v", name, err)
		}
	}
	d := newDesk(t)
	d.armed()
	if code := d.hello(d.seed(), string(csr)); code != "" {
		t.Fatal(code)
	}
	if err := d.session.Grant(task); err != nil {
		t.Fatal(err)
	}
	check(d, "no boot", own, "", metal.CodeDenied)
	check(d, "another boot", own, "boot-2", metal.CodeDenied)
	check(d, "another key", other, "boot-1", metal.CodeDenied)
	check(d, "no key", as(t.Context(), server), "boot-1", metal.CodeDenied)
	d.session.Detach()
	d.open(slices.Clone(d.journal)) // a restart of the agent remembers
	if err := d.session.Grant(task); err != nil {
		t.Fatal(err)
	}
	check(d, "another key", other, "boot-1", metal.CodeDenied)
	check(d, "the machine", own, "boot-1", "")

	d, _ = taken(t) // the first call of one that was adopted shows its key
	if err := d.session.Grant(task); err == nil {
		t.Fatal("granted before it has called")
	}
	if _, err := d.service.TaskProgress(own, &agentv1.TaskProgressRequest{BootId: "boot-1", TaskId: task.Id}); err != nil {
		t.Fatal(err)
	}
	if err := d.session.Grant(task); err != nil {
		t.Fatal(err)
	}
	check(d, "another key", other, "boot-1", metal.CodeDenied)
	check(d, "the machine", own, "boot-1", "")
}

// What cannot be journalled has not happened.
func TestFullDisk(t *testing.T) {
	d := newDesk(t)
	d.armed()
	token := d.seed()
	d.full = true
	if code := d.hello(token, "key"); code != metal.CodeInternal || d.session.Alive() {
		t.Errorf("hello: %q", code)
	}
	d.full = false
	if code := d.hello(token, "key"); code != "" {
		t.Errorf("hello once there is room: %q", code)
	}
	d.full = true
	if err := d.session.Grant(&agentv1.Task{Id: "t"}); err == nil {
		t.Error("a grant that was not journalled")
	}
}
