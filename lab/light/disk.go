package light

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	sectorSize = 512
	// trailerSize is the end of a disk, where an installed system is recorded:
	// images are smaller than disks, and what is written there is no file system's.
	trailerSize  = 64 << 10
	trailerMagic = "light machine\n"
	readSize     = 256 << 10
)

// disk is a sparse file. It is open while the machine uses it only.
type disk struct {
	path string
	size int64
}

// system is what makes a written image an installed system.
type system struct {
	Hostname string `json:"hostname"`
	Address  string `json:"address"`  // CIDR
	HostKey  []byte `json:"host_key"` // ed25519, the seed
}

func newDisk(path string, size int64) (*disk, error) {
	if size < 2*trailerSize || size%sectorSize != 0 {
		return nil, fmt.Errorf("a disk of %d bytes", size)
	}
	d := &disk{path: path, size: size}
	return d, d.use(func(f *os.File) error { return f.Truncate(size) })
}

func (d *disk) use(do func(*os.File) error) error {
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// wipe discards everything and reads back what the file system still has data
// for. It returns how many bytes are zero: all of them.
func (d *disk) wipe() (int64, error) {
	err := d.use(func(f *os.File) error {
		if err := d.zero(f, 0, d.size); err != nil {
			return err
		}
		return d.zeros(f, 0, d.size)
	})
	return d.size, err
}

func (d *disk) zero(f *os.File, offset, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, n)
	if !errors.Is(err, unix.EOPNOTSUPP) || offset != 0 || n != d.size {
		return err
	}
	return errors.Join(f.Truncate(0), f.Truncate(d.size))
}

// zeros fails where a byte between from and to is not zero. Holes are.
func (d *disk) zeros(f *os.File, from, to int64) error {
	buf := make([]byte, readSize)
	for from < to {
		data, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= to {
			return nil
		}
		if err != nil {
			return err
		}
		part := buf[:min(readSize, to-data)]
		if _, err := f.ReadAt(part, data); err != nil {
			return err
		}
		for i, b := range part {
			if b != 0 {
				return fmt.Errorf("byte %d reads %#x", data+int64(i), b)
			}
		}
		from = data + int64(len(part))
	}
	return nil
}

// verify reads an image back: chunks have the manifest's digest, and between
// them, up to the image's end, are zeros.
func (d *disk) verify(f *os.File, m *manifest) error {
	buf := make([]byte, m.ChunkSize)
	at := int64(0)
	for _, c := range m.Chunks {
		if err := d.zeros(f, at, c.Offset); err != nil {
			return err
		}
		part := buf[:c.Size]
		if _, err := f.ReadAt(part, c.Offset); err != nil {
			return err
		}
		if sum := sha256.Sum256(part); !bytes.Equal(sum[:], c.raw) {
			return fmt.Errorf("the chunk at byte %d reads back other than it was written", c.Offset)
		}
		at = c.Offset + c.Size
	}
	return d.zeros(f, at, m.SizeBytes)
}

func (d *disk) install(s *system) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(raw) > trailerSize-len(trailerMagic) {
		return errors.New("more than the disk's end can hold")
	}
	t := make([]byte, trailerSize)
	copy(t[copy(t, trailerMagic):], raw)
	return d.use(func(f *os.File) error {
		_, err := f.WriteAt(t, d.size-trailerSize)
		return err
	})
}

var errNoSystem = errors.New("no boot sector: the disk is empty")

// boot is the firmware's view: it returns nil without an error for a disk that
// boots and has no installed system beside its image.
func (d *disk) boot() (s *system, err error) {
	err = d.use(func(f *os.File) error {
		sector := make([]byte, sectorSize)
		if _, err := f.ReadAt(sector, 0); err != nil {
			return err
		}
		if sector[510] != 0x55 || sector[511] != 0xaa {
			return errNoSystem
		}
		t, err := io.ReadAll(io.NewSectionReader(f, d.size-trailerSize, trailerSize))
		if err != nil {
			return err
		}
		raw, ok := bytes.CutPrefix(t, []byte(trailerMagic))
		if !ok {
			return nil
		}
		s = &system{}
		return json.Unmarshal(bytes.TrimRight(raw, "\x00"), s)
	})
	return s, err
}
