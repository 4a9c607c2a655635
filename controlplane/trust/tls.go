package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
)

// ALPN protocols of a node's one port.
const (
	ProtoRaft = "bmc-raft/1" // needs a node's certificate
	ProtoGRPC = "h2"
	ProtoHTTP = "http/1.1"
)

// Credentials are what one node or agent shows and believes. The certificate
// may be replaced while connections are open; new ones show the new one.
type Credentials struct {
	cert     atomic.Pointer[tls.Certificate]
	verifier *Verifier
	ca       *x509.Certificate
	checkKey func(Identity) error
}

// NewCredentials pairs a certificate with the CA that peers are verified by.
// checkKey, which may be nil, refuses nodes on the raft protocol by their
// recorded key.
func NewCredentials(cert tls.Certificate, ca *x509.Certificate, checkKey func(Identity) error) (*Credentials, error) {
	v, err := NewVerifier(ca)
	if err != nil {
		return nil, err
	}
	c := &Credentials{verifier: v, ca: ca, checkKey: checkKey}
	c.SetCertificate(cert)
	return c, nil
}

// SetCertificate replaces the certificate that new connections show.
func (c *Credentials) SetCertificate(cert tls.Certificate) { c.cert.Store(&cert) }

// Verifier checks peers' certificates.
func (c *Credentials) Verifier() *Verifier { return c.verifier }

// Server is the configuration of the node's port. The handshake verifies a
// client certificate if one is given, and requires a node's for ProtoRaft.
// Session tickets are off: every connection proves its peer anew.
func (c *Credentials) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// In this order: who offers both h2 and http/1.1 (curl, browsers) means
		// HTTP; gRPC offers h2 alone.
		NextProtos: []string{ProtoRaft, ProtoHTTP, ProtoGRPC},
		ClientAuth: tls.RequestClientCert, // VerifyConnection verifies it, without its age
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.cert.Load(), nil
		},
		SessionTicketsDisabled: true,
		VerifyConnection:       c.verifyClient,
	}
}

func (c *Credentials) verifyClient(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol != ProtoRaft {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, err := c.verifier.Verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
		return err
	}
	id, err := c.verifier.Verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, RoleNode)
	if err == nil && c.checkKey != nil {
		err = c.checkKey(id)
	}
	return err
}

// Client is the configuration for calls to members with one of the roles,
// over the given ALPN protocols. Hosts' names are not looked at: the
// certificate says who the peer is.
func (c *Credentials) Client(protos []string, roles ...Role) *tls.Config {
	raft := slices.Contains(protos, ProtoRaft)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protos,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.cert.Load(), nil
		},
		InsecureSkipVerify: true, // VerifyConnection verifies chain and role instead of the host's name
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := c.verifier.Verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, roles...)
			if err != nil {
				return err
			}
			if raft && cs.NegotiatedProtocol != ProtoRaft {
				return errors.New("the peer does not speak the raft protocol")
			}
			if raft && c.checkKey != nil {
				return c.checkKey(id)
			}
			return nil
		},
	}
}

// Identify tells who is behind a connection that was accepted with Server.
func (c *Credentials) Identify(cs tls.ConnectionState) (Identity, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Identity{}, false
	}
	id, err := c.verifier.Verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
	return id, err == nil
}

// PinnedCA is the configuration of a newcomer that knows the cluster only by
// what matches says of its CA: the peer must show a node's certificate under a
// CA that matches, and send that CA along.
func PinnedCA(protos []string, matches func(caDER []byte) bool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         protos,
		InsecureSkipVerify: true, // VerifyConnection verifies against the pinned CA
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, cert := range cs.PeerCertificates {
				if !cert.IsCA || !matches(cert.Raw) {
					continue
				}
				v, err := NewVerifier(cert)
				if err != nil {
					return err
				}
				_, err = v.Verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, RoleNode)
				return err
			}
			return errors.New("the node is not of the cluster that the join token is for")
		},
	}
}
