package virtualbmc

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/app"
	ipmichassis "github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

// serveFake starts a controller over a machine without hardware.
func serveFake(t *testing.T) (m *fakeMachine, port int) {
	t.Helper()
	m = &fakeMachine{}
	_, digits := serve(t, Config{Machine: m})
	port, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatal(err)
	}
	return m, port
}

func open(t *testing.T, port int) *client.Client {
	t.Helper()
	c, err := client.NewClient("127.0.0.1", port, "admin", "lab-secret")
	if err != nil {
		t.Fatal(err)
	}
	c.WithTimeout(300 * time.Millisecond).WithRetry(0).WithCipherSuiteID(types.CipherSuiteID17)
	if err := c.Connect20(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // it may be closed already
	return c
}

// Sessions can be listed and closed by another one of an administrator, and
// what a closed one sends has no effect (IPMI 2.0, sections 22.19 and 22.20).
func TestSessionsOfOthers(t *testing.T) {
	m, port := serveFake(t)
	first, second := open(t, port), open(t, port)
	info := func(index uint8) *app.GetSessionInfoResponse {
		t.Helper()
		r, err := second.GetSessionInfo(t.Context(), &app.GetSessionInfoRequest{SessionIndex: index})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	own := info(0)
	if own.CurrentActiveSessions != 2 || own.SessionHandle == 0 || own.UserID != adminID {
		t.Fatalf("%+v", own)
	}
	handles := []uint8{info(1).SessionHandle, info(2).SessionHandle}
	if !slices.Contains(handles, own.SessionHandle) || handles[0] == handles[1] || info(3).SessionHandle != 0 {
		t.Fatalf("sessions %v, own %d", handles, own.SessionHandle)
	}
	other := handles[0]
	if other == own.SessionHandle {
		other = handles[1]
	}
	if _, err := second.CloseSession(t.Context(), &app.CloseSessionRequest{SessionHandle: other}); err != nil {
		t.Fatal(err)
	}
	if n := info(0).CurrentActiveSessions; n != 1 {
		t.Errorf("%d sessions after one was closed", n)
	}
	if _, err := second.CloseSession(t.Context(), &app.CloseSessionRequest{SessionHandle: other}); err == nil || !strings.Contains(err.Error(), "Invalid Session Handle") {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := first.ChassisControl(t.Context(), ipmichassis.ChassisControlPowerUp); err == nil {
		t.Error("a closed session's command was answered")
	}
	if m.State().On {
		t.Error("a closed session turned the machine on")
	}
	if _, err := second.ChassisControl(t.Context(), ipmichassis.ChassisControlPowerUp); err != nil || !m.State().On {
		t.Errorf("the other session: %v, %+v", err, m.State())
	}
}
