package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	agentv1 "bmc/api/agent/v1"
)

// renewAgain stands between two tries to renew the certificate.
const renewAgain = 10 * time.Minute

// certified takes a certificate for the session's key. A third of its life is
// for use, the rest for getting the next one.
func (s *Session) certified(der []byte) error {
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key}
	leaf, err := parseLeaf(cert, s.key)
	if err != nil {
		return err
	}
	s.cert, s.expires = cert, leaf.NotAfter
	s.renewAt = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3)
	return nil
}

// renew prolongs the certificate of a ramdisk that waits for a tenant, over the
// present one and for the same key, once a third of its life has gone. An agent
// that refuses is asked again later: in the middle of an operation nobody renews.
func (s *Session) renew(ctx context.Context) {
	if s.cfg.Now().Before(s.renewAt) {
		return
	}
	s.renewAt = s.cfg.Now().Add(renewAgain)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, s.key)
	if err != nil {
		s.cfg.Log.Warn("certificate not renewed", "err", err)
		return
	}
	if err := s.connect(ctx); err != nil {
		return // the next call says so, and tries another agent
	}
	callCtx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	resp, err := s.client.Renew(callCtx, &agentv1.RenewRequest{BootId: s.cfg.BootID, Csr: csr})
	if err == nil {
		err = s.certified(resp.GetCertificate())
	}
	if err != nil {
		s.cfg.Log.Info("certificate not renewed", "err", brief(err))
		return
	}
	s.cfg.Log.Info("certificate renewed", "until", s.expires.UTC().Format(time.RFC3339))
	s.Close() // the next call shows it
}

// parseLeaf checks that the certificate is for our key.
func parseLeaf(cert *tls.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("the agent's answer holds no certificate: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the agent certified another key")
	}
	return leaf, nil
}
