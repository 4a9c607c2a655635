package vswitch

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// SocketPair returns a link and the file of its other end: a Unix datagram
// socket that carries one frame per datagram, as QEMU's `-netdev dgram` with
// local.type=fd speaks. The caller closes peer once the child has it.
func SocketPair() (link Link, peer *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine, peer := os.NewFile(uintptr(fds[0]), "switch"), os.NewFile(uintptr(fds[1]), "nic")
	// FileConn duplicates the descriptor.
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		peer.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, peer, nil
}
