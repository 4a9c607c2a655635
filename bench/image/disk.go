package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"bmc/internal/manifest"
	"bmc/ramdisk/block"
)

// depth is how many writes of a chunk's size are in flight where only the disk counts.
const depth = 8

// disk makes a file of the image's size, every block of it written: the first write of
// a block costs the file system more than the following ones, and would count against
// whoever comes first.
func disk(s settings, size int64) (string, error) {
	if s.device != "" {
		return s.device, nil
	}
	path := filepath.Join(s.dir, "disk")
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return path, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	zeros := make([]byte, 4<<20)
	for left := size; left > 0; left -= int64(len(zeros)) {
		if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			return "", errors.Join(err, f.Close())
		}
	}
	return path, errors.Join(f.Sync(), f.Close())
}

// clean makes the image's holes zero, as a wipe leaves them.
func clean(ctx context.Context, path string, m *manifest.Manifest) error {
	d, err := block.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	cells := holes(m)
	err = block.Each(ctx, len(cells), m.ChunkSize, func(_ context.Context, i int, buf []byte) error {
		n := min(int64(m.ChunkSize), m.SizeBytes-cells[i])
		if _, err := d.ReadAt(buf[:n], cells[i]); err != nil || block.AllZero(buf[:n]) {
			return err
		}
		return d.ZeroOut(cells[i], n)
	})
	return errors.Join(err, d.Sync())
}

func holes(m *manifest.Manifest) (offsets []int64) {
	next := 0
	for off := int64(0); off < m.SizeBytes; off += int64(m.ChunkSize) {
		if next < len(m.Chunks) && m.Chunks[next].Offset == off {
			next++
			continue
		}
		offsets = append(offsets, off)
	}
	return offsets
}

// only moves the image's chunks to or from the disk, at depth, and does nothing else.
func only(ctx context.Context, path string, m *manifest.Manifest, write bool) (time.Duration, error) {
	d, err := block.Open(path)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	random := rand.NewChaCha8([32]byte{1})
	bufs := make(chan []byte, depth)
	for range depth {
		b := block.Buffer(m.ChunkSize)
		defer block.Free(b)
		_, _ = random.Read(b) // never fails
		bufs <- b
	}
	began := time.Now()
	errs := make(chan error, len(m.Chunks))
	for _, c := range m.Chunks {
		b := <-bufs
		go func() {
			defer func() { bufs <- b }()
			var err error
			if write {
				_, err = d.WriteAt(b[:c.Size], c.Offset)
			} else {
				_, err = d.ReadAt(b[:c.Size], c.Offset)
			}
			errs <- err
		}()
	}
	for range m.Chunks {
		err = errors.Join(err, <-errs)
	}
	if write {
		err = errors.Join(err, d.Sync())
	}
	return time.Since(began), errors.Join(err, ctx.Err())
}

// fio is the same by a program that others trust; ok is false where it is missing.
func fio(ctx context.Context, path string, m *manifest.Manifest) (rate float64, ok bool, err error) {
	if _, err := exec.LookPath("fio"); err != nil {
		return 0, false, nil //nolint:nilerr // skipped, and said
	}
	out, err := exec.CommandContext(ctx, "fio", "--name=write", "--filename="+path, "--rw=write", fmt.Sprintf("--bs=%d", m.ChunkSize),
		fmt.Sprintf("--size=%d", m.DataBytes()/int64(m.ChunkSize)*int64(m.ChunkSize)), "--direct=1", "--ioengine=libaio",
		fmt.Sprintf("--iodepth=%d", depth), "--end_fsync=1", "--output-format=json").Output()
	if err != nil {
		return 0, false, fmt.Errorf("fio: %w", err)
	}
	var report struct {
		Jobs []struct {
			Write struct {
				BytesPerSecond float64 `json:"bw_bytes"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) == 0 {
		return 0, false, fmt.Errorf("fio's report: %w", errors.Join(err, errors.New("no job in it")))
	}
	return report.Jobs[0].Write.BytesPerSecond / 1e6, true, nil
}

// typed is the line of a person: one stream, decoded by one core, every byte of the
// image written, nothing read back.
func typed(ctx context.Context, url, path string) (time.Duration, error) {
	began := time.Now()
	line := `set -o pipefail; curl -sSf "$1" | zstd -dcq | dd of="$2" bs=4M iflag=fullblock oflag=direct conv=fsync,notrunc status=none`
	out, err := exec.CommandContext(ctx, "bash", "-c", line, "bash", url, path).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("curl | zstd -d | dd: %w: %s", err, out)
	}
	return time.Since(began), nil
}
