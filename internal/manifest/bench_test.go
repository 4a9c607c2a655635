package manifest_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"bmc/internal/manifest"
)

// benchDisk is 64 MiB of program text, a quarter of it holes.
func benchDisk(b *testing.B) []byte {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		b.Fatal(err)
	}
	d := make([]byte, 64<<20)
	for off := 0; off < 48<<20; off += len(text) {
		copy(d[off:48<<20], text)
	}
	return d
}

func BenchmarkBuild(b *testing.B) {
	d := benchDisk(b)
	s := spec()
	s.ChunkSize = manifest.DefaultChunkSize
	b.SetBytes(int64(len(d)))
	for b.Loop() {
		if _, err := manifest.Build(context.Background(), bytes.NewReader(d), int64(len(d)), s, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeChunk(b *testing.B) {
	d := benchDisk(b)[:manifest.DefaultChunkSize]
	s := spec()
	s.ChunkSize = manifest.DefaultChunkSize
	var frame manifest.ChunkFrame
	if _, err := manifest.Build(context.Background(), bytes.NewReader(d), int64(len(d)), s, func(f manifest.ChunkFrame) error {
		frame = f
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, manifest.DefaultChunkSize)
	b.SetBytes(int64(len(d)))
	for b.Loop() {
		if _, err := manifest.DecodeChunk(frame.Chunk, frame.Data, buf); err != nil {
			b.Fatal(err)
		}
	}
}
