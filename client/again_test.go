package client

import (
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// A call with a stream that a node refuses for want of a leader, after it has taken
// it, is made again, at another node, until patience is over. What else is refused
// is not.
func TestStreamsAgain(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refuse  int // so often
		code    metal.Code
		calls   int // 0: at least two
		succeed bool
	}{
		{"at once", 0, "", 1, true},
		{"after an election", 3, metal.CodeNoLeader, 4, true},
		{"never", 1 << 30, metal.CodeNoLeader, 0, false},
		{"for another reason", 1, metal.CodeDenied, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			n := &node{watch: func(s bmcv1.Operations_WatchOperationServer, _ int) error {
				if calls++; calls <= tt.refuse {
					return refused(tt.code)
				}
				return s.Send(&bmcv1.Operation{Id: "op-1"})
			}}
			said := 0
			addr := start(t, n)
			c := dial(t, Config{Addresses: []string{addr}, Patience: 2 * time.Second, OnRetry: func(string) { said++ }})
			err := c.Again(t.Context(), func() error {
				s, err := c.Operations.WatchOperation(t.Context(), &bmcv1.WatchOperationRequest{Id: "op-1"})
				if err != nil {
					return err
				}
				_, err = s.Recv()
				return err
			})
			if (err == nil) != tt.succeed || err != nil && metal.CodeOf(err) != tt.code {
				t.Error(err)
			}
			if tt.calls != 0 && calls != tt.calls || tt.calls == 0 && calls < 2 {
				t.Errorf("%d calls", calls)
			}
			if (said > 0) != (calls > 1) {
				t.Errorf("%d calls, %d words of it", calls, said)
			}
		})
	}
}
