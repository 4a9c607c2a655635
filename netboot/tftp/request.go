package tftp

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
	"time"
)

// Opcodes (RFC 1350, section 5; RFC 2347).
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// Error codes (RFC 1350, appendix; RFC 2347).
const (
	codeOther    = 0
	codeNotFound = 1
	codeAccess   = 2
	codeIllegal  = 4
	codeOption   = 8
)

// Bounds of the options.
const (
	defaultBlock = 512
	minBlock     = 8     // RFC 2348
	maxAskBlock  = 65464 // RFC 2348
	maxBlock     = 1468  // what we grant: a block is one Ethernet frame of 1,500 bytes, never fragments
	maxWindow    = 64    // what we grant, blocks
	maxFlight    = 65000 // bytes of a window with its headers: one system call, and no flood
	maxTimeout   = 255   // seconds; RFC 2349
)

// maxRequest is the longest request that is read. RFC 2347 has them end at 512.
const maxRequest = 1024

// refusal is an ERROR packet. Its text is ours, never a client's.
type refusal struct {
	code uint16
	text string
}

func (e *refusal) Error() string { return e.text }

func (e *refusal) packet() []byte {
	b := binary.BigEndian.AppendUint16(nil, opError)
	b = binary.BigEndian.AppendUint16(b, e.code)
	return append(append(b, e.text...), 0)
}

var (
	errNotFound  = &refusal{codeNotFound, "no such file"}
	errReadOnly  = &refusal{codeAccess, "files can only be read"}
	errMalformed = &refusal{codeIllegal, "malformed request"}
	errMode      = &refusal{codeIllegal, "only binary transfers (octet)"}
	errTwice     = &refusal{codeOption, "an option was given twice"}
	errBusy      = &refusal{codeOther, "too many transfers"}
	errTooLong   = &refusal{codeOther, "transfer took too long"}
	errClosing   = &refusal{codeOther, "server is shutting down"}
)

// request is a read request. Options that were not given, or not understood, are
// zero: RFC 2347 wants what a server does not grant left out of its answer.
type request struct {
	name    string
	block   int // blksize
	window  int // windowsize
	timeout int // seconds
	tsize   bool
}

// parseRequest reads a packet that came to the well-known port. Packets that are
// no request give neither a request nor a refusal: they deserve no answer.
func parseRequest(p []byte) (*request, *refusal) {
	if len(p) < 4 || p[0] != 0 || (p[1] != opRead && p[1] != opWrite) {
		return nil, nil
	}
	if p[1] == opWrite {
		return nil, errReadOnly
	}
	if len(p) > maxRequest {
		return nil, errMalformed
	}
	name, rest, ok := field(p[2:])
	if !ok {
		return nil, errMalformed
	}
	mode, rest, ok := field(rest)
	if !ok {
		return nil, errMalformed
	}
	if !strings.EqualFold(mode, "octet") {
		return nil, errMode
	}
	r := &request{name: name}
	for seen := map[string]bool{}; ; {
		var option, value string
		if option, rest, ok = field(rest); !ok {
			return r, nil // what stands after the last whole option is firmware's padding
		}
		if value, rest, ok = field(rest); !ok {
			return r, nil
		}
		option = strings.ToLower(option)
		if option != "" && seen[option] {
			return nil, errTwice
		}
		seen[option] = true
		r.option(option, value)
	}
}

// option notes what can be granted; everything else is left out.
func (r *request) option(name, value string) {
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return
	}
	switch name {
	case "blksize":
		if n >= minBlock && n <= maxAskBlock {
			r.block = int(min(n, maxBlock))
		}
	case "windowsize": // RFC 7440
		if n >= 1 && n <= 65535 {
			r.window = int(min(n, maxWindow))
		}
	case "timeout":
		if n >= 1 && n <= maxTimeout {
			r.timeout = int(n)
		}
	case "tsize":
		r.tsize = true
	}
}

// field takes a string up to its zero byte.
func field(p []byte) (string, []byte, bool) {
	i := bytes.IndexByte(p, 0)
	if i < 0 {
		return "", nil, false
	}
	return string(p[:i]), p[i+1:], true
}

// terms are what a transfer goes by.
type terms struct {
	block   int
	window  int
	timeout time.Duration
	oack    []byte // nil: no option was granted, data comes first
}

// grant decides on the options of a request for a file of size bytes. A client
// that does not like the answer says so by an ERROR (RFC 2347).
func (r *request) grant(size int) terms {
	t := terms{block: defaultBlock, window: 1, timeout: ackTimeout}
	oack := []byte{0, opOACK}
	add := func(name string, value int) {
		oack = append(append(oack, name...), 0)
		oack = append(strconv.AppendInt(oack, int64(value), 10), 0)
	}
	if r.block != 0 {
		t.block = r.block
		add("blksize", t.block)
	}
	if r.window != 0 {
		t.window = max(min(r.window, maxFlight/(t.block+4)), 1)
		add("windowsize", t.window)
	}
	if r.timeout != 0 {
		t.timeout = time.Duration(r.timeout) * time.Second
		add("timeout", r.timeout)
	}
	if r.tsize {
		add("tsize", size)
	}
	if len(oack) > 2 {
		t.oack = oack
	}
	return t
}
