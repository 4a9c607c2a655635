package lifecycle

import (
	"os"
	"slices"
	"strings"
	"testing"

	"bmc/metal"
)

// What the design's table says, word for word.
const design = `
discovered | enroll, forget
enrolling | cancel
inspecting | cancel
available | create, inspect, clean, retire
deploying | cancel
active | power, restart, reinstall, rescue, destroy
rescuing | cancel
rescue | exit, reinstall, destroy
releasing | none
cleaning | abort
failed | retry, rescue, destroy, quarantine; before first available: retry, forget
quarantined | inspect, clean, forget, retire
retired | enroll, forget
`

func TestTableIsTheDesigns(t *testing.T) {
	doc := Document()
	for _, line := range strings.Split(strings.TrimSpace(design), "\n") {
		if !strings.Contains(doc, "| "+line+" |\n") {
			t.Errorf("the document lacks %q", line)
		}
	}
	if n := strings.Count(strings.TrimSpace(design), "\n") + 1; n != len(States()) {
		t.Errorf("%d states in the design, %d here", n, len(States()))
	}
}

// The page in docs is what the table gives.
func TestDocumentIsCommitted(t *testing.T) {
	page, err := os.ReadFile("../../docs/lifecycle.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != Document() {
		t.Error("docs/lifecycle.md is not drawn from this table: run make diagram and commit it")
	}
}

func TestEveryStateIsReachedAndLeft(t *testing.T) {
	reached := map[metal.State]bool{metal.StateDiscovered: true}
	for grew := true; grew; {
		grew = false
		for _, tr := range Transitions() {
			if reached[tr.From] && !reached[tr.To] {
				reached[tr.To], grew = true, true
			}
		}
	}
	for _, s := range append(States(), Gone) {
		if !reached[s] {
			t.Errorf("%q is never reached", s)
		}
	}
	// From everywhere there is a way back to available: no dead ends.
	home := map[metal.State]bool{metal.StateAvailable: true}
	for grew := true; grew; {
		grew = false
		for _, tr := range Transitions() {
			if home[tr.To] && !home[tr.From] {
				home[tr.From], grew = true, true
			}
		}
	}
	for _, s := range States() {
		if !home[s] {
			t.Errorf("from %q there is no way back to available", s)
		}
	}
}

func TestOneOutcome(t *testing.T) {
	seen := map[string]bool{}
	for _, tr := range Transitions() {
		key := string(tr.From) + " " + string(tr.Event)
		if seen[key] {
			t.Errorf("%s has two outcomes", key)
		}
		seen[key] = true
		if !slices.Contains(States(), tr.From) || tr.To != Gone && !slices.Contains(States(), tr.To) {
			t.Errorf("%s: not a state", tr)
		}
		got, err := Next(tr.From, tr.Event)
		if err != nil || got != tr.To {
			t.Errorf("%s: got %q, %v", tr, got, err)
		}
	}
}

// Every state x every event: what is not in the table is refused and names
// what is admitted.
func TestRefusals(t *testing.T) {
	events := map[Event]bool{}
	for _, tr := range Transitions() {
		events[tr.Event] = true
	}
	for _, s := range States() {
		for e := range events {
			to, err := Next(s, e)
			if slices.ContainsFunc(Transitions(), func(tr Transition) bool { return tr.From == s && tr.Event == e }) {
				continue
			}
			if metal.CodeOf(err) != metal.CodeWrongState || to != s {
				t.Errorf("%s --%s--> %s, %v", s, e, to, err)
				continue
			}
			for _, v := range Verbs(s) {
				if !strings.Contains(err.Error(), string(v)) {
					t.Errorf("%s --%s-->: %q does not name %s", s, e, err, v)
				}
			}
		}
	}
}

// What a person may ask for must lead somewhere, and nothing else may.
func TestVerbsHaveTransitions(t *testing.T) {
	verbs := []Verb{VerbEnroll, VerbForget, VerbCancel, VerbCreate, VerbInspect, VerbClean, VerbRetire, VerbPower, VerbRestart,
		VerbReinstall, VerbRescue, VerbExit, VerbDestroy, VerbAbort, VerbQuarantine}
	for _, s := range States() {
		for _, v := range verbs {
			_, err := Next(s, Event(v))
			if admitted := slices.Contains(Verbs(s), v); admitted != (err == nil) {
				t.Errorf("%s: verb %s admitted %v, transition %v", s, v, admitted, err)
			}
		}
	}
	for _, tt := range []struct {
		s    metal.State
		was  bool
		v    Verb
		okay bool
	}{
		{metal.StateFailed, false, VerbForget, true},
		{metal.StateFailed, true, VerbForget, false},
		{metal.StateFailed, false, VerbDestroy, false},
		{metal.StateFailed, true, VerbDestroy, true},
		{metal.StateActive, true, VerbCreate, false},
		{metal.StateReleasing, true, VerbDestroy, false},
	} {
		if err := Admit(tt.s, tt.was, tt.v); (err == nil) != tt.okay {
			t.Errorf("%s (available once %v) %s: %v", tt.s, tt.was, tt.v, err)
		}
	}
}

func TestDiagram(t *testing.T) {
	d := Diagram()
	for _, want := range []string{"[*] --> discovered", "releasing --> cleaning: powered-off", "retired --> [*]: forget", "cleaning --> available: cleaned"} {
		if !strings.Contains(d, want) {
			t.Errorf("the diagram lacks %q:\n%s", want, d)
		}
	}
	if d != Diagram() {
		t.Error("two drawings differ")
	}
}
