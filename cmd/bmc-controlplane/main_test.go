package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bmc/internal/freeport"
	"bmc/metal"
)

// output is a buffer for several goroutines: raft's may log after it was shut down.
// Seen is called once, when the awaited text is there.
type output struct {
	awaited string
	seen    func()

	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.b.Write(p)
	if o.seen != nil && bytes.Contains(o.b.Bytes(), []byte(o.awaited)) {
		o.seen()
		o.seen = nil
	}
	return n, err
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) string {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path(name)
	}
	conf := write("c.yaml", "name: cp1\ndata_dir: "+path("data")+"\nlisten: "+freeport.Addr(t)+"\nkeyring_file: "+path("keyring.json")+"\n")
	bad := write("bad.yaml", "name: cp1\nlisten: 127.0.0.1:1\ndata-dir: /x\n")
	token := path("admin.token")
	for _, c := range []struct {
		args string
		code int
		want string // on either output
	}{
		{"version", 0, "("},
		{"frob", 2, `there is no command "frob"`},
		{"run", 2, "--config FILE is missing"},
		{"run --config " + conf + " extra", 2, `takes no argument "extra"`},
		{"run --frob", 2, "unknown flag"},
		{"run --config " + path("none"), 2, "there is no configuration file"},
		{"run --config " + bad, 2, `bad.yaml:3: unknown key "data-dir", did you mean "data_dir"?`},
		{"run --config " + conf, 5, "Hint: bmc-controlplane init"},
		{"init --config " + conf, 2, "--admin-token-file FILE is missing"},
		{"init --config " + conf + " --admin-token-file " + token, 0, "has its first node, cp1"},
		{"init --config " + conf + " --admin-token-file " + token + "2", 5, "nothing was changed"},
		{"join --config " + conf + " --token-file " + token, 2, "this is no join token"},
		{"recover --config " + conf + " --dry-run", 5, "it needs no other to go on"},
		{"init --config " + conf + " --from-snapshot x", 5, "nothing was changed"},
		{"join --config " + conf, 2, "--token-file FILE is missing"},
		{"join --config " + conf + " --token-file " + path("nothing"), 2, "the join token cannot be read"},
	} {
		var out output
		code := run(t.Context(), strings.Fields(c.args), nil, &out, &out)
		if code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: exit %d, %s", c.args, code, out.String())
		}
	}
	b, err := os.ReadFile(token)
	if err != nil || !strings.HasPrefix(string(b), "bmct_tok-") {
		t.Fatalf("token %q, %v", b, err)
	}
	if st, err := os.Stat(token); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("token's mode: %v, %v", st.Mode(), err)
	}
}

// A signal stops a running node, which says so by its exit code.
func TestRunUntilSignal(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(conf, []byte("name: cp1\ndata_dir: "+dir+"/data\nlisten: "+freeport.Addr(t)+"\nkeyring_file: "+dir+"/k.json\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out output
	if code := run(t.Context(), []string{"init", "--config", conf, "--admin-token-file", dir + "/t"}, nil, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := output{awaited: `"msg":"node runs"`, seen: cancel}
	if code := run(ctx, []string{"run", "--config", conf, "--log-format", "json"}, nil, &log, &log); code != 0 {
		t.Fatalf("exit %d: %s", code, log.String())
	}
	for _, want := range []string{`"msg":"node runs"`, `"msg":"node stops"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in %s", want, log.String())
		}
	}
}

// A recovery asks for the cluster's ID, and takes no other answer.
func TestRecoverAsks(t *testing.T) {
	for typed, ok := range map[string]bool{"bmc-x\n": true, "bmc-x": true, "yes\n": false, "": false, "bmc-y\n": false} {
		var out bytes.Buffer
		f := &flags{stdin: strings.NewReader(typed), stderr: &out, config: "c.yaml"}
		err := f.confirm("bmc-x")
		if (err == nil) != ok || !strings.Contains(out.String(), "type the cluster's ID (bmc-x)") {
			t.Errorf("%q: %v, %s", typed, err, out.String())
		}
		var e *metal.Error
		if err != nil && (!errors.As(err, &e) || e.Hint != "bmc-controlplane recover --config c.yaml --yes") {
			t.Errorf("%q: %v", typed, err)
		}
	}
}

// A refusal's reason decides the exit code, as it does for bmc.
func TestExitCodes(t *testing.T) {
	for code, want := range map[metal.Code]int{metal.CodeNameTaken: 5, metal.CodeUnauthenticated: 4, metal.CodeTokenExpired: 4,
		metal.CodeDenied: 4, metal.CodeInvalid: 2, metal.CodeNoLeader: 6, metal.CodeWrongState: 5, metal.CodeInternal: 1} {
		var out bytes.Buffer
		if got := failed(metal.Errorf(code, "no").WithHint("do this"), &out); got != want || !strings.Contains(out.String(), "Hint: do this") {
			t.Errorf("%s: exit %d, want %d; %s", code, got, want, out.String())
		}
	}
}
