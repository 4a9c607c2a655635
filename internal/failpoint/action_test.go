package failpoint

import (
	"strings"
	"testing"
)

func TestCheckPoint(t *testing.T) {
	for point, ok := range map[string]bool{
		"raft/log/before": true, "raft/log/report_step/write-image/done/after": true, "controlplane/propose/create_server/before": true,
		"agent/journal/deploy/write-image/begun/before": true, "agent/oob/power-on/after": true,
		"": false, "nonsense/point": false, "raft/log": false, "raft/log/": false, "raft/log/before/x": false, "agent/oob/before": false, "agent/oob//before": false,
	} {
		if err := CheckPoint(point); (err == nil) != ok {
			t.Errorf("%q: %v", point, err)
		}
	}
}

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
