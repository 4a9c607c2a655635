package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"bmc/client"
)

var update = flag.Bool("update", false, "write what the commands print into testdata")

// TestScripts runs the commands of testdata/*.txt against a cluster made of
// fixed answers. Each `$ bmc …` line is followed by what goes to standard
// output, then by what goes to standard error behind "! ", then by the exit
// code unless it is 0.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("the commands print\n%s\nthe script wants\n%s", got, want)
			}
		})
	}
}

func runScript(t *testing.T, script string) string {
	dial := serve(t)
	home := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for line := range strings.Lines(script) {
		command, ok := strings.CutPrefix(line, "$ bmc")
		if !ok {
			if strings.HasPrefix(line, "#") || line == "\n" {
				b.WriteString(line)
			}
			continue
		}
		b.WriteString(line)
		var out, errw bytes.Buffer
		a := newApp(strings.NewReader(""), &out, &errw)
		env := map[string]string{"HOME": home}
		a.env = func(name string) string { return env[name] }
		var err error
		a.client, err = client.New(client.Config{Addresses: []string{"bufnet:1"}, Token: "bmct_x_y", Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		args := strings.Fields(strings.ReplaceAll(strings.TrimSpace(command), "HOME", home))
		code := a.run(context.Background(), args)
		b.WriteString(strings.ReplaceAll(out.String(), home, "HOME"))
		for l := range strings.Lines(strings.ReplaceAll(errw.String(), home, "HOME")) {
			b.WriteString("! " + l)
		}
		if code != 0 {
			fmt.Fprintf(&b, "[exit %d]\n", code)
		}
	}
	return b.String()
}

// serve starts the fixed cluster in memory.
func serve(t *testing.T) []grpc.DialOption { return serveWith(t, register) }

func serveWith(t *testing.T, register func(*grpc.Server)) []grpc.DialOption {
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
	}
}
