package failpoint

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for text, want := range map[string]string{
		"kill": "", "stop": "", "hang": "", "sleep 2s": "", "error ENOSPC": "", "error the disk is on fire": "",
		"after 3 kill": "", "times 1 kill": "", "after 2 times 5 error x": "",
		"":              "no action",
		"times 1":       "no action",
		"token /x kill": "", "token /x": "no action",
		"kil":           "kill, stop, hang",
		"kill 3":        "kill, stop, hang",
		"error":         "kill, stop, hang",
		"after no kill": "not a number",
		"sleep long":    "duration",
		"kill times 1":  "before them, after N",
	} {
		err := Check(text)
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
