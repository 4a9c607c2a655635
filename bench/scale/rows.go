package main

import (
	"fmt"

	"bmc/bench/table"
)

// figures are what the one table gets: runs by name, in the order of their first.
type figures struct {
	servers int
	load    float64 // the machine's before all of it
	of      []figure
}

type figure struct {
	what, unit string
	runs       []float64
}

func (f *figures) note(unit string, v float64, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	for i := range f.of {
		if f.of[i].what == what {
			f.of[i].runs = append(f.of[i].runs, v)
			return
		}
	}
	f.of = append(f.of, figure{what, unit, []float64{v}})
}

func (f *figures) rows() (rows []table.Row) {
	for _, g := range f.of {
		rows = append(rows, table.Row{What: fmt.Sprintf("%d servers: %s", f.servers, g.what), Unit: g.unit, Ours: table.Of(g.runs), Load: f.load})
	}
	return rows
}
