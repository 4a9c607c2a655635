package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bmc/controlplane"
	"bmc/metal"
)

// initFrom makes a lost cluster again.
func (f *flags) initFrom(ctx context.Context, c controlplane.Config, snapshot, tokenFile string) error {
	r, err := controlplane.InitFromSnapshot(ctx, c, snapshot, tokenFile)
	if err != nil {
		return err
	}
	fmt.Fprintf(f.stdout, "Cluster %s is back with one node, %s: revision %d, %d servers, generation %d.\n", r.ClusterID, c.Name, r.Revision, r.Servers, r.Generation)
	if tokenFile != "" {
		fmt.Fprintf(f.stdout, "Administrator's token: %s\n", tokenFile)
	}
	if len(r.Frozen) > 0 {
		fmt.Fprintf(f.stderr, "Frozen until their agents have said what they knew: %s. To see them: bmc rack list\n", strings.Join(r.Frozen, ", "))
	}
	if len(r.Lost) > 0 {
		fmt.Fprintf(f.stderr, "Written off: %s. They must never start again with their old data.\n", strings.Join(r.Lost, ", "))
	}
	fmt.Fprintf(f.stderr, "Next: bmc-controlplane run --config %s\n", f.config)
	fmt.Fprintln(f.stderr, "Then, for each further node: bmc cluster join-token --role node")
	return nil
}

func (f *flags) recoverCommand() *cobra.Command {
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use: "recover --config FILE [--dry-run]", Short: "Make a cluster of this node alone, when most others are lost for good", Args: noArgs,
		Long: "For a cluster that has lost its quorum for good: of three nodes two, of five three. What this node's log\n" +
			"holds counts as done; what only the others had is lost. While they can still be started, start them instead.\n" +
			"The node must be stopped. Its racks are frozen until their agents have said what they knew, and the\n" +
			"generation rises, so that no old lease counts. Then let new nodes join.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := f.load()
			if err != nil {
				return err
			}
			r, err := controlplane.PlanRecovery(c)
			if err != nil {
				return err
			}
			if err := f.showRecovery(r); err != nil {
				return err
			}
			if dryRun {
				fmt.Fprintf(f.stderr, "Nothing was changed. To do it: bmc-controlplane recover --config %s\n", f.config)
				return nil
			}
			if !yes {
				if err := f.confirm(r.ClusterID); err != nil {
					return err
				}
			}
			if err := r.Do(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintf(f.stdout, "Cluster %s has one node now, %s; generation %d.\n", r.ClusterID, r.Name, r.NewGeneration)
			fmt.Fprintf(f.stderr, "Next: bmc-controlplane run --config %s\nThen, for each further node: bmc cluster join-token --role node\n", f.config)
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be kept and lost, and change nothing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (f *flags) showRecovery(r *controlplane.Recovery) error {
	w := tabwriter.NewWriter(f.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "cluster\t%s\n", r.ClusterID)
	fmt.Fprintf(w, "log\tindex %d, term %d; snapshot up to %d\n", r.Index, r.Term, r.Snapshot)
	fmt.Fprintf(w, "state\trevision %d of %s: %d servers, %d operations under way\n", r.Revision, r.Time.UTC().Format(time.RFC3339), r.Servers, r.Operations)
	for _, m := range r.Members {
		fate := "WRITTEN OFF"
		if m.Self {
			fate = "becomes the whole cluster"
		}
		kind := "non-voter"
		if m.Voter {
			kind = "voter"
		}
		fmt.Fprintf(w, "node\t%s (%s, %s, %s)\t%s\n", m.Name, m.ID, m.Address, kind, fate)
	}
	fmt.Fprintf(w, "generation\t%d, becomes %d: no lease of before counts\n", r.Generation, r.NewGeneration)
	if len(r.Racks) > 0 {
		fmt.Fprintf(w, "frozen\tracks %s, until their agents have said what they knew\n", strings.Join(r.Racks, ", "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(f.stderr, "\nWARNING: what the other nodes acknowledged after index %d, and this one has not heard of, is lost.\n"+
		"WARNING: entries at the end that nobody acknowledged count as done.\n"+
		"WARNING: the nodes written off must never start again with their old data: destroy it, or there are two clusters.\n"+
		"If another node survives, choose the one with the higher term, then the higher index: run recover --dry-run on each.\n", r.Index)
	return nil
}

// confirm asks for the cluster's ID.
func (f *flags) confirm(cluster string) error {
	fmt.Fprintf(f.stderr, "To go on, type the cluster's ID (%s): ", cluster)
	line, err := bufio.NewReader(f.stdin).ReadString('\n')
	if strings.TrimSpace(line) == cluster {
		return nil
	}
	fmt.Fprintln(f.stderr)
	why := "that is not it"
	if err != nil {
		why = "there was no answer"
	}
	return metal.Errorf(metal.CodeWrongState, "%s; nothing was changed", why).WithHint("bmc-controlplane recover --config %s --yes", f.config)
}
