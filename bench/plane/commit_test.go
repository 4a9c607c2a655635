package main

import (
	"testing"
	"time"

	"bmc/bench/measure"
	"bmc/fsm"
	"bmc/fsm/logpb"
)

// What etcd is given to write must be as long as what we write.
func TestRecordSize(t *testing.T) {
	header := &logpb.Header{Time: time.Now().UnixNano(), Principal: "admin", Role: "admin",
		RequestId: "019ac0de-1234-7abc-8def-0123456789ab", RequestMac: make([]byte, 32)}
	const project, key = "prj-0123456789abcdef", "key-0123456789abcdef"
	sum := 0
	for _, c := range []*logpb.Command{
		{Header: header, Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: key, Name: "w100-200", Project: project, PublicKey: measure.PublicKey()}}}},
		{Header: header, Command: &logpb.Command_RemoveKey{RemoveKey: &logpb.RemoveKey{Project: project, KeyId: key}}},
	} {
		b, err := fsm.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		sum += len(b)
	}
	if got := sum / 2; got != recordSize {
		t.Errorf("our commands have %d bytes on average, etcd's values %d", got, recordSize)
	}
}
