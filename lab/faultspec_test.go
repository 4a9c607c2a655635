package lab

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestFaultSpecValidate(t *testing.T) {
	for _, tc := range []struct {
		spec FaultSpec
		want string // part of the error, or of Options where there is none
		bad  bool
	}{
		{FaultSpec{Kind: "explode", Targets: []string{"cp1"}}, "bmc-lie", true}, // lists what there is
		{FaultSpec{Kind: FaultLoss}, "bmc-lab status", true},
		{FaultSpec{Kind: FaultPartition, Targets: []string{"cp1"}}, "two sides", true},
		{FaultSpec{Kind: FaultPartition, Targets: []string{"cp1", "cp2", "rest"}}, "no more names", true},
		{FaultSpec{Kind: FaultLoss, Targets: []string{"cp1"}, Fraction: 1.5}, "between 0 and 1", true},
		{FaultSpec{Kind: FaultDelay, Targets: []string{"cp1"}, Delay: -1}, "below zero", true},
		{FaultSpec{Kind: FaultFirewall, Targets: []string{"cp1"}}, "--port 7946", true},
		{FaultSpec{Kind: FaultKill, Targets: []string{"cp1"}, Port: 1}, "knows no port", true},
		{FaultSpec{Kind: FaultPoint, Targets: []string{"cp1"}, Point: "raft/log/before"}, "needs its name and an action", true},
		{FaultSpec{Kind: FaultPoint, Targets: []string{"cp1"}, Point: "../x", Action: "kill"}, "a name like", true},
		{FaultSpec{Kind: FaultPoint, Targets: []string{"cp1"}, Point: "raft/log/before", Action: "murder"}, "kill, stop, hang", true},
		{FaultSpec{Kind: FaultPoint, Targets: []string{"cp1"}, Point: "nonsense/point", Action: "kill"}, "there are: raft/log/before", true},

		{FaultSpec{Kind: FaultLoss, Targets: []string{"cp1"}}, "0.2", false},
		{FaultSpec{Kind: FaultDelay, Targets: []string{"cp1"}, Jitter: Duration(time.Second)}, "100ms, and up to 1s", false},
		{FaultSpec{Kind: FaultBlock, Targets: []string{"r1-u01"}, Network: "r1"}, "on r1, 30s", false},
		{FaultSpec{Kind: FaultPartition, Targets: []string{"cp1", "rest"}, OneWay: true, For: Duration(time.Minute)}, "one way, for 1m0s", false},
		{FaultSpec{Kind: FaultFirewall, Targets: []string{"cp1"}, Port: 7946}, "port 7946", false},
		{FaultSpec{Kind: "bmc-drop", Targets: []string{"r1-u01"}}, "0.2", false},
		{FaultSpec{Kind: "bmc-slow", Targets: []string{"r1-u01"}}, "3s", false},
		{FaultSpec{Kind: FaultStop, Targets: []string{"cp1"}}, "-", false},
	} {
		err := tc.spec.validate()
		got := tc.spec.Options()
		if err != nil {
			got = err.Error()
		}
		if (err != nil) != tc.bad || !strings.Contains(got, tc.want) {
			t.Errorf("%s %v: %q, want %q", tc.spec.Kind, tc.spec.Targets, got, tc.want)
		}
	}
}

// TestFaultEvent: what the log's lines are called is for others to read.
func TestFaultEvent(t *testing.T) {
	raw, err := json.Marshal(faultEvent{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Event: "fired", ID: "f3", Fired: 7,
		FaultSpec: FaultSpec{Kind: FaultLoss, Targets: []string{"r1-a1"}, Seed: 9, Network: "r1", Fraction: 0.25},
	})
	want := `{"time":"2026-01-02T03:04:05Z","event":"fired","id":"f3","kind":"loss","targets":["r1-a1"],"seed":9,"network":"r1","fraction":0.25,"fired":7}`
	if err != nil || string(raw) != want {
		t.Errorf("%s, %v\nwant %s", raw, err, want)
	}
}
