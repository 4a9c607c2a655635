package light

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// TFTP (RFC 1350) with blksize (RFC 2348) and tsize (RFC 2349), as PXE firmware
// reads its loader.
const (
	tftpPort = 69

	tftpRead  = 1
	tftpData  = 3
	tftpAck   = 4
	tftpError = 5
	tftpOACK  = 6

	tftpDefault = 512
	tftpBlock   = 1432 // what firmware asks for: it fits into a frame, options and all
	tftpWait    = time.Second
	tftpRetries = 5
	maxLoader   = 16 << 20
)

// tftpConn is a UDP socket; the real one is in the rack's namespace.
type tftpConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
	SetReadDeadline(t time.Time) error
}

// tftpGet reads a whole file and returns its size; the bytes are not kept.
// The size must be what the server's tsize said.
func tftpGet(ctx context.Context, c tftpConn, server netip.Addr, name string) (int64, error) {
	t := &tftpTransfer{c: c, block: tftpDefault, size: -1}
	size, err := t.run(ctx, netip.AddrPortFrom(server, tftpPort), name)
	if err != nil {
		return 0, fmt.Errorf("tftp %s from %s: %w", name, server, err)
	}
	return size, nil
}

type tftpTransfer struct {
	c     tftpConn
	peer  netip.AddrPort // the server's port of this transfer (RFC 1350, section 4)
	block int
	size  int64 // promised; -1 without a promise
	got   int64
	last  uint16 // the block that was acknowledged
}

func (t *tftpTransfer) run(ctx context.Context, server netip.AddrPort, name string) (int64, error) {
	out := []byte{0, tftpRead}
	for _, s := range []string{name, "octet", "tsize", "0", "blksize", strconv.Itoa(tftpBlock)} {
		out = append(append(out, s...), 0)
	}
	to := server
	buf := make([]byte, 2048)
	for tries := 0; ; {
		if _, err := t.c.WriteToUDPAddrPort(out, to); err != nil {
			return 0, err
		}
		reply, done, err := t.await(ctx, buf, server.Addr())
		if errors.Is(err, errTFTPQuiet) {
			if tries++; tries <= tftpRetries {
				continue // the last packet again
			}
		}
		if err != nil {
			return 0, err
		}
		tries, out, to = 0, reply, t.peer
		if done {
			_, err := t.c.WriteToUDPAddrPort(out, to)
			if err == nil && t.size >= 0 && t.size != t.got {
				err = fmt.Errorf("%d bytes came, the server had promised %d", t.got, t.size)
			}
			return t.got, err
		}
	}
}

var errTFTPQuiet = errors.New(NoAnswer)

// await reads until a packet moves the transfer on, and returns what to say to it.
func (t *tftpTransfer) await(ctx context.Context, buf []byte, server netip.Addr) (reply []byte, done bool, err error) {
	deadline := time.Now().Add(tftpWait)
	for {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if err := t.c.SetReadDeadline(deadline); err != nil {
			return nil, false, err
		}
		n, from, err := t.c.ReadFromUDPAddrPort(buf)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			return nil, false, errTFTPQuiet
		}
		if err != nil {
			return nil, false, err
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if from.Addr() != server || t.peer.IsValid() && from != t.peer {
			continue
		}
		reply, done, err := t.take(buf[:n])
		if err != nil || reply != nil {
			t.peer = from
			return reply, done, err
		}
	}
}

// take looks at one packet; a nil reply means that it changes nothing.
func (t *tftpTransfer) take(p []byte) (reply []byte, done bool, err error) {
	if len(p) < 4 {
		return nil, false, nil
	}
	switch binary.BigEndian.Uint16(p) {
	case tftpError:
		text, _, _ := cutNUL(p[4:])
		return nil, false, fmt.Errorf("refused, code %d: %q", binary.BigEndian.Uint16(p[2:]), text)
	case tftpOACK:
		if t.last != 0 {
			return nil, false, nil
		}
		if err := t.options(p[2:]); err != nil {
			return nil, false, err
		}
		return []byte{0, tftpAck, 0, 0}, false, nil
	case tftpData:
		block := binary.BigEndian.Uint16(p[2:])
		if block != t.last+1 { // a repeated one, answered before
			return nil, false, nil
		}
		data := p[4:]
		if len(data) > t.block {
			return nil, false, fmt.Errorf("a block of %d bytes, %d were agreed", len(data), t.block)
		}
		if t.got += int64(len(data)); t.got > maxLoader {
			return nil, false, errors.New("no end")
		}
		t.last = block
		return []byte{0, tftpAck, p[2], p[3]}, len(data) < t.block, nil
	}
	return nil, false, nil
}

// options reads an OACK: only what was asked for may be in it (RFC 2347).
func (t *tftpTransfer) options(b []byte) error {
	fields := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	if len(fields)%2 != 0 {
		return errors.New("malformed options")
	}
	for i := 0; i < len(fields); i += 2 {
		v, err := strconv.ParseInt(fields[i+1], 10, 64)
		switch name := strings.ToLower(fields[i]); {
		case name == "tsize" && err == nil && v >= 0:
			t.size = v
		case name == "blksize" && err == nil && v >= 8 && v <= tftpBlock:
			t.block = int(v)
		default:
			return fmt.Errorf("option %s=%s was not asked for", fields[i], fields[i+1])
		}
	}
	return nil
}
