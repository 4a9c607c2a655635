package main

import (
	"fmt"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
)

// freezeCommands have nothing new start in racks, and take that back.
func (a *app) freezeCommands() []*cobra.Command {
	var why string
	var all bool // an empty variable of a script's is not all racks
	racks := func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return usage(cmd, "wants RACK..., or --all for every rack")
		}
		return nil
	}
	freeze := &cobra.Command{Use: "freeze RACK...|--all", Short: "Let nothing new start in racks, until they are thawed", Args: racks,
		Long: "For work on a site: what has begun ends, machines run, boot and get their addresses as ever; what\n" +
			"would begin is refused with the reason, and what was waiting waits on. Take a node or a rack down\n" +
			"when bmc operation list shows nothing that runs.",
		Example: "  bmc cluster freeze r1 --reason \"power feed B is replaced\"\n  bmc cluster thaw r1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.freeze(cmd, &bmcv1.FreezeRacksRequest{Refs: args, Reason: why})
		}}
	freeze.Flags().StringVar(&why, "reason", "", "what people read whose work is refused")
	thaw := &cobra.Command{Use: "thaw RACK...|--all", Short: "Let work start again in racks that were frozen by hand", Args: racks,
		Long: "A rack that a restored backup has frozen stays so until its agent has said what it knew: bmc rack thaw.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.freeze(cmd, &bmcv1.FreezeRacksRequest{Refs: args, Thaw: true})
		}}
	for _, c := range []*cobra.Command{freeze, thaw} {
		c.Flags().BoolVar(&all, "all", false, "every rack")
	}
	return []*cobra.Command{freeze, thaw}
}

func (a *app) freeze(cmd *cobra.Command, req *bmcv1.FreezeRacksRequest) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	res, err := c.Inventory.FreezeRacks(cmd.Context(), req)
	if err != nil {
		return err
	}
	for _, r := range res.GetRacks() {
		switch {
		case !req.GetThaw():
			a.note("nothing new starts in rack %s; to take it back: bmc cluster thaw %s", r.GetName(), r.GetName())
		case r.GetFrozen():
			a.note("rack %s stays frozen since a backup was restored: bmc rack thaw %s", r.GetName(), r.GetName())
		default:
			a.note("rack %s is thawed", r.GetName())
		}
	}
	return output.List(a.out, a.format, res.GetRacks(), rackColumns, (*bmcv1.Rack).GetName)
}

// rackState says in a word whether work starts in a rack.
func rackState(r *bmcv1.Rack) string {
	if r.GetFrozen() || r.GetFrozenBy() != "" {
		return "frozen"
	}
	return "ok"
}

// whyFrozen says who or what has frozen a rack.
func whyFrozen(r *bmcv1.Rack) string {
	switch {
	case r.GetFrozen():
		return "a backup was restored"
	case r.GetFrozenBy() == "":
		return ""
	case r.GetFrozenWhy() == "":
		return "by " + r.GetFrozenBy()
	}
	return fmt.Sprintf("by %s: %s", r.GetFrozenBy(), r.GetFrozenWhy())
}
