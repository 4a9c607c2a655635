package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	probeLimit = 5 * time.Second
	// A connection is tried anew before TCP sends a lost packet for the third time, so
	// that a system that has just come up is found soon.
	dialLimit = 1500 * time.Millisecond
	sshPort   = "22"
)

// sshProber implements operation.Prober: it opens an SSH connection as far as
// the server's proof of its host key, and never tries to log in.
type sshProber struct {
	port string // of tests; "": 22
}

// errProved ends a handshake that has shown what it should.
var errProved = errors.New("host key proved")

// Probe returns nil when the server at address proves one of the host keys,
// given as authorized_keys lines.
func (p sshProber) Probe(ctx context.Context, address string, hostKeys []string) error {
	var wanted [][]byte
	var algorithms []string
	for _, line := range hostKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return fmt.Errorf("recorded host key: %w", err)
		}
		wanted = append(wanted, key.Marshal())
		algorithms = append(algorithms, signatures(key.Type())...)
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	port := p.port
	if port == "" {
		port = sshPort
	}
	conn, err := (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", net.JoinHostPort(address, port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	proved := false
	_, _, _, err = ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User:              "ready",
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if proved = slices.ContainsFunc(wanted, func(w []byte) bool { return bytes.Equal(w, key.Marshal()) }); proved {
				return errProved
			}
			return errors.New("another host key than the recorded ones")
		},
	})
	if proved {
		return nil
	}
	if err == nil {
		return errors.New("the server asked for no proof")
	}
	return err
}

// signatures are the signature algorithms of a key type; RSA keys sign by SHA-2.
func signatures(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}
