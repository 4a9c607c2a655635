// Package sendfiletest lets a test see that an HTTP server has the kernel send its
// files: that nothing on the way hides the file from the connection, or the connection
// from the file.
package sendfiletest

import (
	"io"
	"net"
	"os"
	"path/filepath"
)

// Watch wraps a listener of TCP. Each time that a connection is handed a file, itself
// or behind one limit, its base name arrives on the channel: net.TCPConn then calls
// sendfile. Anything else would be copied through the process. The channel holds 1,000.
func Watch(l net.Listener) (net.Listener, <-chan string) {
	files := make(chan string, 1000)
	return &listener{l, files}, files
}

type listener struct {
	net.Listener
	files chan string
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{c.(*net.TCPConn), l.files}, nil
}

type conn struct {
	*net.TCPConn
	files chan string
}

func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	from := r
	if l, ok := r.(*io.LimitedReader); ok {
		from = l.R
	}
	if f, ok := from.(*os.File); ok {
		c.files <- filepath.Base(f.Name())
	}
	return c.TCPConn.ReadFrom(r)
}
