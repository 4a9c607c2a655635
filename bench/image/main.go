// Image measures how fast an image gets from the rack's agent onto a disk: fetched
// over HTTP, decoded, written past the page cache, flushed, and read back. It stands
// beside what the same disk takes when nothing is fetched and nothing decoded, and
// beside the line that a person would type: curl | zstd -d | dd. All of it runs on
// one machine, the agent in a process of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const roleServe = "serve" // the agent's side; this program starts itself

type settings struct {
	rounds  int
	image   string
	dir     string
	device  string
	slow    int64
	rows    string
	profile string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleServe {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var s settings
	flag.IntVar(&s.rounds, "rounds", 5, "runs of each, in turns")
	flag.StringVar(&s.image, "image", "build/images/debian12.img", "the raw image")
	flag.StringVar(&s.dir, "dir", "build/bench-image", "for the disk and the image's chunks, on the disk to measure; kept for the next time")
	flag.StringVar(&s.device, "device", "", "a block device to write INSTEAD of a file in dir: all that is on it is lost")
	flag.Int64Var(&s.slow, "slow", 500, "MB/s: measure also with the disk's writes limited to that, by a control group")
	flag.StringVar(&s.rows, "rows", "", "add the table's rows to this file")
	flag.StringVar(&s.profile, "profile", "", "write a CPU profile of the writer to this file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "image:", errors.Join(err, ctx.Err()))
		os.Exit(1)
	}
}
