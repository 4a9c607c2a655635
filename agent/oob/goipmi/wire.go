package goipmi

import (
	"errors"
	"net"
	"os"
	"time"
)

// Of a packet of RMCP+ before its session stands (IPMI 2.0 table 13-8): where
// its payload's type is, and its payload's first byte, the message tag.
const (
	authTypeAt, rmcpPlus = 4, 6
	payloadTypeAt        = 5
	tagAt                = 16
)

// Payload types of the handshake's requests; each answer's is one more.
const (
	openSession = 0x10
	rakp1       = 0x12
	rakp3       = 0x14
)

// wire is a controller's socket that repeats the handshake's requests until
// they are answered. go-ipmi would repeat them, too, but takes whatever comes
// next for the answer: a late one of the step before would end the handshake.
// It is used by one goroutine at a time.
type wire struct {
	net.Conn
	wait     time.Duration // for the first answer
	deadline time.Time     // of the exchange
	request  []byte        // of the handshake, not yet answered; nil: none
}

// dialer makes wires; go-ipmi takes it for a proxy.
type dialer struct{ wait time.Duration }

// Dial returns a wire to host:port.
func (d dialer) Dial(network, addr string) (net.Conn, error) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn, wait: d.wait}, nil
}

// SetReadDeadline sets when Read gives up.
func (w *wire) SetReadDeadline(t time.Time) error {
	w.deadline = t
	return nil
}

// Write sends one packet.
func (w *wire) Write(p []byte) (int, error) {
	w.request = nil
	if len(p) > tagAt && p[authTypeAt] == rmcpPlus {
		switch p[payloadTypeAt] {
		case openSession, rakp1, rakp3:
			w.request = append([]byte(nil), p...)
			w.request[tagAt] = 0
			p = w.request
		}
	}
	return w.Conn.Write(p)
}

// Read returns the next packet, or the answer to the handshake's request.
func (w *wire) Read(p []byte) (int, error) {
	if w.request == nil {
		if err := w.Conn.SetReadDeadline(w.deadline); err != nil {
			return 0, err
		}
		return w.Conn.Read(p)
	}
	for wait := w.wait; ; wait = longer(wait, w.wait) {
		n, err := w.readAnswer(p, time.Now().Add(jittered(wait)))
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(w.deadline) {
			return n, err
		}
		w.request[tagAt]++
		if _, err := w.Conn.Write(w.request); err != nil {
			return 0, err
		}
	}
}

// readAnswer reads until then, and drops what is no answer.
func (w *wire) readAnswer(p []byte, until time.Time) (int, error) {
	if until.After(w.deadline) {
		until = w.deadline
	}
	if err := w.Conn.SetReadDeadline(until); err != nil {
		return 0, err
	}
	for {
		n, err := w.Conn.Read(p)
		if err != nil {
			return n, err
		}
		if w.answers(p[:n]) {
			w.request = nil
			return n, nil
		}
	}
}

// answers says whether a packet answers the request. A controller may draw a
// new random number for each RAKP message 1, so only the last one's counts.
func (w *wire) answers(p []byte) bool {
	if len(p) <= tagAt || p[authTypeAt] != rmcpPlus || p[payloadTypeAt] != w.request[payloadTypeAt]+1 {
		return false
	}
	tag := w.request[tagAt]
	return p[tagAt] == tag || w.request[payloadTypeAt] != rakp1 && p[tagAt] < tag
}
