package imagestore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"bmc/imagestore"
	"bmc/internal/freeport"
)

const (
	childEnv  = "BMC_TEST_VERSITYGW" // directory:port of the server that this process shall be
	accessKey = "labroot"
	secretKey = "labsecret123"
)

// TestMain makes the test binary a versitygw when asked to: it changes its
// working directory and lives once a process, so it gets one of its own.
func TestMain(m *testing.M) {
	if arg := os.Getenv(childEnv); arg != "" {
		dir, port, _ := strings.Cut(arg, ":")
		if err := serve(dir, port); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serve(dir, port string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { // the parent holds the other end: its death ends us
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	be, err := posix.New(filepath.Join(dir, "data"), meta.XattrMeta{}, posix.PosixOpts{})
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(ctx, be, &embedgw.Config{
		Ports: []string{"127.0.0.1:" + port}, RootUserAccess: accessKey, RootUserSecret: secretKey,
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"),
		MaxConnections: 256, MaxRequests: 128, MultipartMaxParts: 10000, Quiet: true,
	})
}

// versitygw starts a server with a bucket and returns how to reach it.
func versitygw(t *testing.T) imagestore.Config {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setxattr(data, "user.test", []byte("x"), 0); err != nil {
		t.Skipf("versitygw needs extended attributes, which %s has not: %v", os.TempDir(), err)
	}
	certificate(t, dir)
	port := strconv.Itoa(freeport.Port(t))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+dir+":"+port)
	start(t, cmd)
	c := imagestore.Config{
		Endpoint: "https://127.0.0.1:" + port, Bucket: "bmc-images", AccessKey: accessKey,
		SecretKey: secretKey, CAFile: filepath.Join(dir, "cert.pem"),
	}
	waitReady(t, c)
	return c
}

// minioServer starts a real MinIO, if one was built or is installed.
func minioServer(t *testing.T) imagestore.Config {
	t.Helper()
	program := filepath.Join("..", "build", "minio")
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath("minio"); err != nil {
			t.Skip("no MinIO: make minio builds one")
		}
	}
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	if err := os.Mkdir(certs, 0o750); err != nil {
		t.Fatal(err)
	}
	certificate(t, certs)
	for from, to := range map[string]string{"cert.pem": "public.crt", "key.pem": "private.key"} {
		if err := os.Rename(filepath.Join(certs, from), filepath.Join(certs, to)); err != nil {
			t.Fatal(err)
		}
	}
	port := strconv.Itoa(freeport.Port(t))
	cmd := exec.Command(program, "server", "--quiet", "--certs-dir", certs, "--address", "127.0.0.1:"+port, filepath.Join(dir, "data"))
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+accessKey, "MINIO_ROOT_PASSWORD="+secretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off")
	start(t, cmd)
	c := imagestore.Config{
		Endpoint: "https://127.0.0.1:" + port, Bucket: "bmc-images", AccessKey: accessKey,
		SecretKey: secretKey, CAFile: filepath.Join(certs, "public.crt"),
	}
	waitReady(t, c)
	return c
}

// start runs cmd until the test ends, with a pipe that tells it when we die.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
	})
}

// waitReady makes the bucket as soon as the server answers.
func waitReady(t *testing.T, c imagestore.Config) {
	t.Helper()
	s, err := imagestore.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for deadline := time.Now().Add(60 * time.Second); ; {
		if err = s.CreateBucket(t.Context()); err == nil { // retries by itself, with pauses
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// certificate writes a self-signed one for 127.0.0.1 to dir.
func certificate(t *testing.T, dir string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "store"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
