package fsm

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// arrives deploys a server whose system was started in some way, and was seen
// after some rungs of the ladder, or never.
func (w *world) arrives(n int, method string, rungs []string, seen bool) {
	w.t.Helper()
	op := fmt.Sprintf("op-kexec%d", n)
	w.ok(cCreate(op, fmt.Sprintf("web-%d", n)))
	w.until(op, metal.StepBootDisk)
	w.ok(cReport(w.report(op, phaseStarted)))
	r := w.report(op, phaseDone)
	r.BootMethod = method
	w.ok(cReport(r))
	w.ok(cReport(w.report(op, phaseStarted)))
	if r = w.report(op, phaseDone); !seen {
		r.Phase, r.Reason = phaseFailed, string(metal.CodeNotReady)
	}
	r.Recovery = rungs
	w.ok(cReport(r))
}

func setKexec(on bool) *logpb.Command {
	return &logpb.Command{Command: &logpb.Command_SetModelKexec{SetModelKexec: &logpb.SetModelKexec{Vendor: "Acme", Product: "3000", On: on}}}
}

// Two systems of a model that came up from disk and not by kexec switch kexec off
// for it, and nothing else does; an operator switches it on again.
func TestKexecOffForModel(t *testing.T) {
	w := available(t, 9)
	ladder := []string{"not ready in half the time: off, on, boot from disk"}
	model := func() metal.Model {
		m, ok := w.f.View().Model("Acme", "3000")
		if !ok {
			return metal.Model{}
		}
		return *m
	}
	w.arrives(1, metal.BootKexec, nil, true)       // well
	w.arrives(2, metal.BootFirmware, ladder, true) // not kexec's fault
	w.arrives(3, metal.BootKexec, ladder, false)   // the image's, maybe
	w.arrives(4, "", ladder, true)                 // not known how
	if m := model(); m.KexecFailures != 0 {
		t.Fatalf("%+v", m)
	}
	w.arrives(5, metal.BootKexec, ladder, true)
	if m := model(); m.KexecFailures != 1 || m.KexecOff {
		t.Fatalf("after one: %+v", m)
	}
	w.arrives(6, metal.BootKexec, ladder, true)
	if m := model(); m.KexecFailures != 2 || !m.KexecOff || m.Reason == "" {
		t.Fatalf("after two: %+v", m)
	}
	var kinds []string
	for e := range w.f.View().Events(0, 0) {
		kinds = append(kinds, e.Kind)
		if strings.HasSuffix(e.Kind, "kexec-failed") || e.Kind == "model.kexec-off" {
			if !strings.Contains(e.Message, "merely takes more than five minutes") {
				t.Errorf("%s does not say what else it may be: %q", e.Kind, e.Message)
			}
		}
		if e.Kind == "model.kexec-off" && !strings.HasSuffix(e.Message, "To switch it on again: bmc inventory kexec 'Acme/3000' on") {
			t.Errorf("it does not say how to go on: %q", e.Message)
		}
	}
	if !slices.Contains(kinds, "model.kexec-off") || !slices.Contains(kinds, "server.kexec-failed") {
		t.Errorf("events %v", kinds)
	}
	w.ok(setKexec(true))
	if m := model(); m.KexecOff || m.KexecFailures != 0 {
		t.Fatalf("switched on: %+v", m)
	}
	w.ok(setKexec(false))
	if m := model(); !m.KexecOff {
		t.Fatalf("switched off: %+v", m)
	}
	w.arrives(7, metal.BootKexec, ladder, true) // was under way
	w.ok(&logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref("srv-00000"), Hold: "no-kexec", On: true}}})
	if err := sound(w.f.View()); err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := WriteSnapshot(&saved, w.f.View()); err != nil {
		t.Fatal(err)
	}
	restored, _, err := LoadSnapshot(&saved)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := restored.Model("Acme", "3000"); !ok || !m.KexecOff || m.KexecFailures != 1 {
		t.Errorf("restored: %+v", m)
	}
}
