package history

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"bmc/metal"
)

func TestReadsWhatWasRecorded(t *testing.T) {
	var file bytes.Buffer
	r := NewRecorder(&file, 7)
	a := r.Begin(Call{Client: 1, Kind: Create, Name: "web-1", RequestID: "r-1"})
	b := r.Begin(Call{Client: 2, Kind: Get, Name: "web-1"})
	r.End(b, func(c *Call) { c.Outcome, c.Code = Refused, "NOT_FOUND" })
	r.End(a, func(c *Call) { c.Outcome, c.Servers = OK, []Server{{ID: "srv-1", Rental: "web-1"}} })
	c := r.Begin(Call{Client: 1, Kind: Destroy, Name: "web-1", RequestID: "r-2"})
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	start, calls, err := Read(strings.NewReader(file.String() + `{"id":4,"cli`)) // cut off by a crash
	if err != nil || start.Seed != 7 || !reflect.DeepEqual(calls, r.Calls()) {
		t.Fatalf("%v %+v\n%+v\n%+v", err, start, calls, r.Calls())
	}
	if calls[a-1].End <= calls[b-1].End || calls[c-1].End != 0 || calls[a-1].Servers[0].ID != "srv-1" {
		t.Errorf("%+v", calls)
	}
	if _, _, err := Read(strings.NewReader("{}\n")); err == nil {
		t.Error("read what is no history")
	}
}

func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		err   error
		quick bool
		want  Outcome
	}{
		{nil, false, OK},
		{metal.Errorf(metal.CodeNameTaken, "x"), true, Refused},
		{metal.Errorf(metal.CodeNameTaken, "x"), false, Unknown}, // an earlier try may still arrive
		{metal.Errorf(metal.CodeNoLeader, "x"), true, Unknown},
		{metal.Errorf(metal.CodeUnknownOutcome, "x"), true, Unknown},
		{errors.New("EOF"), true, Unknown},
	} {
		if got, _ := outcome(tt.err, tt.quick); got != tt.want {
			t.Errorf("%v quick=%v: %s, want %s", tt.err, tt.quick, got, tt.want)
		}
	}
}
