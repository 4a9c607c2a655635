package dhcp

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batch is a row of datagrams that one system call receives or sends (recvmmsg(2),
// sendmmsg(2)). Without addresses it serves packet sockets too, which x/net's does not.
type batch struct {
	conn syscall.RawConn
	data [][]byte // what of each message's buffer counts
	msgs []message
	iovs []unix.Iovec
}

// message is struct mmsghdr.
type message struct {
	unix.Msghdr
	n uint32 // bytes received or sent
}

func newBatch(conn syscall.RawConn, size, space int) *batch {
	b := &batch{conn: conn, data: make([][]byte, size), msgs: make([]message, size), iovs: make([]unix.Iovec, size)}
	for i := range b.data {
		b.data[i] = make([]byte, space)
		b.msgs[i].Iov = &b.iovs[i]
		b.msgs[i].SetIovlen(1)
	}
	return b
}

// set readies the first n messages for a system call.
func (b *batch) set(n int) {
	for i := range n {
		b.iovs[i].Base = unsafe.SliceData(b.data[i])
		b.iovs[i].SetLen(len(b.data[i]))
	}
}

// receive waits for datagrams and returns how many have come; datagram says what.
func (b *batch) receive() (int, error) {
	for i := range b.data {
		b.data[i] = b.data[i][:cap(b.data[i])]
	}
	b.set(len(b.msgs))
	return b.call(b.conn.Read, unix.SYS_RECVMMSG, len(b.msgs))
}

func (b *batch) datagram(i int) []byte { return b.data[i][:b.msgs[i].n] }

// send sends the first n messages and returns how many are sent; the error is of the
// one after them.
func (b *batch) send(n int) (int, error) {
	b.set(n)
	return b.call(b.conn.Write, unix.SYS_SENDMMSG, n)
}

// call waits until the socket is ready and lets the kernel do what it can.
func (b *batch) call(wait func(func(uintptr) bool) error, trap uintptr, n int) (int, error) {
	var done uintptr
	var errno syscall.Errno
	err := wait(func(fd uintptr) bool {
		for {
			done, _, errno = syscall.Syscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b.msgs))), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return 0, err
	}
	return int(done), nil
}

// sendAll sends the first n messages; those that cannot be sent are left out, and
// the errors are all returned.
func (b *batch) sendAll(n int) error {
	var errs []error
	for at := 0; at < n; {
		rest := batch{conn: b.conn, data: b.data[at:], msgs: b.msgs[at:], iovs: b.iovs[at:]}
		sent, err := rest.send(n - at)
		if err != nil {
			if sent == 0 {
				sent = 1
			}
			errs = append(errs, err)
		}
		at += sent
	}
	return errors.Join(errs...)
}
