// Package bootseed is the note that an agent hands to one boot of one server's
// ramdisk: who it is, whom to call and the one-time token that proves the boot.
// It travels as a second initrd, so the token is on no kernel command line.
package bootseed

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"time"

	"bmc/internal/newc"
)

// Path is where the ramdisk finds the seed.
const Path = "/bmc/boot.json"

// maxSize bounds what Load reads; a seed with a P-256 CA has about 1 KiB.
const maxSize = 64 << 10

// Seed is everything that a ramdisk knows before it has said hello.
type Seed struct {
	ServerID   string    `json:"server_id"`
	Token      string    `json:"token"`  // valid once
	Agent      string    `json:"agent"`  // host:port of the Ramdisk service
	CAPEM      string    `json:"ca_pem"` // the only CA to trust
	Now        time.Time `json:"now"`    // the agent's clock as it answered
	ConsoleTTY string    `json:"console,omitempty"`
	MAC        string    `json:"mac"` // of the NIC that booted; lower case, colons
	// Discover says that nobody knows this machine: it tells what it is, once, and
	// leaves. It has no server ID then.
	Discover bool `json:"discover,omitempty"`
}

var (
	idPattern      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	tokenPattern   = regexp.MustCompile(`^[A-Za-z0-9_.=-]{16,512}$`)
	consolePattern = regexp.MustCompile(`^[A-Za-z0-9]{1,16}(,[A-Za-z0-9]{1,16})?$`)
)

// Validate refuses what no agent writes. It never repeats the token.
func (s Seed) Validate() error {
	if s.Discover != (s.ServerID == "") || !s.Discover && !idPattern.MatchString(s.ServerID) {
		return fmt.Errorf("server_id %q is malformed", s.ServerID)
	}
	if !tokenPattern.MatchString(s.Token) {
		return errors.New("token is malformed")
	}
	host, port, err := net.SplitHostPort(s.Agent)
	if err != nil || host == "" {
		return fmt.Errorf("agent %q is not host:port", s.Agent)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("agent %q has no port", s.Agent)
	}
	if _, err := s.CA(); err != nil {
		return err
	}
	if y := s.Now.Year(); y < 2020 || y > 2200 {
		return fmt.Errorf("now is in the year %d", y)
	}
	if s.ConsoleTTY != "" && !consolePattern.MatchString(s.ConsoleTTY) {
		return fmt.Errorf("console %q is malformed", s.ConsoleTTY)
	}
	if m, err := net.ParseMAC(s.MAC); err != nil || len(m) != 6 || m.String() != s.MAC {
		return fmt.Errorf("mac %q is not six lower-case octets", s.MAC)
	}
	return nil
}

// CA returns the certificate to trust.
func (s Seed) CA() (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(s.CAPEM))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("ca_pem is not one PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("ca_pem: %w", err)
	}
	return cert, nil
}

// CPIO returns the seed as an initrd of its own. Loaders append it to the
// ramdisk's initrd at a multiple of four bytes; its length is one, too.
func (s Seed) CPIO() ([]byte, error) {
	s.Now = s.Now.UTC()
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("boot seed: %w", err)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("boot seed: %w", err)
	}
	var b bytes.Buffer
	w := newc.NewWriter(&b)
	err = errors.Join(
		w.Write(newc.Entry{Name: "bmc", Mode: newc.ModeDir | 0o700}),
		w.Write(newc.Entry{Name: "bmc/boot.json", Mode: newc.ModeFile | 0o600, Data: body}),
		w.Close(),
	)
	return b.Bytes(), err
}

// Parse reads a seed. Unknown and missing fields and trailing bytes are refused.
func Parse(data []byte) (Seed, error) {
	var s Seed
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Seed{}, fmt.Errorf("boot seed: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Seed{}, errors.New("boot seed: trailing data")
	}
	if err := s.Validate(); err != nil {
		return Seed{}, fmt.Errorf("boot seed: %w", err)
	}
	return s, nil
}

// Load reads a seed from a file.
func Load(path string) (Seed, error) {
	f, err := os.Open(path)
	if err != nil {
		return Seed{}, fmt.Errorf("boot seed: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Seed{}, fmt.Errorf("boot seed: %w", err)
	}
	if len(data) > maxSize {
		return Seed{}, fmt.Errorf("boot seed: larger than %d bytes", maxSize)
	}
	return Parse(data)
}
