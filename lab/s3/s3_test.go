package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// TestMain lets the test binary be the store's process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("LAB_S3_TEST_DIR"); dir != "" {
		if err := Serve(context.Background(), storeConfig(dir, os.Getenv("LAB_S3_TEST_LISTEN"))); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func storeConfig(dir, listen string) Config {
	return Config{
		Listen: listen, DataDir: dir, AccessKey: "bmc", SecretKeyFile: filepath.Join(dir, "secret"),
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"),
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	cfg := storeConfig(dir, "")
	if err := errors.Join(
		os.WriteFile(cfg.SecretKeyFile, []byte("lab-secret-123\n"), 0o600),
		WriteCertificate(cfg.CertFile, cfg.KeyFile, net.IPv4(127, 0, 0, 1)),
	); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LAB_S3_TEST_DIR="+dir, "LAB_S3_TEST_LISTEN="+addr)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("store: %s", out.String())
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b := Bucket{Endpoint: addr, Name: "bmc-images", Region: "us-east-1", AccessKey: "bmc", SecretKey: "lab-secret-123", CAFile: cfg.CertFile}
	for range 2 { // making it again is no error
		if err := b.Make(ctx); err != nil {
			t.Fatal(err)
		}
	}
	roundTrip(ctx, t, b)

	b.SecretKey = "wrong"
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if err := b.Make(short); err == nil {
		t.Fatal("a wrong secret made a bucket")
	}
}

func roundTrip(ctx context.Context, t *testing.T, b Bucket) {
	t.Helper()
	raw, err := os.ReadFile(b.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(raw)
	c, err := minio.New(b.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, ""), Secure: true, Region: b.Region,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("chunk"), 1<<20)
	if _, err := c.PutObject(ctx, b.Name, "chunks/ab/abcd", bytes.NewReader(want), int64(len(want)), minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	o, err := c.GetObject(ctx, b.Name, "chunks/ab/abcd", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got, err := io.ReadAll(o)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back %d bytes, want %d: %v", len(got), len(want), err)
	}
}
