package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bmc/agent/cache"
	"bmc/internal/manifest"
)

type httpResult struct {
	bytes   int64
	elapsed time.Duration
}

func (r httpResult) rate() float64 { return float64(r.bytes) / 1e9 / r.elapsed.Seconds() }

// httpLoad has n clients fetch chunks, each over one connection. They throw bodies
// away inside the kernel (tcp(7), MSG_TRUNC), as machines elsewhere would not use
// this processor either.
func httpLoad(ctx context.Context, addr string, digests []manifest.Digest, n int, length time.Duration) (httpResult, error) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	signer := cache.NewSigner(signerKey)
	expires := time.Now().Add(time.Hour)
	var requests [][]byte
	for _, d := range digests {
		path := strings.TrimPrefix(signer.URL(addr, d, "operation", expires), "http://"+addr)
		requests = append(requests, []byte("GET "+path+" HTTP/1.1\r\nHost: "+addr+"\r\n\r\n"))
	}
	var total atomic.Int64
	errs := make([]error, n)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = httpClient(ctx, addr, requests, i, &total)
		})
	}
	wg.Wait()
	return httpResult{total.Load(), time.Since(began)}, errors.Join(errs...)
}

func httpClient(ctx context.Context, addr string, requests [][]byte, i int, total *atomic.Int64) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp4", addr+":80")
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	head := make([]byte, 512)
	for {
		i++
		if _, err := c.Write(requests[i%len(requests)]); err != nil {
			return ended(ctx, err)
		}
		left, err := header(c, head)
		if err != nil {
			return ended(ctx, err)
		}
		if err := discard(c.(*net.TCPConn), left, total); err != nil {
			return ended(ctx, err)
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// header reads up to the body, and returns how much of the body is still to come.
func header(c net.Conn, buf []byte) (int64, error) {
	for have := 0; have < len(buf); {
		n, err := c.Read(buf[have:])
		if err != nil {
			return 0, err
		}
		have += n
		end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if end < 0 {
			continue
		}
		if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 ")) {
			return 0, fmt.Errorf("answer %q", buf[:min(have, 60)])
		}
		_, rest, _ := bytes.Cut(buf[:end+2], []byte("Content-Length: "))
		value, _, _ := bytes.Cut(rest, []byte("\r\n"))
		length, err := strconv.ParseInt(string(value), 10, 64)
		return length - int64(have-end-4), err
	}
	return 0, errors.New("a header without end")
}

// never is where nothing is written.
var never [1 << 20]byte

func discard(c *net.TCPConn, left int64, total *atomic.Int64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for left > 0 {
		var n int
		var broken error
		err := raw.Read(func(fd uintptr) bool {
			n, _, broken = unix.Recvfrom(int(fd), never[:min(left, int64(len(never)))], unix.MSG_TRUNC)
			return !errors.Is(broken, unix.EAGAIN)
		})
		if err := errors.Join(err, broken); err != nil {
			return err
		}
		if n == 0 {
			return errors.New("connection closed")
		}
		left -= int64(n)
		total.Add(int64(n))
	}
	return nil
}
