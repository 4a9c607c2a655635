package main

import (
	"fmt"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
)

// warmth is how many of a rack's available servers wait in the ramdisk, and how
// many shall.
func warmth(r *bmcv1.Rack) string {
	if r.GetWaiting() == 0 && (r.GetWarm() == "" || r.GetWarm() == "none") {
		return "none"
	}
	return fmt.Sprintf("%d of %d (%s)", r.GetWaiting(), r.GetAvailable(), r.GetWarm())
}

// wattsWarm is what the waiting servers of a rack draw, as far as that is known.
func wattsWarm(r *bmcv1.Rack) string {
	switch known := r.GetWaiting() - r.GetUnmetered(); {
	case r.GetWaiting() == 0:
		return ""
	case known == 0:
		return "unknown"
	case r.GetUnmetered() > 0:
		return fmt.Sprintf("%d, %d unknown", r.GetWatts(), r.GetUnmetered())
	}
	return fmt.Sprint(r.GetWatts())
}

// watts is a server's newest power reading; "" where there is none.
func watts(w *bmcv1.Watts) string {
	switch {
	case w == nil:
		return ""
	case w.GetUnknown():
		return "unknown watts"
	}
	return fmt.Sprintf("%d W", w.GetWatts())
}

func (a *app) warmCommand() *cobra.Command {
	return &cobra.Command{Use: "warm RACK all|none|NUMBER", Short: "Say how many available servers wait powered on in the ramdisk", Args: exactly("RACK", "all|none|NUMBER"),
		Long: "A server that waits is rented without a power cycle: its image is written at once. What that costs in\n" +
			"power is in the column WATTS of `bmc rack list`. Servers that failed to come warm are tried again.",
		Example: "  bmc rack warm r1 4\n  bmc rack list",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			r, err := c.Inventory.SetRackWarm(cmd.Context(), &bmcv1.SetRackWarmRequest{Ref: args[0], Warm: args[1]})
			if err != nil {
				return err
			}
			a.note("of the available servers of rack %s, %d now, %s shall wait in the ramdisk", r.GetName(), r.GetAvailable(), r.GetWarm())
			return nil
		}}
}
