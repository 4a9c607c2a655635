package main

import (
	"context"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

func (a *app) cancelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel SERVER|OPERATION", Short: "Stop what is under way; a deployment's disks are ERASED", Args: exactly("SERVER|OPERATION"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.cancelOperation(cmd.Context(), args[0]) },
	}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	a.waitFlags(cmd)
	return cmd
}

func (a *app) cancelOperation(ctx context.Context, ref string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	op, err := a.underWay(ctx, ref)
	if err != nil {
		return err
	}
	if op.GetKind() == string(metal.KindDeploy) {
		what := "Cancels the deployment of " + op.GetTarget() + " and ERASES " + op.GetServerName() + "."
		if err := a.confirm(what, op.GetTarget(), "bmc cancel "+op.GetId()+" --yes"); err != nil {
			return err
		}
	}
	next, err := c.Operations.CancelOperation(ctx, &bmcv1.CancelOperationRequest{Id: op.GetId()})
	if err != nil {
		return err
	}
	if next.GetId() == op.GetId() { // nothing to clean up
		a.note("%s of %s was cancelled; %s is %s", op.GetKind(), op.GetTarget(), op.GetServerName(), firstOf(next.GetServer().GetState(), "as it was"))
		return a.printOperations([]*bmcv1.Operation{next})
	}
	return a.finish(ctx, []*bmcv1.Operation{next}, func(s *bmcv1.Server) {
		a.note("cancelled; %s is wiped and %s again", s.GetName(), s.GetState())
	})
}

// underWay finds an operation by its ID, or what runs on a server.
func (a *app) underWay(ctx context.Context, ref string) (*bmcv1.Operation, error) {
	c, err := a.api()
	if err != nil {
		return nil, err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if metal.CodeOf(err) != metal.CodeNotFound && metal.CodeOf(err) != metal.CodeAmbiguous && err != nil {
		return nil, err // it was waited for: not twice
	}
	if err != nil {
		op, opErr := c.Operations.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: ref})
		if opErr != nil {
			return nil, err
		}
		return op, nil
	}
	if s.GetOperationId() == "" {
		return nil, metal.Errorf(metal.CodeWrongState, "nothing is under way on %s: it is %s", ref, s.GetState()).WithHint("bmc explain %s", ref)
	}
	return c.Operations.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: s.GetOperationId()})
}

// holdCommand is protect or unprotect.
func (a *app) holdCommand(use, short string, on bool) *cobra.Command {
	return &cobra.Command{Use: use + " SERVER", Short: short, Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setHold(cmd.Context(), args[0], string(metal.HoldProtected), on)
		}}
}

func (a *app) setHold(ctx context.Context, ref, hold string, on bool) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Inventory.SetHold(ctx, &bmcv1.SetHoldRequest{Ref: ref, Hold: hold, On: on})
	if err != nil {
		return err
	}
	word := "is no longer"
	if on {
		word = "is"
	}
	a.note("%s %s %s", target0(s), word, hold)
	return a.printServers([]*bmcv1.Server{s})
}

// upkeepCommands are an operator's verbs for servers that nobody rents.
func (a *app) upkeepCommands() []*cobra.Command {
	clean := &cobra.Command{Use: "clean SERVER", Short: "Wipe a server that nobody rents, again", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			op, err := c.Inventory.CleanServer(cmd.Context(), &bmcv1.CleanServerRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), []*bmcv1.Operation{op}, func(s *bmcv1.Server) { a.note("%s is wiped and %s", s.GetName(), s.GetState()) })
		}}
	a.waitFlags(clean)
	var reason string
	quarantine := &cobra.Command{Use: "quarantine SERVER", Short: "Take a failed server out of use until it is cleaned", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeServer(func(c bmcv1.InventoryClient) (*bmcv1.Server, error) {
				return c.QuarantineServer(cmd.Context(), &bmcv1.QuarantineServerRequest{Ref: args[0], Reason: reason})
			})
		}}
	quarantine.Flags().StringVar(&reason, "reason", "", "why, for whoever finds it")
	retire := &cobra.Command{Use: "retire SERVER", Short: "Take a server out of service; it stays in the inventory", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeServer(func(c bmcv1.InventoryClient) (*bmcv1.Server, error) {
				return c.RetireServer(cmd.Context(), &bmcv1.RetireServerRequest{Ref: args[0]})
			})
		}}
	var off bool
	hold := &cobra.Command{Use: "hold SERVER protected|cordoned|parked|no-kexec", Short: "Keep a server from being destroyed, rented, worked on, or started by kexec",
		Long: "protected: not destroyed. cordoned: not rented to anybody new. parked: nothing starts on it.\n" +
			"no-kexec: its images are started by the firmware.",
		Args: exactly("SERVER", "HOLD"), RunE: func(cmd *cobra.Command, args []string) error {
			return a.setHold(cmd.Context(), args[0], args[1], !off)
		}}
	hold.Flags().BoolVar(&off, "clear", false, "take the hold back")
	return []*cobra.Command{clean, quarantine, retire, hold}
}

func (a *app) changeServer(change func(bmcv1.InventoryClient) (*bmcv1.Server, error)) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := change(c.Inventory)
	if err != nil {
		return err
	}
	a.note("%s is %s", s.GetName(), s.GetState())
	return a.printServers([]*bmcv1.Server{s})
}

func (a *app) thawCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "thaw RACK", Short: "Let work start on a rack that a restored backup has frozen", Args: exactly("RACK"),
		Long: "After a restore a rack stays frozen until its agent has said what it knew. Thawing it by hand\n" +
			"says that the backup is right: a machine that was rented after the backup may be wiped.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			r, err := c.Inventory.GetRack(cmd.Context(), &bmcv1.GetRackRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			if !r.GetFrozen() && r.GetFrozenBy() != "" {
				a.note("rack %s was frozen %s: bmc cluster thaw %s", r.GetName(), whyFrozen(r), r.GetName())
				return nil
			}
			if !r.GetFrozen() {
				a.note("rack %s is not frozen", r.GetName())
				return nil
			}
			what := "Lets work start on rack " + r.GetName() + " although its agent has not confirmed the backup: machines rented since may be ERASED."
			if err := a.confirm(what, r.GetName(), "bmc rack thaw "+r.GetName()+" --yes"); err != nil {
				return err
			}
			if _, err := c.Inventory.ThawRack(cmd.Context(), &bmcv1.ThawRackRequest{Ref: args[0]}); err != nil {
				return err
			}
			a.note("rack %s is thawed", r.GetName())
			return nil
		}}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return cmd
}
