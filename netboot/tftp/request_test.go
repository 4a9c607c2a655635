package tftp

import (
	"strings"
	"testing"
	"time"
)

func TestParseRequest(t *testing.T) {
	for _, tt := range []struct {
		raw     string
		want    request
		refused *refusal
		ignored bool
	}{
		{raw: "\x00\x01ipxe.efi\x00octet\x00", want: request{name: "ipxe.efi"}},
		{raw: "\x00\x01ipxe.efi\x00OcTeT\x00", want: request{name: "ipxe.efi"}},
		{raw: "\x00\x01f\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00", want: request{name: "f", tsize: true, block: 1468, window: 4}}, // EDK2
		{raw: "\x00\x01f\x00octet\x00BLKSIZE\x009000\x00windowsize\x00999\x00timeout\x003\x00", want: request{name: "f", block: 1468, window: 64, timeout: 3}},
		{raw: "\x00\x01f\x00octet\x00blksize\x007\x00windowsize\x000\x00timeout\x000\x00", want: request{name: "f"}},
		{raw: "\x00\x01f\x00octet\x00blksize\x0065465\x00windowsize\x0065536\x00timeout\x00256\x00", want: request{name: "f"}},
		{raw: "\x00\x01f\x00octet\x00blksize\x00-1\x00tsize\x00x\x00multicast\x00\x00", want: request{name: "f"}},
		{raw: "\x00\x01f\x00octet\x00blksize\x00512\x00junk", want: request{name: "f", block: 512}},
		{raw: "\x00\x01f\x00octet\x00\x00\x00\x00\x00\x00\x00\x00", want: request{name: "f"}}, // padding
		{raw: "\x00\x01f\x00octet\x00blksize\x00512\x00Blksize\x00600\x00", refused: errTwice},
		{raw: "\x00\x01f\x00netascii\x00", refused: errMode},
		{raw: "\x00\x01f\x00octet", refused: errMalformed},
		{raw: "\x00\x01fffff", refused: errMalformed},
		{raw: "\x00\x01f\x00octet\x00" + strings.Repeat("x", maxRequest), refused: errMalformed},
		{raw: "\x00\x02f\x00octet\x00", refused: errReadOnly},
		{raw: "\x00\x04\x00\x00", ignored: true},
		{raw: "\x00\x05\x00\x00x\x00", ignored: true},
		{raw: "\x01\x01f\x00octet\x00", ignored: true},
		{raw: "", ignored: true},
	} {
		r, refused := parseRequest([]byte(tt.raw))
		switch {
		case tt.ignored:
			if r != nil || refused != nil {
				t.Errorf("%q: %v, %v", tt.raw, r, refused)
			}
		case tt.refused != nil:
			if r != nil || refused != tt.refused {
				t.Errorf("%q: %v, %v", tt.raw, r, refused)
			}
		case refused != nil || *r != tt.want:
			t.Errorf("%q: %+v, %v", tt.raw, r, refused)
		}
	}
}

func TestGrant(t *testing.T) {
	for _, tt := range []struct {
		r       request
		block   int
		window  int
		timeout time.Duration
		oack    string
	}{
		{r: request{}, block: 512, window: 1, timeout: ackTimeout},
		{r: request{tsize: true}, block: 512, window: 1, timeout: ackTimeout, oack: "tsize\x001000\x00"},
		{r: request{block: 1468, window: 64, timeout: 7}, block: 1468, window: 44, timeout: 7 * time.Second,
			oack: "blksize\x001468\x00windowsize\x0044\x00timeout\x007\x00"}, // a window is no more than one system call takes
		{r: request{window: 64}, block: 512, window: 64, timeout: ackTimeout, oack: "windowsize\x0064\x00"},
	} {
		g := tt.r.grant(1000)
		if tt.oack != "" {
			tt.oack = "\x00\x06" + tt.oack
		}
		if g.block != tt.block || g.window != tt.window || g.timeout != tt.timeout || string(g.oack) != tt.oack {
			t.Errorf("%+v: %+v, %q", tt.r, g, g.oack)
		}
		if g.window*(g.block+4) > 65507 {
			t.Errorf("%+v: a window is beyond a datagram", tt.r)
		}
	}
}

// FuzzRequest gives the parser whatever may come to the port. What it grants stays
// within its bounds, is said in the answer, and fits into the smallest packet.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x00\x01ipxe.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00"))
	f.Add([]byte("\x00\x01f\x00octet\x00blksize\x008\x00windowsize\x0065535\x00timeout\x00255\x00"))
	f.Add([]byte("\x00\x01f\x00octet\x00blksize\x00512\x00Blksize\x00600\x00"))
	f.Add([]byte("\x00\x01f\x00octet\x00tsize\x0018446744073709551616\x00"))
	f.Add([]byte("\x00\x01f\x00netascii\x00"))
	f.Add([]byte("\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x02f\x00octet\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, refused := parseRequest(raw)
		if refused != nil {
			if r != nil || !strings.HasSuffix(string(refused.packet()), "\x00") {
				t.Fatalf("%q: %+v and %v", raw, r, refused)
			}
			return
		}
		if r == nil {
			return
		}
		if !strings.HasPrefix(string(raw[2:]), r.name+"\x00") || strings.Contains(r.name, "\x00") {
			t.Fatalf("%q: name %q", raw, r.name)
		}
		g := r.grant(1 << 20)
		if g.block < minBlock || g.block > maxBlock || g.window < 1 || g.window > maxWindow || g.window*(g.block+4) > 65507 {
			t.Fatalf("%q: blocks of %d, windows of %d", raw, g.block, g.window)
		}
		if g.timeout < time.Second || g.timeout > maxTimeout*time.Second || len(g.oack) > 512 {
			t.Fatalf("%q: timeout %v, answer %q", raw, g.timeout, g.oack)
		}
		if asked := r.block != 0 || r.window != 0 || r.timeout != 0 || r.tsize; asked != (g.oack != nil) {
			t.Fatalf("%q: answer %q", raw, g.oack)
		}
	})
}
