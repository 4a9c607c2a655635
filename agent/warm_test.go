package agent

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bmc/agent/boot"
	"bmc/agent/oob"
	"bmc/agent/operation"
	agentv1 "bmc/api/agent/v1"
)

// A reading of what a server draws has its controller's turn: it ends when an
// operation comes, and does not begin while one is there.
func TestWattsGiveWay(t *testing.T) {
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	server := &agentv1.ServerSpec{Id: testServer, Name: "r1-u01", Macs: []string{testMAC},
		Oob: &agentv1.OOB{Protocol: "ipmi", Address: mute.LocalAddr().String(), Username: "bmc", Password: "secret"}}
	a := &Agent{log: slog.New(slog.DiscardHandler), pool: oob.NewPool()}
	a.ops, err = operation.NewManager(t.TempDir(), operation.Deps{
		Server: func(string) (*agentv1.ServerSpec, bool) { return server, true },
		Lease:  nobody{}, Reporter: nobody{}, Log: a.log, Ramdisks: ramdisks{boot.New(boot.Config{Log: a.log})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.ops.Close()
	l := newLease(&rack{conf: RackConfig{Name: "r1"}}, nil, a.log)
	l.answered(l.now(), &agentv1.RenewLeaseResponse{Held: true, Epoch: 1, Ttl: durationpb.New(time.Hour)})

	read := make(chan time.Time, 1)
	go func() {
		if got := a.readWatts(t.Context(), l, server); got != nil {
			t.Errorf("a mute controller said %v", got)
		}
		read <- time.Now()
	}()
	if _, _, err := mute.ReadFrom(make([]byte, 1500)); err != nil { // it is being asked
		t.Fatal(err)
	}
	a.ops.Assign(&agentv1.Assignment{OperationId: "op-1", Kind: "deploy", ServerId: testServer, Attempt: 1, Epoch: 1})
	began := time.Now()
	if took := (<-read).Sub(began); took > wattsRead/4 {
		t.Errorf("the operation had to wait for %s", took)
	}
	began = time.Now()
	if a.readWatts(t.Context(), l, server); time.Since(began) > wattsRead/4 {
		t.Errorf("it was read while an operation is there, for %s", time.Since(began))
	}
}
