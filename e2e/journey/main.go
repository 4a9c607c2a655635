// Command journey runs the whole life of servers in a lab: up, enrol, create,
// login, restart, destroy, prove the wipe, down. `make demo` and `make smoke`
// are this program.
package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"

	"bmc/e2e/harness"
)

func main() { harness.Main(run) }

func run(ctx context.Context) (err error) {
	j := &journey{}
	flag.StringVar(&j.opts.Bin, "bin", "bin", "folder of the binaries")
	flag.StringVar(&j.opts.Ramdisk, "ramdisk", "build/ramdisk", "folder of the ramdisk")
	flag.StringVar(&j.image, "image", "build/images/debian12.img", "disk image to deploy")
	flag.StringVar(&j.opts.Dir, "dir", "", "folder of the lab; a temporary one when left out")
	flag.IntVar(&j.opts.Nodes, "nodes", 3, "control-plane nodes")
	flag.IntVar(&j.opts.Servers, "servers", 2, "machines")
	flag.StringVar(&j.opts.Firmware, "firmware", "bios,uefi", "firmware of the machines, in turn")
	flag.StringVar(&j.opts.OOB, "bmc", "go", "management controllers: go or ipmi_sim")
	flag.BoolVar(&j.warm, "warm", false, "have the machines wait in the ramdisk before they are rented")
	flag.StringVar(&j.opts.Disk, "disk", "4GiB", "size of each disk")
	s3 := flag.String("s3", "embedded", "image store: embedded, or minio:PATH")
	flag.Parse()
	j.opts.Extra = []string{"--s3", *s3}
	if err := harness.Absolute(&j.opts.Bin, &j.opts.Ramdisk, &j.image); err != nil {
		return err
	}
	if j.opts.Dir == "" {
		if j.opts.Dir, err = os.MkdirTemp("", "bmc-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(j.opts.Dir)) }()
	}
	j.opts.Log = os.Stdout
	err = j.travel(ctx)
	if err != nil {
		j.explain(context.WithoutCancel(ctx))
	}
	if j.lab != nil {
		err = errors.Join(err, j.phase("lab down", func() error { return j.lab.Down(context.WithoutCancel(ctx)) }))
	}
	if err != nil {
		return err
	}
	j.table()
	return nil
}

// image's name is its file's, without the ending.
func imageName(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}
