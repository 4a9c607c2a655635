package jointoken

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"bmc/metal"
)

func sample() Token {
	sum := sha256.Sum256([]byte("ca"))
	return Token{Role: RoleAgent, Seeds: []string{"10.0.0.1:7443"}, CASHA256: hex.EncodeToString(sum[:]), ID: "tok-a", Secret: "s",
		Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	got, err := Parse(" " + want.String() + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(want.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile(path); err != nil || got.ID != want.ID {
		t.Fatalf("from a file: %+v, %v", got, err)
	}
	if !got.MatchesCA([]byte("ca")) || got.MatchesCA([]byte("cb")) {
		t.Fatal("CA fingerprint")
	}
}

func TestRefusals(t *testing.T) {
	broken := func(f func(*Token)) string { k := sample(); f(&k); return k.String() }
	for name, text := range map[string]string{
		"empty":     "",
		"user's":    "bmct_tok-a_secret",
		"cut":       sample().String()[:40],
		"trailing":  Prefix + base64.RawURLEncoding.EncodeToString([]byte(`{} {}`)),
		"unknown":   Prefix + base64.RawURLEncoding.EncodeToString([]byte(`{"x":1}`)),
		"role":      broken(func(k *Token) { k.Role = "king" }),
		"no secret": broken(func(k *Token) { k.Secret = "" }),
		"no seeds":  broken(func(k *Token) { k.Seeds = nil }),
		"bad seed":  broken(func(k *Token) { k.Seeds = []string{"host"} }),
		"port":      broken(func(k *Token) { k.Seeds = []string{"host:99999"} }),
		"no CA":     broken(func(k *Token) { k.CASHA256 = "00" }),
	} {
		if got, err := Parse(text); metal.CodeOf(err) != metal.CodeInvalid {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	now := sample().Expires
	if err := sample().Check(RoleAgent, now); metal.CodeOf(err) != metal.CodeTokenExpired {
		t.Errorf("expired: %v", err)
	}
	if err := sample().Check(RoleNode, now.Add(-time.Hour)); metal.CodeOf(err) != metal.CodeDenied {
		t.Errorf("other role: %v", err)
	}
	if err := sample().Check(RoleAgent, now.Add(-time.Hour)); err != nil {
		t.Errorf("good: %v", err)
	}
}

func FuzzJoinToken(f *testing.F) {
	f.Add(sample().String())
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(tok.String())
		if err != nil || !again.Expires.Equal(tok.Expires) || again.ID != tok.ID || again.Secret != tok.Secret {
			t.Fatalf("%+v became %+v, %v", tok, again, err)
		}
	})
}
