package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/internal/manifest"
	"bmc/ramdisk/block"
	"bmc/ramdisk/imaging"
)

// rig is what a run needs.
type rig struct {
	settings
	source
	disk     string
	chunkURL string
	load     float64
	runs     map[string][]float64 // MB/s of the image's data
}

func measure(ctx context.Context, s settings) error {
	src, err := prepare(ctx, s)
	if err != nil {
		return err
	}
	r := &rig{settings: s, source: src, runs: map[string][]float64{}, load: load()}
	if r.disk, err = disk(s, src.manifest.SizeBytes); err != nil {
		return err
	}
	child, chunkURL, err := start(s, src)
	if err != nil {
		return err
	}
	defer func() { _ = child.End() }() // it is killed
	r.chunkURL = chunkURL
	fsys, err := process.Filesystem(s.dir)
	if err != nil {
		return err
	}
	fmt.Printf("%s; %s, written past the page cache\n", process.Machine(), fsys)
	fmt.Printf("image of %d MB, %d MB of it data, %d MB as stored\n", src.manifest.SizeBytes/1e6, src.manifest.DataBytes()/1e6, stored(src.manifest)/1e6)
	if err := r.ours(ctx, false); err != nil { // the cache is filled, connections are tried
		return err
	}
	clear(r.runs)
	if err := r.turns(ctx); err != nil {
		return err
	}
	return r.report()
}

func stored(m *manifest.Manifest) (n int64) {
	for _, c := range m.Chunks {
		n += c.StoredSize
	}
	return n
}

func load() float64 {
	text, _ := os.ReadFile("/proc/loadavg") // then it is 0
	first, _, _ := strings.Cut(string(text), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}

// Names of what is measured.
const (
	wrote     = "ours: fetch + decode + write + flush"
	apart     = "ours: the same, then read back"
	overlaps  = "ours: read back meanwhile"
	limit     = "only write + flush"
	limitBoth = "only write + flush, then read"
	byFio     = "fio"
	byHand    = "curl | zstd -d | dd"
	decodes   = "only decode, in memory, all cores"
	slowWrote = "ours, on the slower disk"
	slowLimit = "only write + flush, on the slower disk"
)

func (r *rig) turns(ctx context.Context) error {
	if r.profile != "" {
		f, err := os.Create(r.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	steps := []func(context.Context) error{
		func(ctx context.Context) error { return r.ours(ctx, true) },
		func(ctx context.Context) error { return r.ours(ctx, false) },
		r.limits, r.others, r.decode, r.slower,
	}
	for round := range r.rounds {
		for i := range steps {
			if err := steps[(i+round)%len(steps)](ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rig) note(what string, d time.Duration) {
	r.runs[what] = append(r.runs[what], float64(r.manifest.DataBytes())/1e6/d.Seconds())
}

// ours notes a run of each kind.
func (r *rig) ours(ctx context.Context, after bool) error {
	res, whole, err := r.image(ctx, after)
	if err != nil {
		return err
	}
	if !after {
		r.note(overlaps, whole)
		return nil
	}
	r.note(wrote, res.After)
	r.note(apart, whole)
	return nil
}

// image is the ramdisk's own code, from the fetch to the last byte read back.
func (r *rig) image(ctx context.Context, after bool) (res imaging.Result, whole time.Duration, err error) {
	if err := clean(ctx, r.disk, r.manifest); err != nil {
		return res, 0, err
	}
	f, err := block.Open(r.disk)
	if err != nil {
		return res, 0, err
	}
	defer f.Close()
	fetcher, err := imaging.NewFetcher(r.chunkURL, imaging.Connections)
	if err != nil {
		return res, 0, err
	}
	defer fetcher.Close()
	began := time.Now()
	res, err = imaging.Write(ctx, f, r.manifest, fetcher, imaging.Options{Rotating: after})
	return res, time.Since(began), err
}

// decode is what the processors can do at most.
func (r *rig) decode(ctx context.Context) error {
	frames := make([][]byte, len(r.manifest.Chunks))
	for i, c := range r.manifest.Chunks {
		data, err := os.ReadFile(filepath.Join(chunkDir(r.dir), c.StoredSHA256.String()))
		if err != nil {
			return err
		}
		frames[i] = data
	}
	began := time.Now()
	err := block.Each(ctx, len(frames), r.manifest.ChunkSize, func(_ context.Context, i int, buf []byte) error {
		_, err := manifest.DecodeFrame(r.manifest.Chunks[i], frames[i], buf)
		return err
	})
	r.note(decodes, time.Since(began))
	return err
}

// slower is a disk as many servers have it.
func (r *rig) slower(ctx context.Context) error {
	if r.slow == 0 {
		return nil
	}
	undo, err := throttle(r.disk, r.slow*1e6)
	if err != nil {
		fmt.Println("no slower disk:", err)
		r.slow = 0
		return nil
	}
	res, _, err := r.image(ctx, true)
	w, alone := only(ctx, r.disk, r.manifest, true)
	if err = errors.Join(err, alone, undo()); err != nil {
		return err
	}
	r.note(slowWrote, res.After)
	r.note(slowLimit, w)
	return nil
}

func (r *rig) limits(ctx context.Context) error {
	w, err := only(ctx, r.disk, r.manifest, true)
	if err != nil {
		return err
	}
	back, err := only(ctx, r.disk, r.manifest, false)
	r.note(limit, w)
	r.note(limitBoth, w+back)
	return err
}

func (r *rig) others(ctx context.Context) error {
	rate, ok, err := fio(ctx, r.disk, r.manifest)
	if err != nil {
		return err
	}
	if ok {
		r.runs[byFio] = append(r.runs[byFio], rate)
	}
	if r.stream == "" {
		return nil
	}
	u, err := url.Parse(fmt.Sprintf(r.chunkURL, "x"))
	if err != nil {
		return errors.New("the chunk URL is malformed")
	}
	d, err := typed(ctx, "http://"+u.Host+"/images/whole/"+r.stream, r.disk)
	r.note(byHand, d)
	return err
}

func (r *rig) report() error {
	for _, name := range []string{wrote, apart, overlaps, limit, limitBoth, byFio, byHand, decodes, slowWrote, slowLimit} {
		if runs := r.runs[name]; len(runs) > 0 {
			fmt.Printf("%-40s %s MB/s\n", name, table.Of(runs))
		} else {
			fmt.Printf("%-40s not there: skipped\n", name)
		}
	}
	row := func(what, ours, peer, theirs, aim string) table.Row {
		t := table.Row{What: what, Unit: "MB/s", Ours: table.Of(r.runs[ours]), Peer: peer, Them: table.Of(r.runs[theirs]),
			Ratio: table.InTurns(r.runs[ours], r.runs[theirs]), Aim: aim, Load: r.load}
		if len(r.runs[theirs]) == 0 {
			t.Note = peer + ": not there, skipped"
		}
		return t
	}
	written := row("image: fetch + decode + write + flush", wrote, "O_DIRECT writes alone", limit, "at least 0.8 x")
	written.Limit, written.Note = table.Of(r.runs[decodes]), "limit: decoding in memory on all cores"
	rows := []table.Row{
		written,
		row(fmt.Sprintf("image: the same, disk limited to %d MB/s", r.slow), slowWrote, "O_DIRECT writes alone", slowLimit, "at least 0.8 x"),
		row("image: the same", wrote, "fio", byFio, ""),
		row("image: with all of it read back meanwhile", overlaps, "read back afterwards", apart, ""),
		row("image: with all of it read back", overlaps, "O_DIRECT writes, then reads, alone", limitBoth, ""),
		row("image: with all of it read back", overlaps, "curl | zstd -d | dd, nothing read back", byHand, ""),
	}
	fmt.Println()
	return errors.Join(table.Print(os.Stdout, rows), table.Append(r.rows, rows...))
}
