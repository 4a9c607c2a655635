// Package newc writes cpio archives in the "newc" format, the one that Linux
// unpacks as an initramfs. The same entries give the same bytes.
package newc

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// File types and the permission bits, as in st_mode.
const (
	ModeDir     uint32 = 0o040000
	ModeFile    uint32 = 0o100000
	ModeSymlink uint32 = 0o120000
	ModeChar    uint32 = 0o020000
)

const trailer = "TRAILER!!!"

// Entry is one file. Owner is root and the time of change is the epoch.
type Entry struct {
	Name         string // relative, clean, slash-separated
	Mode         uint32 // type and permissions
	Data         []byte // a file's content, a symlink's target
	Major, Minor uint32 // of a device
}

// Writer appends entries to an archive. Parents must be written before their
// children. Errors stick and are returned by Close too.
type Writer struct {
	w   io.Writer
	ino uint32
	err error
}

// NewWriter starts an archive.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write appends one entry.
func (w *Writer) Write(e Entry) error {
	if e.Name == "" || e.Name != path.Clean(e.Name) || strings.HasPrefix(e.Name, "/") || strings.HasPrefix(e.Name, "..") {
		return fmt.Errorf("cpio: bad name %q", e.Name)
	}
	if int64(len(e.Data)) > 1<<32-1 {
		return fmt.Errorf("cpio: %s is too large", e.Name)
	}
	w.ino++
	return w.record(e, w.ino)
}

// Close writes the trailer. The underlying writer stays open.
func (w *Writer) Close() error {
	return w.record(Entry{Name: trailer}, 0)
}

func (w *Writer) record(e Entry, ino uint32) error {
	if w.err != nil {
		return w.err
	}
	links := uint32(1)
	if e.Mode&0o170000 == ModeDir {
		links = 2
	}
	head := "070701"
	for _, v := range []uint32{ino, e.Mode, 0, 0, links, 0, uint32(len(e.Data)), 0, 0, e.Major, e.Minor, uint32(len(e.Name) + 1), 0} {
		head += fmt.Sprintf("%08X", v)
	}
	head += e.Name + "\x00"
	w.put([]byte(head))
	w.put(pad(len(head)))
	w.put(e.Data)
	w.put(pad(len(e.Data)))
	return w.err
}

func (w *Writer) put(b []byte) {
	if w.err == nil && len(b) > 0 {
		_, w.err = w.w.Write(b)
	}
}

// pad fills up to the format's alignment of four bytes.
func pad(n int) []byte { return make([]byte, (4-n%4)%4) }
