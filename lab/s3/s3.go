// Package s3 runs the lab's object store: versitygw inside a process of its own,
// because it changes the working directory and keeps state in globals.
package s3

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// Config of one store. All paths are absolute. The key's secret comes from a
// file, since an argument list is public.
type Config struct {
	Listen        string
	DataDir       string
	AccessKey     string
	SecretKeyFile string
	CertFile      string
	KeyFile       string
}

// Serve runs the store until ctx ends. One per process.
func Serve(ctx context.Context, cfg Config) error {
	secret, err := os.ReadFile(cfg.SecretKeyFile)
	if err != nil {
		return fmt.Errorf("object store: %w", err)
	}
	data, side := filepath.Join(cfg.DataDir, "data"), filepath.Join(cfg.DataDir, "meta")
	for _, d := range []string{data, side} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return fmt.Errorf("object store: %w", err)
		}
	}
	// Metadata beside the objects, not in extended attributes: not every file
	// system has them, nor every user namespace.
	sidecar, err := meta.NewSideCar(side)
	if err != nil {
		return fmt.Errorf("object store: %w", err)
	}
	backend, err := posix.New(data, sidecar, posix.PosixOpts{SideCarDir: side})
	if err != nil {
		return fmt.Errorf("object store: %w", err)
	}
	err = embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		Ports:             []string{cfg.Listen},
		RootUserAccess:    cfg.AccessKey,
		RootUserSecret:    strings.TrimSpace(string(secret)),
		CertFile:          cfg.CertFile,
		KeyFile:           cfg.KeyFile,
		MaxConnections:    1024,
		MaxRequests:       512,
		MultipartMaxParts: 10000,
		KeepAlive:         true,
		Quiet:             true,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("object store: %w", err)
	}
	return nil
}
