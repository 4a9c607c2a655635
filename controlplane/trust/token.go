package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
)

// UserTokenPrefix starts a user's token: bmct_<token ID>_<secret>.
const UserTokenPrefix = "bmct_"

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID mints an identity: a prefix, a dash and 16 characters.
func NewID(prefix string) (string, error) {
	var b [10]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return "", fmt.Errorf("draw an ID: %w", err)
	}
	return prefix + "-" + idEncoding.EncodeToString(b[:]), nil
}

// NewUserToken mints a user's token: its text for the person, its ID and the
// hash of its secret for the inventory.
func NewUserToken() (text, id string, hash []byte, err error) {
	if id, err = NewID("tok"); err != nil {
		return "", "", nil, err
	}
	var b [32]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return "", "", nil, fmt.Errorf("draw a token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	return UserTokenPrefix + id + "_" + secret, id, HashSecret(secret), nil
}

// ParseUserToken splits a token into its ID and its secret.
func ParseUserToken(text string) (id, secret string, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), UserTokenPrefix)
	if !ok {
		return "", "", false
	}
	id, secret, ok = strings.Cut(rest, "_")
	return id, secret, ok && validID(id) && secret != ""
}

// HashSecret is how the inventory stores a secret of 256 random bits, which
// needs no salt and no slow hash.
func HashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// SecretMatches compares in constant time.
func SecretMatches(secret string, hash []byte) bool {
	return subtle.ConstantTimeCompare(HashSecret(secret), hash) == 1
}
