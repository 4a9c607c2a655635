package cache_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmc/agent/cache"
	"bmc/internal/manifest"
	"bmc/internal/sendfiletest"
	"bmc/metal"
)

func TestHandler(t *testing.T) {
	s, ds := chunks(3, 100)
	other := ds[2]
	absent := manifest.Sum([]byte("absent"))
	c := openCache(t, t.TempDir(), 1000, s)
	signer := cache.NewSigner([]byte("0123456789abcdef"))
	allowed := func(op string, d manifest.Digest) cache.Grant {
		return cache.Grant{OK: op == "op-a&b=%c" && d != other}
	}
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

// Nothing on a chunk's way may hide the file from the connection, or the connection
// from the file: bytes would be copied through the agent. A limit cuts it in pieces.
func TestHandlerSendsFiles(t *testing.T) {
	const size = 1_000_000
	s, ds := chunks(1, size)
	c := openCache(t, t.TempDir(), 1<<20, s)
	signer := cache.NewSigner([]byte("0123456789abcdef"))
	for name, pacer := range map[string]*cache.Pacer{"unlimited": nil, "limited": cache.NewPacer(1 << 30)} {
		srv := httptest.NewUnstartedServer(c.Handler(signer, func(string, manifest.Digest) cache.Grant {
			return cache.Grant{OK: true, Pacer: pacer}
		}, slog.New(slog.DiscardHandler)))
		var files <-chan string
		srv.Listener, files = sendfiletest.Watch(srv.Listener)
		srv.Start()
		defer srv.Close()
		resp, err := http.Get(signer.URL(strings.TrimPrefix(srv.URL, "http://"), ds[0], "op", time.Now().Add(time.Minute)))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || manifest.Sum(data) != ds[0] {
			t.Fatalf("%s: %d bytes, %v", name, len(data), err)
		}
		want := map[bool]int{true: 1, false: 4}[pacer == nil]
		if len(files) != want {
			t.Fatalf("%s: sent from the file %d times, want %d", name, len(files), want)
		}
		for range want {
			if f := <-files; f != ds[0].String() {
				t.Errorf("%s: sent %s", name, f)
			}
		}
	}
}

// Two servers, one of which asks over many connections, get the same under a limit.
func TestPacerIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := cache.NewPacer(10 << 20)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var greedy, modest atomic.Int64
		var wg sync.WaitGroup
		ask := func(server string, got *atomic.Int64) {
			wg.Go(func() {
				for p.Wait(ctx, server, 256<<10) == nil {
					got.Add(256 << 10)
				}
			})
		}
		for range 16 {
			ask("greedy", &greedy)
		}
		ask("modest", &modest)
		wg.Wait()
		g, m := greedy.Load(), modest.Load()
		if all := g + m; all < 95<<20 || all > 101<<20 {
			t.Errorf("%d bytes in ten seconds at ten MiB a second", all)
		}
		if d := g - m; d > 1<<20 || d < -1<<20 {
			t.Errorf("the greedy server got %d, the modest one %d", g, m)
		}
	})
}
