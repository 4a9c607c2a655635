package manifest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"aead.dev/minisign"

	"bmc/metal"
)

// MaxSignatureBytes bounds a minisign signature's text.
const MaxSignatureBytes = 4 << 10

// PrivateKey signs manifests.
type PrivateKey = minisign.PrivateKey

// Sign returns the minisign text over the canonical JSON. It is deterministic:
// the trusted comment names the image, not the time.
func (m *Manifest) Sign(key PrivateKey) []byte {
	data := m.Canonical()
	r := minisign.NewReader(bytes.NewReader(data))
	if _, err := io.Copy(io.Discard, r); err != nil { // a bytes.Reader does not fail
		panic("manifest: " + err.Error())
	}
	return r.SignWithComments(key, "bmc image "+m.Name+" "+Sum(data).String(), "signature of a bmc image manifest by key "+keyID(key.ID()))
}

// Verify checks that one of trusted (minisign public keys, with or without
// their comment line) signed data, a manifest's canonical JSON, and returns
// that key's ID. Errors are *metal.Error with CodeSignature and name the key
// that signed and those that would have done.
func Verify(data, sig []byte, trusted []string) (string, error) {
	if len(sig) > MaxSignatureBytes {
		return "", metal.Errorf(metal.CodeSignature, "the image's signature has %d bytes, the limit is %d", len(sig), MaxSignatureBytes)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(sig); err != nil {
		return "", &metal.Error{Code: metal.CodeSignature, Message: "the image's signature is not in minisign's format", Err: err}
	}
	signer := keyID(s.KeyID)
	var known []string
	for _, text := range trusted {
		key, err := parsePublicKey(text)
		if err != nil {
			return "", &metal.Error{Code: metal.CodeSignature, Message: "a key on the project's list is not in minisign's format", Err: err}
		}
		known = append(known, keyID(key.ID()))
		if key.ID() == s.KeyID && minisign.Verify(key, data, sig) {
			return signer, nil
		}
	}
	for _, id := range known {
		if id == signer {
			return "", metal.Errorf(metal.CodeSignature, "the image's signature by key %s does not fit its manifest", signer)
		}
	}
	list := "it trusts none"
	if len(known) > 0 {
		list = "it trusts " + strings.Join(known, ", ")
	}
	return "", metal.Errorf(metal.CodeSignature, "the image is signed by key %s, which the project does not trust (%s)", signer, list)
}

// KeyID returns the ID, 16 hex digits, of a minisign public key's text.
func KeyID(publicKey string) (string, error) {
	key, err := parsePublicKey(publicKey)
	if err != nil {
		return "", err
	}
	return keyID(key.ID()), nil
}

// PublicKey returns the text of key's public half, as minisign -G writes it.
func PublicKey(key PrivateKey) string {
	pub := key.Public().(minisign.PublicKey)
	return "untrusted comment: minisign public key " + keyID(pub.ID()) + "\n" + pub.String() + "\n"
}

// GenerateKey makes a signing key.
func GenerateKey() (PrivateKey, error) {
	_, key, err := minisign.GenerateKey(rand.Reader)
	return key, err
}

// WriteKey stores key without a password at path, readable by its owner alone,
// and its public half at path + ".pub". An existing key is never replaced.
func WriteKey(path string, key PrivateKey) error {
	text, err := key.MarshalText()
	if err != nil {
		return fmt.Errorf("encode signing key: %w", err)
	}
	if err := writeNew(path, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return writeNew(path+".pub", []byte(PublicKey(key)), 0o644)
}

func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) //nolint:gosec // the user names the file
	if err != nil {
		return fmt.Errorf("write signing key: %w", err)
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// LoadKey reads a private key file without a password, as WriteKey or
// minisign -G -W writes it. A file that others may read is refused. A missing
// file satisfies errors.Is(err, fs.ErrNotExist).
func LoadKey(path string) (PrivateKey, error) {
	var key PrivateKey
	info, err := os.Stat(path)
	if err != nil {
		return key, fmt.Errorf("signing key: %w", err)
	}
	if info.Size() > MaxSignatureBytes {
		return key, metal.Invalid("signing key", "%s is not a minisign private key", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return key, metal.Invalid("signing key", "%s may be read by others", path).WithHint("chmod 600 %s", path)
	}
	text, err := os.ReadFile(path) //nolint:gosec // the user names the file
	if err != nil {
		return key, fmt.Errorf("signing key: %w", err)
	}
	if minisign.IsEncrypted(text) {
		return key, metal.Invalid("signing key", "%s is protected by a password, which is not supported", path).
			WithHint("minisign -C -W -s %s", path)
	}
	if err := key.UnmarshalText(text); err != nil {
		return key, metal.Invalid("signing key", "%s is not a minisign private key", path)
	}
	return key, nil
}

func parsePublicKey(text string) (minisign.PublicKey, error) {
	var key minisign.PublicKey
	if len(text) > MaxSignatureBytes || key.UnmarshalText([]byte(text)) != nil {
		return key, metal.Invalid("public key", "is not in minisign's format")
	}
	return key, nil
}

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }
