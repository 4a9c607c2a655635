package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
	"bmc/metal"
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
	{Name: "FIRMWARE", Wide: true, Value: func(s *bmcv1.Server) string { return s.GetHardware().GetFirmware() }},
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

func (a *app) createCommand() *cobra.Command {
	req := &bmcv1.CreateServerRequest{}
	var (
		count    int
		userData string
		keys     []string
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Rent a server and install an image on it", Args: exactly(),
		Example: "  bmc create --name web-1 --image debian12\n  bmc create --name web --count 3 --size small --user-data @cloud.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Name == "" {
				return usage(cmd, "a server needs a --name")
			}
			if count < 1 || count > 100 {
				return usage(cmd, "--count is between 1 and 100")
			}
			var err error
			if req.UserData, err = a.secret(userData); err != nil {
				return hinted(err, "bmc create --name %s --user-data @FILE", req.Name)
			}
			if req.SshKeys, err = a.sshKeys(keys); err != nil {
				return hinted(err, "bmc key list")
			}
			return a.create(cmd.Context(), req, count)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "name of the server; becomes its hostname")
	f.StringVar(&req.Size, "size", "", "size; any when left out")
	f.StringVar(&req.Image, "image", "", "image; the project's only one when left out")
	f.StringVar(&req.Rack, "rack", "", "rack; any when left out")
	f.StringVar(&req.Project, "project", "", "project; your own when left out")
	f.IntVar(&count, "count", 1, "how many; they are called NAME-1, NAME-2, …")
	f.StringSliceVar(&keys, "ssh-key", nil, "public key: a stored key's name, or @FILE; ~/.ssh/*.pub and the project's when left out")
	f.StringVar(&userData, "user-data", "", "cloud-init user data: @FILE, or - for standard input")
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would be taken, and change nothing")
	a.waitFlags(cmd)
	return cmd
}

func (a *app) create(ctx context.Context, req *bmcv1.CreateServerRequest, count int) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	name := req.GetName()
	var ops []*bmcv1.Operation
	for i := 1; i <= count; i++ {
		if count > 1 {
			req.Name = fmt.Sprintf("%s-%d", name, i)
		}
		req.RequestId = ""
		op, err := c.Servers.CreateServer(ctx, req)
		if err != nil {
			if len(ops) > 0 {
				a.note("%d of %d were created before this", len(ops), count)
			}
			return err
		}
		if req.GetDryRun() {
			a.note("would take %s in %s (size %s)", op.GetServer().GetName(), op.GetServer().GetRack(), firstOf(op.GetServer().GetSize(), "-"))
		}
		ops = append(ops, op)
	}
	if req.GetDryRun() {
		return nil
	}
	return a.finish(ctx, ops, func(s *bmcv1.Server) {
		a.note("%s is ready at %s. Log in: bmc login %s   (as %s)", target0(s), s.GetAddress(), target0(s), s.GetRental().GetUser())
	})
}

// finish waits for operations, or prints them, as the flags say.
func (a *app) finish(ctx context.Context, ops []*bmcv1.Operation, ready func(*bmcv1.Server)) error {
	if !a.waits() {
		if err := a.printOperations(ops); err != nil {
			return err
		}
		if len(ops) == 1 && !a.format.Machine() {
			a.note("it goes on by itself; to follow it: bmc operation watch %s", ops[0].GetId())
		}
		return nil
	}
	ended, err := a.follow(ctx, ops)
	if err != nil {
		return err
	}
	c, err := a.api()
	if err != nil {
		return err
	}
	var servers []*bmcv1.Server
	for _, op := range ended {
		s := op.GetServer()
		if s == nil {
			if s, err = c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: op.GetServerId()}); err != nil {
				return err
			}
		}
		servers = append(servers, s)
		if ready != nil {
			ready(s)
		}
	}
	if a.format.Machine() {
		return a.printServers(servers)
	}
	return nil
}

// sshKeys resolves --ssh-key: names pass as they are, @FILE is read; without
// any, the caller's own public keys are taken.
func (a *app) sshKeys(given []string) ([]string, error) {
	var out []string
	for _, k := range given {
		file, isFile := strings.CutPrefix(k, "@")
		if !isFile {
			out = append(out, k)
			continue
		}
		lines, err := keyLines(file)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	if len(given) > 0 {
		return out, nil
	}
	files, err := filepath.Glob(filepath.Join(a.env("HOME"), ".ssh", "*.pub"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if strings.HasSuffix(f, "-cert.pub") {
			continue
		}
		lines, err := keyLines(f)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

func keyLines(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, metal.Errorf(metal.CodeInvalid, "cannot read the public key: %v", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		return nil, metal.Errorf(metal.CodeInvalid, "%s holds no public key", file)
	}
	return out, nil
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
	f.BoolVar(&req.AllowStale, "allow-stale", false, "answer from any node's replica, with or without a leader")
}

func (a *app) list(ctx context.Context, req *bmcv1.ListServersRequest) error {
	c, err := a.api()
	if err != nil {
		return err
	}
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
		if req.GetRented() && req.GetRack() == "" && req.GetState() == "" && req.GetSelector() == "" {
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
	cmd.Flags().BoolVar(&req.AllowStale, "allow-stale", false, "answer from any node's replica, with or without a leader")
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
			return err
		}
		op, err := c.Servers.DestroyServer(ctx, &bmcv1.DestroyServerRequest{Ref: s.GetId()})
		if err != nil {
			return err
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

func (a *app) waitCommand() *cobra.Command {
	var condition string
	cmd := &cobra.Command{
		Use: "wait SERVER --for state=running", Short: "Wait until a server is as wanted", Args: exactly("SERVER"),
		Long: "Waits for state=STATE (a tenant's or an operator's word), power=on|off, or condition=NAME.",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, want, ok := strings.Cut(condition, "=")
			check, known := waitChecks[key]
			if !ok || !known || want == "" {
				return usage(cmd, "--for wants state=…, power=… or condition=…")
			}
			return a.waitServer(cmd.Context(), args[0], condition, func(s *bmcv1.Server) (bool, error) {
				if check(s, want) {
					return true, nil
				}
				if s.GetState() == string(metal.StateFailed) {
					f := s.GetFailure()
					return false, operationFailed{&bmcv1.Operation{Kind: "wait", Target: target0(s), State: "failed", Failure: f}}
				}
				return false, nil
			})
		},
	}
	cmd.Flags().StringVar(&condition, "for", "state=running", "what to wait for")
	return cmd
}

var waitChecks = map[string]func(s *bmcv1.Server, want string) bool{
	"state": func(s *bmcv1.Server, want string) bool { return s.GetState() == want || s.GetStatus() == want },
	"power": func(s *bmcv1.Server, want string) bool { return s.GetPower().GetObserved() == want },
	"condition": func(s *bmcv1.Server, want string) bool {
		for _, c := range s.GetConditions() {
			if c.GetName() == want {
				return true
			}
		}
		return false
	},
}
