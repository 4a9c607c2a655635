package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/net/ipv4"

	"bmc/netboot/ipxe"
)

// servePin is pin/tftp's server with the same file.
func servePin(args []string) error {
	loaders, err := ipxe.Loaders("")
	if err != nil {
		return err
	}
	s := tftp.NewServer(func(_ string, w io.ReaderFrom) error {
		data := loaders[loaderName]
		w.(tftp.OutgoingTransfer).SetSize(int64(len(data)))
		_, err := w.ReadFrom(bytes.NewReader(data))
		return err
	}, nil)
	s.SetTimeout(time.Second)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, s.Shutdown)
	return s.ListenAndServe(args[0] + ":69")
}

// serveEcho does the least that keeps the generators going: what a server written
// like this can do at most. It decides and checks nothing.
func serveEcho(args []string) error {
	addr, dir := args[0], args[1]
	loaders, err := ipxe.Loaders("")
	if err != nil {
		return err
	}
	dhcp, err := open("eth0", 67, false)
	if err != nil {
		return err
	}
	tftp, err := open("eth0", 69, false)
	if err != nil {
		return errors.Join(err, dhcp.Close())
	}
	http, err := net.Listen("tcp4", addr+":80")
	if err != nil {
		return errors.Join(err, dhcp.Close(), tftp.Close())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { _, _, _ = dhcp.Close(), tftp.Close(), http.Close() })
	var wg sync.WaitGroup
	server := net.ParseIP(addr).To4()
	wg.Go(func() { echo(dhcp, func(m *ipv4.Message) bool { return echoDHCP(m, server) }) })
	wg.Go(func() { echo(tftp, echoTFTP(loaders[loaderName])) })
	wg.Go(func() { copies(http, filepath.Join(dir, "chunks")) })
	wg.Wait()
	return nil
}

// echo answers each packet with what answer makes of it.
func echo(c *ipv4.PacketConn, answer func(*ipv4.Message) bool) {
	in, out := buffers(), make([]ipv4.Message, 0, batch)
	for {
		n, err := c.ReadBatch(in, 0)
		if err != nil {
			return
		}
		out = out[:0]
		for i := range n {
			m := ipv4.Message{Buffers: [][]byte{in[i].Buffers[0][:in[i].N]}, Addr: in[i].Addr}
			if answer(&m) {
				out = append(out, m)
			}
		}
		if flush(c, out) != nil {
			return
		}
	}
}

var everybody = &net.UDPAddr{IP: net.IPv4bcast, Port: 68}

// echoDHCP turns a request into its answer where it stands.
func echoDHCP(m *ipv4.Message, server net.IP) bool {
	b := m.Buffers[0]
	if len(b) < 260 {
		return false
	}
	b[0] = 2
	copy(b[16:20], []byte{server[0], server[1], 100, b[33]})
	kind := b[242]
	b = append(b[:240], 53, 1, kind+1, 54, 4, server[0], server[1], server[2], server[3])
	if kind == request {
		b[242] = ack
	}
	m.Buffers[0] = append(b, 255)[:300]
	m.Addr = everybody
	return true
}

// echoTFTP answers every acknowledgement with the next block, in lock-step.
func echoTFTP(data []byte) func(*ipv4.Message) bool {
	oack := fmt.Appendf([]byte{0, 6}, "blksize\x00%d\x00", blockSize)
	return func(m *ipv4.Message) bool {
		b := m.Buffers[0]
		if len(b) < 4 || b[1] != 4 {
			m.Buffers[0] = oack
			return len(b) > 4
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		from := n * blockSize
		if from > len(data) {
			return false
		}
		binary.BigEndian.PutUint16(b, 3)
		binary.BigEndian.PutUint16(b[2:], uint16(n+1))
		m.Buffers = [][]byte{b[:4], data[from:min(from+blockSize, len(data))]}
		return true
	}
}

// copies sends a file for each line that begins with GET: sendfile and nothing else.
func copies(l net.Listener, dir string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for r := bufio.NewReader(c); ; {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if path, ok := strings.CutPrefix(line, "GET /images/chunks/"); ok {
					name, _, _ := strings.Cut(path, "?")
					if sendFile(c, filepath.Join(dir, filepath.Base(name))) != nil {
						return
					}
				}
			}
		}()
	}
}

func sendFile(c net.Conn, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", info.Size()); err != nil {
		return err
	}
	_, err = c.(io.ReaderFrom).ReadFrom(f)
	return err
}
