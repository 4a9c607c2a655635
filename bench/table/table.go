// Package table is the one table of `make bench`: each measurement adds its rows
// to a file, and Print shows them together.
package table

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// Row is one comparison. Figures are medians of runs in turns, in Unit.
type Row struct {
	What  string  `json:"what"`           // "committed writes, 64 clients"
	Unit  string  `json:"unit"`           // "writes/s", "ms", "s", "MB/s", "us of processor"
	Ours  Figure  `json:"ours"`           // as a user of the product gets it
	Peer  string  `json:"peer,omitempty"` // who it stands beside: "etcd 3.6"
	Them  Figure  `json:"them,omitzero"`  // the peer's
	Limit Figure  `json:"limit,omitzero"` // what the machine itself allows, where it was measured
	Ratio Figure  `json:"ratio,omitzero"` // ours / theirs; median of the turns' ratios where there are turns
	Aim   string  `json:"aim,omitempty"`  // "at least 1.4 x", "at most 1.3 x"
	Note  string  `json:"note,omitempty"` // "etcd is not installed: skipped"
	Load  float64 `json:"load,omitzero"`  // the machine's load average (1 min) before the measurement
}

// Figure is a median and the least and greatest of the runs it is of.
type Figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min,omitzero"`
	Max    float64 `json:"max,omitzero"`
	Runs   int     `json:"runs,omitzero"`
}

// Of is the figure of some runs; zero of none.
func Of(runs []float64) Figure {
	if len(runs) == 0 {
		return Figure{}
	}
	s := slices.Sorted(slices.Values(runs))
	mid := s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return Figure{Median: mid, Min: s[0], Max: s[len(s)-1], Runs: len(s)}
}

// InTurns is the figure of ours[i]/theirs[i]: what a machine that is slower in one
// turn does to both cancels out.
func InTurns(ours, theirs []float64) Figure {
	var r []float64
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] != 0 {
			r = append(r, ours[i]/theirs[i])
		}
	}
	return Of(r)
}

// Append adds rows to a file of JSON lines, made if missing; nothing if file is "".
func Append(file string, rows ...Row) (err error) {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("rows of the table: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, r := range rows {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("row %q: %w", r.What, err)
		}
		if _, err := f.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("rows of the table: %w", err)
		}
	}
	return nil
}

// Read the rows of a file; none if it is missing.
func Read(file string) ([]Row, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rows []Row
	for n, s := 1, bufio.NewScanner(bytes.NewReader(b)); s.Scan(); n++ {
		var r Row
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", file, n, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// Print the rows as a table for people.
func Print(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tOURS\tBESIDE\tLIMIT\tRATIO\tAIM\tRUNS\tNOTE")
	for _, r := range rows {
		beside := "-"
		if r.Peer != "" {
			beside = strings.TrimSpace(r.Peer + " " + r.Them.String())
		}
		note := r.Note
		if r.Load >= 2 {
			note = strings.TrimSpace(fmt.Sprintf("%s (load %.1f)", note, r.Load))
		}
		ratio := "-"
		if r.Ratio.Runs > 0 {
			ratio = r.Ratio.String() + " x"
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s\t%s\t%s\t%s\t%d\t%s\n", r.What, r.Ours, r.Unit, beside, or(r.Limit.String()), ratio, or(r.Aim), r.Ours.Runs, note)
	}
	return t.Flush()
}

// String is the median with the runs' spread: "1,234 (1,100-1,300)"; "" of none.
func (f Figure) String() string {
	switch {
	case f.Runs == 0:
		return ""
	case f.Runs == 1 || f.Min == f.Max:
		return number(f.Median)
	}
	return fmt.Sprintf("%s (%s-%s)", number(f.Median), number(f.Min), number(f.Max))
}

// number has three significant digits, or all before the point.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return grouped(fmt.Sprintf("%.0f", v))
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// grouped has a comma after each three digits of an integer.
func grouped(s string) string {
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
