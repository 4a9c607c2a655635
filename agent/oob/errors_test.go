package oob

import (
	"testing"

	"bmc/metal"
)

func TestCodeOfText(t *testing.T) {
	for text, want := range map[string]metal.Code{
		"read udp 127.0.0.1:35653->127.0.0.1:34034: i/o timeout":  metal.CodeOOBUnreachable, // 403 is part of a port
		"read udp 127.0.0.1:40122->10.78.4.5:623: i/o timeout":    metal.CodeOOBUnreachable,
		"udp exchange: no datagram matched before deadline":       metal.CodeOOBUnreachable,
		"401: {\"error\": {}}":                                    metal.CodeOOBAuth,
		"unable to execute request, status code 403 from service": metal.CodeOOBAuth,
		"400 Bad Request":                 metal.CodeOOBRefused,
		"failed to set power state":       metal.CodeOOBRefused,
		"RAKP 2 HMAC is invalid":          metal.CodeOOBAuth,
		"something nobody has heard of":   metal.CodeOOBUnreachable,
		"dial tcp 10.78.1.1:443: refused": metal.CodeOOBUnreachable,
	} {
		if got := codeOfText(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
