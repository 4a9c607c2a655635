// Package jointoken is the text that admits a new node or agent to a cluster:
// where to find it, how to know it, and a secret that works once.
package jointoken

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"bmc/metal"
)

// Prefix starts every token; the digit is the format's version.
const Prefix = "bmcj1."

const (
	maxText  = 16 << 10
	maxSeeds = 64
)

// Roles that a token admits.
const (
	RoleNode  = "node"
	RoleAgent = "agent"
)

// Token is a join token's content.
type Token struct {
	Role     string    `json:"role"`      // RoleNode or RoleAgent
	Seeds    []string  `json:"seeds"`     // host:port of nodes' TLS ports
	CASHA256 string    `json:"ca_sha256"` // hex, of the CA certificate's DER
	ID       string    `json:"id"`
	Secret   string    `json:"secret"`
	Expires  time.Time `json:"expires"`
}

// String writes the token as people carry it.
func (t Token) String() string {
	b, err := json.Marshal(t)
	if err != nil { // a time out of JSON's range: such a token is never made
		return ""
	}
	return Prefix + base64.RawURLEncoding.EncodeToString(b)
}

// Parse reads what String wrote. It refuses what is incomplete, but does not
// look at the clock: see Check.
func Parse(text string) (Token, error) {
	var t Token
	text = strings.TrimSpace(text)
	rest, ok := strings.CutPrefix(text, Prefix)
	if !ok || len(text) > maxText {
		return t, invalid("it does not begin with " + Prefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return t, invalid("it was cut or altered")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return Token{}, invalid("it was cut or altered")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Token{}, invalid("something follows it")
	}
	if err := t.complete(); err != nil {
		return Token{}, err
	}
	return t, nil
}

func (t *Token) complete() error {
	switch {
	case t.Role != RoleNode && t.Role != RoleAgent:
		return invalid("it is for neither a node nor an agent")
	case t.ID == "" || t.Secret == "":
		return invalid("it has no secret")
	case len(t.Seeds) == 0 || len(t.Seeds) > maxSeeds:
		return invalid("it names no node to ask, or too many")
	}
	if sum, err := hex.DecodeString(t.CASHA256); err != nil || len(sum) != sha256.Size {
		return invalid("it has no CA fingerprint")
	}
	for _, s := range t.Seeds {
		host, port, err := net.SplitHostPort(s)
		if n, convErr := strconv.ParseUint(port, 10, 16); err != nil || convErr != nil || n == 0 || host == "" {
			return invalid(fmt.Sprintf("its seed %q is no host:port", s))
		}
	}
	return nil
}

// Check refuses a token that is for another role or has expired.
func (t Token) Check(role string, now time.Time) error {
	if t.Role != role {
		return metal.Errorf(metal.CodeDenied, "the join token is for %s, not for %s", article(t.Role), article(role)).
			WithHint("bmc cluster join-token --role %s", role)
	}
	if !t.Expires.IsZero() && !now.Before(t.Expires) {
		return metal.Errorf(metal.CodeTokenExpired, "the join token expired at %s", t.Expires.UTC().Format(time.RFC3339)).
			WithHint("bmc cluster join-token --role %s", role)
	}
	return nil
}

// article is "a node" or "an agent".
func article(role string) string {
	if role == RoleAgent {
		return "an " + role
	}
	return "a " + role
}

// MatchesCA says whether a certificate (DER) is the CA that the token promises.
func (t Token) MatchesCA(der []byte) bool {
	want, err := hex.DecodeString(t.CASHA256)
	sum := sha256.Sum256(der)
	return err == nil && subtle.ConstantTimeCompare(want, sum[:]) == 1
}

// ReadFile parses the token in a file.
func ReadFile(path string) (Token, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return Token{}, &metal.Error{Code: metal.CodeInvalid, Message: "the join token cannot be read: " + err.Error(), Err: err}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxText+2))
	if err != nil {
		return Token{}, fmt.Errorf("read join token: %w", err)
	}
	return Parse(string(b))
}

func invalid(why string) error {
	return (&metal.Error{Code: metal.CodeInvalid, Field: "token", Message: "this is no join token: " + why}).
		WithHint("bmc cluster join-token --help")
}
