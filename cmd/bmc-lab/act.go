package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bmc/lab"
	"bmc/lab/s3"
)

func powerCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "power SERVER on|off|soft|reset",
		Short: "Pull a server's cord or press its buttons, past its controller",
		Args:  exactly(2, "a server and on, off, soft or reset"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(o.dir)
			if err != nil {
				return err
			}
			return lab.NewClient(dir).Power(cmd.Context(), args[0], args[1])
		},
	}
}

func execCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "exec WHERE -- PROGRAM [ARG...]",
		Short: "Run a program in one of the lab's network namespaces",
		Long: `Run a program in one of the lab's network namespaces: a node (cp1), an agent
(r1-a1), a rack's controllers (r1), a station without an address on a rack's
network (r1-probe), a relay (r2-relay), the object store (s3), or the management
network (mgmt).`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := o.status(cmd.Context())
			if err != nil {
				return err
			}
			path, ok := s.Netns[args[0]]
			if !ok {
				return fmt.Errorf("no namespace %q; there are: %s", args[0], strings.Join(slices.Sorted(maps.Keys(s.Netns)), " "))
			}
			run := exec.CommandContext(cmd.Context(), "nsenter", append(append(s.Enter(path), "--"), args[1:]...)...)
			run.Stdin, run.Stdout, run.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return run.Run()
		},
	}
}

func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: lab.SuperviseCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return lab.Supervise(cmd.Context()) },
	}
}

func storeCommand() *cobra.Command {
	var cfg s3.Config
	c := &cobra.Command{
		Use: "s3", Short: "Run the lab's object store", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s3.Serve(cmd.Context(), cfg) },
	}
	f := c.Flags()
	f.StringVar(&cfg.Listen, "listen", "", "host:port")
	f.StringVar(&cfg.DataDir, "data", "", "folder")
	f.StringVar(&cfg.AccessKey, "access-key", "", "the root account's")
	f.StringVar(&cfg.SecretKeyFile, "secret-key-file", "", "file with the root account's secret")
	f.StringVar(&cfg.CertFile, "cert", "", "TLS certificate")
	f.StringVar(&cfg.KeyFile, "key", "", "TLS key")
	return c
}

// chassisCommand is what ipmi_sim runs to look at a machine or to change it. Its
// arguments are ipmi_sim's, so flags are not parsed.
func chassisCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "chassis SERVER get|set ...", Hidden: true, DisableFlagParsing: true, Args: cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !filepath.IsAbs(o.dir) {
				return errors.New("chassis: BMC_LAB_DIR is not set")
			}
			out, err := lab.NewClient(o.dir).Chassis(cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
}
