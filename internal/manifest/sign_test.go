package manifest_test

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bmc/internal/manifest"
	"bmc/metal"
)

func key(t *testing.T) (manifest.PrivateKey, string, string) {
	t.Helper()
	k, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	pub := manifest.PublicKey(k)
	id, err := manifest.KeyID(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k, pub, id
}

func TestVerify(t *testing.T) {
	m, _ := build(t, disk())
	data := m.Canonical()
	mine, minePub, mineID := key(t)
	_, otherPub, otherID := key(t)
	sig := m.Sign(mine)
	if string(sig) != string(m.Sign(mine)) {
		t.Error("two signatures of one manifest differ")
	}

	id, err := manifest.Verify(data, sig, []string{otherPub, minePub})
	if err != nil || id != mineID {
		t.Fatalf("Verify = %q, %v", id, err)
	}
	bare := strings.TrimSpace(strings.SplitN(minePub, "\n", 2)[1])
	if _, err := manifest.Verify(data, sig, []string{bare}); err != nil {
		t.Errorf("key without its comment: %v", err)
	}

	changed := []byte(strings.Replace(string(data), "debian-12", "debian-13", 1))
	comment := strings.Replace(string(sig), "bmc image debian-12", "bmc image debian-13", 1)
	for name, c := range map[string]struct {
		data, sig []byte
		trusted   []string
		want      string
	}{
		"untrusted":       {data, sig, []string{otherPub}, "signed by key " + mineID + ", which the project does not trust (it trusts " + otherID + ")"},
		"no keys":         {data, sig, nil, "it trusts none"},
		"changed":         {changed, sig, []string{minePub}, mineID + " does not fit its manifest"},
		"changed comment": {data, []byte(comment), []string{minePub}, "does not fit"},
		"garbage":         {data, []byte("garbage"), []string{minePub}, "not in minisign's format"},
		"huge":            {data, make([]byte, 1<<20), []string{minePub}, "limit"},
		"bad list":        {data, sig, []string{"nonsense"}, "list is not in minisign's format"},
	} {
		_, err := manifest.Verify(c.data, c.sig, c.trusted)
		if metal.CodeOf(err) != metal.CodeSignature || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signing.key")
	if _, err := manifest.LoadKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing key: %v", err)
	}
	k, pub, _ := key(t)
	if err := manifest.WriteKey(path, k); err != nil {
		t.Fatal(err)
	}
	if err := manifest.WriteKey(path, k); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing key was replaced: %v", err)
	}
	got, err := manifest.LoadKey(path)
	if err != nil || !got.Equal(k) {
		t.Fatalf("LoadKey: %v", err)
	}
	if text, err := os.ReadFile(path + ".pub"); err != nil || string(text) != pub {
		t.Errorf("public half: %q, %v", text, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.LoadKey(path); metal.CodeOf(err) != metal.CodeInvalid {
		t.Errorf("a key that others may read was taken: %v", err)
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	k, _, _ := key(t)
	text, err := k.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	comment, body, _ := strings.Cut(string(text), "\n")
	blob, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	copy(blob[2:], "Sc") // the key derivation's name: really encrypting takes seconds and 1 GB
	encrypted := comment + "\n" + base64.StdEncoding.EncodeToString(blob)
	for name, text := range map[string]string{"encrypted": encrypted, "garbage": "x", "long": strings.Repeat("x", 1<<16)} {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.LoadKey(path); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The original program must take our keys and signatures.
func TestMinisignProgram(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("minisign is not installed")
	}
	m, _ := build(t, disk())
	dir := t.TempDir()
	k, _, _ := key(t)
	if err := manifest.WriteKey(filepath.Join(dir, "k"), k); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"m": m.Canonical(), "m.minisig": m.Sign(k)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "-V", "-p", "k.pub", "-m", "m")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("minisign -V: %v\n%s", err, out)
	}
}
