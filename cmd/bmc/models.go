package main

import (
	"fmt"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
)

func modelName(m *bmcv1.Model) string { return m.GetVendor() + "/" + m.GetProduct() }

var modelColumns = []output.Column[*bmcv1.Model]{
	{Name: "MODEL", Value: modelName},
	{Name: "SERVERS", Value: func(m *bmcv1.Model) string { return fmt.Sprint(m.GetServers()) }},
	{Name: "KEXEC", Value: func(m *bmcv1.Model) string {
		if m.GetKexecOff() {
			return "off"
		}
		return "on"
	}},
	{Name: "FAILURES", Value: func(m *bmcv1.Model) string { return fmt.Sprint(m.GetKexecFailures()) }},
	{Name: "REASON", Value: (*bmcv1.Model).GetReason},
}

// modelCommands are what concerns a kind of machine.
func (a *app) modelCommands() []*cobra.Command {
	list := &cobra.Command{Use: "models", Short: "List the kinds of machines, and whether each starts images by kexec", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Inventory.ListModels(cmd.Context(), &bmcv1.ListModelsRequest{})
			if err != nil {
				return err
			}
			return show(a, res.GetModels(), modelColumns, modelName, "no machine has been inspected")
		}}
	kexec := &cobra.Command{Use: "kexec MODEL on|off", Short: "Let machines of a model start images by kexec, or by firmware alone", Args: exactly("MODEL", "on|off"),
		Long: "An image is started by kexec, which saves the firmware's self test. Two systems of a model that came\n" +
			"up from disk and not by kexec switch it off for that model. For one server alone: hold SERVER no-kexec.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return usage(cmd, "wants on or off")
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			m, err := c.Inventory.SetModelKexec(cmd.Context(), &bmcv1.SetModelKexecRequest{Model: args[0], On: args[1] == "on"})
			if err != nil {
				return err
			}
			a.note("kexec is %s for %s (%d servers)", args[1], modelName(m), m.GetServers())
			return nil
		}}
	return []*cobra.Command{list, kexec}
}
