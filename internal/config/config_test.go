package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmc/metal"
)

type sample struct {
	Name    string            `yaml:"name"`
	DataDir string            `yaml:"data_dir"`
	Port    int               `yaml:"port"`
	Nodes   []string          `yaml:"nodes"`
	Wait    Duration          `yaml:"wait"`
	Labels  map[string]string `yaml:"labels"`
	Racks   []struct {
		Name string `yaml:"name"`
	} `yaml:"racks"`
	Cache struct {
		MaxBytes Bytes `yaml:"max_bytes"`
	} `yaml:"cache"`
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.yaml")
	text := "name: cp1\ndata_dir: /d\nport: 80\nnodes: [a, b]\nwait: 15s\nlabels: {x: y}\nracks:\n- name: r1\ncache: {max_bytes: 20GiB}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := sample{Port: 7}
	if err := Load(path, &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != "cp1" || got.Port != 80 || got.Wait.Std() != 15*time.Second ||
		got.Cache.MaxBytes != 20<<30 || len(got.Racks) != 1 || got.Labels["x"] != "y" {
		t.Fatalf("got %+v", got)
	}
	kept := sample{Port: 7}
	if err := Parse("f", []byte("name: x"), &kept); err != nil || kept.Port != 7 {
		t.Fatalf("defaults: %+v, %v", kept, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "name: a\ndata-dir: /x\n", `f.yaml:2: unknown key "data-dir", did you mean "data_dir"?`},
		{"nothing near", "zzzzzzzz: 1\n", `f.yaml:1: unknown key "zzzzzzzz"`},
		{"nested", "cache:\n  max_byte: 1\n", `f.yaml:2: unknown key "max_byte", did you mean "max_bytes"?`},
		{"in a list", "racks:\n- name: a\n- nam: b\n", `f.yaml:3: unknown key "nam", did you mean "name"?`},
		{"twice", "name: a\nport: 1\nname: b\n", `f.yaml:3: key "name" was already given on line 1`},
		{"type", "name: a\nport: many\n", `f.yaml:2: wants a whole number, not "many"`},
		{"list for text", "name: [a]\n", `f.yaml:1: wants text, not a list`},
		{"text for list", "nodes: a\n", `f.yaml:1: wants a list, not "a"`},
		{"duration", "name: a\nwait: 15\n", `f.yaml:2: wants a duration such as "15s" or "1h30m", not "15"`},
		{"size", "cache: {max_bytes: lots}\n", `f.yaml:1: wants a size such as "20GiB", not "lots"`},
		{"alias", "name: &a x\ndata_dir: *a\n", `f.yaml:1: anchors and aliases are not supported`},
		{"two documents", "name: a\n---\nname: b\n", `one file, one document`},
		{"syntax", "name: a\n  b: c\n", `f.yaml:2: `},
		{"scalar", "hello\n", `f.yaml:1: wants a group of keys, not "hello"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var dst sample
			err := Parse("f.yaml", []byte(c.text), &dst)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if metal.CodeOf(err) != metal.CodeInvalid {
				t.Fatalf("code %s", metal.CodeOf(err))
			}
		})
	}
	if err := Load(filepath.Join(t.TempDir(), "none"), &sample{}); err == nil || !strings.Contains(err.Error(), "there is no configuration file") {
		t.Fatalf("missing file: %v", err)
	}
	if err := Parse("f", make([]byte, MaxSize+1), &sample{}); err == nil {
		t.Fatal("a huge file was read")
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"4096": 4096, "1.5KiB": 1536, "2 MB": 2e6, "20GiB": 20 << 30, "1TiB": 1 << 40, "7b": 7} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1XB", "1e400", "9999999TiB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q gave %d", text, got)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("name: a\nnodes: [x]\nwait: 1s\ncache: {max_bytes: 1GiB}\n"))
	f.Add([]byte("a: &x [*x]\n"))
	f.Add([]byte("? [a]\n: b\n<<: {name: x}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var dst sample
		err := Parse("f.yaml", data, &dst)
		if err != nil && !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Fatalf("no file in %q", err)
		}
	})
}
