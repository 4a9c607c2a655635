package controlplane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/controlplane/trust"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// A node signs its own key again after a third of its certificate's life, and
// is the same to the others.
func TestNodeRenewsItsCertificate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.leader()
	old := n.id.cert
	creds, err := trust.NewCredentials(old, n.id.ca.Certificate(), n.checkKey)
	if err != nil {
		t.Fatal(err)
	}
	shown := func() *x509.Certificate {
		c, err := creds.Server().GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	third := old.Leaf.NotBefore.Add(old.Leaf.NotAfter.Sub(old.Leaf.NotBefore) / 3)
	s.lose(false, n) // its own upkeep is out of the way
	if err := n.renew(creds, third.Add(-time.Minute)); err != nil || shown().SerialNumber.Cmp(old.Leaf.SerialNumber) != 0 {
		t.Fatalf("renewed too early: %v", err)
	}
	if err := n.renew(creds, third.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fresh := shown()
	if fresh.SerialNumber.Cmp(old.Leaf.SerialNumber) == 0 || fresh.NotAfter.Before(old.Leaf.NotAfter) {
		t.Errorf("the certificate is until %v, was until %v", fresh.NotAfter, old.Leaf.NotAfter)
	}
	if !bytes.Equal(trust.KeyHash(fresh), trust.KeyHash(old.Leaf)) {
		t.Error("the key is another")
	}
	again := s.start(n.conf) // with what is on its disk
	if again.id.cert.Leaf.SerialNumber.Cmp(fresh.SerialNumber) != 0 {
		t.Error("the new certificate is not on the disk")
	}
	s.joinToken(s.leader())
}

// expiredAgent is a certificate of the cluster's CA that has run out.
func expiredAgent(t *testing.T, n *testNode, id string) (*ecdsa.PrivateKey, tls.Certificate) {
	t.Helper()
	der, err := n.id.ca.KeyDER()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-30 * time.Minute), // the CA is an hour old
		NotAfter: time.Now().Add(-time.Minute), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: n.id.ClusterID, Path: "/agent/" + id}}}, n.id.ca.Certificate(), key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate(t, leaf, key)
}

// An agent that was off for months renews its certificate, and may do nothing
// else before.
func TestExpiredAgentRenews(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.leader()
	s.stock()
	s.agent()
	var id string
	for a := range n.fsm.View().Agents() {
		id = a.ID
	}
	key, cert := expiredAgent(t, n, id)
	creds, err := trust.NewCredentials(cert, n.id.ca.Certificate(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctl := s.control(n, creds)
	_, err = ctl.RenewLease(t.Context(), &agentv1.RenewLeaseRequest{Rack: "r1"})
	if e, ok := rpcerr.Decode(err); !ok || e.Code != metal.CodeUnauthenticated {
		t.Fatalf("an expired certificate opens a lease: %v", err)
	}
	csr, err := trust.RequestFor(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ctl.RenewCertificate(t.Context(), &agentv1.RenewCertificateRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	creds.SetCertificate(certificate(t, got.GetCertificate(), key))
	if _, err := s.control(n, creds).RenewLease(t.Context(), &agentv1.RenewLeaseRequest{Rack: "r1"}); err != nil {
		t.Errorf("with its new certificate: %v", err)
	}
}
