package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
	"bmc/internal/config"
	"bmc/metal"
)

// discoveryCommands are what an operator does with machines that nobody knows,
// and with known ones that have changed.
func (a *app) discoveryCommands() []*cobra.Command {
	return []*cobra.Command{a.approveCommand(), a.importCommand(), a.acceptCommand(), a.hardwareCommand()}
}

func (a *app) approveCommand() *cobra.Command {
	in := &bmcv1.ServerInput{Oob: &bmcv1.OOBInput{}}
	var passwordFile string
	cmd := &cobra.Command{
		Use: "approve MACHINE", Short: "Enroll a discovered machine", Args: exactly("MACHINE"),
		Example: "  bmc inventory list --state discovered\n" +
			"  bmc inventory approve new-525400100007 --name r1-u07 --oob-address 10.78.1.7 --oob-user bmc --oob-password-file r1-u07.secret --wipe",
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Name == "" || in.Oob.Address == "" {
				return usage(cmd, "wants --name and --oob-address")
			}
			var err error
			if in.Oob.Password, err = a.oobPassword("--oob-password-file", in.Name, "", passwordFile); err != nil {
				return err
			}
			in.Discovered = args[0]
			return a.applyRequest(cmd.Context(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{in}})
		}}
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "its name in the inventory, e.g. r1-u07")
	f.StringVar(&in.Address, "address", "", "its address; the next free one of the rack's range")
	f.StringVar(&in.Size, "size", "", "its size; else the sizes' rules say it")
	f.StringVar(&in.Oob.Address, "oob-address", "", "of its management controller")
	f.StringVar(&in.Oob.Protocol, "oob-protocol", "ipmi", "ipmi, ipmitool or redfish")
	f.StringVar(&in.Oob.Username, "oob-user", "", "of its management controller")
	f.StringVar(&passwordFile, "oob-password-file", "", "a file with that user's password")
	f.BoolVar(&in.Wipe, "wipe", false, "its disks may be erased")
	a.waitFlags(cmd)
	return cmd
}

const importExample = `  bmc inventory import -f delivery.csv

  # delivery.csv: what a purchase order tells; machines are found by serial, uuid or macs
  name,serial,rack,oob_address,oob_username,oob_password_file,wipe
  r1-u07,XJ42,r1,10.78.1.7,bmc,r1.secret,true
  r1-u08,XJ43,r1,10.78.1.8,bmc,r1.secret,true`

func (a *app) importCommand() *cobra.Command {
	var file string
	var dryRun bool
	cmd := &cobra.Command{Use: "import -f FILE", Short: "Enroll servers from a CSV list; all or nothing", Args: exactly(), Example: importExample,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage(cmd, "wants -f FILE")
			}
			req, err := a.readList(file)
			if err != nil {
				return hinted(err, "bmc inventory import --help")
			}
			req.DryRun = dryRun
			return a.applyRequest(cmd.Context(), req)
		}}
	cmd.Flags().StringVarP(&file, "file", "f", "", "CSV file with a line of names first; - for standard input")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and change nothing")
	a.waitFlags(cmd)
	return cmd
}

// listColumns are the columns that a list may have.
var listColumns = map[string]func(*bmcv1.ServerInput, string) error{
	"name":             func(s *bmcv1.ServerInput, v string) error { s.Name = v; return nil },
	"rack":             func(s *bmcv1.ServerInput, v string) error { s.Rack = v; return nil },
	"serial":           func(s *bmcv1.ServerInput, v string) error { s.Serial = v; return nil },
	"uuid":             func(s *bmcv1.ServerInput, v string) error { s.Uuid = v; return nil },
	"size":             func(s *bmcv1.ServerInput, v string) error { s.Size = v; return nil },
	"address":          func(s *bmcv1.ServerInput, v string) error { s.Address = v; return nil },
	"console_tty":      func(s *bmcv1.ServerInput, v string) error { s.ConsoleTty = v; return nil },
	"discovered":       func(s *bmcv1.ServerInput, v string) error { s.Discovered = v; return nil },
	"macs":             func(s *bmcv1.ServerInput, v string) error { s.Macs = strings.Fields(v); return nil },
	"oob_protocol":     func(s *bmcv1.ServerInput, v string) error { s.Oob.Protocol = v; return nil },
	"oob_address":      func(s *bmcv1.ServerInput, v string) error { s.Oob.Address = v; return nil },
	"oob_username":     func(s *bmcv1.ServerInput, v string) error { s.Oob.Username = v; return nil },
	passwordFileColumn: nil, // read beside the list
	"wipe": func(s *bmcv1.ServerInput, v string) error {
		switch strings.ToLower(v) {
		case "true", "yes":
			s.Wipe = true
		case "", "false", "no":
		default:
			return fmt.Errorf("%q is not true or false", v)
		}
		return nil
	},
}

const passwordFileColumn = "oob_password_file"

// readList turns a CSV file into a request. All lines that are wrong are told.
func (a *app) readList(path string) (*bmcv1.ApplyInventoryRequest, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, metal.Invalid("file", "cannot read %s", path)
		}
		defer f.Close()
		in = f
	}
	r := csv.NewReader(io.LimitReader(in, config.MaxSize))
	r.Comment, r.TrimLeadingSpace = '#', true
	head, err := r.Read()
	if err != nil {
		return nil, metal.Invalid(path, "has no line of column names")
	}
	for i, name := range head {
		head[i] = strings.ToLower(strings.TrimSpace(name))
		if _, ok := listColumns[head[i]]; !ok {
			return nil, metal.Invalid(path, "column %q is not known", name)
		}
	}
	req := &bmcv1.ApplyInventoryRequest{}
	var faults []string
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		line, _ := r.FieldPos(0)
		if err != nil {
			return nil, metal.Invalid(path, "%v", err)
		}
		s, err := a.readLine(path, head, fields)
		if err != nil {
			faults = append(faults, fmt.Sprintf("line %d: %v", line, err))
			continue
		}
		req.Servers = append(req.Servers, s)
	}
	if len(faults) > 0 {
		return nil, metal.Invalid(path, "%s", strings.Join(faults, "; "))
	}
	if len(req.GetServers()) == 0 {
		return nil, metal.Invalid(path, "has no servers")
	}
	return req, nil
}

func (a *app) readLine(path string, head, fields []string) (*bmcv1.ServerInput, error) {
	s := &bmcv1.ServerInput{Oob: &bmcv1.OOBInput{Protocol: "ipmi"}}
	for i, value := range fields {
		value = strings.TrimSpace(value)
		if value == "" || head[i] == passwordFileColumn {
			continue
		}
		if err := listColumns[head[i]](s, value); err != nil {
			return nil, fmt.Errorf("%s: %w", head[i], err)
		}
	}
	if s.GetName() == "" {
		return nil, errors.New("name is empty")
	}
	if s.GetSerial() == "" && s.GetUuid() == "" && len(s.GetMacs()) == 0 && s.GetDiscovered() == "" {
		return nil, errors.New("has no serial, uuid, macs or discovered to find the machine by")
	}
	if i := slices.Index(head, passwordFileColumn); i >= 0 {
		var err error
		if s.Oob.Password, err = a.oobPassword(path, s.GetName(), "", strings.TrimSpace(fields[i])); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (a *app) acceptCommand() *cobra.Command {
	var wipe bool
	cmd := &cobra.Command{Use: "accept SERVER", Short: "Accept that a part of a machine was replaced: its boot NIC or its mainboard", Args: exactly("SERVER"),
		Long: "Accept that a part of a machine was replaced. A new boot NIC takes the old one's place. A machine with\n" +
			"another mainboard is enrolled anew: its controller must prove itself, and with --wipe its disks are erased.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.accept(cmd.Context(), args[0], wipe) }}
	cmd.Flags().BoolVar(&wipe, "wipe", false, "with another mainboard: its disks may be erased")
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) accept(ctx context.Context, ref string, wipe bool) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if err != nil {
		return err
	}
	claim := s.GetClaim()
	if claim == nil {
		return metal.Errorf(metal.CodeWrongState, "%s is what the inventory says: there is nothing to accept", s.GetName()).WithHint("bmc explain %s", s.GetName())
	}
	what := fmt.Sprintf("Takes the machine that came at %s for %s: %s (serial number %s, UUID %s, boot NIC %s).", when(claim.GetAt()), s.GetName(), claim.GetReason(),
		firstOf(claim.GetSerial(), "unknown"), firstOf(claim.GetUuid(), "unknown"), strings.Join(claim.GetMacs()[:min(1, len(claim.GetMacs()))], ""))
	if claim.GetBoard() {
		what += " It is enrolled anew."
	}
	if err := a.confirm(what, s.GetName(), "bmc inventory accept "+s.GetName()+" --yes"); err != nil {
		return err
	}
	after, err := c.Inventory.AcceptIdentity(ctx, &bmcv1.AcceptIdentityRequest{Ref: s.GetId(), ResourceVersion: s.GetResourceVersion(), Wipe: wipe})
	if err != nil {
		return err
	}
	a.note("%s was changed: %s", after.GetName(), claim.GetReason())
	switch metal.State(after.GetState()) {
	case metal.StateFailed:
		a.note("  next: bmc retry %s", after.GetName())
	case metal.StateEnrolling:
		a.note("  it is enrolled anew; if its management controller has another address or password, correct the inventory")
		a.note("  next: bmc explain %s", after.GetName())
	}
	return nil
}

func (a *app) hardwareCommand() *cobra.Command {
	return &cobra.Command{Use: "get MACHINE", Short: "Show what a machine is made of, as last inspected", Args: exactly("MACHINE"),
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
			_, err = io.WriteString(a.out, hardwareText(s))
			return err
		}}
}

func hardwareText(s *bmcv1.Server) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		if text := strings.TrimRight(fmt.Sprintf(format, args...), " ,"); text != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name, text)
		}
	}
	h := s.GetHardware()
	line("machine", "%s (%s in %s), %s", target0(s), s.GetName(), s.GetRack(), s.GetState())
	if s.GetSizeByRule() {
		line("size", "%s (by rule)", firstOf(s.GetSize(), "none"))
	} else {
		line("size", "%s", s.GetSize())
	}
	if h == nil {
		line("hardware", "not inspected yet")
		return b.String()
	}
	line("model", "%s %s", h.GetVendor(), h.GetProduct())
	line("serial", "%s", h.GetSerial())
	line("uuid", "%s", h.GetUuid())
	line("firmware", "%s %s", h.GetFirmware(), h.GetFirmwareVersion())
	line("controller", "%s", joined("at", firstOf(s.GetOobAddress(), h.GetOobAddress()), "firmware", h.GetOobFirmware()))
	line("cpu", "%s", joined("", h.GetCpuModel(), "", counted(h.GetCpuThreads(), "threads"), "", counted(h.GetCpuCores(), "cores"), "", counted(h.GetCpuSockets(), "sockets")))
	line("memory", "%s", some(h.GetMemoryBytes()))
	for _, d := range h.GetDimms() {
		line("  dimm", "%s", joined("", d.GetSlot(), "", some(d.GetSizeBytes()), "", d.GetKind(), "", d.GetVendor(), "", d.GetPart(), "serial", d.GetSerial()))
	}
	for _, d := range h.GetDisks() {
		line("disk", "%s", joined("", d.GetName(), "", some(d.GetSizeBytes()), "", d.GetKind(), "", d.GetModel(), "serial", d.GetSerial(),
			"firmware", d.GetFirmware(), "", sectorsText(d), "", healthText(d.GetHealth())))
	}
	for _, n := range h.GetNics() {
		line("nic", "%s", joined("", n.GetName(), "", n.GetMac(), "", linkText(n), "", n.GetDriver(), "firmware", n.GetFirmware(), "", neighbourText(n.GetNeighbour())))
	}
	if c := s.GetClaim(); c != nil {
		line("claim", "%s (bmc inventory accept %s)", c.GetReason(), s.GetName())
	}
	line("inspected", "%s", when(h.GetInspectedAt()))
	return b.String()
}

// joined writes pairs of a word and a value, without those that have no value.
func joined(pairs ...string) string {
	var out []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			out = append(out, strings.TrimSpace(pairs[i]+" "+pairs[i+1]))
		}
	}
	return strings.Join(out, ", ")
}

func counted(n uint32, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, what)
}

func sectorsText(d *bmcv1.Disk) string {
	switch {
	case d.GetSectorSize() == 0:
		return ""
	case d.GetPhysicalSectorSize() == 0 || d.GetPhysicalSectorSize() == d.GetSectorSize():
		return fmt.Sprintf("sectors of %d B", d.GetSectorSize())
	}
	return fmt.Sprintf("sectors of %d B (%d physical)", d.GetSectorSize(), d.GetPhysicalSectorSize())
}

func healthText(h *bmcv1.DiskHealth) string {
	if h == nil {
		return "health unknown"
	}
	text := h.GetState()
	if h.GetReason() != "" {
		text += ": " + h.GetReason()
	}
	return fmt.Sprintf("%s, %d %% used, %d reallocated, %d h on, %d °C", text, h.GetPercentUsed(), h.GetReallocated(), h.GetPowerOnHours(), h.GetTemperatureCelsius())
}

func linkText(n *bmcv1.NIC) string {
	switch {
	case !n.GetLink():
		return "no link"
	case n.GetSpeedMbps() == 0:
		return "link"
	}
	return fmt.Sprintf("%d Mbit/s", n.GetSpeedMbps())
}

func neighbourText(p *bmcv1.Neighbour) string {
	if p == nil {
		return ""
	}
	text := fmt.Sprintf("at %s port %s", firstOf(p.GetSystem(), p.GetChassis()), firstOf(p.GetPort(), p.GetPortDescription()))
	if p.GetVlan() != 0 {
		text += fmt.Sprintf(" (VLAN %d)", p.GetVlan())
	}
	return text
}

var sizeTestColumns = []output.Column[*bmcv1.SizeTest]{
	{Name: "SERVER", Value: (*bmcv1.SizeTest).GetServer},
	{Name: "SIZE", Value: func(t *bmcv1.SizeTest) string { return firstOf(t.GetSize(), "none") }},
	{Name: "SAID BY", Value: func(t *bmcv1.SizeTest) string {
		if t.GetByRule() || t.GetSize() == "" {
			return "rule"
		}
		return "inventory"
	}},
	{Name: "RULES NOW", Value: func(t *bmcv1.SizeTest) string { return firstOf(t.GetMatch(), "none") }},
	{Name: "BECAUSE", Value: func(t *bmcv1.SizeTest) string {
		if len(t.GetLacks()) == 0 {
			return ""
		}
		return t.GetLacks()[0].GetWhy()
	}},
}

func (a *app) sizeTestCommand() *cobra.Command {
	return &cobra.Command{Use: "test [SERVER]", Short: "Say which size the rules give a server, or all, and why", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			req := &bmcv1.TestSizesRequest{}
			if len(args) == 1 {
				req.Ref = args[0]
			}
			res, err := c.Inventory.TestSizes(cmd.Context(), req)
			if err != nil {
				return err
			}
			if req.Ref != "" && !a.format.Machine() && len(res.GetTests()) == 1 {
				t := res.GetTests()[0]
				fmt.Fprintf(a.out, "%s is of size %s; the rules give %s\n", t.GetServer(), firstOf(t.GetSize(), "none"), firstOf(t.GetMatch(), "none"))
				for _, l := range t.GetLacks() {
					fmt.Fprintf(a.out, "  not %s: %s\n", l.GetSize(), l.GetWhy())
				}
				return nil
			}
			return output.List(a.out, a.format, res.GetTests(), sizeTestColumns, (*bmcv1.SizeTest).GetServer)
		}}
}
