// Package freeport finds addresses on loopback for servers that tests and measurements start: where
// the port must be known before they listen.
//
// Asking the kernel for one (port 0) and closing it again lends it: the kernel may give
// it to the next connection or listener of any process before the server has it. Ports
// below the kernel's own range are given to nobody who does not ask for them.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports tried: below Linux's net.ipv4.ip_local_port_range, 32768 to 60999 unless somebody
// has set it, and above what services are mostly found at.
const (
	lowest = 20000
	count  = 12000
)

var taken = struct {
	sync.Mutex
	ports map[int]bool // of this process; a port is not given twice
}{ports: map[int]bool{}}

// Find is a port of 127.0.0.1 at which nobody listens, by TCP or UDP. Another process's
// tests may look at the same moment: they begin elsewhere, at random.
func Find() (int, error) {
	taken.Lock()
	defer taken.Unlock()
	for range count {
		port := lowest + rand.IntN(count)
		if !taken.ports[port] && free(port) {
			taken.ports[port] = true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port from %d to %d", lowest, lowest+count-1)
}

// free says whether both protocols can be bound.
func free(port int) bool {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = l.Close() }()
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	return p.Close() == nil
}

// T is what of testing.TB is needed.
type T interface {
	Helper()
	Fatal(args ...any)
}

// Port is what Find finds, for a test.
func Port(t T) int {
	t.Helper()
	port, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Addr is 127.0.0.1 with such a port.
func Addr(t T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Port(t)))
}
