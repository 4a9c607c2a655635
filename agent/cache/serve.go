package cache

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bmc/internal/manifest"
	"bmc/metal"
)

// PathPrefix is where Handler expects chunks, followed by the digest in hex.
const PathPrefix = "/images/chunks/"

// ReasonHeader carries the metal.Code of a refusal.
const ReasonHeader = "Bmc-Reason"

// sendTimeout bounds one chunk on its way to a server.
const sendTimeout = 2 * time.Minute

// Signer makes and checks the URLs that let a server fetch chunks during one
// operation. A ramdisk gets one template for all chunks of its image, so the
// signature covers the operation and the expiry; which chunks an operation may
// have is for Handler's allowed to say.
type Signer struct {
	key []byte
}

// NewSigner takes a secret key of 16 bytes or more.
func NewSigner(key []byte) *Signer {
	return &Signer{key: append([]byte(nil), key...)}
}

// Template returns a URL with %s in the place of a chunk's digest. host is the
// agent's host or host:port on the rack's network.
func (s *Signer) Template(host, operation string, expires time.Time) string {
	exp := strconv.FormatInt(expires.Unix(), 10)
	q := url.Values{"op": {operation}, "exp": {exp}, "sig": {hex.EncodeToString(s.sign(operation, exp))}}
	// Escapes in the query must survive the reader's Sprintf.
	return "http://" + host + PathPrefix + "%s?" + strings.ReplaceAll(q.Encode(), "%", "%%")
}

// URL returns the URL of one chunk.
func (s *Signer) URL(host string, digest manifest.Digest, operation string, expires time.Time) string {
	t := strings.ReplaceAll(s.Template(host, operation, expires), "%%", "%")
	return strings.Replace(t, "%s", digest.String(), 1)
}

// Verify returns the operation that a URL's query was signed for, or an error
// with CodeDenied or CodeTokenExpired.
func (s *Signer) Verify(query url.Values, now time.Time) (string, error) {
	op, exp := query.Get("op"), query.Get("exp")
	sig, err := hex.DecodeString(query.Get("sig"))
	if err != nil || !hmac.Equal(sig, s.sign(op, exp)) {
		return "", metal.Errorf(metal.CodeDenied, "the URL's signature is wrong")
	}
	unix, err := strconv.ParseInt(exp, 10, 64)
	if err != nil || now.Unix() >= unix {
		return "", metal.Errorf(metal.CodeTokenExpired, "the URL has expired")
	}
	return op, nil
}

func (s *Signer) sign(operation, expires string) []byte {
	h := hmac.New(sha256.New, s.key)
	for _, part := range []string{http.MethodGet, PathPrefix, operation, expires} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return h.Sum(nil)
}

// Grant is what an operation may have.
type Grant struct {
	OK    bool
	Pacer *Pacer // of the server's rack; nil: no limit
}

// Handler serves chunks below PathPrefix to whoever has a signed URL. allowed,
// if not nil, says whether an operation may have a chunk.
func (c *Cache) Handler(s *Signer, allowed func(operation string, d manifest.Digest) Grant, log *slog.Logger) http.Handler {
	if allowed == nil {
		allowed = func(string, manifest.Digest) Grant { return Grant{OK: true} }
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed, metal.Invalid("method", "wants GET or HEAD"))
			return
		}
		digest, err := manifest.ParseDigest(strings.TrimPrefix(r.URL.Path, PathPrefix))
		if err != nil {
			refuse(w, http.StatusNotFound, metal.Errorf(metal.CodeNotFound, "there is no such chunk"))
			return
		}
		op, err := s.Verify(r.URL.Query(), time.Now())
		var g Grant
		if err == nil {
			g = allowed(op, digest)
		}
		if err == nil && !g.OK {
			err = metal.Errorf(metal.CodeDenied, "the chunk does not belong to the operation's image")
		}
		if err != nil {
			log.Warn("image chunk refused", "addr", r.RemoteAddr, "operation", op, "chunk", digest.String(), "err", err)
			refuse(w, http.StatusForbidden, err)
			return
		}
		c.serve(w, r, digest, g.Pacer, log)
	})
}

func (c *Cache) serve(w http.ResponseWriter, r *http.Request, digest manifest.Digest, pacer *Pacer, log *slog.Logger) {
	if strings.Contains(r.Header.Get("Cache-Control"), "no-cache") { // what it had from here was damaged
		log.Warn("image chunk is verified again, a server doubts it", "addr", r.RemoteAddr, "chunk", digest.String())
		c.Doubt(digest)
	}
	f, release, err := c.Open(r.Context(), digest)
	if err != nil {
		if r.Context().Err() == nil {
			log.Error("image chunk not served", "addr", r.RemoteAddr, "chunk", digest.String(), "err", err)
		}
		refuse(w, http.StatusBadGateway, err)
		return
	}
	defer release()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTimeout)) // a recorder in a test has none
	w.Header().Set("Content-Type", "application/zstd")                              // else ServeContent reads to guess
	w.Header().Set("ETag", `"`+digest.String()+`"`)
	if pacer != nil {
		server, _, _ := net.SplitHostPort(r.RemoteAddr) // then all such share a turn
		w = &pacedWriter{w, r.Context(), pacer, server}
	}
	http.ServeContent(w, r, "", time.Time{}, f) // *os.File: sendfile
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set(ReasonHeader, string(metal.CodeOf(err)))
	message := http.StatusText(status)
	if metal.CodeOf(err) != metal.CodeInternal { // others may name paths
		message = err.Error()
	}
	http.Error(w, message, status)
}
