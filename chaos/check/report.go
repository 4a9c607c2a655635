package check

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Seen is how many of something a check has looked at.
type Seen struct {
	What string
	N    int
}

// look is what a check tells of its own reach: a check that had nothing to look at
// holds nothing to an invariant.
type look struct {
	seen  []Seen
	notes []string
}

func (l *look) saw(what string, n int) {
	for i := range l.seen {
		if l.seen[i].What == what {
			l.seen[i].N += n
			return
		}
	}
	l.seen = append(l.seen, Seen{what, n})
}

// missed notes what there was and could not be looked at.
func (l *look) missed(what string) { l.notes = append(l.notes, what) }

// Verdict is what one check found, and in how much.
type Verdict struct {
	Name, What string
	Seen       []Seen
	Notes      []string
	Violations []Violation
}

// Looked is the sum of what the check looked at; 0: it could find nothing.
func (v *Verdict) Looked() (n int) {
	for _, s := range v.Seen {
		n += s.N
	}
	return n
}

// Report is the verdicts of several checks.
type Report []Verdict

// Judge runs the checks of these names, or all.
func Judge(e *Evidence, names ...string) Report {
	var out Report
	for _, c := range Checks {
		if len(names) > 0 && !slices.Contains(names, c.Name) {
			continue
		}
		var l look
		found := c.Run(e, &l)
		out = append(out, Verdict{c.Name, c.What, l.seen, l.notes, found})
	}
	return out
}

// All runs every check.
func All(e *Evidence) []Violation { return Judge(e).Violations() }

// Of runs the checks of these names alone.
func Of(e *Evidence, names ...string) []Violation { return Judge(e, names...).Violations() }

// Violations of all checks.
func (r Report) Violations() []Violation {
	var out []Violation
	for _, v := range r {
		out = append(out, v.Violations...)
	}
	return out
}

// Demand fails for each of the wanted that looked at nothing. "I6" is a check,
// "I6/questions of strangers" a part of what it looks at.
func (r Report) Demand(wanted ...string) error {
	var errs []error
	for _, w := range wanted {
		name, part, _ := strings.Cut(w, "/")
		n := 0
		for i := range r {
			if r[i].Name != name {
				continue
			}
			for _, s := range r[i].Seen {
				if part == "" || s.What == part {
					n += s.N
				}
			}
		}
		if n == 0 {
			errs = append(errs, fmt.Errorf("%s was to be looked at, and there was nothing", w))
		}
	}
	return errors.Join(errs...)
}

// String is a line per check: its verdict, and on how much it rests.
func (r Report) String() string {
	var b strings.Builder
	for i := range r {
		v := &r[i]
		word := "holds"
		switch {
		case len(v.Violations) > 0:
			word = fmt.Sprintf("VIOLATED, %d times", len(v.Violations))
		case v.Looked() == 0:
			word = "NOT LOOKED AT"
		}
		var on []string
		for _, s := range v.Seen {
			on = append(on, fmt.Sprintf("%d %s", s.N, s.What))
		}
		on = append(on, v.Notes...)
		fmt.Fprintf(&b, "  %-6s %-75s %-13s  %s\n", v.Name, v.What, word, strings.Join(on, ", "))
	}
	return b.String()
}
