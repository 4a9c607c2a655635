// Package efiboot reads and writes the firmware's boot entries (Boot####,
// BootOrder) through efivarfs.
package efiboot

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"

	"bmc/ramdisk/gpt"
)

// Device path node types that matter here (UEFI 2.10, 10.3).
const (
	media     = 0x04
	hardDrive = 0x01
	filePath  = 0x04
	endPath   = 0x7f

	hardDriveLength = 42
	active          = 1
)

var errMalformed = errors.New("the boot entry is malformed")

// option is an EFI_LOAD_OPTION (3.1.3) as far as we use it.
type option struct {
	description string
	path        []byte // device path list
}

// hardDrivePath is HD(...)/File(loader): the short form, which firmware
// completes by looking for the partition on every disk.
func hardDrivePath(p gpt.Partition, loader string) []byte {
	b := []byte{media, hardDrive, hardDriveLength, 0}
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Number))
	b = binary.LittleEndian.AppendUint64(b, p.First)
	b = binary.LittleEndian.AppendUint64(b, p.Last-p.First+1)
	b = append(b, p.GUID[:]...)
	b = append(b, 2, 2) // GPT; the signature is a GUID
	name := utf16z(loader)
	b = append(b, media, filePath)
	b = binary.LittleEndian.AppendUint16(b, uint16(4+len(name)))
	b = append(b, name...)
	return append(b, endPath, 0xff, 4, 0)
}

func (o option) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, active)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(o.path)))
	b = append(b, utf16z(o.description)...)
	return append(b, o.path...)
}

func decode(b []byte) (option, error) {
	if len(b) < 6 {
		return option{}, errMalformed
	}
	n := int(binary.LittleEndian.Uint16(b[4:]))
	var text []uint16
	for b = b[6:]; ; b = b[2:] {
		if len(b) < 2 {
			return option{}, errMalformed
		}
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		text = append(text, c)
	}
	if b = b[2:]; len(b) < n {
		return option{}, errMalformed
	}
	return option{description: string(utf16.Decode(text)), path: b[:n]}, nil
}

// partition returns the GUID of the partition that the entry starts from, when
// it names one in the short form. Firmware's own entries for whole devices
// and for the network begin otherwise.
func (o option) partition() (gpt.GUID, bool) {
	p := o.path
	if len(p) < hardDriveLength || p[0] != media || p[1] != hardDrive || binary.LittleEndian.Uint16(p[2:]) != hardDriveLength || p[41] != 2 {
		return gpt.GUID{}, false
	}
	return gpt.GUID(p[24:40]), true
}

func utf16z(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}
