package trust

import (
	"crypto/x509"
	"testing"
	"time"
)

// A chain is checked again after a minute, for each use by itself, and what has
// failed is not remembered.
func TestProofsAreKeptForAMinute(t *testing.T) {
	ca := testCA(t)
	v, err := NewVerifier(ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	leaf := func() *x509.Certificate {
		c, err := x509.ParseCertificate(member(t, ca, RoleNode, "node-1", 0).Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	good := leaf()
	now := time.Now()
	v.now = func() time.Time { return now }
	check := func(c *x509.Certificate) error {
		_, err := v.Verify([]*x509.Certificate{c}, x509.ExtKeyUsageClientAuth)
		return err
	}
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	v.roots = x509.NewCertPool() // from here on nothing leads anywhere
	if err := check(good); err != nil {
		t.Errorf("within the minute: %v", err)
	}
	for range 2 {
		if check(leaf()) == nil {
			t.Error("another certificate passes")
		}
	}
	now = now.Add(proofLife)
	if check(good) == nil {
		t.Error("after a minute it was not checked again")
	}
}
