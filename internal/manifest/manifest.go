// Package manifest describes an OS image: how it boots, how it is configured
// and of which chunks its disk consists. The manifest is what gets signed; the
// ramdisk writes and reads back exactly what it says.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"bmc/metal"
)

// Limits. A manifest travels in the Raft log and in gRPC messages, so that it
// is bounded first of all; MaxChunks then bounds an image's data (not its
// holes) to 32 GiB at the default chunk size.
const (
	Version          = 1
	MaxBytes         = 2 << 20 // of a manifest's JSON
	MaxChunks        = 8192
	MaxImageBytes    = 16 << 40
	MinChunkSize     = 64 << 10
	MaxChunkSize     = 16 << 20
	DefaultChunkSize = 4 << 20
)

// Digest is a SHA-256. In JSON and text it is 64 lower-case hex digits.
type Digest [sha256.Size]byte

// Sum returns data's digest.
func Sum(data []byte) Digest { return sha256.Sum256(data) }

// ParseDigest reads 64 lower-case hex digits. Upper case is refused, so that
// each digest has one name.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return d, metal.Invalid("digest", "wants 64 hex digits, has %d characters", len(s))
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return d, metal.Invalid("digest", "wants lower-case hex digits")
		}
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err
}

// DigestFromBytes takes the 32 bytes that the API carries.
func DigestFromBytes(b []byte) (Digest, error) {
	var d Digest
	if len(b) != len(d) {
		return d, metal.Invalid("digest", "wants %d bytes, has %d", len(d), len(b))
	}
	return Digest(b), nil
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// Chunk is a piece of the disk that is not all zero. It is stored as one zstd
// frame under the digest of that frame.
type Chunk struct {
	Offset       int64  `json:"offset"` // bytes into the disk, a multiple of the chunk size
	Size         int64  `json:"size"`   // raw bytes: the chunk size, or what is left at the disk's end
	SHA256       Digest `json:"sha256"` // of the raw bytes
	StoredSize   int64  `json:"stored_size"`
	StoredSHA256 Digest `json:"stored_sha256"` // of the frame; its name in the store
}

// Manifest is an image. What lies between its chunks reads as zeros.
type Manifest struct {
	Version int `json:"version"`
	Spec
	SizeBytes int64   `json:"size_bytes"` // of the disk, a multiple of the sector size
	Chunks    []Chunk `json:"chunks"`     // by rising offset
}

// Parse reads a manifest's canonical JSON and validates it. Any other spelling
// of the same content (spaces, unknown or repeated keys, another order) is
// refused: the bytes that were signed are then the only ones that mean it.
func Parse(data []byte) (*Manifest, error) {
	if len(data) > MaxBytes {
		return nil, metal.Invalid("manifest", "has %d bytes, the limit is %d", len(data), MaxBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	m := &Manifest{}
	if err := dec.Decode(m); err != nil {
		return nil, metal.Invalid("manifest", "is not valid JSON of version %d (%v)", Version, err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if !bytes.Equal(m.Canonical(), data) {
		return nil, metal.Invalid("manifest", "is not in canonical form")
	}
	return m, nil
}

// Canonical returns the JSON that is signed, hashed and sent: the fields in the
// order of their declaration, no spaces, no final newline.
func (m *Manifest) Canonical() []byte {
	c := *m
	if c.Chunks == nil {
		c.Chunks = []Chunk{}
	}
	data, err := json.Marshal(&c)
	if err != nil { // no field's type can fail to marshal
		panic("manifest: " + err.Error())
	}
	return data
}

// ID returns the image's ID: the SHA-256 of its canonical JSON, in hex.
func (m *Manifest) ID() string { return Sum(m.Canonical()).String() }

// StoredBytes is what the image's distinct chunks take in the store.
func (m *Manifest) StoredBytes() int64 {
	var n int64
	seen := make(map[Digest]bool, len(m.Chunks))
	for _, c := range m.Chunks {
		if !seen[c.StoredSHA256] {
			seen[c.StoredSHA256] = true
			n += c.StoredSize
		}
	}
	return n
}

// DataBytes is the raw size of all chunks: what the disk holds besides holes.
func (m *Manifest) DataBytes() int64 {
	var n int64
	for _, c := range m.Chunks {
		n += c.Size
	}
	return n
}

// BootsBy says whether the image boots by firmware "bios" or "uefi".
func (m *Manifest) BootsBy(firmware string) bool { return slices.Contains(m.Firmware, firmware) }

// Validate checks the manifest's limits and that its chunks are aligned,
// sorted, inside the disk and not larger than their frames can make them.
func (m *Manifest) Validate() error {
	if m.Version != Version {
		return metal.Invalid("version", "this program knows version %d, the manifest has %d", Version, m.Version)
	}
	if err := m.Spec.Validate(); err != nil {
		return err
	}
	switch {
	case m.SizeBytes <= 0 || m.SizeBytes > MaxImageBytes:
		return metal.Invalid("size_bytes", "%d is not between 1 and %d", m.SizeBytes, int64(MaxImageBytes))
	case m.SizeBytes%int64(m.SectorSize) != 0:
		return metal.Invalid("size_bytes", "%d is not a multiple of the sector size %d", m.SizeBytes, m.SectorSize)
	case len(m.Chunks) > MaxChunks:
		return metal.Invalid("chunks", "%d are more than %d; use a larger chunk_size", len(m.Chunks), MaxChunks)
	}
	next := int64(0)
	for i, c := range m.Chunks {
		if err := m.validateChunk(c, next); err != nil {
			return metal.Invalid(fmt.Sprintf("chunks[%d]", i), "%v", err)
		}
		next = c.Offset + c.Size
	}
	return nil
}

// validateChunk checks c, which must begin at next or later.
func (m *Manifest) validateChunk(c Chunk, next int64) error {
	size := int64(m.ChunkSize)
	switch {
	case c.Offset < next:
		return fmt.Errorf("offset %d overlaps or precedes the chunk before it", c.Offset)
	case c.Offset >= m.SizeBytes:
		return fmt.Errorf("offset %d is beyond the disk's %d bytes", c.Offset, m.SizeBytes)
	case c.Offset%size != 0:
		return fmt.Errorf("offset %d is not a multiple of chunk_size %d", c.Offset, size)
	case c.Size != min(size, m.SizeBytes-c.Offset):
		return fmt.Errorf("size %d, want %d", c.Size, min(size, m.SizeBytes-c.Offset))
	case c.StoredSize <= 0 || c.StoredSize > MaxStoredSize(c.Size):
		return fmt.Errorf("stored_size %d is not between 1 and %d", c.StoredSize, MaxStoredSize(c.Size))
	}
	return nil
}

// MaxStoredSize bounds the zstd frame of size raw bytes: what does not compress
// is stored in raw blocks with a few bytes of headers each.
func MaxStoredSize(size int64) int64 { return size + size/128 + 1024 }
