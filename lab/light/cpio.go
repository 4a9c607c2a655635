package light

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// seed is what this machine needs of the note in its second initrd.
type seed struct {
	ServerID string `json:"server_id"`
	Token    string `json:"token"`
	Agent    string `json:"agent"` // host:port
	CAPEM    string `json:"ca_pem"`
	MAC      string `json:"mac"`
	Discover bool   `json:"discover"` // nobody knows this machine

	ca []byte // DER
}

const seedPath = "bmc/boot.json"

// readSeed unpacks the initrd that carries the seed.
func readSeed(archive []byte) (*seed, error) {
	files, err := readCPIO(archive)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	raw, ok := files[seedPath]
	if !ok {
		return nil, fmt.Errorf("seed: no %s in the initrd", seedPath)
	}
	var s seed
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	block, _ := pem.Decode([]byte(s.CAPEM))
	if s.ServerID == "" && !s.Discover || s.Token == "" || s.Agent == "" || block == nil {
		return nil, errors.New("seed: server, token, agent or CA is missing")
	}
	s.ca = block.Bytes
	return &s, nil
}

// The header of an entry in a newc archive (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst): the magic number
// and 13 numbers of eight hex digits.
const (
	newcMagic  = "070701"
	newcHeader = 6 + 13*8
	newcSize   = 6 + 6*8
	newcName   = 6 + 11*8
	newcEnd    = "TRAILER!!!"
)

var errCPIO = errors.New("initrd is no newc archive, or is cut off")

// readCPIO returns the contents by name, directories as empty ones. Leading
// slashes and "./" are dropped.
func readCPIO(b []byte) (map[string][]byte, error) {
	if len(b)%4 != 0 {
		return nil, fmt.Errorf("%w: a length of %d bytes, loaders append at multiples of four", errCPIO, len(b))
	}
	files := map[string][]byte{}
	for at := 0; ; {
		if len(b)-at < newcHeader || !bytes.HasPrefix(b[at:], []byte(newcMagic)) {
			return nil, errCPIO
		}
		number := func(field int) (int, error) {
			v, err := strconv.ParseUint(string(b[at+field:at+field+8]), 16, 31)
			return int(v), err
		}
		nameLen, err1 := number(newcName)
		size, err2 := number(newcSize)
		data := pad4(at + newcHeader + nameLen)
		if err := errors.Join(err1, err2); err != nil || nameLen == 0 || data+size > len(b) {
			return nil, errCPIO
		}
		name := strings.TrimSuffix(string(b[at+newcHeader:at+newcHeader+nameLen]), "\x00")
		if name == newcEnd {
			return files, nil
		}
		files[strings.TrimLeft(strings.TrimPrefix(name, "."), "/")] = b[data : data+size]
		at = pad4(data + size)
		if at > len(b) {
			return nil, errCPIO
		}
	}
}

func pad4(n int) int { return (n + 3) &^ 3 }
