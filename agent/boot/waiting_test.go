package boot

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// lobby is a service where a server waits in boot-1, and what renews its
// certificate.
type lobby struct {
	service *Service
	boot    string
	here    atomic.Bool
	renewed []string // boots
	now     time.Time
}

func newLobby() *lobby {
	l := &lobby{boot: "boot-1", now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	l.here.Store(true)
	l.service = New(Config{
		Endpoint:   func(string) string { return "10.77.0.1:8443" },
		PeerServer: func(i credentials.TLSInfo) (string, bool) { return i.State.ServerName, i.State.ServerName != "" },
		Waits:      func(id string) (string, bool) { return l.boot, l.here.Load() },
		Renew: func(_ context.Context, _, bootID string, _ []byte) ([]byte, error) {
			l.renewed = append(l.renewed, bootID)
			return []byte("certificate"), nil
		},
		Now: func() time.Time { return l.now }, Log: slog.New(slog.DiscardHandler),
	})
	return l
}

// ask calls NextTask and says after how long it was answered, and how.
func (l *lobby) ask(t *testing.T, boot string) (time.Duration, metal.Code) {
	t.Helper()
	began := time.Now()
	resp, err := l.service.NextTask(as(t.Context(), server), &agentv1.NextTaskRequest{BootId: boot})
	if resp.GetTask() != nil {
		t.Errorf("a task without an operation: %v", resp)
	}
	return time.Since(began), codeOf(err)
}

func TestWaitingIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby()
		if took, code := l.ask(t, "boot-1"); took != pollLimit || code != "" || !l.service.Heard(server, "boot-1").Equal(l.now) {
			t.Errorf("%s, %q, heard %v", took, code, l.service.Heard(server, "boot-1"))
		}
		if took, code := l.ask(t, "boot-0"); took != 0 || code != metal.CodeNoLeader || !l.service.Heard(server, "boot-0").IsZero() {
			t.Errorf("another boot: %s, %q", took, code)
		}
		l.here.Store(false)
		if took, code := l.ask(t, "boot-1"); took != 0 || code != metal.CodeNoLeader {
			t.Errorf("without the lease: %s, %q", took, code)
		}
		l.here.Store(true)
		time.AfterFunc(5*time.Second, func() { l.here.Store(false) })
		if took, code := l.ask(t, "boot-1"); took > 7*time.Second || code != metal.CodeNoLeader {
			t.Errorf("as the lease is lost: %s, %q", took, code)
		}
	})
}

// Who is sure that nothing is under way on a server says so, in another way than who
// does not know yet: a ramdisk takes only the first for its end.
func TestOver(t *testing.T) {
	l := newLobby()
	for sure, want := range map[bool]metal.Code{false: metal.CodeNoLeader, true: metal.CodeWrongState} {
		l.service.cfg.Over = func(id string) bool { return sure && id == server }
		if _, code := l.ask(t, "boot-0"); code != want {
			t.Errorf("sure: %v: a task: %q", sure, code)
		}
		if _, err := l.service.CompleteTask(as(t.Context(), server), &agentv1.CompleteTaskRequest{TaskId: "op/1/wipe", BootId: "boot-0"}); codeOf(err) != want {
			t.Errorf("sure: %v: a result: %v", sure, err)
		}
	}
}

func TestPrune(t *testing.T) {
	l := newLobby()
	for _, id := range []string{"srv-a", "srv-b"} {
		if _, err := l.service.call(id, "boot-1"); err != nil {
			t.Fatal(err)
		}
	}
	l.service.Prune(func(id string) bool { return id == "srv-a" })
	if len(l.service.waiting) != 1 || l.service.Heard("srv-a", "boot-1").IsZero() {
		t.Errorf("kept %v", l.service.waiting)
	}
}

// The operation that wants a server that waits has it call at once, and meets it
// by that call, not by the one that was held: who asked then may be dead.
func TestWaitingIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby()
		b := binding
		b.BootID = "boot-1"
		var sess *Session
		time.AfterFunc(3*time.Second, func() {
			sess = l.service.Open(b, nil, func(Event) error { return nil })
			sess.Attend(false)
			time.AfterFunc(100*time.Millisecond, func() { sess.Attend(true) })
		})
		if took, code := l.ask(t, "boot-1"); took != 3100*time.Millisecond || code != "" {
			t.Fatalf("woken after %s, %q", took, code)
		}
		if sess.Alive() {
			t.Fatal("adopted by a call that was held")
		}
		ctx, cancel := context.WithTimeout(as(t.Context(), server), time.Second)
		defer cancel()
		if _, err := l.service.NextTask(ctx, &agentv1.NextTaskRequest{BootId: "boot-1"}); err != nil || !sess.Called() || sess.BootID() != "boot-1" {
			t.Fatalf("%v, called %t", err, sess.Called())
		}
	})
}

func TestRenew(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	own, other := key(), key()
	csr := func(k *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	l := newLobby()
	issued := l.now
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: issued, NotAfter: issued.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, own.Public(), own)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
		ServerName: server, PeerCertificates: []*x509.Certificate{leaf}}}})
	for _, tt := range []struct {
		name  string
		after time.Duration
		boot  string
		waits string
		key   *ecdsa.PrivateKey
		code  metal.Code
	}{
		{"too early", 5 * time.Hour, "boot-1", "boot-1", own, metal.CodeWrongState},
		{"another key", 8 * time.Hour, "boot-1", "boot-1", other, metal.CodeDenied},
		{"another boot", 8 * time.Hour, "boot-2", "boot-1", own, metal.CodeNoLeader},
		{"it waits no more", 8 * time.Hour, "boot-1", "", own, metal.CodeNoLeader},
		{"in time", 8 * time.Hour, "boot-1", "boot-1", own, ""},
	} {
		l.now, l.boot = issued.Add(tt.after), tt.waits
		_, err := l.service.Renew(ctx, &agentv1.RenewRequest{BootId: tt.boot, Csr: csr(tt.key)})
		if codeOf(err) != tt.code {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.code)
		}
	}
	if len(l.renewed) != 1 || l.renewed[0] != "boot-1" {
		t.Errorf("renewed %v", l.renewed)
	}
	if _, err := l.service.Renew(ctx, &agentv1.RenewRequest{BootId: "boot-1", Csr: []byte("no request")}); codeOf(err) != metal.CodeNoLeader && codeOf(err) != metal.CodeInvalid {
		t.Errorf("nonsense: %v", err)
	}
}
