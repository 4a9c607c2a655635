package manifest_test

import (
	"bytes"
	"testing"

	"bmc/internal/manifest"
)

// FuzzManifest: what Parse takes is valid, canonical and bounded.
func FuzzManifest(f *testing.F) {
	m, _ := build(f, disk())
	f.Add(m.Canonical())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Canonical(), data) {
			t.Fatal("not canonical")
		}
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		for _, c := range m.Chunks {
			if c.Offset < end || c.Size <= 0 || c.Size > manifest.MaxChunkSize {
				t.Fatalf("chunk %+v", c)
			}
			end = c.Offset + c.Size
		}
		if end > m.SizeBytes {
			t.Fatalf("data ends at %d of %d", end, m.SizeBytes)
		}
	})
}

// FuzzDecodeChunk hands the decoder frames whose stored digest is right, as a
// hostile but trusted author could: it must stay within the claimed size.
func FuzzDecodeChunk(f *testing.F) {
	m, frames := build(f, disk())
	for _, c := range m.Chunks {
		f.Add(frames[c.StoredSHA256], c.Size)
	}
	f.Fuzz(func(t *testing.T, stored []byte, size int64) {
		if size > 1<<20 {
			size %= 1 << 20 // what larger buffers cost would slow the search
		}
		c := manifest.Chunk{Size: size, StoredSize: int64(len(stored)), StoredSHA256: manifest.Sum(stored)}
		buf := make([]byte, 0, manifest.MinChunkSize)
		raw, err := manifest.DecodeChunk(c, stored, buf)
		if err == nil {
			t.Fatalf("%d bytes passed for another digest", len(raw))
		}
	})
}
