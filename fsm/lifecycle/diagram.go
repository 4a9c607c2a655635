package lifecycle

import (
	"fmt"
	"strings"

	"bmc/metal"
)

// Diagram draws the table as a Mermaid state diagram. Events between the same
// two states share an arrow.
func Diagram() string {
	type arrow struct{ from, to metal.State }
	var order []arrow
	events := map[arrow][]string{}
	for _, t := range transitions {
		a := arrow{t.From, t.To}
		if events[a] == nil {
			order = append(order, a)
		}
		events[a] = append(events[a], string(t.Event))
	}
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> discovered\n")
	for _, a := range order {
		to := string(a.to)
		if a.to == Gone {
			to = "[*]"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", a.from, to, strings.Join(events[a], ", "))
	}
	return b.String()
}

// Document is docs/lifecycle.md: the verbs of each state, and the diagram.
func Document() string {
	var b strings.Builder
	b.WriteString("# Life cycle of a server\n\n" +
		"Drawn from the table in `fsm/lifecycle` by `make diagram`; do not edit.\n\n" +
		"| state | verbs admitted |\n| --- | --- |\n")
	for _, s := range States() {
		verbs := joinVerbs(Verbs(s))
		if s == metal.StateFailed {
			verbs = joinVerbs(Admitted(s, true)) + "; before first available: " + joinVerbs(Admitted(s, false))
		}
		fmt.Fprintf(&b, "| %s | %s |\n", s, verbs)
	}
	b.WriteString("\n```mermaid\n" + Diagram() + "```\n")
	return b.String()
}

func joinVerbs(vs []Verb) string {
	if len(vs) == 0 {
		return "none"
	}
	return join(vs)
}
