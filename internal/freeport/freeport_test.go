package freeport

import (
	"net"
	"testing"
)

func TestAddrsAreFreeAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		addr := Addr(t)
		if seen[addr] {
			t.Fatalf("%s twice", addr)
		}
		seen[addr] = true
	}
	for addr := range seen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
			continue
		}
		l.Close()
	}
}

func TestTakenPortsAreNotFree(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		var port int
		if network == "tcp" {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port = l.Addr().(*net.TCPAddr).Port
		} else {
			p, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			port = p.LocalAddr().(*net.UDPAddr).Port
		}
		if free(port) {
			t.Errorf("%s port %d is said to be free", network, port)
		}
	}
}
