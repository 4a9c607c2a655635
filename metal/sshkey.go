package metal

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
)

// MaxSSHKey is the longest authorized_keys line that is taken, bytes: an RSA
// key of 16,384 bits fits.
const MaxSSHKey = 8 << 10

// sshKeyFields says, for each key type that we install, how many length-prefixed
// fields its blob has after the type's name (RFC 4253 6.6, RFC 5656 3.1, RFC
// 8709 4, OpenSSH's PROTOCOL.u2f).
var sshKeyFields = map[string]int{
	"ssh-ed25519":                        1,
	"ssh-rsa":                            2,
	"ecdsa-sha2-nistp256":                2,
	"ecdsa-sha2-nistp384":                2,
	"ecdsa-sha2-nistp521":                2,
	"sk-ssh-ed25519@openssh.com":         2,
	"sk-ecdsa-sha2-nistp256@openssh.com": 3,
}

// ParseSSHKey checks an authorized_keys line (type, base64, comment; no
// options) and returns it in canonical form with the key's fingerprint as
// ssh-keygen prints it, "SHA256:…". It reads the blob's structure, not the
// cryptography: sshd will.
func ParseSSHKey(field, line string) (canonical, fingerprint string, err error) {
	bad := func(format string, args ...any) (string, string, error) {
		return "", "", Invalid(field, format, args...).WithHint("bmc key add NAME ~/.ssh/id_ed25519.pub")
	}
	line = strings.TrimSpace(line)
	if len(line) > MaxSSHKey {
		return bad("is longer than %d bytes", MaxSSHKey)
	}
	if strings.Contains(line, "PRIVATE KEY") {
		return bad("is a private key: give the public half, the file that ends in .pub")
	}
	for _, c := range []byte(line) {
		if c < ' ' || c == 0x7f {
			return bad("has a line break or control character: give one key, on one line")
		}
	}
	parts := strings.Fields(line)
	if len(parts) < 2 {
		return bad("is not an authorized_keys line: type, base64, comment")
	}
	fields, known := sshKeyFields[parts[0]]
	if !known {
		return bad("key type %q is not known; use ed25519, ecdsa or rsa", clip(parts[0]))
	}
	blob, decodeErr := base64.StdEncoding.DecodeString(parts[1])
	if decodeErr != nil {
		return bad("the key's base64 is damaged")
	}
	if why := checkBlob(parts[0], fields, blob); why != "" {
		return bad("%s", why)
	}
	sum := sha256.Sum256(blob)
	return strings.Join(parts, " "), "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}

func checkBlob(keyType string, fields int, blob []byte) string {
	name, rest, ok := sshString(blob)
	if !ok || string(name) != keyType {
		return "the key's content is not of the type that its line says"
	}
	var last []byte
	for i := 0; i < fields; i++ {
		if last, rest, ok = sshString(rest); !ok || len(last) == 0 {
			return "the key is cut short"
		}
		switch {
		case keyType == "ssh-ed25519" && len(last) != 32:
			return "the key is not 32 bytes long"
		case keyType == "ssh-rsa" && i == 1 && len(last) < 256:
			return "RSA keys below 2048 bits are not taken"
		}
	}
	if len(rest) > 0 {
		return "the key has bytes after its end"
	}
	return ""
}

// sshString reads one length-prefixed field (RFC 4251 5).
func sshString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}
