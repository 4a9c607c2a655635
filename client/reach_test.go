package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// authority signs a certificate for 127.0.0.1, good in a span around now, and returns
// it and the CA's PEM.
func authority(t *testing.T, from, to time.Duration) (tls.Certificate, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
}

// secure serves an API over TLS with a certificate.
func secure(t *testing.T, cert tls.Certificate) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	bmcv1.RegisterServersServer(s, &reader{has: 100})
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); wg.Wait() })
	return l.Addr().String()
}

// greeter says a line of another protocol to whoever connects.
func greeter(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// What keeps a command from the nodes is said, and what no trying mends is said at once.
func TestWhyNotReached(t *testing.T) {
	good, ca := authority(t, -time.Hour, time.Hour)
	old, oldCA := authority(t, -time.Hour, -time.Minute)
	_, otherCA := authority(t, -time.Hour, time.Hour)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	refusing := closed.Addr().String()
	tests := map[string]struct {
		addrs  []string
		ca     []byte
		want   []string // "": an answer
		atOnce bool
	}{
		"another CA":         {addrs: []string{secure(t, good), secure(t, good)}, ca: otherCA, want: []string{"is not signed by the CA that was given"}, atOnce: true},
		"no CA":              {addrs: []string{secure(t, good)}, want: []string{"no CA certificate was given"}, atOnce: true},
		"an expired one":     {addrs: []string{secure(t, old)}, ca: oldCA, want: []string{"this machine's clock says"}, atOnce: true},
		"not a node":         {addrs: []string{greeter(t)}, ca: ca, want: []string{"does not speak TLS"}, atOnce: true},
		"nobody listens":     {addrs: []string{refusing}, ca: ca, want: []string{"it refuses connections"}},
		"each another":       {addrs: []string{secure(t, good), refusing}, ca: otherCA, want: []string{"not signed", refusing + ": it refuses connections"}},
		"one of them is one": {addrs: []string{greeter(t), secure(t, good)}, ca: ca},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var waited []string
			patience := time.Minute // which "at once" does not need
			if !tt.atOnce {
				patience = 300 * time.Millisecond
			}
			c, err := New(Config{Addresses: tt.addrs, CACert: tt.ca, Patience: patience, OnRetry: func(why string) { waited = append(waited, why) }})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			start := time.Now()
			_, err = c.Servers.GetServer(t.Context(), &bmcv1.GetServerRequest{Ref: "web-1"})
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if metal.CodeOf(err) != metal.CodeNoLeader {
				t.Fatalf("got %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if took := time.Since(start); tt.atOnce && (took > 20*time.Second || len(waited) > 0) {
				t.Errorf("it took %s, and said %q", took, waited)
			}
		})
	}
}
