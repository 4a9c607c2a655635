package oob

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"bmc/agent/oob/goipmi"
	"bmc/metal"
)

// fail turns a driver's error into a reason and a sentence. The cause stays in
// Err for logs.
func (c *controller) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	var done *metal.Error
	if errors.As(err, &done) {
		return err
	}
	code := codeOf(err)
	var sentence string
	switch code {
	case metal.CodeStaleEpoch:
		sentence = "this agent may no longer ask " + c.cfg.String() + " to " + doing
	case metal.CodeOOBAuth:
		sentence = c.cfg.String() + " refuses its user name and password"
	case metal.CodeOOBRefused:
		sentence = c.cfg.String() + " refused to " + doing
	case metal.CodeCancelled:
		sentence = "stopped while waiting for " + c.cfg.String()
	default:
		sentence = c.cfg.String() + " does not answer"
		if c.cfg.Protocol == ProtocolIpmitool { // which prints the same for both
			sentence += ", or refuses its user name and password"
		}
	}
	return &metal.Error{Code: code, Message: sentence, Err: err}
}

func codeOf(err error) metal.Code {
	switch {
	case errors.Is(err, ErrLease):
		return metal.CodeStaleEpoch
	case errors.Is(err, goipmi.ErrAuth):
		return metal.CodeOOBAuth
	case errors.Is(err, goipmi.ErrRefused), errors.Is(err, goipmi.ErrBusy):
		return metal.CodeOOBRefused
	case errors.Is(err, goipmi.ErrClosed): // it has forgotten the session: another one is to be tried
		return metal.CodeOOBUnreachable
	case errors.Is(err, context.Canceled):
		return metal.CodeCancelled
	case errors.Is(err, context.DeadlineExceeded):
		return metal.CodeOOBUnreachable
	}
	return codeOfText(err.Error())
}

// httpStatus is a status that a web service answers; the digits of an
// address or a port are none.
var httpStatus = regexp.MustCompile(`\b(400|401|403|405|501)\b`)

// codeOfText reads what ipmitool prints, and what the network says: neither has typed
// errors.
func codeOfText(text string) metal.Code {
	lower := strings.ToLower(text)
	status := httpStatus.FindString(text)
	if status == "401" || status == "403" {
		return metal.CodeOOBAuth
	}
	for _, s := range []string{"rakp 2 hmac", "rakp 2 message indicates an error", "rakp 4 message", "unauthorized", "invalid user name", "insufficient privilege", "password"} {
		if strings.Contains(lower, s) {
			return metal.CodeOOBAuth
		}
	}
	for _, s := range []string{"unable to establish", "timeout", "timed out", "deadline", "connection refused", "no route", "unreachable", "no such host", "eof", "connection reset", "get chassis power status failed"} {
		if strings.Contains(lower, s) {
			return metal.CodeOOBUnreachable
		}
	}
	if status != "" {
		return metal.CodeOOBRefused
	}
	for _, s := range []string{"command failed", "not supported", "invalid data field", "failed to set"} {
		if strings.Contains(lower, s) {
			return metal.CodeOOBRefused
		}
	}
	return metal.CodeOOBUnreachable
}
