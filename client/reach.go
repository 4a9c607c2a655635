package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"bmc/internal/rpcerr"
)

// reach remembers why the last handshake with one node failed: gRPC passes on only a
// sentence of its own.
type reach struct {
	noCA bool // none was given: the system's roots count

	mu  sync.Mutex
	err error // nil: it did not, or there was none
}

func (r *reach) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, context.Canceled) {
		return // we gave up, not the node
	}
	r.err = err
}

func (r *reach) last() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// noted is a node's transport credentials; handshakes that fail are remembered.
type noted struct {
	credentials.TransportCredentials
	reach *reach
}

func (n noted) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := n.TransportCredentials.ClientHandshake(ctx, authority, raw)
	n.reach.note(err)
	return conn, info, err
}

func (n noted) Clone() credentials.TransportCredentials {
	return noted{n.TransportCredentials.Clone(), n.reach}
}

// why says why a call did not reach the node.
func (r *reach) why(err error) reason {
	if _, answered := rpcerr.Decode(err); answered {
		return reason{}
	}
	// The dialer is gRPC's own, which honours HTTPS_PROXY: of its errors there are but words.
	if _, dialing, ok := strings.Cut(status.Convert(err).Message(), "Error while dialing: "); ok {
		return reason{text: words(strings.TrimRight(dialing, `"`))}
	}
	text, forGood := Reason(r.last(), r.noCA)
	return reason{text, forGood}
}

// reason is why a node was not reached, in words that fit behind its address.
type reason struct {
	text    string // "": not known, or it was
	forGood bool   // trying again does not help
}

func words(dialing string) string {
	for end, text := range map[string]string{
		"connection refused": "it refuses connections", "no such host": "there is no host of that name",
		"i/o timeout": "it does not answer in time", "deadline exceeded": "it does not answer in time",
	} {
		if strings.HasSuffix(dialing, end) {
			return text
		}
	}
	return dialing
}

// Reason says in a few words for people why a connection to a node was not made, ""
// for none; noCA says that no CA certificate was given. For good says that trying
// again does not help: somebody must change a certificate, an address or a clock.
func Reason(err error, noCA bool) (text string, forGood bool) {
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		dns     *net.DNSError
	)
	switch {
	case err == nil:
		return "", false
	case errors.As(err, &unknown) && noCA:
		return "no CA certificate was given, and its own is of none that this machine knows", true
	case errors.As(err, &unknown):
		return "its certificate is not signed by the CA that was given", true
	case errors.As(err, &host):
		return fmt.Sprintf("its certificate is not for %s", host.Host), true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("its certificate is good from %s to %s, and this machine's clock says %s", stamp(invalid.Cert.NotBefore),
			stamp(invalid.Cert.NotAfter), stamp(time.Now())), true
	case errors.As(err, &record):
		return "it does not speak TLS: something else listens there", true
	case errors.As(err, &dns) && dns.IsNotFound:
		return "there is no host of that name", false
	case errors.Is(err, syscall.ECONNREFUSED):
		return "it refuses connections", false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "it does not answer in time", false
	}
	return err.Error(), false
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// together says why nodes were not reached: once, where it is the same for all.
func together(addrs []string, why []string) string {
	same, known := true, false
	var each []string
	for i, addr := range addrs {
		same = same && why[i] == why[0]
		known = known || why[i] != ""
		text := why[i]
		if text == "" {
			text = "it broke off"
		}
		each = append(each, addr+": "+text)
	}
	switch {
	case !known:
		return " (tried " + join(addrs) + ")"
	case same:
		return fmt.Sprintf(" (tried %s): %s", join(addrs), why[0])
	}
	return ": " + strings.Join(each, "; ")
}
