package trust

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const maxFile = 1 << 20

// PEM block types.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// WriteCertificate stores a certificate (DER) as PEM, readable by all.
func WriteCertificate(path string, der []byte) error {
	return WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), 0o644)
}

// ReadCertificate returns the DER of a certificate in PEM.
func ReadCertificate(path string) ([]byte, error) { return readPEM(path, pemCertificate) }

// WriteKey stores a private key as PEM, for its owner alone.
func WriteKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return WriteKeyDER(path, der)
}

// WriteKeyDER stores a private key (PKCS #8) as PEM, for its owner alone.
func WriteKeyDER(path string, der []byte) error {
	return WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), 0o600)
}

// ReadKeyDER returns the PKCS #8 of a private key in PEM. A file that others
// can read is refused.
func ReadKeyDER(path string) ([]byte, error) {
	if err := CheckPrivate(path); err != nil {
		return nil, err
	}
	return readPEM(path, pemKey)
}

// ReadKey reads an ECDSA key.
func ReadKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := ReadKeyDER(path)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no ECDSA key", path)
	}
	return key, nil
}

// WriteKeyring stores a keyring for its owner alone; an existing file is not
// overwritten, since what it sealed would be lost.
func WriteKeyring(path string, k *Keyring) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists: a keyring is never overwritten", path)
	}
	b, err := k.JSON()
	if err != nil {
		return fmt.Errorf("encode the keyring: %w", err)
	}
	return WriteFile(path, append(b, '\n'), 0o600)
}

// ReadKeyring reads a keyring. A file that others can read is refused.
func ReadKeyring(path string) (*Keyring, error) {
	if err := CheckPrivate(path); err != nil {
		return nil, err
	}
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	k, err := ParseKeyring(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// CheckPrivate refuses a file that others than its owner may read or write.
func CheckPrivate(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s may be read by others (mode %#o): chmod 600 %s", path, st.Mode().Perm(), path)
	}
	return nil
}

// WriteFile replaces a file in one step: after a crash it is the old one or the
// new one, whole.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	err = errors.Join(f.Chmod(mode), writeAll(f, data), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeAll(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func readPEM(path, kind string) ([]byte, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no %s in PEM", path, kind)
	}
	return block.Bytes, nil
}
