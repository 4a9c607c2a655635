// Command arrive measures how long a server takes from `bmc create` to its first
// ssh answer, in the lab, beside what one would do by hand on the very same QEMU
// machine: write the raw image to the disk with dd inside a guest, and boot it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/e2e/harness"
)

type options struct {
	bin, ramdisk, images, dir, rows string
	firmware                        string // of the machines that are measured now
	kernel                          string // of the ramdisk, as rows name it
	runs, memory                    int
	diskGiB                         int
	keep                            bool
	budget                          time.Duration
}

func main() {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "in-namespace-") {
		if err := inside(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of the binaries")
	flag.StringVar(&o.ramdisk, "ramdisk", "build/ramdisk", "folder of the ramdisk")
	flag.StringVar(&o.images, "images", "build/images/tiny.img,build/images/debian12.img", "disk images, with commas between; one that is not there is left out")
	firmwares := flag.String("firmware", "bios,uefi", "firmware of the machines, with commas between")
	flag.StringVar(&o.dir, "dir", "", "folder of lab and disks; a temporary one when left out")
	flag.StringVar(&o.rows, "rows", "", "file that rows of the table are added to")
	flag.IntVar(&o.runs, "runs", 3, "turns for each image")
	flag.IntVar(&o.memory, "memory", 512, "MiB of each machine")
	flag.IntVar(&o.diskGiB, "disk", 2, "GiB of each machine's disk")
	flag.BoolVar(&o.keep, "keep", false, "keep the lab's files")
	flag.DurationVar(&o.budget, "budget", time.Hour, "begin nothing after this time")
	short := flag.Bool("short", false, "one turn each, and nothing begun after ten minutes")
	flag.Parse()
	if *short {
		o.runs, o.budget = 1, 10*time.Minute
	}
	harness.Main(func(ctx context.Context) error { return run(ctx, o, strings.Split(*firmwares, ",")) })
}

func run(ctx context.Context, o options, firmwares []string) (err error) {
	if err := harness.Absolute(&o.bin, &o.ramdisk); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "bmc-arrive-"); err != nil {
			return err
		}
		if !o.keep {
			defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
		}
	}
	fmt.Println(process.Machine())
	fmt.Printf("machines: QEMU (TCG), %d MiB, 1 CPU, virtio disk of %d GiB, cache=unsafe; the peer's are the same\n", o.memory, o.diskGiB)
	if o.kernel, err = ramdiskKernel(o.ramdisk); err != nil {
		return err
	}
	fmt.Println("the ramdisk's kernel, which is the guest's, too:", o.kernel)
	began := time.Now()
	var rows []table.Row
	var failed []error
	for _, o.firmware = range firmwares {
		r, err := measureAll(ctx, o, began)
		rows = append(rows, r...)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", o.firmware, err))
		}
	}
	fmt.Println()
	return errors.Join(errors.Join(failed...), table.Print(os.Stdout, rows), table.Append(o.rows, rows...))
}

// measureAll measures all images on machines of one firmware. What it cannot begin
// is a row that says so.
func measureAll(ctx context.Context, o options, began time.Time) (rows []table.Row, err error) {
	var us *ours
	defer func() {
		if us != nil {
			err = errors.Join(err, us.close(context.WithoutCancel(ctx)))
		}
	}()
	o.dir = filepath.Join(o.dir, o.firmware)
	for _, image := range strings.Split(o.images, ",") {
		if err := harness.Absolute(&image); err != nil {
			return rows, err
		}
		note := ""
		if _, err := os.Stat(image); errors.Is(err, fs.ErrNotExist) {
			note = "the image is not built (make image, make tiny): skipped"
		} else if time.Since(began) > o.budget {
			note = fmt.Sprintf("no time left of %v: skipped", o.budget)
		}
		if note != "" {
			row := table.Row{What: "create to ssh, " + nameOf(image) + ", " + o.firmware, Note: note}
			fmt.Printf("%s: %s\n", row.What, note)
			rows = append(rows, row)
			continue
		}
		if us == nil {
			if us, err = newOurs(ctx, o); err != nil {
				return rows, err
			}
		}
		r, err := measure(ctx, o, us, image, began)
		rows = append(rows, r...)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", filepath.Base(image), err)
		}
	}
	return rows, nil
}

// nameOf is an image's name, by its file.
func nameOf(image string) string {
	return strings.TrimSuffix(filepath.Base(image), filepath.Ext(image))
}

// ramdiskKernel names the kernel: how soon a machine is in the ramdisk depends on it.
func ramdiskKernel(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return "", err
	}
	var d struct {
		Package string `json:"kernel_package"`
		Release string `json:"kernel_release"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return "", fmt.Errorf("manifest.json of the ramdisk: %w", err)
	}
	if strings.HasPrefix(d.Package, "linux-source-") {
		return d.Release + ", ours", nil
	}
	return d.Release + ", Debian's", nil
}

// measure runs one image in turns: ours warm, ours cold, the peer.
func measure(ctx context.Context, o options, us *ours, image string, began time.Time) (_ []table.Row, err error) {
	name := nameOf(image)
	load := loadAverage()
	if err := us.push(ctx, image); err != nil {
		return nil, err
	}
	them, err := newPeer(ctx, o, image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, them.close()) }()
	seconds := map[string][]float64{}
	for turn := range o.runs {
		if time.Since(began) > o.budget && turn > 0 {
			fmt.Println("no time for more turns")
			break
		}
		for _, w := range []struct {
			what string
			run  func(context.Context) (time.Duration, error)
		}{
			{"warm", func(ctx context.Context) (time.Duration, error) { return us.arrive(ctx, name, true) }},
			{"cold", func(ctx context.Context) (time.Duration, error) { return us.arrive(ctx, name, false) }},
			{"dd", them.arrive},
		} {
			took, err := w.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("turn %d, %s: %w", turn+1, w.what, err)
			}
			fmt.Printf("%s, %s, turn %d, %s: %.1f s\n", name, o.firmware, turn+1, w.what, took.Seconds())
			seconds[w.what] = append(seconds[w.what], took.Seconds())
		}
	}
	var rows []table.Row
	for _, r := range []struct{ what, aim string }{{"warm", "at most 1.3 x"}, {"cold", "at most 1.8 x"}} {
		row := table.Row{What: r.what + " create to ssh, " + name + ", " + o.firmware, Unit: "s", Ours: table.Of(seconds[r.what]), Peer: "dd in a guest, reset, boot",
			Them: table.Of(seconds["dd"]), Ratio: table.InTurns(seconds[r.what], seconds["dd"]), Aim: r.aim, Load: load,
			Note: "ramdisk's kernel: " + o.kernel}
		rows = append(rows, row)
	}
	return rows, nil
}
