package bootseed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func caPEM(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func sample(t testing.TB) Seed {
	return Seed{
		ServerID: "srv-abcdefghijklmnop", Token: strings.Repeat("t", 43), Agent: "10.77.0.1:8443", CAPEM: caPEM(t),
		Now: time.Date(2026, 11, 22, 1, 2, 3, 4, time.UTC), ConsoleTTY: "ttyS0,115200", MAC: "52:54:00:00:00:01",
	}
}

func TestRoundTripThroughCPIO(t *testing.T) {
	want := sample(t)
	archive, err := want.CPIO()
	if err != nil {
		t.Fatal(err)
	}
	if len(archive)%4 != 0 || !bytes.HasPrefix(archive, []byte("070701")) {
		t.Fatal("not an aligned newc archive")
	}
	start, end := bytes.IndexByte(archive, '{'), bytes.LastIndexByte(archive, '}')
	file := filepath.Join(t.TempDir(), "boot.json")
	if err := os.WriteFile(file, archive[start:end+1], 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestRefusals(t *testing.T) {
	good, err := json.Marshal(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*Seed)) []byte {
		s := sample(t)
		f(&s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, data := range map[string][]byte{
		"unknown field": []byte(strings.Replace(string(good), `"token"`, `"more":1,"token"`, 1)),
		"trailing data": append(bytes.Clone(good), "{}"...),
		"no server":     edit(func(s *Seed) { s.ServerID = "" }),
		"short token":   edit(func(s *Seed) { s.Token = "x" }),
		"no port":       edit(func(s *Seed) { s.Agent = "10.77.0.1" }),
		"port zero":     edit(func(s *Seed) { s.Agent = "10.77.0.1:0" }),
		"no CA":         edit(func(s *Seed) { s.CAPEM = "" }),
		"two CAs":       edit(func(s *Seed) { s.CAPEM += s.CAPEM }),
		"no time":       edit(func(s *Seed) { s.Now = time.Time{} }),
		"bad console":   edit(func(s *Seed) { s.ConsoleTTY = "ttyS0 init=/bin/sh" }),
		"upper MAC":     edit(func(s *Seed) { s.MAC = "52:54:00:00:00:AA" }),
	} {
		if _, err := Parse(data); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), strings.Repeat("t", 43)) {
			t.Errorf("%s: the error repeats the token", name)
		}
	}
	huge := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(huge, bytes.Repeat([]byte(" "), maxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(huge); err == nil {
		t.Error("an oversized file was accepted")
	}
}

func FuzzSeed(f *testing.F) {
	good, err := json.Marshal(sample(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"server_id":"srv-a","token":"","agent":":1","now":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data)
		if err != nil {
			return
		}
		if _, err := s.CPIO(); err != nil {
			t.Fatalf("a parsed seed cannot be written: %v", err)
		}
	})
}
