package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

func (a *app) destroyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "destroy SERVER…", Short: "Give servers back; their disks are ERASED", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, "wants the servers to destroy")
			}
			return a.destroy(cmd.Context(), args)
		},
	}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	a.waitFlags(cmd)
	return cmd
}

func (a *app) destroy(ctx context.Context, refs []string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	var servers []*bmcv1.Server
	for _, ref := range refs { // every name is right before anything is erased
		s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	var ops []*bmcv1.Operation
	for _, s := range servers {
		if err := a.confirmErase(s); err != nil {
			return a.begun(ops, len(servers), err)
		}
		op, err := c.Servers.DestroyServer(ctx, &bmcv1.DestroyServerRequest{Ref: s.GetId()})
		if err != nil {
			return a.begun(ops, len(servers), err)
		}
		ops = append(ops, op)
	}
	return a.finish(ctx, ops, func(s *bmcv1.Server) {
		a.note("released; %s is wiped and %s again", s.GetName(), s.GetState())
	})
}

// confirmErase asks for the name on a terminal and wants --yes elsewhere.
func (a *app) confirmErase(s *bmcv1.Server) error {
	if a.yes {
		return nil
	}
	var total uint64
	for _, d := range s.GetHardware().GetDisks() {
		total += d.GetSizeBytes()
	}
	what := fmt.Sprintf("Releases %s, ERASES %d disk(s) (%s).", target0(s), len(s.GetHardware().GetDisks()), bytesText(total))
	return a.confirm(what, target0(s), "bmc destroy "+target0(s)+" --yes")
}

func (a *app) confirm(what, name, hint string) error {
	if a.yes {
		return nil
	}
	if !a.terminal(a.in) {
		return errUsage{metal.Errorf(metal.CodeInvalid, "%s Without a terminal this needs --yes", what).WithHint("%s", hint)}
	}
	fmt.Fprintf(a.err, "%s Type %s: ", what, name)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil {
		return metal.Errorf(metal.CodeCancelled, "nothing was confirmed, nothing was done")
	}
	if strings.TrimSpace(line) != name {
		return metal.Errorf(metal.CodeCancelled, "%q is not %q; nothing was done", strings.TrimSpace(line), name)
	}
	return nil
}
