package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bmc/internal/config"
	"bmc/lab"
)

func upCommand(o *options) *cobra.Command {
	var cfg lab.Config
	var firmware, disk string
	c := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up and return when all of it is there",
		Example: `  bmc-lab up --servers 2
  bmc-lab up --racks 2 --agents 2 --bin bin/failpoints`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, err := config.ParseBytes(disk)
			if err != nil {
				return usageError{fmt.Errorf("--disk: %w", err)}
			}
			cfg.Dir, cfg.DiskBytes, cfg.Firmware = o.dir, int64(size), strings.Split(firmware, ",")
			out, begin := cmd.OutOrStdout(), time.Now()
			err = lab.Start(cmd.Context(), cfg, func(step string, took time.Duration) {
				fmt.Fprintf(out, "%6.1f s  %s\n", took.Seconds(), step)
			})
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(o.dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%6.1f s  in all; next: eval \"$(bmc-lab env --dir %s)\"\n", time.Since(begin).Seconds(), dir)
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 3, "control-plane nodes")
	f.IntVar(&cfg.Racks, "racks", 1, "racks")
	f.IntVar(&cfg.Relayed, "relayed", 0, "of the racks, the last ones have no agents: those of r1 serve them through a relay")
	f.IntVar(&cfg.Agents, "agents", 1, "agents per rack")
	f.BoolVar(&cfg.NoGossip, "no-gossip", false, "agents hear no gossip, as behind a firewall: they get a list of the nodes")
	f.IntVar(&cfg.Servers, "servers", 2, "servers per rack")
	f.IntVar(&cfg.Light, "light", 0, "light machines per rack: simulated, without a CPU")
	f.Uint64Var(&cfg.LightSeed, "light-seed", 1, "seed of the light machines' random delays")
	f.Float64Var(&cfg.LightPace, "light-pace", 1, "how many times as long as usual light machines take to start")
	f.StringVar(&firmware, "firmware", "bios,uefi", "the servers' firmware, in turn: bios, uefi")
	f.StringVar(&cfg.AgentLog, "agent-log", "info", "how much agents log: debug, info, warn, error")
	f.StringVar(&cfg.BMC, "bmc", lab.BMCGo, "the servers' controllers: go or ipmi_sim")
	f.StringVar(&disk, "disk", "4GiB", "each server's disk")
	f.IntVar(&cfg.MemoryMiB, "memory", 512, "each server's memory, in MiB")
	f.IntVar(&cfg.CPUs, "cpus", 1, "each server's CPUs")
	f.StringVar(&cfg.Bin, "bin", "", "folder of bmc-controlplane and bmc-agent (default: where bmc-lab is);\nbin/failpoints, of make build-failpoints, for faults of disks and at named points")
	f.StringVar(&cfg.Ramdisk, "ramdisk", filepath.Join("build", "ramdisk"), "folder of the ramdisk's vmlinuz and initrd.img")
	f.StringVar(&cfg.S3, "s3", "embedded", "object store: embedded, minio:PROGRAM, or a YAML file with endpoint, bucket, access_key, secret_key_file, ca_file, region")
	return c
}

func downCommand(o *options) *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Take the lab down and remove its files",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(o.dir)
			if err != nil {
				return err
			}
			begin := time.Now()
			was, err := lab.Down(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if was {
				fmt.Fprintf(cmd.OutOrStdout(), "%6.1f s  lab is down\n", time.Since(begin).Seconds())
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "no lab was running in", dir)
			}
			if keep {
				return nil
			}
			return lab.Clean(dir)
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "keep disks, logs and everything else in the folder")
	return c
}
