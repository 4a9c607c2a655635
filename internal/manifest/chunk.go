package manifest

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"bmc/metal"
)

// newEncoder returns an encoder whose frames depend on nothing but their input:
// one level, one goroutine, no dictionary. The content's size is in the frame;
// its checksum is not, since two SHA-256 guard it.
func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(MaxChunkSize/2))
}

// decoder is shared: DecodeAll is safe for concurrent use and keeps one set of
// buffers per core instead of one per call.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecoderMaxMemory(MaxChunkSize),
		zstd.WithDecoderMaxWindow(MaxChunkSize),
		zstd.WithDecodeAllCapLimit(true))
})

// DecodeChunk returns the raw bytes of c, whose frame is stored. It uses dst's
// capacity where it suffices, and never writes more than c.Size bytes whatever
// the frame claims. Both digests and both sizes are checked; errors are
// *metal.Error with CodeCorruptChunk.
func DecodeChunk(c Chunk, stored, dst []byte) ([]byte, error) {
	raw, err := DecodeFrame(c, stored, dst)
	if err != nil {
		return nil, err
	}
	if err := VerifyRaw(c, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// DecodeFrame is DecodeChunk without the raw bytes' digest: for who will compare it
// anyway, with what the disk reads back as.
func DecodeFrame(c Chunk, stored, dst []byte) ([]byte, error) {
	if c.Size <= 0 || c.Size > MaxChunkSize {
		return nil, corrupt(c, "its raw size %d is out of bounds", c.Size)
	}
	if err := VerifyStored(c, stored); err != nil {
		return nil, err
	}
	d, err := decoder()
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	if int64(cap(dst)) < c.Size {
		dst = make([]byte, 0, c.Size)
	}
	raw, err := d.DecodeAll(stored, dst[:0:c.Size])
	switch {
	case err != nil:
		return nil, corrupt(c, "it does not decompress (%v)", err)
	case int64(len(raw)) != c.Size:
		return nil, corrupt(c, "it holds %d bytes, want %d", len(raw), c.Size)
	}
	return raw, nil
}

// VerifyRaw checks the digest of a chunk's raw bytes.
func VerifyRaw(c Chunk, raw []byte) error {
	if got := Sum(raw); got != c.SHA256 {
		return corrupt(c, "its content's SHA-256 is %s", got)
	}
	return nil
}

// VerifyStored checks size and digest of a chunk's frame without decoding it.
func VerifyStored(c Chunk, stored []byte) error {
	if int64(len(stored)) != c.StoredSize {
		return corrupt(c, "it has %d bytes stored, want %d", len(stored), c.StoredSize)
	}
	if got := Sum(stored); got != c.StoredSHA256 {
		return corrupt(c, "its SHA-256 is %s", got)
	}
	return nil
}

func corrupt(c Chunk, format string, args ...any) *metal.Error {
	return metal.Errorf(metal.CodeCorruptChunk, "chunk %s for offset %d is corrupt: %s",
		c.StoredSHA256, c.Offset, fmt.Sprintf(format, args...))
}
