// Package measure is what measurements share: distributions, and cheap writes.
package measure

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// Percentile of sorted values, nearest rank; 0 of none.
func Percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	n := len(sorted)
	rank := int(p/100*float64(n) + 0.999999)
	return sorted[min(max(rank, 1), n)-1]
}

// Line is a distribution in a line; it sorts d.
func Line(d []time.Duration) string {
	slices.Sort(d)
	r := func(p float64) time.Duration { return Percentile(d, p).Round(100 * time.Microsecond) }
	return fmt.Sprintf("n %d, p50 %v, p90 %v, p99 %v, max %v", len(d), r(50), r(90), r(99), r(100))
}

// PublicKey is the authorized_keys line (RFC 8709) of a key nobody holds.
func PublicKey() string {
	point := make([]byte, 32)
	_, _ = rand.Read(point) // never fails (crypto/rand)
	var b []byte
	for _, part := range [][]byte{[]byte("ssh-ed25519"), point} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
	}
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(b)
}
