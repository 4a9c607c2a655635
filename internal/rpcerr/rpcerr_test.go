package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"bmc/metal"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestRoundTrip(t *testing.T) {
	tests := []struct {
		in   *metal.Error
		code codes.Code
	}{
		{metal.Errorf(metal.CodeNameTaken, "web-1 is taken").WithHint("bmc get web-1"), codes.AlreadyExists},
		{metal.Invalid("name", "must be a DNS label"), codes.InvalidArgument},
		{metal.Errorf(metal.CodeStaleEpoch, "epoch 3 is over"), codes.FailedPrecondition},
		{metal.Errorf(metal.CodeNoLeader, "no leader"), codes.Unavailable},
		{metal.Errorf(metal.CodeTokenExpired, "expired").WithHint("bmc auth login"), codes.Unauthenticated},
		{&metal.Error{Code: metal.CodeNotMember, Message: "who?", Generation: new(uint64)}, codes.Unauthenticated},
		{metal.Errorf(metal.CodeNoCapacity, "nothing free").WithHint("bmc list"), codes.ResourceExhausted},
	}
	for _, tt := range tests {
		t.Run(string(tt.in.Code), func(t *testing.T) {
			err := Encode(fmt.Errorf("wrapped: %w", tt.in), "err-1")
			if got := status.Code(err); got != tt.code {
				t.Fatalf("code %v, want %v", got, tt.code)
			}
			out, ok := Decode(err)
			if !ok {
				t.Fatal("not decoded")
			}
			if out.Code != tt.in.Code || out.Message != tt.in.Message || out.Hint != tt.in.Hint || out.Field != tt.in.Field ||
				(out.Generation == nil) != (tt.in.Generation == nil) || out.Generation != nil && *out.Generation != *tt.in.Generation {
				t.Fatalf("got %+v, want %+v", out, tt.in)
			}
			again, _ := Decode(Encode(err, "err-2"))
			if again.Code != tt.in.Code || again.Hint != tt.in.Hint {
				t.Fatalf("a status passed on lost details: %+v", again)
			}
		})
	}
}

func TestInternalsDoNotLeak(t *testing.T) {
	for _, in := range []error{
		errors.New("open /secret/path: no such file"),
		&metal.Error{Code: metal.CodeInternal, Message: "open /secret/path", Err: errors.New("no such file")},
	} {
		err := Encode(in, "err-abc")
		if strings.Contains(err.Error(), "secret") {
			t.Fatalf("leaked: %v", err)
		}
		if ErrorID(err) != "err-abc" {
			t.Fatalf("error id %q", ErrorID(err))
		}
	}
	e := &metal.Error{Code: metal.CodeInvalid, Message: "manifest: bad", Err: errors.New("secret")}
	if err := Encode(e, ""); strings.Contains(err.Error(), "secret") {
		t.Fatalf("cause leaked: %v", err)
	}
}

func TestContextAndForeign(t *testing.T) {
	if c := status.Code(Encode(context.DeadlineExceeded, "")); c != codes.DeadlineExceeded {
		t.Fatal(c)
	}
	if c := status.Code(Encode(fmt.Errorf("x: %w", context.Canceled), "")); c != codes.Canceled {
		t.Fatal(c)
	}
	if _, ok := Decode(status.Error(codes.Unavailable, "connection refused")); ok {
		t.Fatal("a transport failure is no refusal of ours")
	}
	if Encode(nil, "") != nil {
		t.Fatal("nil")
	}
}
