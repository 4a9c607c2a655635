package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	batch     = 128
	space     = 16 << 20 // bytes of the generators' sockets: what they lose would count against a server
	patience  = time.Second
	sweepTime = 100 * time.Millisecond
)

// open is a UDP socket bound to a device, if one is named.
func open(device string, port int, info bool) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) {
			set := func(level, name, value int) { opt = errors.Join(opt, unix.SetsockoptInt(int(fd), level, name, value)) }
			if device != "" {
				opt = unix.BindToDevice(int(fd), device)
			}
			set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, space) != nil {
				set(unix.SOL_SOCKET, unix.SO_RCVBUF, space)
			}
			if info {
				set(unix.SOL_IP, unix.IP_PKTINFO, 1)
			}
		})
		return errors.Join(err, opt)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	return ipv4.NewPacketConn(c.(*net.UDPConn)), nil
}

// buffers are a batch of messages with room for a packet and control messages.
func buffers() []ipv4.Message {
	m := make([]ipv4.Message, batch)
	for i := range m {
		m[i].Buffers = [][]byte{make([]byte, 2048)}
		m[i].OOB = make([]byte, 64)
	}
	return m
}

// receive waits for packets until the next sweep.
func receive(c *ipv4.PacketConn, in []ipv4.Message, until time.Time) (int, error) {
	if err := c.SetReadDeadline(until); err != nil {
		return 0, err
	}
	for i := range in {
		in[i].OOB = in[i].OOB[:cap(in[i].OOB)]
	}
	n, err := c.ReadBatch(in, 0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return n, err
}

func flush(c *ipv4.PacketConn, out []ipv4.Message) error {
	for len(out) > 0 {
		n, err := c.WriteBatch(out[:min(len(out), batch)], 0)
		if err != nil {
			return err
		}
		out = out[n:]
	}
	return nil
}

// localAddr finds the address that a packet was sent to (ip(7), IP_PKTINFO).
func localAddr(oob []byte) (a [4]byte) {
	const header, addr = 16, 8
	if len(oob) >= header+addr+4 {
		copy(a[:], oob[header+addr:])
	}
	return a
}

// sourceAddr makes the control message for a packet's source.
func sourceAddr(ip net.IP) []byte { return (&ipv4.ControlMessage{Src: ip}).Marshal() }
