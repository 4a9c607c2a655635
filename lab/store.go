package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"bmc/internal/config"
	"bmc/lab/s3"
)

const (
	bucketName  = "bmc-images"
	storeRegion = "us-east-1"
	storeUser   = "bmc-lab"
)

// startStore brings the object store up at 10.76.0.5 and makes the bucket.
func (l *Lab) startStore(ctx context.Context) error {
	if err := os.MkdirAll(l.cfg.path("s3"), 0o700); err != nil {
		return err
	}
	l.store = storeFile{
		Endpoint:      "https://" + storeAddr().String(),
		Bucket:        bucketName,
		AccessKey:     storeUser,
		SecretKeyFile: l.cfg.path("s3", "secret"),
		CAFile:        l.cfg.path("s3", "public.crt"),
		Region:        storeRegion,
	}
	program, minio := strings.CutPrefix(l.cfg.S3, "minio:")
	var err error
	switch {
	case minio:
		err = l.startMinIO(program)
	case l.cfg.S3 == "embedded":
		err = l.startEmbedded()
	default:
		return l.forwardStore(ctx)
	}
	if err != nil {
		return err
	}
	return l.makeBucket(ctx)
}

func storeAddr() netip.AddrPort { return netip.AddrPortFrom(mgmtAddr(hostS3), s3Port) }

// credentials writes the secret and a certificate, and returns the secret.
func (l *Lab) storeCredentials() (string, error) {
	secret := password()
	return secret, errors.Join(
		os.WriteFile(l.store.SecretKeyFile, []byte(secret+"\n"), 0o600),
		s3.WriteCertificate(l.store.CAFile, l.cfg.path("s3", "private.key"), storeAddr().Addr().AsSlice()),
	)
}

func (l *Lab) startEmbedded() error {
	if _, err := l.storeCredentials(); err != nil {
		return err
	}
	return l.daemon(storeName, l.cfg.Exe, "s3",
		"--listen", storeAddr().String(), "--data", l.cfg.path("s3", "data"),
		"--access-key", storeUser, "--secret-key-file", l.store.SecretKeyFile,
		"--cert", l.store.CAFile, "--key", l.cfg.path("s3", "private.key"))
}

// startMinIO runs the real thing: AGPL, so only ever as a program of its own.
func (l *Lab) startMinIO(program string) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	secret, err := l.storeCredentials()
	if err != nil {
		return err
	}
	l.env[storeName] = []string{"MINIO_ROOT_USER=" + storeUser, "MINIO_ROOT_PASSWORD=" + secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off"}
	// It reads public.crt and private.key there.
	return l.daemon(storeName, program, "server", "--address", storeAddr().String(), "--certs-dir", l.cfg.path("s3"), l.cfg.path("s3", "data"))
}

// forwardStore gives the lab a store that the host reaches. Its certificate must
// be good for 10.76.0.5, which is where the lab sees it.
func (l *Lab) forwardStore(ctx context.Context) error {
	var file storeFile
	if err := config.Load(l.cfg.S3, &file); err != nil {
		return err
	}
	u, err := url.Parse(file.Endpoint)
	if err != nil || u.Scheme != "https" || u.Port() == "" {
		return fmt.Errorf("endpoint %q in %s: want https://HOST:PORT", file.Endpoint, l.cfg.S3)
	}
	ns := l.net.spaces[storeName]
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", storeAddr().String())
		return err
	}); err != nil {
		return err
	}
	l.forwards = append(l.forwards, newForward(listener, func() (net.Conn, error) {
		return net.DialTimeout("tcp", u.Host, dialTimeout)
	}, l.log))
	file.Endpoint = l.store.Endpoint
	l.store = file
	return l.makeBucket(ctx)
}

// makeBucket talks to the store as the nodes do: over the management network.
func (l *Lab) makeBucket(ctx context.Context) error {
	secret, err := os.ReadFile(l.store.SecretKeyFile)
	if err != nil {
		return err
	}
	dial := dialIn(l.net.mgmt, storeAddr().String())
	ctx, cancel := l.watch(ctx)
	defer cancel(nil)
	err = s3.Bucket{
		Endpoint: storeAddr().String(), Name: l.store.Bucket, Region: l.store.Region,
		AccessKey: l.store.AccessKey, SecretKey: strings.TrimSpace(string(secret)), CAFile: l.store.CAFile,
		Dial: func(context.Context, string, string) (net.Conn, error) { return dial() },
	}.Make(ctx)
	return because(ctx, err)
}
