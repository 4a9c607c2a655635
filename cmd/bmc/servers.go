package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
)

var serverColumns = []output.Column[*bmcv1.Server]{
	{Name: "NAME", Value: target0},
	{Name: "STATUS", Value: status},
	{Name: "POWER", Value: func(s *bmcv1.Server) string { return s.GetPower().GetObserved() }},
	{Name: "IMAGE", Value: func(s *bmcv1.Server) string { return s.GetRental().GetImage() }},
	{Name: "ADDRESS", Value: (*bmcv1.Server).GetAddress},
	{Name: "SERVER", Value: (*bmcv1.Server).GetName},
	{Name: "RACK", Value: (*bmcv1.Server).GetRack},
	{Name: "SIZE", Value: (*bmcv1.Server).GetSize},
	{Name: "CONDITIONS", Value: conditions},
	{Name: "STATE", Wide: true, Value: (*bmcv1.Server).GetState},
	{Name: "ID", Wide: true, Value: (*bmcv1.Server).GetId},
	{Name: "MAC", Wide: true, Value: func(s *bmcv1.Server) string { return strings.Join(s.GetMacs(), ",") }},
	{Name: "SINCE", Wide: true, Value: func(s *bmcv1.Server) string { return when(s.GetStateSince()) }},
	{Name: "MEMORY", Wide: true, Value: func(s *bmcv1.Server) string { return some(s.GetHardware().GetMemoryBytes()) }},
	{Name: "MODEL", Wide: true, Value: func(s *bmcv1.Server) string {
		return strings.TrimSpace(s.GetHardware().GetVendor() + " " + s.GetHardware().GetProduct())
	}},
	{Name: "SERIAL", Wide: true, Value: func(s *bmcv1.Server) string { return firstOf(s.GetSerial(), s.GetHardware().GetSerial()) }},
	{Name: "FIRMWARE", Wide: true, Value: func(s *bmcv1.Server) string { return s.GetHardware().GetFirmware() }},
	{Name: "WATTS", Wide: true, Value: func(s *bmcv1.Server) string { return watts(s.GetWatts()) }},
}

// target0 is what a person calls the server: its rental's name, else its own.
func target0(s *bmcv1.Server) string { return firstOf(s.GetRental().GetName(), s.GetName()) }

// status is a tenant's word where there is one, else the state.
func status(s *bmcv1.Server) string { return firstOf(s.GetStatus(), s.GetState()) }

func conditions(s *bmcv1.Server) string {
	var out []string
	for _, c := range s.GetConditions() {
		out = append(out, c.GetName())
	}
	return strings.Join(append(out, s.GetHolds()...), ",")
}

func some(n uint64) string {
	if n == 0 {
		return ""
	}
	return bytesText(n)
}

func (a *app) printServers(list []*bmcv1.Server) error {
	return output.List(a.out, a.format, list, serverColumns, target0)
}

func (a *app) printServer(s *bmcv1.Server) error {
	return output.One(a.out, a.format, s, serverColumns, target0)
}

func (a *app) listCommand() *cobra.Command {
	req := &bmcv1.ListServersRequest{}
	var all bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your servers", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.Rented = !all
			return a.list(cmd.Context(), req)
		},
	}
	listFlags(cmd, req)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "machines without a rental too (operators)")
	return cmd
}

func listFlags(cmd *cobra.Command, req *bmcv1.ListServersRequest) {
	f := cmd.Flags()
	f.StringVarP(&req.Selector, "selector", "l", "", "labels, e.g. env=prod,tier!=db,gpu")
	f.StringVar(&req.Rack, "rack", "", "only of this rack")
	f.StringVar(&req.State, "state", "", "only in this state")
}

func (a *app) list(ctx context.Context, req *bmcv1.ListServersRequest) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	req.PageSize = 50_000
	var list []*bmcv1.Server
	for {
		page, err := c.Servers.ListServers(ctx, req)
		if err != nil {
			return err
		}
		list = append(list, page.GetServers()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if len(list) == 0 && !a.format.Machine() {
		a.note("no servers")
		if !a.allowStale && req.GetRented() && req.GetRack() == "" && req.GetState() == "" && req.GetSelector() == "" {
			a.note("  to rent one: bmc create --name NAME; all machines: bmc inventory list")
		}
		return nil
	}
	return a.printServers(list)
}

func (a *app) getCommand() *cobra.Command {
	req := &bmcv1.GetServerRequest{}
	cmd := &cobra.Command{
		Use: "get SERVER", Short: "Show one server", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			req.Ref = args[0]
			s, err := c.Servers.GetServer(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.printServer(s)
		},
	}
	return cmd
}

func (a *app) restartCommand() *cobra.Command {
	req := &bmcv1.RestartServerRequest{}
	cmd := &cobra.Command{
		Use: "restart SERVER", Short: "Restart a server from its disk", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Ref = args[0]
			return a.mutate(cmd.Context(), func(ctx context.Context, s bmcv1.ServersClient) (*bmcv1.Operation, error) {
				return s.RestartServer(ctx, req)
			})
		},
	}
	cmd.Flags().BoolVar(&req.Hard, "hard", false, "cut the power; no orderly shutdown first")
	a.waitFlags(cmd)
	return cmd
}

func (a *app) powerCommand() *cobra.Command {
	set := func(wanted, short string) *cobra.Command {
		req := &bmcv1.SetPowerRequest{Wanted: wanted}
		cmd := &cobra.Command{Use: wanted + " SERVER", Short: short, Args: exactly("SERVER"),
			RunE: func(cmd *cobra.Command, args []string) error {
				req.Ref = args[0]
				return a.mutate(cmd.Context(), func(ctx context.Context, s bmcv1.ServersClient) (*bmcv1.Operation, error) {
					return s.SetPower(ctx, req)
				})
			}}
		if wanted == "off" {
			cmd.Flags().BoolVar(&req.Hard, "hard", false, "cut the power; no orderly shutdown first")
		}
		a.waitFlags(cmd)
		return cmd
	}
	show := &cobra.Command{Use: "status SERVER", Short: "Say whether a server is on", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			s, err := c.Servers.GetServer(cmd.Context(), &bmcv1.GetServerRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			if a.format.Machine() {
				return a.printServer(s)
			}
			_, err = fmt.Fprintln(a.out, firstOf(s.GetPower().GetObserved(), "unknown"))
			return err
		}}
	return group("power", "Switch a server on or off, or ask", set("on", "Switch on"), set("off", "Shut down and switch off"), show)
}

// mutate runs a call that starts an operation, and waits as the flags say.
func (a *app) mutate(ctx context.Context, call func(context.Context, bmcv1.ServersClient) (*bmcv1.Operation, error)) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	op, err := call(ctx, c.Servers)
	if err != nil {
		return err
	}
	return a.finish(ctx, []*bmcv1.Operation{op}, nil)
}

func (a *app) retryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "retry SERVER", Short: "Run a failed server's operation again", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mutate(cmd.Context(), func(ctx context.Context, s bmcv1.ServersClient) (*bmcv1.Operation, error) {
				return s.RetryServer(ctx, &bmcv1.RetryServerRequest{Ref: args[0]})
			})
		},
	}
	a.waitFlags(cmd)
	return cmd
}
