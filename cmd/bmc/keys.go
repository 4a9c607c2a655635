package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/cmd/bmc/output"
	"bmc/metal"
)

var keyColumns = []output.Column[*bmcv1.SSHKey]{
	{Name: "NAME", Value: (*bmcv1.SSHKey).GetName},
	{Name: "FINGERPRINT", Value: (*bmcv1.SSHKey).GetFingerprint},
	{Name: "CREATED", Value: func(k *bmcv1.SSHKey) string { return when(k.GetCreated()) }},
	{Name: "ID", Wide: true, Value: (*bmcv1.SSHKey).GetId},
	{Name: "PROJECT", Wide: true, Value: (*bmcv1.SSHKey).GetProject},
}

func (a *app) keyCommand() *cobra.Command {
	var project string
	add := &cobra.Command{Use: "add NAME FILE", Short: "Store a public key for new servers", Args: exactly("NAME", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			lines, err := keyLines(strings.TrimPrefix(args[1], "@"))
			if err != nil {
				return err
			}
			if len(lines) != 1 {
				return metal.Invalid("key", "%s holds %d keys; one at a time", args[1], len(lines))
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			k, err := c.Keys.AddKey(cmd.Context(), &bmcv1.AddKeyRequest{Name: args[0], PublicKey: lines[0], Project: project})
			if err != nil {
				return err
			}
			return output.One(a.out, a.format, k, keyColumns, (*bmcv1.SSHKey).GetName)
		}}
	add.Flags().StringVar(&project, "project", "", "project; your own when left out")
	list := &cobra.Command{Use: "list", Short: "List the public keys", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Keys.ListKeys(cmd.Context(), &bmcv1.ListKeysRequest{})
			if err != nil {
				return err
			}
			return show(a, res.GetKeys(), keyColumns, (*bmcv1.SSHKey).GetName, "no keys; to add one: bmc key add NAME FILE")
		}}
	rm := &cobra.Command{Use: "rm KEY", Short: "Remove a public key; servers that have it keep it", Args: exactly("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			if _, err := c.Keys.RemoveKey(cmd.Context(), &bmcv1.RemoveKeyRequest{Ref: args[0]}); err != nil {
				return err
			}
			a.note("key %s is removed", args[0])
			return nil
		}}
	return group("key", "SSH public keys", add, list, rm)
}

// secret reads @FILE, - (standard input) or nothing. A plain value is refused:
// it would be seen in the list of processes.
func (a *app) secret(value string) ([]byte, error) {
	const limit = 64 << 10
	var r io.Reader
	switch {
	case value == "":
		return nil, nil
	case value == "-":
		r = a.in
	case strings.HasPrefix(value, "@"):
		f, err := os.Open(value[1:])
		if err != nil {
			return nil, metal.Errorf(metal.CodeInvalid, "%v", err)
		}
		defer f.Close()
		r = f
	default:
		return nil, metal.Errorf(metal.CodeInvalid, "this wants @FILE or -, never the value itself")
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", value, err)
	}
	if len(b) > limit {
		return nil, metal.Errorf(metal.CodeInvalid, "%s is larger than %d bytes", value, limit)
	}
	return b, nil
}
