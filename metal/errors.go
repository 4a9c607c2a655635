package metal

import (
	"errors"
	"fmt"
)

// Code is a stable, machine-readable reason. It travels in google.rpc.ErrorInfo
// and in failed operations; scripts may rely on it.
type Code string

// The reasons. New ones are added, none is renamed.
const (
	CodeInvalid          Code = "INVALID_ARGUMENT"
	CodeNotFound         Code = "NOT_FOUND"
	CodeAmbiguous        Code = "AMBIGUOUS_REFERENCE"
	CodeNameTaken        Code = "NAME_TAKEN"
	CodeNoCapacity       Code = "NO_CAPACITY"
	CodeWrongState       Code = "WRONG_STATE"
	CodeBusy             Code = "OPERATION_IN_PROGRESS"
	CodeProtected        Code = "PROTECTED"
	CodeConflict         Code = "REVISION_CONFLICT"
	CodeInUse            Code = "IN_USE"
	CodeUnauthenticated  Code = "UNAUTHENTICATED"
	CodeNotMember        Code = "NOT_A_MEMBER" // this agent is none of the cluster's, or no longer
	CodeTokenExpired     Code = "TOKEN_EXPIRED"
	CodeDenied           Code = "PERMISSION_DENIED"
	CodeNoLeader         Code = "NO_LEADER"
	CodeUnknownOutcome   Code = "UNKNOWN_OUTCOME"
	CodeRequestTooOld    Code = "REQUEST_TOO_OLD"
	CodeRequestReused    Code = "REQUEST_ID_REUSED"
	CodeStaleAttempt     Code = "STALE_ATTEMPT"
	CodeStaleEpoch       Code = "STALE_EPOCH"
	CodeNoAgent          Code = "NO_AGENT"
	CodeDeadline         Code = "DEADLINE_EXCEEDED"
	CodeCancelled        Code = "CANCELLED"
	CodeInternal         Code = "INTERNAL"
	CodeRackFrozen       Code = "RACK_FROZEN"      // a backup was restored, and the rack waits for its agent or an operator; or an operator froze it
	CodeDiverged         Code = "STATE_DIVERGED"   // replicas differ and no majority agrees
	CodeRestored         Code = "RESTORED"         // a restored backup and the agent disagree about the server
	CodeIdentityChanged  Code = "IDENTITY_CHANGED" // the machine is not quite the one that was inspected: a part was replaced
	CodeBMCMismatch      Code = "BMC_MISMATCH"     // another machine answered than the one behind the management controller
	CodeOOBUnreachable   Code = "OOB_UNREACHABLE"  // the management controller does not answer
	CodeOOBAuth          Code = "OOB_AUTH"         // it refuses the credentials
	CodeOOBRefused       Code = "OOB_REFUSED"      // it answered, and did not do it
	CodeNoNetboot        Code = "NO_NETBOOT"       // the ramdisk never said hello
	CodeTokenReplayed    Code = "BOOT_TOKEN_REPLAYED"
	CodeNotReady         Code = "NOT_READY" // the booted OS did not prove itself in time
	CodeSignature        Code = "BAD_SIGNATURE"
	CodeCorruptChunk     Code = "CORRUPT_CHUNK"
	CodeImageTooLarge    Code = "IMAGE_TOO_LARGE"
	CodeNoDisk           Code = "NO_DISK"
	CodeWriteFailed      Code = "WRITE_FAILED"
	CodeVerifyFailed     Code = "VERIFY_FAILED" // read-back differs from the manifest
	CodeWipeFailed       Code = "WIPE_FAILED"
	CodeWipeRefused      Code = "WIPE_NOT_CONFIRMED" // first wipe without the operator's word
	CodeConfigureFailed  Code = "CONFIGURE_FAILED"
	CodeFirmwareUnfit    Code = "FIRMWARE_UNSUPPORTED" // the image does not boot by this firmware
	CodeKexecRefused     Code = "KEXEC_REFUSED"        // this machine or image boots by firmware; no operation fails for it
	CodeImageUnavailable Code = "IMAGE_UNAVAILABLE"    // the image store does not answer or lacks a chunk
)

// Error is a refusal or failure with a reason that programs can test, a
// sentence for people, and, where one helps, the command to run next.
type Error struct {
	Code    Code
	Message string // a sentence without a full stop
	Hint    string // a command, e.g. "bmc size list"; may be empty
	Field   string // the offending input, for CodeInvalid; may be empty
	Err     error  // the cause; kept for logs, never shown to users
	// Generation of the state that was asked, for CodeNotMember; nil: not said. A higher
	// one than the caller knows is a backup's, which may be older than the caller is.
	Generation *uint64
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// Is matches errors by code, so errors.Is(err, &Error{Code: CodeNotFound}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// WithHint returns a copy that suggests a command.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Errorf makes an Error from a sentence. It keeps no cause: set Err for one.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid says which input is wrong and why.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
}

// CodeOf returns the reason of the first Error in err's chain, CodeInternal for
// other errors and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
