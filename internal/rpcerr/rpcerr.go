// Package rpcerr carries a metal.Error over gRPC and back: one implementation
// for the servers that send it and the clients that show it.
//
// On the wire a refusal is a google.rpc.Status with
//   - code: by GRPCCode; message: the sentence for people;
//   - google.rpc.ErrorInfo: reason = metal.Code, domain = "bmc", metadata
//     "field" (the offending input), "error_id" (internal errors only: what
//     to look for in the node's log) and "generation" (NOT_A_MEMBER only: of the
//     state that was asked, decimal), each only when there is one;
//   - google.rpc.Help: one link whose description is the hint, a command to
//     run, and whose URL is empty; absent without a hint.
package rpcerr

import (
	"context"
	"errors"
	"strconv"

	"bmc/metal"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Domain of the reasons in google.rpc.ErrorInfo.
const Domain = "bmc"

// Metadata keys of google.rpc.ErrorInfo.
const (
	keyField      = "field"
	keyErrorID    = "error_id"
	keyGeneration = "generation"
)

// grpcCodes maps the reasons that are not simply a failed precondition.
var grpcCodes = map[metal.Code]codes.Code{
	metal.CodeInvalid:         codes.InvalidArgument,
	metal.CodeAmbiguous:       codes.InvalidArgument,
	metal.CodeRequestReused:   codes.InvalidArgument,
	metal.CodeSignature:       codes.InvalidArgument,
	metal.CodeCorruptChunk:    codes.InvalidArgument,
	metal.CodeNotFound:        codes.NotFound,
	metal.CodeNameTaken:       codes.AlreadyExists,
	metal.CodeNoCapacity:      codes.ResourceExhausted,
	metal.CodeConflict:        codes.Aborted,
	metal.CodeUnauthenticated: codes.Unauthenticated,
	metal.CodeNotMember:       codes.Unauthenticated,
	metal.CodeTokenExpired:    codes.Unauthenticated,
	metal.CodeDenied:          codes.PermissionDenied,
	metal.CodeNoLeader:        codes.Unavailable,
	metal.CodeUnknownOutcome:  codes.Unavailable,
	metal.CodeNoAgent:         codes.Unavailable,
	metal.CodeDeadline:        codes.DeadlineExceeded,
	metal.CodeCancelled:       codes.Canceled,
	metal.CodeInternal:        codes.Internal,
}

// GRPCCode returns the gRPC code of a reason; a state that does not admit the
// call is FailedPrecondition.
func GRPCCode(code metal.Code) codes.Code {
	if code == "" {
		return codes.OK
	}
	if c, ok := grpcCodes[code]; ok {
		return c
	}
	return codes.FailedPrecondition
}

// Encode returns err as a gRPC status error. Errors that are a status already
// pass unchanged, so a forwarded refusal keeps its details; context errors get
// their reasons. Of anything else only a fixed sentence and errorID leave the
// process.
func Encode(err error, errorID string) error {
	if err == nil {
		return nil
	}
	var e *metal.Error
	if errors.As(err, &e) {
		return encode(e, errorID)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return encode(metal.Errorf(metal.CodeDeadline, "the call ran out of time"), "")
	case errors.Is(err, context.Canceled):
		return encode(metal.Errorf(metal.CodeCancelled, "the call was cancelled"), "")
	}
	return encode(metal.Errorf(metal.CodeInternal, "internal error"), errorID)
}

func encode(e *metal.Error, errorID string) error {
	info := &errdetails.ErrorInfo{Reason: string(e.Code), Domain: Domain, Metadata: map[string]string{}}
	msg := e.Message
	if e.Code == metal.CodeInternal {
		msg = "internal error"
		if errorID != "" {
			msg += " " + errorID
			info.Metadata[keyErrorID] = errorID
		}
	}
	if e.Field != "" {
		info.Metadata[keyField] = e.Field
	}
	if e.Generation != nil {
		info.Metadata[keyGeneration] = strconv.FormatUint(*e.Generation, 10)
	}
	st := status.New(GRPCCode(e.Code), msg)
	with, err := st.WithDetails(info)
	if err != nil {
		return st.Err()
	}
	if e.Hint != "" {
		help := &errdetails.Help{Links: []*errdetails.Help_Link{{Description: e.Hint}}}
		if h, err := with.WithDetails(help); err == nil {
			with = h
		}
	}
	return with.Err()
}

// Decode returns the refusal that err carries. ok is false when err is no
// answer of ours: a transport failure, or a status without our ErrorInfo.
func Decode(err error) (e *metal.Error, ok bool) {
	if err == nil {
		return nil, false
	}
	if errors.As(err, &e) {
		return e, true
	}
	st, isStatus := status.FromError(err)
	if !isStatus {
		return nil, false
	}
	out := &metal.Error{Message: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == Domain {
				out.Code = metal.Code(d.GetReason())
				out.Field = d.GetMetadata()[keyField]
				if g, err := strconv.ParseUint(d.GetMetadata()[keyGeneration], 10, 64); err == nil {
					out.Generation = &g
				}
			}
		case *errdetails.Help:
			if len(d.GetLinks()) > 0 {
				out.Hint = d.GetLinks()[0].GetDescription()
			}
		}
	}
	if out.Code == "" {
		return nil, false
	}
	return out, true
}

// ErrorID returns what Encode was given for an internal error, or "".
func ErrorID(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return ""
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetMetadata()[keyErrorID]
		}
	}
	return ""
}
