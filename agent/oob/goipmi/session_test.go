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

// response is the answer of a controller to a request that it has opened.
func response(t testing.TB, controller *session, m []byte, cc byte, data ...byte) []byte {
	t.Helper()
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
				m := controller.open(request)
				want := []byte{byte(n), 0, 0}
				answer := func(cc byte) []byte { return response(t, controller, m, cc, want...) }
				got, ok, err := console.answer(answer(0), types.CommandGetChassisStatus, seq%63+1, seq)
				if !ok || err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d: %x, %v, %v", n, got, ok, err)
				}
				if _, ok, _ := console.answer(answer(0), types.CommandGetChassisStatus, seq%63+1); ok {
					t.Error("an answer to another request")
				}
				if _, ok, _ := console.answer(answer(0), types.CommandChassisControl, seq); ok {
					t.Error("an answer to another command")
				}
				if _, ok, err := console.answer(answer(0xc0), types.CommandGetChassisStatus, seq); !ok || err == nil {
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
	p := response(t, controller, controller.open(request), 0, 1, 0, 0)
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
	if console.open(p) == nil {
		t.Error("what was forged on the way hides the packet itself")
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

// An answer that was recorded is signed, and its request's number comes again after 63.
// Neither it nor one that somebody kept back until then is believed.
func TestReplayedAnswers(t *testing.T) {
	console, controller := pair(t, types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128)
	ask := func(power byte) (p []byte, seq uint8) {
		t.Helper()
		request, seq, err := console.request(types.CommandGetChassisStatus, nil)
		if err != nil {
			t.Fatal(err)
		}
		return response(t, controller, controller.open(request), 0, power, 0, 0), seq
	}
	kept, keptSeq := ask(0)
	recorded, recordedSeq := ask(0)
	if _, ok, _ := console.answer(recorded, types.CommandGetChassisStatus, recordedSeq); !ok {
		t.Fatal("no answer")
	}
	for range 61 {
		p, seq := ask(1)
		if data, ok, err := console.answer(p, types.CommandGetChassisStatus, seq); !ok || err != nil || data[0] != 1 {
			t.Fatal(data, ok, err)
		}
	}
	for name, old := range map[string]struct {
		packet []byte
		seq    uint8
	}{"kept back": {kept, keptSeq}, "recorded": {recorded, recordedSeq}} {
		p, seq := ask(1)
		for seq != old.seq {
			p, seq = ask(1)
		}
		if data, ok, _ := console.answer(old.packet, types.CommandGetChassisStatus, seq); ok {
			t.Errorf("%s: believed: %x", name, data)
		}
		if data, ok, _ := console.answer(p, types.CommandGetChassisStatus, seq); !ok || data[0] != 1 {
			t.Errorf("%s: the answer itself: %x, %v", name, data, ok)
		}
	}
}

func TestWindow(t *testing.T) {
	for name, tc := range map[string]struct{ take, refuse []uint32 }{
		"in order":         {[]uint32{1, 2, 3}, []uint32{0, 1, 2, 3}},
		"begins anywhere":  {[]uint32{5000, 5001}, []uint32{1, 5000, 5001}},
		"out of order":     {[]uint32{20, 18, 19, 4, 21}, []uint32{0, 18, 19, 20, 4, 3, 1}},
		"skipped":          {[]uint32{1, 40, 24, 25, 39}, []uint32{1, 23, 24, 40}},
		"as far as may be": {[]uint32{1, 1 + ahead}, []uint32{1, 2 + 2*ahead}},
		"wraps":            {[]uint32{1<<32 - 2, 1, 1<<32 - 1, 2}, []uint32{0, 1<<32 - 2, 1<<32 - 1, 1, 2}},
		"width of the map": {[]uint32{1, 33, 65, 49, 64}, []uint32{33, 1, 65, 49, 64, 48}},
	} {
		var w window
		for _, n := range tc.take {
			if !w.accept(n) {
				t.Errorf("%s: %d of %v is refused", name, n, tc.take)
			}
		}
		for _, n := range tc.refuse {
			if w.accept(n) {
				t.Errorf("%s: %d is taken after %v", name, n, tc.take)
			}
		}
	}
}

func BenchmarkRequestAndAnswer(b *testing.B) {
	console, controller := pair(b, types.IntegrityAlg_HMAC_SHA256_128, types.CryptAlg_AES_CBC_128)
	request, seq, err := console.request(types.CommandGetChassisStatus, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := response(b, controller, controller.open(request), 0, 1, 0, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := console.request(types.CommandGetChassisStatus, nil); err != nil {
			b.Fatal(err)
		}
		console.inbound = window{} // it is the same packet each time
		if _, ok, _ := console.answer(p, types.CommandGetChassisStatus, seq); !ok {
			b.Fatal("no answer")
		}
	}
}
