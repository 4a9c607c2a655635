package session

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
)

// clientTLS trusts the pinned CA and nobody but an agent. Host names mean
// nothing here: the agent's role in its URI does. cert is nil before hello.
func clientTLS(ca *x509.Certificate, cert *tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by VerifyConnection, which checks chain and role
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyAgent(s, roots) },
		// No resumption: it would skip nothing that matters and keep state.
		SessionTicketsDisabled: true,
	}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

func verifyAgent(s tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the agent sent no certificate")
	}
	leaf := s.PeerCertificates[0]
	pool := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("the agent's certificate: %w", err)
	}
	for _, u := range leaf.URIs {
		if id, ok := strings.CutPrefix(u.Path, "/agent/"); ok && u.Scheme == "spiffe" && id != "" && !strings.Contains(id, "/") {
			return nil
		}
	}
	return errors.New("the certificate does not name an agent")
}

// newKey makes this boot's key and the request to certify it. Neither ever
// leaves RAM.
func newKey(serverID string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: serverID}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}
