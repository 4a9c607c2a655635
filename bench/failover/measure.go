package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"bmc/bench/measure"
	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/chaos/check"
	"bmc/chaos/history"
)

const (
	flowWait = 60 * time.Second // for every writer to have an answer again
	settle   = time.Second      // of undisturbed writes before a kill
)

// measured is one system and what was found.
type measured struct {
	sys    system
	load   *load
	file   io.Closer       // of the history
	gaps   []time.Duration // without any acknowledgement, one a kill
	worst  []time.Duration // of the writer that waited longest, one a kill
	mended []time.Duration // until the killed node had caught up, from its start
	rates  []float64       // acknowledged writes a second before a kill
}

// kill measures one kill; the system is whole again afterwards.
func (m *measured) kill(ctx context.Context, n int) error {
	m.load.resume()
	defer m.load.suspend()
	flow, cancel := context.WithTimeout(ctx, flowWait)
	defer cancel()
	if err := m.load.flowing(flow, time.Now()); err != nil {
		return fmt.Errorf("%s: no writes before kill %d: %w", m.sys.name(), n+1, err)
	}
	before, start := m.load.count(), time.Now()
	if err := wait(ctx, settle); err != nil {
		return err
	}
	m.rates = append(m.rates, float64(m.load.count()-before)/time.Since(start).Seconds())
	m.load.arm()
	victim, at, err := m.sys.kill(ctx)
	if err != nil {
		return err
	}
	again, cancelAgain := context.WithTimeout(ctx, flowWait)
	defer cancelAgain()
	err = errors.Join(m.sys.elected(again, victim), m.load.flowing(again, time.Now()))
	if err == nil {
		whole, worst := m.load.measured()
		m.gaps, m.worst = append(m.gaps, whole), append(m.worst, worst)
		fmt.Printf("%4d %-5s killed %s at %s: %v without a write, worst writer %v\n", n+1, m.sys.name(), victim,
			at.UTC().Format("15:04:05.000"), whole.Round(time.Millisecond), worst.Round(time.Millisecond))
	}
	start = time.Now()
	if mendErr := m.sys.mend(ctx, victim); mendErr != nil {
		return errors.Join(err, mendErr)
	}
	m.mended = append(m.mended, time.Since(start))
	return err
}

// check stops the writers and looks for what was acknowledged; it returns how
// many writes are not as acknowledged.
func (m *measured) check(ctx context.Context, w io.Writer) int {
	m.load.stop()
	acks, defects, err := m.load.verify(ctx)
	if err != nil {
		fmt.Fprintf(w, "%s: what is there could not be read: %v\n", m.sys.name(), err)
		return 1
	}
	fmt.Fprintf(w, "%s: %d acknowledged writes, %d not as acknowledged\n", m.sys.name(), acks, len(defects))
	for _, d := range defects {
		fmt.Fprintf(w, "  %s: %s\n", m.sys.name(), d)
	}
	return len(defects)
}

// judged is a system that can be held to the invariants.
type judged interface {
	sample(ctx context.Context) error
	judge(ctx context.Context, rec *history.Recorder, charts string) (check.Report, error)
}

// judge prints the verdict on the history, after the writers' end; it returns the
// violations, and what was to be looked at and was not.
func (m *measured) judge(ctx context.Context, w io.Writer, dir string) int {
	j, ok := m.sys.(judged)
	if !ok || m.load.rec == nil {
		return 0
	}
	began := time.Now()
	report, err := j.judge(ctx, m.load.rec, dir)
	if err = errors.Join(err, m.load.rec.Err(), m.file.Close(), report.Demand("I1", "I2", "I3", "I14")); err != nil {
		fmt.Fprintf(w, "%s: not held to the invariants: %v\n", m.sys.name(), err)
		return 1
	}
	for _, v := range report.Violations() {
		fmt.Fprintln(w, v)
	}
	fmt.Fprintf(w, "%s, held to the invariants in %.1f s:\n%s", m.sys.name(), time.Since(began).Seconds(), report)
	return len(report.Violations())
}

// rowsOf compares kill by kill, in turn.
func rowsOf(election time.Duration, systems []*measured) (rows []table.Row) {
	for _, r := range []struct {
		what string
		of   func(*measured) []time.Duration
	}{
		{"no write acknowledged after a leader's death", func(m *measured) []time.Duration { return m.gaps }},
		{"killed node back", func(m *measured) []time.Duration { return m.mended }},
	} {
		row := table.Row{What: fmt.Sprintf("%s, election timeout %v", r.what, election), Unit: "s", Load: process.Load()}
		ours := seconds(r.of(systems[0]))
		row.Ours = table.Of(ours)
		if len(systems) > 1 {
			theirs := seconds(r.of(systems[1]))
			row.Peer, row.Them, row.Ratio, row.Aim = "etcd 3.6", table.Of(theirs), table.InTurns(ours, theirs), "at most 0.8 x"
		}
		rows = append(rows, row)
	}
	return rows
}

func seconds(all []time.Duration) (out []float64) {
	for _, d := range all {
		out = append(out, d.Seconds())
	}
	return out
}

// printed is the table of the figures, and of the ratio of the first system to the second.
func printed(out io.Writer, systems []*measured) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nmeasure\tsystem\tn\tp50\tp90\tp99\tmax\t")
	rows := []struct {
		name string
		of   func(*measured) []time.Duration
	}{
		{"no write acknowledged", func(m *measured) []time.Duration { return m.gaps }},
		{"worst writer", func(m *measured) []time.Duration { return m.worst }},
		{"killed node back", func(m *measured) []time.Duration { return m.mended }},
	}
	for _, r := range rows {
		var all [][]time.Duration
		for _, m := range systems {
			d := slices.Sorted(slices.Values(r.of(m)))
			all = append(all, d)
			fmt.Fprintf(w, "%s\t%s\t%d\t", r.name, m.sys.name(), len(d))
			for _, p := range points {
				fmt.Fprintf(w, "%v\t", measure.Percentile(d, p).Round(time.Millisecond))
			}
			fmt.Fprintln(w)
		}
		if len(all) == 2 && len(all[0]) > 0 && len(all[1]) > 0 {
			fmt.Fprintf(w, "%s\tratio\t\t", r.name)
			for _, p := range points {
				fmt.Fprintf(w, "%.2f\t", float64(measure.Percentile(all[0], p))/float64(measure.Percentile(all[1], p)))
			}
			fmt.Fprintln(w)
		}
	}
	_ = w.Flush() // into a terminal or a file that the shell opened
	for _, m := range systems {
		r := slices.Sorted(slices.Values(m.rates))
		if len(r) > 0 {
			fmt.Fprintf(out, "%s: %.0f acknowledged writes a second before a kill (median; %.0f to %.0f)\n", m.sys.name(), r[len(r)/2], r[0], r[len(r)-1])
		}
	}
}

// points of the distribution that are printed.
var points = []float64{50, 90, 99, 100}
