package goipmi

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/bougou/go-ipmi/pkg/types"
)

// pair is two ends of a session: what one seals the other one opens.
func pair(t testing.TB, integrity types.IntegrityAlg, crypt types.CryptAlg) (console, controller *session) {
	t.Helper()
	key := bytes.Repeat([]byte{7}, 32)
	one := session{console: 0x11223344, bmc: 0x55667788, integrity: integrity, crypt: crypt, k1: key}
	if crypt == types.CryptAlg_AES_CBC_128 {
		var err error
		if one.block, err = aes.NewCipher(key[:16]); err != nil {
			t.Fatal(err)
		}
	}
	other := one
	other.console, other.bmc = one.bmc, one.console
	return &one, &other
}

// response is the answer of a controller to a request's packet.
func response(t testing.TB, controller *session, request []byte, cc byte, data ...byte) []byte {
	t.Helper()
	m := controller.open(request)
	if m == nil {
		t.Fatal("the request is not open to the controller")
	}
	r := append([]byte{m[3], m[1] | 1<<2, 0, m[0], m[4], m[5], cc}, data...)
	p, err := controller.seal(append(r, checksum(r[3:])))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSession(t *testing.T) {
	for name, tc := range map[string]struct {
		integrity types.IntegrityAlg
		crypt     types.CryptAlg
	}{
		"3": {types.IntegrityAlg_HMAC_SHA1_96, types.CryptAlg_AES_CBC_128}, "17": {types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128},
		"2": {types.IntegrityAlg_HMAC_SHA1_96, types.CryptAlg_None}, "1": {types.IntegrityAlg_None, types.CryptAlg_None},
	} {
		t.Run("suite "+name, func(t *testing.T) {
			console, controller := pair(t, tc.integrity, tc.crypt)
			for n := range 130 { // past the end of the six bits
				request, seq, err := console.request(types.CommandGetChassisStatus, nil)
				if err != nil || seq == 0 || seq > 63 {
					t.Fatal(seq, err)
				}
				want := []byte{byte(n), 0, 0}
				p := response(t, controller, request, 0, want...)
				got, ok, err := console.answer(p, types.CommandGetChassisStatus, seq)
				if !ok || err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d: %x, %v, %v", n, got, ok, err)
				}
				if _, ok, _ := console.answer(p, types.CommandGetChassisStatus, seq%63+1); ok {
					t.Error("an answer to another request")
				}
				if _, ok, _ := console.answer(p, types.CommandChassisControl, seq); ok {
					t.Error("an answer to another command")
				}
				if _, ok, err := console.answer(response(t, controller, request, 0xc0), types.CommandGetChassisStatus, seq); !ok || err == nil {
					t.Error("a refusal is an answer")
				}
			}
		})
	}
}

// What nobody with the keys has made is not looked at, and hurts nobody: neither
// one wrong bit, nor a packet that was cut, nor noise in the right form.
func TestForgedPackets(t *testing.T) {
	console, controller := pair(t, types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128)
	request, _, err := console.request(types.CommandGetChassisStatus, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := response(t, controller, request, 0, 1, 0, 0)
	for bit := authTypeAt * 8; bit < len(p)*8; bit++ {
		forged := bytes.Clone(p)
		forged[bit/8] ^= 1 << (bit % 8)
		if console.open(forged) != nil {
			t.Errorf("bit %d is not signed", bit)
		}
	}
	for n := range p {
		if console.open(p[:n]) != nil {
			t.Errorf("the first %d bytes are taken for all", n)
		}
	}
	unsigned, _ := pair(t, types.IntegrityAlg_None, types.CryptAlg_AES_CBC_128)
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 20000 {
		noise := make([]byte, rng.IntN(120))
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		if len(noise) >= payloadAt {
			copy(noise, p[:payloadAt])
			noise[payloadTypeAt] = []byte{0, encrypted, encrypted | authenticated, byte(n)}[n%4]
			binary.LittleEndian.PutUint16(noise[lengthAt:], uint16(rng.IntN(120)))
		}
		for _, s := range []*session{console, unsigned} {
			_, _, _ = s.answer(noise, types.CommandGetChassisStatus, 1) // does not panic
		}
	}
}

func BenchmarkRequestAndAnswer(b *testing.B) {
	console, controller := pair(b, types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128)
	request, seq, err := console.request(types.CommandGetChassisStatus, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := response(b, controller, request, 0, 1, 0, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := console.request(types.CommandGetChassisStatus, nil); err != nil {
			b.Fatal(err)
		}
		if _, ok, _ := console.answer(p, types.CommandGetChassisStatus, seq); !ok {
			b.Fatal("no answer")
		}
	}
}
