package metal

import "encoding/base32"

// idEncoding writes 10 bytes as 16 lower-case characters.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// FormatID is an identity such as srv-aaaaaaaaaaaaaaaa, of random bytes. IDs are
// minted by the leader and travel in the command.
func FormatID(prefix string, random [10]byte) string {
	return prefix + "-" + idEncoding.EncodeToString(random[:])
}
