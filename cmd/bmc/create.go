package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

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
			return a.begun(ops, count, err)
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

// begun shows what had been started when the next could not be: it goes on.
func (a *app) begun(ops []*bmcv1.Operation, of int, err error) error {
	if len(ops) == 0 {
		return err
	}
	a.note("%d of %d were started before this, and go on:", len(ops), of)
	if perr := a.printOperations(ops); perr != nil {
		return perr
	}
	return err
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
		if err != nil { // nobody has named it
			a.note("%v: left out", err)
			continue
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
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		// Before it leaves this machine: what was named may be a private key.
		if line, _, err = metal.ParseSSHKey(file, line); err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, metal.Errorf(metal.CodeInvalid, "%s holds no public key", file)
	}
	return out, nil
}
