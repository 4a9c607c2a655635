package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/internal/manifest"
	"bmc/netboot/ipxe"
)

// limit marks the server that is no peer but the bound.
const limit = roleEcho

// A figure is one number of a run.
type figure struct {
	name string
	unit string
	aims aims
}

// aims are the rows of `make bench` that a figure gives: by peer, what it shall be
// beside it.
type aims map[string]string

// A subject is what is measured: one run gives a value for each of its figures.
type subject struct {
	name    string
	peers   []string
	figures []figure
	run     func(ctx context.Context, sv *server) ([]float64, error)
}

type rig struct {
	settings
	servers map[string]*server
	digests []manifest.Digest
	load    float64 // before
	table   []table.Row
}

// measure starts every server that is needed and there, and prints the table.
func measure(ctx context.Context, s settings) error {
	r := &rig{settings: s, servers: map[string]*server{}}
	r.load, _ = strconv.ParseFloat(load(), 64) // else it is not shown
	if err := r.files(); err != nil {
		return err
	}
	var subjects []subject
	for _, sub := range r.subjects() {
		if s.wants(sub.name) {
			subjects = append(subjects, sub)
		}
	}
	defer r.stop()
	if err := r.start(ctx, subjects); err != nil {
		return err
	}
	fmt.Printf("%s; every server in a namespace of its own on this machine, beside the load generators\n", process.Machine())
	fmt.Printf("%d runs of %v each, in turns: median (least-most); ratio: ours to theirs, median of the turns\n", s.rounds, s.length)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tours\tbeside\ttheirs\tratio")
	for _, sub := range subjects {
		if err := r.measure(ctx, w, sub); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("load at the end: %s\n", load())
	return table.Append(s.rows, r.table...)
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg") // then it is empty
	f := strings.Fields(string(text))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}

func (r *rig) files() error {
	loaders, err := ipxe.Loaders("")
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, "loaders")
	//nolint:gosec // other servers read them, as users of their own
	if err := errors.Join(os.Chmod(r.dir, 0o755), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, loaderName), loaders[loaderName], 0o644)); err != nil {
		return err
	}
	r.digests, err = writeChunks(filepath.Join(r.dir, "chunks"))
	return err
}

func (r *rig) start(ctx context.Context, subjects []subject) error {
	needed := []string{roleOurs}
	for _, sub := range subjects {
		for _, p := range sub.peers {
			if !slices.Contains(needed, p) {
				needed = append(needed, p)
			}
		}
	}
	for i, name := range needed {
		sv, err := startServer(r.settings, name, 77+i)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if sv == nil {
			fmt.Printf("%s is not installed: skipped\n", name)
			continue
		}
		r.servers[name] = sv
	}
	for _, sub := range subjects {
		for _, name := range append([]string{roleOurs}, sub.peers...) {
			if sv := r.servers[name]; sv != nil {
				if err := r.ready(ctx, sub, sv); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// ready runs a subject unmeasured until the server answers.
func (r *rig) ready(ctx context.Context, sub subject, sv *server) error {
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; {
		if _, err = sub.run(ctx, sv); err == nil {
			return nil
		}
		wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		<-wait.Done()
		cancel()
	}
	out, _ := os.ReadFile(filepath.Join(r.dir, sv.name+".out"))
	return errors.Join(fmt.Errorf("%s does not answer %s: %w\n%s", sv.name, sub.name, err, out[:min(len(out), 500)]), ctx.Err())
}

func (r *rig) stop() {
	for _, sv := range r.servers {
		sv.stop()
	}
}

// measure runs a subject in turns, beginning with another server each round.
func (r *rig) measure(ctx context.Context, w *tabwriter.Writer, sub subject) error {
	names := []string{roleOurs}
	for _, p := range sub.peers {
		if r.servers[p] != nil {
			names = append(names, p)
		}
	}
	values := map[string][][]float64{} // by server: round, figure; nil where a peer failed
	for round := range r.rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			v, err := sub.run(ctx, r.servers[name])
			if err != nil && (name == roleOurs || ctx.Err() != nil) {
				return fmt.Errorf("%s, %s: %w", sub.name, name, errors.Join(err, ctx.Err()))
			}
			if err != nil {
				fmt.Printf("%s: %s failed: %v; started again\n", sub.name, name, err)
				if err := r.restart(ctx, sub, name); err != nil {
					return err
				}
			}
			values[name] = append(values[name], v)
		}
	}
	for f, fig := range sub.figures {
		title := fmt.Sprintf("%s: %s, %s\t%s", sub.name, fig.name, fig.unit, spread(column(values[roleOurs], f)))
		for _, name := range names[1:] {
			theirs, ratio := column(values[name], f), compare(values[roleOurs], values[name], f)
			if name == limit {
				name = "the limit"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", title, name, spread(theirs), ratio)
			title = "\t"
		}
		r.addRows(sub, f, values)
	}
	return nil
}

// addRows notes what `make bench` shows of a figure.
func (r *rig) addRows(sub subject, f int, values map[string][][]float64) {
	fig := sub.figures[f]
	ours := column(values[roleOurs], f)
	for _, peer := range slices.Sorted(maps.Keys(fig.aims)) {
		row := table.Row{What: sub.name + ": " + fig.name, Unit: fig.unit, Ours: table.Of(ours), Peer: peer, Aim: fig.aims[peer], Load: r.load,
			Limit: table.Of(column(values[limit], f))}
		if values[peer] == nil {
			row.Note = peer + " is not installed: skipped"
		} else {
			row.Them = table.Of(column(values[peer], f))
			row.Ratio = table.Of(ratios(values[roleOurs], values[peer], f))
		}
		r.table = append(r.table, row)
	}
}

// restart is for a peer that died, with its namespace.
func (r *rig) restart(ctx context.Context, sub subject, name string) error {
	old := r.servers[name]
	old.stop()
	delete(r.servers, name)
	_ = exec.CommandContext(ctx, "ip", "link", "del", old.cable()).Run() // or it went with the namespace
	sv, err := startServer(r.settings, name, old.net)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.servers[name] = sv
	return r.ready(ctx, sub, sv)
}

// compare is the median of the turns' ratios; none where a value is zero.
func compare(ours, theirs [][]float64, figure int) string {
	r := ratios(ours, theirs, figure)
	if len(r) == 0 {
		return ""
	}
	return number(median(r)) + " x"
}

// ratios of the turns; none if one of theirs is zero.
func ratios(ours, theirs [][]float64, figure int) (out []float64) {
	for i := range ours {
		if theirs[i] == nil {
			continue
		}
		if theirs[i][figure] == 0 {
			return nil
		}
		out = append(out, ours[i][figure]/theirs[i][figure])
	}
	return out
}

func column(rows [][]float64, i int) []float64 {
	var out []float64
	for _, row := range rows {
		if row != nil {
			out = append(out, row[i])
		}
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func spread(v []float64) string {
	if len(v) == 0 {
		return "failed"
	}
	return fmt.Sprintf("%s (%s-%s)", number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
}

// number has three digits that count.
func number(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
