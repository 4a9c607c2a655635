package cache_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmc/agent/cache"
	"bmc/internal/manifest"
	"bmc/metal"
)

func TestHandler(t *testing.T) {
	s, ds := chunks(3, 100)
	other := ds[2]
	absent := manifest.Sum([]byte("absent"))
	c := openCache(t, t.TempDir(), 1000, s)
	signer := cache.NewSigner([]byte("0123456789abcdef"))
	allowed := func(op string, d manifest.Digest) bool { return op == "op-a&b=%c" && d != other }
	srv := httptest.NewServer(c.Handler(signer, allowed, slog.New(slog.DiscardHandler)))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	soon := time.Now().Add(time.Minute)
	const op = "op-a&b=%c" // escapes must survive
	good := signer.URL(host, ds[0], op, soon)
	if viaTemplate := fmt.Sprintf(signer.Template(host, op, soon), ds[0]); viaTemplate != good {
		t.Fatalf("template gives %s, want %s", viaTemplate, good)
	}

	for name, tt := range map[string]struct {
		method, url, rng string
		status           int
		reason           metal.Code
		body             string
	}{
		"whole":           {"GET", good, "", 200, "", strings.Repeat("\x01", 100)},
		"range":           {"GET", good, "bytes=90-", 206, "", strings.Repeat("\x01", 10)},
		"bad range":       {"GET", good, "bytes=200-", 416, "", "-"},
		"head":            {"HEAD", good, "", 200, "", ""},
		"post":            {"POST", good, "", 405, metal.CodeInvalid, "-"},
		"unsigned":        {"GET", srv.URL + cache.PathPrefix + ds[0].String(), "", 403, metal.CodeDenied, "-"},
		"other operation": {"GET", strings.Replace(good, "op-a", "op-b", 1), "", 403, metal.CodeDenied, "-"},
		"longer life":     {"GET", strings.Replace(good, "exp=", "exp=9", 1), "", 403, metal.CodeDenied, "-"},
		"expired":         {"GET", signer.URL(host, ds[0], op, time.Now().Add(-time.Second)), "", 403, metal.CodeTokenExpired, "-"},
		"other's key":     {"GET", cache.NewSigner([]byte("fedcba9876543210")).URL(host, ds[0], op, soon), "", 403, metal.CodeDenied, "-"},
		"not allowed":     {"GET", signer.URL(host, other, op, soon), "", 403, metal.CodeDenied, "-"},
		"not a digest":    {"GET", strings.Replace(good, ds[0].String(), "../../etc/shadow", 1), "", 404, metal.CodeNotFound, "-"},
		"absent":          {"GET", signer.URL(host, absent, op, soon), "", 502, metal.CodeImageUnavailable, "-"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.rng != "" {
			req.Header.Set("Range", tt.rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || resp.Header.Get(cache.ReasonHeader) != string(tt.reason) {
			t.Errorf("%s: %d %s %q, %v", name, resp.StatusCode, resp.Header.Get(cache.ReasonHeader), body, err)
		}
		if tt.body != "-" && string(body) != tt.body {
			t.Errorf("%s: body %q", name, body)
		}
	}
}

// recorder hands out connections that note what is sent by way of ReadFrom: of an
// *os.File the kernel takes the bytes itself (sendfile).
type recorder struct {
	net.Listener
	files chan string
}

func (r *recorder) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordedConn{c.(*net.TCPConn), r.files}, nil
}

type recordedConn struct {
	*net.TCPConn
	files chan string
}

func (c *recordedConn) ReadFrom(r io.Reader) (int64, error) {
	from := r
	if l, ok := r.(*io.LimitedReader); ok {
		from = l.R
	}
	if f, ok := from.(*os.File); ok {
		c.files <- filepath.Base(f.Name())
	}
	return c.TCPConn.ReadFrom(r)
}

// Nothing on a chunk's way may hide the file from the connection, or the connection
// from the file: bytes would be copied through the agent.
func TestHandlerSendsFiles(t *testing.T) {
	s, ds := chunks(1, 100_000)
	c := openCache(t, t.TempDir(), 1<<20, s)
	signer := cache.NewSigner([]byte("0123456789abcdef"))
	files := make(chan string, 10)
	srv := httptest.NewUnstartedServer(c.Handler(signer, nil, slog.New(slog.DiscardHandler)))
	srv.Listener = &recorder{srv.Listener, files}
	srv.Start()
	defer srv.Close()
	resp, err := http.Get(signer.URL(strings.TrimPrefix(srv.URL, "http://"), ds[0], "op", time.Now().Add(time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 100_000 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	select {
	case name := <-files:
		if name != ds[0].String() {
			t.Errorf("sent %s", name)
		}
	default:
		t.Error("the chunk was not sent from its file")
	}
}
