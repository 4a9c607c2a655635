package imagestore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bmc/imagestore"
	"bmc/internal/manifest"
	"bmc/metal"
)

func open(t *testing.T, c imagestore.Config) *imagestore.Store {
	t.Helper()
	s, err := imagestore.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestVersitygw(t *testing.T) { testStore(t, versitygw(t)) }
func TestMinIO(t *testing.T)     { testStore(t, minioServer(t)) }

// testStore walks a chunk's life in a real store.
func testStore(t *testing.T, c imagestore.Config) {
	s := open(t, c)
	ctx := t.Context()
	if err := s.Check(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket(ctx); err != nil {
		t.Errorf("the bucket a second time: %v", err)
	}

	small := []byte("a frame")
	large := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16) // more than one multipart part
	absent := manifest.Sum([]byte("absent"))
	digests := []manifest.Digest{absent, manifest.Sum(small), manifest.Sum(large)}
	if missing, err := s.Has(ctx, digests); err != nil || !slices.Equal(missing, digests) {
		t.Fatalf("Has before Put = %v, %v", missing, err)
	}
	for _, data := range [][]byte{small, large, small} {
		if err := s.Put(ctx, manifest.Sum(data), int64(len(data)), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if missing, err := s.Has(ctx, digests); err != nil || !slices.Equal(missing, digests[:1]) {
		t.Fatalf("Has after Put = %v, %v", missing, err)
	}
	for _, data := range [][]byte{small, large} {
		if got := get(t, s, manifest.Sum(data)); !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d others", len(data), len(got))
		}
	}
	if _, _, err := s.Get(ctx, absent); metal.CodeOf(err) != metal.CodeImageUnavailable || !strings.Contains(err.Error(), "lacks chunk") {
		t.Errorf("absent chunk: %v", err)
	}

	if err := s.Put(ctx, absent, int64(len(small)), bytes.NewReader(small)); metal.CodeOf(err) != metal.CodeCorruptChunk {
		t.Errorf("wrong digest: %v", err)
	}
	for _, size := range []int64{int64(len(small)) - 1, int64(len(small)) + 1} {
		if err := s.Put(ctx, manifest.Sum(small), size, bytes.NewReader(small)); metal.CodeOf(err) != metal.CodeCorruptChunk {
			t.Errorf("wrong size %d: %v", size, err)
		}
	}
	for _, size := range []int64{-1, 0, imagestore.MaxChunkBytes + 1} {
		if err := s.Put(ctx, absent, size, bytes.NewReader(nil)); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("size %d: %v", size, err)
		}
	}

	for range 2 {
		if err := s.Delete(ctx, manifest.Sum(small)); err != nil {
			t.Fatal(err)
		}
	}
	if missing, err := s.Has(ctx, digests); err != nil || !slices.Equal(missing, digests[:2]) {
		t.Fatalf("Has after Delete = %v, %v", missing, err)
	}

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Has(cancelled, digests); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	testRefusals(t, c)
}

// testRefusals expects a reason that names what is wrong, never the secret.
func testRefusals(t *testing.T, c imagestore.Config) {
	wrongKey, wrongBucket := c, c
	wrongKey.SecretKey = "not-the-secret"
	wrongBucket.Bucket = "no-such-bucket"
	data := []byte("x")
	for want, c := range map[string]imagestore.Config{"refuses access key": wrongKey, "has no bucket": wrongBucket} {
		s := open(t, c)
		for name, err := range map[string]error{
			"Check": s.Check(t.Context()),
			"Put":   s.Put(t.Context(), manifest.Sum(data), 1, bytes.NewReader(data)),
		} {
			if metal.CodeOf(err) != metal.CodeImageUnavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want: %s", name, err, want)
			}
			if err != nil && strings.Contains(err.Error(), c.SecretKey) {
				t.Errorf("%s: the secret is in the error", name)
			}
		}
	}
}

func get(t *testing.T, s *imagestore.Store, d manifest.Digest) []byte {
	t.Helper()
	r, size, err := s.Get(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != size {
		t.Errorf("size %d, read %d", size, len(data))
	}
	return data
}

func TestStoreThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	s := open(t, imagestore.Config{Endpoint: "http://" + addr, Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
	_, err = s.Has(t.Context(), []manifest.Digest{{1}})
	var e *metal.Error
	if !errors.As(err, &e) || e.Code != metal.CodeImageUnavailable || e.Hint == "" || !strings.Contains(e.Message, "does not answer") {
		t.Errorf("%#v", err)
	}
}

// A store that breaks off in the middle of a body must not look like one that
// has sent all of it.
func TestGetCutShort(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		w.Header().Set("ETag", `"x"`)
		_, _ = w.Write(make([]byte, 10))
	}))
	defer srv.Close()
	s := open(t, imagestore.Config{Endpoint: srv.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
	r, size, err := s.Get(t.Context(), manifest.Digest{})
	if err != nil || size != 100 {
		t.Fatal(size, err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); metal.CodeOf(err) != metal.CodeImageUnavailable {
		t.Errorf("cut body: %v", err)
	}
}

// A store that stops in the middle of a chunk is noticed, however long the chunk's reader
// would wait.
func TestHungBody(t *testing.T) {
	end := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		w.Header().Set("ETag", `"x"`)
		_, _ = w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
		<-end
	}))
	defer srv.Close()
	defer close(end)
	s := open(t, imagestore.Config{Endpoint: srv.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
	s.SetBodyTimeout(50 * time.Millisecond)
	r, _, err := s.Get(t.Context(), manifest.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); metal.CodeOf(err) != metal.CodeImageUnavailable || len(data) != 10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := imagestore.Config{Endpoint: "https://10.0.0.1:9000", Bucket: "bmc-images", AccessKey: "bmc", SecretKeyFile: secret}
	if _, err := imagestore.Open(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*imagestore.Config){
		"no endpoint":       func(c *imagestore.Config) { c.Endpoint = "" },
		"no scheme":         func(c *imagestore.Config) { c.Endpoint = "10.0.0.1:9000" },
		"other scheme":      func(c *imagestore.Config) { c.Endpoint = "ftp://x" },
		"path":              func(c *imagestore.Config) { c.Endpoint = "https://x/bucket" },
		"credentials in it": func(c *imagestore.Config) { c.Endpoint = "https://a:b@x" },
		"bucket":            func(c *imagestore.Config) { c.Bucket = "../x" },
		"no access key":     func(c *imagestore.Config) { c.AccessKey = "" },
		"no secret":         func(c *imagestore.Config) { c.SecretKeyFile = "" },
		"two secrets":       func(c *imagestore.Config) { c.SecretKey = "x" },
		"secret file":       func(c *imagestore.Config) { c.SecretKeyFile = filepath.Join(dir, "none") },
		"empty secret":      func(c *imagestore.Config) { c.SecretKeyFile = os.DevNull },
		"no CA file":        func(c *imagestore.Config) { c.CAFile = filepath.Join(dir, "none") },
		"CA not PEM":        func(c *imagestore.Config) { c.CAFile = secret },
	} {
		c := good
		spoil(&c)
		if _, err := imagestore.Open(c); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
