package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bmc/lab"
)

func (o *options) client() (*lab.Client, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, err
	}
	return lab.NewClient(dir), nil
}

func faultCommand(o *options) *cobra.Command {
	var spec lab.FaultSpec
	var length, delay, jitter time.Duration
	c := &cobra.Command{
		Use:   "fault KIND TARGET...",
		Short: "Do harm to networks, daemons or controllers; prints the fault's ID",
		Long: `Do harm to networks, daemons or controllers, until bmc-lab heal. Prints the
fault's ID. When it was applied, fired first and was healed goes into faults.jsonl.

Networks; TARGET is a node, an agent, a server, s3, mgmt (the users' side), a rack
(its controllers) or RACK-probe:
  partition   A B cannot hear each other; lists: cp1 cp2,cp3; "cp1 rest" is everybody else
              --one-way: B does not hear A
  loss        --fraction of frames is lost (0.2)
  delay       --delay (100ms) and up to --jitter more
  reorder     --fraction of frames is overtaken by others (0.2)
  duplicate   --fraction of frames comes twice (0.2)
  block       the port is dead for --delay (30s) whenever it comes up, as spanning tree has it
  firewall    drops --port, TCP and UDP
  rogue-dhcp  a second DHCP server in rack TARGET offers nonsense
Daemons:
  kill        SIGKILL; healed by a start
  stop        SIGSTOP; healed by SIGCONT
  disk-full   each write to a node's log or an agent's journal fails with ENOSPC (*)
  log-hang    each such write hangs (*)
  failpoint   DAEMON POINT ACTION: [after N] [times N] kill|stop|hang|sleep DURATION|error TEXT (*)
Controllers of servers, in Go:
  bmc-hang      answers nothing
  bmc-lie       says OK and does nothing; says that the power is on
  bmc-refuse    answers "node busy"
  bmc-drop      loses --fraction of packets (0.2)
  bmc-slow      answers --delay later (3s)
  bmc-sessions  has no session left
(*) needs daemons of make build-failpoints: bmc-lab up --bin bin/failpoints`,
		Example: `  bmc-lab fault partition cp1 rest --for 30s
  bmc-lab fault loss r1-a1 --network r1 --fraction 0.2 --seed 7
  bmc-lab fault firewall r1-a1 --port 7946
  bmc-lab fault failpoint r1-a1 agent/journal/deploy/write-image/begun/before kill
  bmc-lab fault bmc-lie r1-u01`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{fmt.Errorf("want a kind and a target; kinds: %s", strings.Join(lab.FaultKinds(), " "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Kind, spec.Targets = args[0], args[1:]
			if spec.Kind == lab.FaultPoint {
				if len(args) < 4 {
					return usageError{fmt.Errorf("want fault failpoint DAEMON POINT ACTION, e.g. cp1 raft/log/before kill")}
				}
				spec.Targets, spec.Point, spec.Action = args[1:2], args[2], strings.Join(args[3:], " ")
			}
			spec.For, spec.Delay, spec.Jitter = lab.Duration(length), lab.Duration(delay), lab.Duration(jitter)
			client, err := o.client()
			if err != nil {
				return err
			}
			f, err := client.Fault(cmd.Context(), spec)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), f.ID)
			return nil
		},
	}
	f := c.Flags()
	f.Uint64Var(&spec.Seed, "seed", 1, "decides which frames are hit")
	f.DurationVar(&length, "for", 0, "heal by itself after that long")
	f.BoolVar(&spec.OneWay, "one-way", false, "a partition: only from the first to the others")
	f.StringVar(&spec.Network, "network", "", "only there: mgmt, a rack, or RACK-oob (default: wherever the targets are)")
	f.Uint16Var(&spec.Port, "port", 0, "a network's fault: only packets from or to this TCP or UDP port")
	f.Float64Var(&spec.Fraction, "fraction", 0, "of frames or packets, 0 to 1 (default 0.2)")
	f.DurationVar(&delay, "delay", 0, "of delay (100ms), bmc-slow (3s); how long a port blocks (30s)")
	f.DurationVar(&jitter, "jitter", 0, "more delay, up to that")
	return c
}

func healCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "heal [ID|all]", Short: "Undo a fault, or all", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return client.Heal(cmd.Context(), append(args, "all")[0])
		},
	}
}

func faultsCommand(o *options) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "faults", Short: "List faults, and how often they fired", Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			all, err := client.Faults(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tKIND\tTARGETS\tOPTIONS\tSEED\tSTATE\tFIRED")
			for _, f := range all {
				state := "active"
				if f.Healed != nil {
					state = "healed"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\n", f.ID, f.Kind, strings.Join(f.Targets, " "), f.Options(), f.Seed, state, f.Fired)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func daemonCommand(o *options, use, short string, do func(context.Context, *lab.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " DAEMON", Short: short, Args: exactly(1, "a daemon"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return do(cmd.Context(), client, args[0])
		},
	}
}

func startCommand(o *options) *cobra.Command {
	return daemonCommand(o, "start", "Start a daemon that has ended",
		func(ctx context.Context, c *lab.Client, name string) error { return c.StartDaemon(ctx, name) })
}

func restartCommand(o *options) *cobra.Command {
	return daemonCommand(o, "restart", "End a daemon in order and start it again",
		func(ctx context.Context, c *lab.Client, name string) error { return c.RestartDaemon(ctx, name) })
}

func contCommand(o *options) *cobra.Command {
	return daemonCommand(o, "cont", "Let a stopped daemon go on",
		func(ctx context.Context, c *lab.Client, name string) error { return c.Cont(ctx, name) })
}
