package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
	"bmc/internal/config"
	"bmc/metal"
)

// inventoryFile is what `bmc inventory apply -f` reads.
type inventoryFile struct {
	Racks []struct {
		Name      string          `yaml:"name"`
		Subnet    string          `yaml:"subnet"`
		Gateway   string          `yaml:"gateway"`
		DNS       []string        `yaml:"dns"`
		Domain    string          `yaml:"domain"`
		RangeFrom string          `yaml:"range_from"`
		RangeTo   string          `yaml:"range_to"`
		LeaseTime config.Duration `yaml:"lease_time"`
		Warm      string          `yaml:"warm"`
		Discovery bool            `yaml:"discovery"` // on, off
	} `yaml:"racks"`
	Sizes []struct {
		Name           string       `yaml:"name"`
		MinCPUThreads  uint32       `yaml:"min_cpu_threads"`
		MinMemoryBytes config.Bytes `yaml:"min_memory_bytes"`
		MinDiskBytes   config.Bytes `yaml:"min_disk_bytes"`
		RootDiskHint   string       `yaml:"root_disk_hint"`
		Rule           *sizeRule    `yaml:"rule"`
	} `yaml:"sizes"`
	Servers []struct {
		Name    string   `yaml:"name"`
		Rack    string   `yaml:"rack"`
		Size    string   `yaml:"size"`
		MACs    []string `yaml:"macs"`
		Address string   `yaml:"address"`
		OOB     struct {
			Protocol     string `yaml:"protocol"`
			Address      string `yaml:"address"`
			Username     string `yaml:"username"`
			Password     string `yaml:"password"`
			PasswordFile string `yaml:"password_file"`
			CipherSuite  int32  `yaml:"cipher_suite"`
		} `yaml:"oob"`
		Serial     string            `yaml:"serial"`
		UUID       string            `yaml:"uuid"`
		Wipe       bool              `yaml:"wipe"`
		Labels     map[string]string `yaml:"labels"`
		ConsoleTTY string            `yaml:"console_tty"`
		Discovered string            `yaml:"discovered"`
	} `yaml:"servers"`
}

// sizeRule is what a machine must have, beside a size's minima, to be of it.
type sizeRule struct {
	Priority int32  `yaml:"priority"`
	Model    string `yaml:"model"`
	Disks    []struct {
		Kind     string       `yaml:"kind"`
		MinBytes config.Bytes `yaml:"min_bytes"`
		Count    uint32       `yaml:"count"`
	} `yaml:"disks"`
	Labels map[string]string `yaml:"labels"`
}

func (r *sizeRule) proto() *bmcv1.SizeRule {
	if r == nil {
		return nil
	}
	out := &bmcv1.SizeRule{Priority: r.Priority, Model: r.Model, Labels: r.Labels}
	for _, d := range r.Disks {
		out.Disks = append(out.Disks, &bmcv1.DiskRule{Kind: d.Kind, MinBytes: uint64(d.MinBytes), Count: d.Count}) //nolint:gosec // never negative
	}
	return out
}

const inventoryExample = `  bmc inventory apply -f inventory.yaml

  # inventory.yaml
  racks:
  - {name: r1, subnet: 10.77.1.0/24, range_from: 10.77.1.10, range_to: 10.77.1.200}
  sizes:
  - {name: small, min_memory_bytes: 512MiB, min_disk_bytes: 4GiB}
  servers:
  - name: r1-u07
    rack: r1
    macs: ["52:54:00:10:00:07"]
    oob: {protocol: ipmi, address: 10.78.1.7, username: bmc, password_file: r1-u07.secret}
    wipe: true`

// readInventory reads a file, or standard input as "-", into a request.
func (a *app) readInventory(path string) (*bmcv1.ApplyInventoryRequest, error) {
	var f inventoryFile
	if path == "-" {
		b, err := io.ReadAll(io.LimitReader(a.in, config.MaxSize+1))
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		if err := config.Parse("standard input", b, &f); err != nil {
			return nil, err
		}
	} else if err := config.Load(path, &f); err != nil {
		return nil, err
	}
	req := &bmcv1.ApplyInventoryRequest{}
	for _, r := range f.Racks {
		in := &bmcv1.RackInput{Name: r.Name, Subnet: r.Subnet, Gateway: r.Gateway, Dns: r.DNS, Domain: r.Domain, RangeFrom: r.RangeFrom, RangeTo: r.RangeTo, Warm: r.Warm, Discovery: r.Discovery}
		if r.LeaseTime > 0 {
			in.LeaseTime = durationpb.New(r.LeaseTime.Std())
		}
		req.Racks = append(req.Racks, in)
	}
	for _, s := range f.Sizes {
		req.Sizes = append(req.Sizes, &bmcv1.SizeInput{Name: s.Name, MinCpuThreads: s.MinCPUThreads,
			MinMemoryBytes: uint64(s.MinMemoryBytes), MinDiskBytes: uint64(s.MinDiskBytes), RootDiskHint: s.RootDiskHint, Rule: s.Rule.proto()}) //nolint:gosec // never negative
	}
	for _, s := range f.Servers {
		password, err := a.oobPassword(path, s.Name, s.OOB.Password, s.OOB.PasswordFile)
		if err != nil {
			return nil, err
		}
		req.Servers = append(req.Servers, &bmcv1.ServerInput{
			Name: s.Name, Rack: s.Rack, Size: s.Size, Macs: s.MACs, Address: s.Address, Serial: s.Serial, Uuid: s.UUID,
			Wipe: s.Wipe, Labels: s.Labels, ConsoleTty: s.ConsoleTTY, Discovered: s.Discovered,
			Oob: &bmcv1.OOBInput{Protocol: s.OOB.Protocol, Address: s.OOB.Address, Username: s.OOB.Username,
				Password: password, CipherSuite: s.OOB.CipherSuite},
		})
	}
	if len(req.Racks)+len(req.Sizes)+len(req.Servers) == 0 {
		return nil, metal.Invalid(path, "describes no rack, size or server")
	}
	return req, nil
}

// oobPassword takes a password from the file or from the file that it names,
// relative to the inventory file.
func (a *app) oobPassword(inventory, server, password, file string) (string, error) {
	if file == "" {
		return password, nil
	}
	if password != "" {
		return "", metal.Invalid(inventory, "server %s has both password and password_file", server)
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(inventory), file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", metal.Invalid(inventory, "server %s: cannot read password_file: %v", server, err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

var appliedColumns = []output.Column[*bmcv1.AppliedObject]{
	{Name: "KIND", Value: (*bmcv1.AppliedObject).GetKind},
	{Name: "NAME", Value: (*bmcv1.AppliedObject).GetName},
	{Name: "CHANGE", Value: (*bmcv1.AppliedObject).GetChange},
	{Name: "OPERATION", Value: (*bmcv1.AppliedObject).GetOperationId},
	{Name: "ID", Wide: true, Value: (*bmcv1.AppliedObject).GetId},
}

func (a *app) inventoryCommand() *cobra.Command {
	var file string
	var dryRun bool
	apply := &cobra.Command{Use: "apply -f FILE", Short: "Create and update racks, sizes and servers; all or nothing", Args: exactly(), Example: inventoryExample,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage(cmd, "wants -f FILE")
			}
			return a.applyInventory(cmd.Context(), file, dryRun)
		}}
	apply.Flags().StringVarP(&file, "file", "f", "", "YAML file; - for standard input")
	apply.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and change nothing")
	a.waitFlags(apply)

	req := &bmcv1.ListServersRequest{}
	list := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List every machine", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.list(cmd.Context(), req) }}
	listFlags(list, req)

	inspect := &cobra.Command{Use: "inspect SERVER", Short: "Boot an available machine and look at its hardware again", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			op, err := c.Inventory.InspectServer(cmd.Context(), &bmcv1.InspectServerRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), []*bmcv1.Operation{op}, nil)
		}}
	a.waitFlags(inspect)

	forget := &cobra.Command{Use: "forget SERVER", Short: "Remove a machine from the inventory", Args: exactly("SERVER"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.forget(cmd.Context(), args[0]) }}
	forget.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return group("inventory", "The machines in the racks (operators)", slices.Concat([]*cobra.Command{apply, list, inspect, forget}, a.discoveryCommands(), a.upkeepCommands(), a.modelCommands())...)
}

func (a *app) applyInventory(ctx context.Context, file string, dryRun bool) error {
	req, err := a.readInventory(file)
	if err != nil {
		return hinted(err, "bmc inventory apply --help")
	}
	req.DryRun = dryRun
	return a.applyRequest(ctx, req)
}

// applyRequest applies an inventory, shows what it did and follows what it began.
func (a *app) applyRequest(ctx context.Context, req *bmcv1.ApplyInventoryRequest) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	res, err := c.Inventory.ApplyInventory(ctx, req)
	if err != nil {
		return err
	}
	if err := output.List(a.out, a.format, res.GetObjects(), appliedColumns, (*bmcv1.AppliedObject).GetName); err != nil {
		return err
	}
	var ops []*bmcv1.Operation
	for _, o := range res.GetObjects() {
		if o.GetOperationId() != "" && !req.GetDryRun() {
			ops = append(ops, &bmcv1.Operation{Id: o.GetOperationId(), Kind: "enroll", Target: o.GetName()})
		}
	}
	if len(ops) == 0 || !a.waits() {
		return nil
	}
	_, err = a.follow(ctx, ops)
	return err
}

func (a *app) forget(ctx context.Context, ref string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if err != nil {
		return err
	}
	if err := a.confirm(fmt.Sprintf("Removes %s (%s) from the inventory; its disks stay as they are.", s.GetName(), s.GetRack()), s.GetName(), "bmc inventory forget "+s.GetName()+" --yes"); err != nil {
		return err
	}
	if _, err := c.Inventory.ForgetServer(ctx, &bmcv1.ForgetServerRequest{Ref: s.GetId()}); err != nil {
		return err
	}
	a.note("%s left the inventory", s.GetName())
	return nil
}

var rackColumns = []output.Column[*bmcv1.Rack]{
	{Name: "NAME", Value: (*bmcv1.Rack).GetName},
	{Name: "SUBNET", Value: (*bmcv1.Rack).GetSubnet},
	{Name: "SERVERS", Value: func(r *bmcv1.Rack) string { return fmt.Sprint(r.GetServers()) }},
	{Name: "AVAILABLE", Value: func(r *bmcv1.Rack) string { return fmt.Sprint(r.GetAvailable()) }},
	{Name: "WARM", Value: warmth},
	{Name: "WATTS", Value: wattsWarm},
	{Name: "AGENT", Value: func(r *bmcv1.Rack) string { return firstOf(r.GetLease().GetHolderName(), r.GetLease().GetHolder()) }},
	{Name: "STATE", Value: rackState},
	{Name: "FROZEN", Wide: true, Value: whyFrozen},
	{Name: "DISCOVERY", Wide: true, Value: func(r *bmcv1.Rack) string {
		if r.GetDiscovery() {
			return "on"
		}
		return "off"
	}},
	{Name: "EPOCH", Wide: true, Value: func(r *bmcv1.Rack) string {
		return fmt.Sprintf("%d.%d", r.GetLease().GetGeneration(), r.GetLease().GetEpoch())
	}},
	{Name: "RANGE", Wide: true, Value: func(r *bmcv1.Rack) string { return r.GetRangeFrom() + "-" + r.GetRangeTo() }},
	{Name: "ID", Wide: true, Value: (*bmcv1.Rack).GetId},
}

func (a *app) rackCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the racks", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		res, err := c.Inventory.ListRacks(cmd.Context(), &bmcv1.ListRacksRequest{})
		if err != nil {
			return err
		}
		return show(a, res.GetRacks(), rackColumns, (*bmcv1.Rack).GetName, "no racks; to add one: bmc inventory apply -f FILE")
	}}
	get := &cobra.Command{Use: "get RACK", Short: "Show a rack", Args: exactly("RACK"), RunE: func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		r, err := c.Inventory.GetRack(cmd.Context(), &bmcv1.GetRackRequest{Ref: args[0]})
		if err != nil {
			return err
		}
		return output.One(a.out, a.format, r, rackColumns, (*bmcv1.Rack).GetName)
	}}
	return group("rack", "Racks and who drives them", list, get, a.warmCommand(), a.thawCommand())
}

var sizeColumns = []output.Column[*bmcv1.Size]{
	{Name: "NAME", Value: (*bmcv1.Size).GetName},
	{Name: "THREADS", Value: func(s *bmcv1.Size) string { return fmt.Sprint(s.GetMinCpuThreads()) }},
	{Name: "MEMORY", Value: func(s *bmcv1.Size) string { return some(s.GetMinMemoryBytes()) }},
	{Name: "DISK", Value: func(s *bmcv1.Size) string { return some(s.GetMinDiskBytes()) }},
	{Name: "SERVERS", Value: func(s *bmcv1.Size) string { return fmt.Sprint(s.GetServers()) }},
	{Name: "AVAILABLE", Value: func(s *bmcv1.Size) string { return fmt.Sprint(s.GetAvailable()) }},
}

func (a *app) sizeCommand() *cobra.Command {
	return group("size", "Classes of servers", a.sizeTestCommand(), &cobra.Command{Use: "list", Short: "List the sizes", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Inventory.ListSizes(cmd.Context(), &bmcv1.ListSizesRequest{})
			if err != nil {
				return err
			}
			return show(a, res.GetSizes(), sizeColumns, (*bmcv1.Size).GetName, "no sizes; to add one: bmc inventory apply -f FILE")
		}})
}

var agentColumns = []output.Column[*bmcv1.Agent]{
	{Name: "NAME", Value: (*bmcv1.Agent).GetName},
	{Name: "RACKS", Value: func(a *bmcv1.Agent) string { return strings.Join(a.GetRacks(), ",") }},
	{Name: "ALIVE", Value: func(a *bmcv1.Agent) string { return fmt.Sprint(a.GetAlive()) }},
	{Name: "SOFTWARE", Value: (*bmcv1.Agent).GetSoftware},
	{Name: "JOINED", Value: func(a *bmcv1.Agent) string { return when(a.GetJoined()) }},
	{Name: "ID", Wide: true, Value: (*bmcv1.Agent).GetId},
}

func (a *app) agentCommand() *cobra.Command {
	return group("agent", "Rack agents", &cobra.Command{Use: "list", Short: "List the agents", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Inventory.ListAgents(cmd.Context(), &bmcv1.ListAgentsRequest{})
			if err != nil {
				return err
			}
			return show(a, res.GetAgents(), agentColumns, (*bmcv1.Agent).GetName, "no agents; to add one: bmc cluster join-token --role agent --rack RACK")
		}}, a.removeAgentCommand())
}
