package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// The exit codes that scripts rely on.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitConflict    = 5
	exitUnreachable = 6
	exitFailed      = 7
	exitTimeout     = 8
	exitInterrupted = 130
)

// operationFailed is an operation that ended without what was asked for.
type operationFailed struct{ op *bmcv1.Operation }

func (e operationFailed) Error() string {
	if f := e.op.GetFailure(); f != nil {
		return fmt.Sprintf("%s of %s failed: %s", e.op.GetKind(), e.op.GetTarget(), f.GetMessage())
	}
	return fmt.Sprintf("%s of %s was %s", e.op.GetKind(), e.op.GetTarget(), e.op.GetState())
}

// errWaitTimeout is --timeout running out while the operation goes on.
type errWaitTimeout struct {
	what   string
	resume string
}

func (e errWaitTimeout) Error() string { return "still waiting for " + e.what }

// remoteExit is the exit status of a command run by login.
type remoteExit int

func (e remoteExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

var exitByCode = map[metal.Code]int{
	metal.CodeInvalid: exitUsage, metal.CodeAmbiguous: exitUsage,
	metal.CodeNotFound:        exitNotFound,
	metal.CodeUnauthenticated: exitDenied, metal.CodeNotMember: exitDenied, metal.CodeTokenExpired: exitDenied, metal.CodeDenied: exitDenied,
	metal.CodeNameTaken: exitConflict, metal.CodeNoCapacity: exitConflict, metal.CodeWrongState: exitConflict,
	metal.CodeBusy: exitConflict, metal.CodeProtected: exitConflict, metal.CodeConflict: exitConflict,
	metal.CodeInUse: exitConflict, metal.CodeImageTooLarge: exitConflict, metal.CodeFirmwareUnfit: exitConflict, metal.CodeSignature: exitConflict, metal.CodeStaleAttempt: exitConflict,
	metal.CodeRackFrozen: exitConflict, metal.CodeDiverged: exitConflict, metal.CodeRestored: exitConflict,
	metal.CodeRequestReused: exitConflict, metal.CodeRequestTooOld: exitConflict,
	metal.CodeNoLeader: exitUnreachable, metal.CodeUnknownOutcome: exitUnreachable, metal.CodeNoAgent: exitUnreachable,
	metal.CodeDeadline: exitUnreachable, metal.CodeCancelled: exitInterrupted,
}

func exitCode(ctx context.Context, err error) int {
	var (
		remote  remoteExit
		failed  operationFailed
		timeout errWaitTimeout
		bad     errUsage
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &remote):
		return int(remote)
	case interrupted(ctx, err):
		return exitInterrupted
	case errors.As(err, &failed):
		return exitFailed
	case errors.As(err, &timeout):
		return exitTimeout
	case errors.As(err, &bad):
		return exitUsage
	}
	if code, ok := exitByCode[metal.CodeOf(err)]; ok {
		return code
	}
	return exitError
}

// problem is the four parts of an error: message, reason, step and hint.
type problem struct {
	Message string `json:"message"`
	Reason  string `json:"reason,omitempty"`
	Step    string `json:"step,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Field   string `json:"field,omitempty"`
}

func describe(err error) problem {
	var (
		failed  operationFailed
		timeout errWaitTimeout
		e       *metal.Error
	)
	switch {
	case errors.As(err, &failed):
		f := failed.op.GetFailure()
		p := problem{Message: err.Error(), Reason: f.GetReason(), Step: f.GetStep(), Hint: f.GetHint()}
		if p.Hint == "" {
			p.Hint = "bmc explain " + failed.op.GetTarget()
		}
		return p
	case errors.As(err, &timeout):
		return problem{Message: err.Error(), Reason: "WAIT_TIMEOUT", Hint: timeout.resume}
	case errors.As(err, &e):
		return problem{Message: e.Message, Reason: string(e.Code), Hint: e.Hint, Field: e.Field}
	}
	return problem{Message: err.Error()}
}

// report prints an error on stderr, as JSON when the output is JSON.
func (a *app) report(ctx context.Context, err error) {
	var remote remoteExit
	if errors.As(err, &remote) {
		return // the remote command spoke for itself
	}
	if interrupted(ctx, err) {
		return
	}
	p := describe(err)
	if a.format.JSON() {
		if b, jerr := json.Marshal(map[string]problem{"error": p}); jerr == nil {
			fmt.Fprintf(a.err, "%s\n", b)
			return
		}
	}
	label := "error:"
	if a.colored(a.err) {
		label = "\x1b[31merror:\x1b[0m"
	}
	fmt.Fprintf(a.err, "%s %s", label, p.Message)
	if p.Reason != "" {
		fmt.Fprintf(a.err, " (%s)", p.Reason)
	}
	fmt.Fprintln(a.err)
	if p.Step != "" {
		fmt.Fprintf(a.err, "  step: %s\n", p.Step)
	}
	if p.Hint != "" {
		fmt.Fprintf(a.err, "  hint: %s\n", p.Hint)
	}
}
