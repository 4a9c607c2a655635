package light

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"bmc/metal"
)

const maxChunk = 16 << 20

// manifest is what of an image's description is needed to write it.
type manifest struct {
	Version    int      `json:"version"`
	Name       string   `json:"name"`
	SectorSize int      `json:"sector_size"`
	Kernel     string   `json:"kernel"`
	Firmware   []string `json:"firmware"`
	ChunkSize  int64    `json:"chunk_size"`
	SizeBytes  int64    `json:"size_bytes"`
	Chunks     []chunk  `json:"chunks"`
}

type chunk struct {
	Offset       int64  `json:"offset"`
	Size         int64  `json:"size"`
	SHA256       string `json:"sha256"`
	StoredSize   int64  `json:"stored_size"`
	StoredSHA256 string `json:"stored_sha256"`

	raw, stored []byte // the digests
}

func parseManifest(data []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, metal.Errorf(metal.CodeInvalid, "manifest: %v", err)
	}
	if m.Version != 1 || m.ChunkSize <= 0 || m.ChunkSize > maxChunk || m.SizeBytes <= 0 {
		return nil, metal.Errorf(metal.CodeInvalid, "manifest of version %d, chunks of %d bytes, %d bytes", m.Version, m.ChunkSize, m.SizeBytes)
	}
	at := int64(0)
	for i := range m.Chunks {
		c := &m.Chunks[i]
		var err1, err2 error
		c.raw, err1 = hex.DecodeString(c.SHA256)
		c.stored, err2 = hex.DecodeString(c.StoredSHA256)
		if err1 != nil || err2 != nil || len(c.raw) != sha256.Size || len(c.stored) != sha256.Size ||
			c.Offset < at || c.Size <= 0 || c.Size > m.ChunkSize || c.Offset+c.Size > m.SizeBytes || c.StoredSize <= 0 || c.StoredSize > 2*maxChunk {
			return nil, metal.Errorf(metal.CodeInvalid, "manifest: chunk %d is malformed", i)
		}
		at = c.Offset + c.Size
	}
	return &m, nil
}

// fits refuses what this machine cannot boot, before the first write.
func (m *manifest) fits(d *disk, firmware string) error {
	switch {
	case !slices.Contains(m.Firmware, firmware):
		return metal.Errorf(metal.CodeFirmwareUnfit, "image %s boots by %v, this machine by %s", m.Name, m.Firmware, firmware)
	case m.SectorSize != sectorSize:
		return metal.Errorf(metal.CodeNoDisk, "image %s needs sectors of %d bytes", m.Name, m.SectorSize)
	case m.SizeBytes > d.size-trailerSize:
		return metal.Errorf(metal.CodeImageTooLarge, "image %s needs %d bytes, the disk has %d", m.Name, m.SizeBytes, d.size-trailerSize)
	}
	return nil
}

// decode checks a stored chunk and unpacks it.
func (c *chunk) decode(d *zstd.Decoder, stored []byte) ([]byte, error) {
	if sum := sha256.Sum256(stored); int64(len(stored)) != c.StoredSize || !bytes.Equal(sum[:], c.stored) {
		return nil, metal.Errorf(metal.CodeCorruptChunk, "chunk %s: %d bytes with another digest", c.StoredSHA256, len(stored))
	}
	raw, err := d.DecodeAll(stored, make([]byte, 0, c.Size))
	if err != nil {
		return nil, metal.Errorf(metal.CodeCorruptChunk, "chunk %s: %v", c.StoredSHA256, err)
	}
	if sum := sha256.Sum256(raw); int64(len(raw)) != c.Size || !bytes.Equal(sum[:], c.raw) {
		return nil, metal.Errorf(metal.CodeCorruptChunk, "chunk %s: its content has another digest", c.StoredSHA256)
	}
	return raw, nil
}

func newDecoder() (*zstd.Decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxChunk), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return d, nil
}
