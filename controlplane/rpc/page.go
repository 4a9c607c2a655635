package rpc

import (
	"encoding/base64"
	"encoding/json"

	"bmc/metal"
)

// Page sizes of lists.
const (
	defaultPage = 500
	maxPage     = 5000
	maxServers  = 50_000 // of a page of servers, which also ends at maxPageBytes
	maxToken    = 1024
)

// pageToken says where the next page begins. It names the last row that was
// sent, not a revision, so a list goes on after writes and on another node.
type pageToken struct {
	Version int    `json:"v"`
	List    string `json:"l"` // of which list, so that tokens are not mixed up
	After   string `json:"a,omitempty"`
	Rev     uint64 `json:"r,omitempty"`
	Index   int    `json:"i,omitempty"`
}

// encode makes the opaque text.
func (t pageToken) encode() string {
	t.Version = 1
	b, err := json.Marshal(t)
	if err != nil { // strings and numbers always marshal
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// parsePageToken reads a token of the given list; ok is false for the first page.
func parsePageToken(list, s string) (t pageToken, ok bool, err error) {
	if s == "" {
		return pageToken{}, false, nil
	}
	bad := metal.Invalid("page_token", "is not one that this list gave out").WithHint("repeat the list without a page token")
	if len(s) > maxToken {
		return pageToken{}, false, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return pageToken{}, false, bad
	}
	if err := json.Unmarshal(b, &t); err != nil || t.Version != 1 || t.List != list || t.Index < 0 {
		return pageToken{}, false, bad
	}
	return t, true, nil
}

// pageSize returns how many rows to send: 0 means the default.
func pageSize(n int32, limit int) (int, error) {
	switch {
	case n < 0:
		return 0, metal.Invalid("page_size", "must not be negative")
	case n == 0:
		return defaultPage, nil
	case int(n) > limit:
		return limit, nil
	}
	return int(n), nil
}
