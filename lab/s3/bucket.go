package s3

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// WriteCertificate makes a certificate for the given addresses that is its own
// CA, good for a lab's life.
func WriteCertificate(certFile, keyFile string, ips ...net.IP) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "bmc-lab object store"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(0, 1, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           ips,
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
	)
}

// Bucket says where a bucket is and who may make it. Dial may be nil.
type Bucket struct {
	Endpoint  string // host:port; TLS always
	Name      string
	Region    string
	AccessKey string
	SecretKey string
	CAFile    string
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Make waits until the store answers, and makes the bucket unless it is there.
func (b Bucket) Make(ctx context.Context) error {
	roots := x509.NewCertPool()
	raw, err := os.ReadFile(b.CAFile)
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(raw) {
		return fmt.Errorf("no certificate in %s", b.CAFile)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DialContext: b.Dial}
	defer transport.CloseIdleConnections()
	c, err := minio.New(b.Endpoint, &minio.Options{
		Creds:     credentials.NewStaticV4(b.AccessKey, b.SecretKey, ""),
		Secure:    true,
		Region:    b.Region,
		Transport: transport,
		// The loop below retries, and sees the context.
		MaxRetries: 1,
	})
	if err != nil {
		return err
	}
	for {
		there, err := c.BucketExists(ctx, b.Name)
		if err == nil && !there {
			err = c.MakeBucket(ctx, b.Name, minio.MakeBucketOptions{Region: b.Region})
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bucket %s at %s: %w", b.Name, b.Endpoint, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
