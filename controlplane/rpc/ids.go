package rpc

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	"bmc/metal"

	"github.com/google/uuid"
)

// newID mints an identity such as srv-aaaaaaaaaaaaaaaa. IDs are minted here,
// travel in the command, and are never made inside the state machine.
func (a *API) newID(prefix string) (string, error) {
	var b [10]byte
	if _, err := io.ReadFull(a.Rand, b[:]); err != nil {
		return "", fmt.Errorf("read random bytes for an ID: %w", err)
	}
	return metal.FormatID(prefix, b), nil
}

// hashSecret is how tokens are stored.
func hashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// newRequestID mints a UUIDv7 (RFC 9562 section 5.7) for a caller that sent none.
func (a *API) newRequestID() (string, error) {
	var b [10]byte
	if _, err := io.ReadFull(a.Rand, b[:]); err != nil {
		return "", fmt.Errorf("read random bytes for a request ID: %w", err)
	}
	return uuidV7(a.Now(), b), nil
}

func uuidV7(at time.Time, random [10]byte) string {
	var u uuid.UUID
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(u[:6], ms[2:])
	copy(u[6:], random[:])
	u[6] = u[6]&0x0f | 0x70
	u[8] = u[8]&0x3f | 0x80
	return u.String()
}

// checkRequestID refuses what is not a UUIDv7 in its canonical spelling.
func checkRequestID(s string) error {
	u, err := uuid.Parse(s)
	if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || u.String() != strings.ToLower(s) {
		return metal.Invalid("request_id", "must be a UUIDv7, e.g. 0198c0de-0000-7000-8000-000000000001")
	}
	return nil
}
