package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

func (a *app) loginCommand() *cobra.Command {
	var direct bool
	var identity string
	cmd := &cobra.Command{
		Use: "login [USER@]SERVER [-- COMMAND…]", Aliases: []string{"ssh"}, Short: "Shell on a server, by ssh",
		Long: `Runs the system's ssh. The server's host key is the one recorded at install, so
there is nothing to confirm and nothing to trust blindly. The connection goes
through the control plane and the rack's agent; --direct dials the server itself.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, "sign in with a token in BMC_TOKEN or a context; for a shell: bmc login SERVER")
			}
			return a.login(cmd.Context(), args[0], args[1:], direct, identity)
		},
	}
	cmd.Flags().BoolVar(&direct, "direct", false, "dial the server's own address, not through its rack's agent")
	cmd.Flags().StringVarP(&identity, "identity", "i", "", "private key file for ssh")
	return cmd
}

func (a *app) login(ctx context.Context, ref string, command []string, direct bool, identity string) error {
	user := ""
	if u, s, ok := strings.Cut(ref, "@"); ok {
		user, ref = u, s
	}
	c, err := a.api()
	if err != nil {
		return err
	}
	s, err := c.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: ref})
	if err != nil {
		return err
	}
	if s.GetRental() == nil || len(s.GetRental().GetSshHostKeys()) == 0 {
		return metal.Errorf(metal.CodeWrongState, "%s is %s; there is no system to log in to", ref, status(s)).
			WithHint("bmc explain %s", ref)
	}
	if status(s) == "stopped" {
		return metal.Errorf(metal.CodeWrongState, "%s is switched off", ref).WithHint("bmc power on %s", ref)
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return metal.Errorf(metal.CodeNotFound, "the program ssh is not installed").WithHint("apt-get install openssh-client")
	}
	known, err := knownHosts(s)
	if err != nil {
		return err
	}
	defer os.Remove(known) //nolint:errcheck // a temporary file
	args := []string{
		"-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=" + s.GetId(), "-o", "UpdateHostKeys=no",
		"-o", "LogLevel=ERROR",
	}
	if identity != "" {
		args = append(args, "-i", identity)
	}
	if !direct {
		proxy, err := a.proxyCommand(s.GetId())
		if err != nil {
			return err
		}
		args = append(args, "-o", "ProxyCommand="+proxy)
	}
	args = append(args, "-l", firstOf(user, s.GetRental().GetUser(), "root"), "--", s.GetAddress())
	return a.runSSH(ctx, ssh, append(args, command...))
}

func (a *app) runSSH(ctx context.Context, ssh string, args []string) error {
	t, err := a.target()
	if err != nil {
		return err
	}
	cmd := exec.Command(ssh, args...) //nolint:gosec // the system's ssh with arguments of our own making
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Env = append(os.Environ(), "BMC_ADDR="+strings.Join(t.Addresses, ","), "BMC_TOKEN="+t.Token, "BMC_CACERT="+absolute(t.caFile))
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start ssh: %w", err)
	}
	// Ctrl-C reaches ssh itself by the terminal; a SIGTERM is ours to pass on.
	stop := context.AfterFunc(ctx, func() {
		if !a.terminal(a.in) {
			_ = cmd.Process.Signal(os.Interrupt) //nolint:errcheck // it may have ended
		}
	})
	defer stop()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return remoteExit(max(exit.ExitCode(), 1))
	}
	return err
}

// knownHosts writes the recorded keys under the server's ID.
func knownHosts(s *bmcv1.Server) (string, error) {
	f, err := os.CreateTemp("", "bmc-known-hosts-")
	if err != nil {
		return "", err
	}
	for _, k := range s.GetRental().GetSshHostKeys() {
		if _, err = fmt.Fprintf(f, "%s %s\n", s.GetId(), k); err != nil {
			break
		}
	}
	return f.Name(), errors.Join(err, f.Close())
}

// proxyCommand is run by ssh as `exec …` in the user's shell: it holds this program's
// path, quoted, and an ID of our own making.
func (a *app) proxyCommand(id string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", metal.Errorf(metal.CodeInternal, "the server's ID %q is not one", id)
	}
	quoted := "'" + strings.ReplaceAll(self, "'", `'\''`) + "'"
	return strings.ReplaceAll(quoted, "%", "%%") + " tunnel " + id + " 22", nil
}

func (a *app) tunnelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tunnel SERVER PORT", Short: "Carry standard input and output to a port of a server", Hidden: true, Args: exactly("SERVER", "PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := net.LookupPort("tcp", args[1])
			if err != nil {
				return usage(cmd, "%q is not a port", args[1])
			}
			return a.tunnel(cmd.Context(), args[0], uint32(port)) //nolint:gosec // a port fits
		},
	}
}

func (a *app) tunnel(ctx context.Context, ref string, port uint32) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Servers.Tunnel(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&bmcv1.TunnelRequest{Ref: ref, Port: port}); err != nil {
		return err
	}
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if !first.GetConnected() {
		return metal.Errorf(metal.CodeNoAgent, "the tunnel to %s was not connected", ref)
	}
	if _, err := a.out.Write(first.GetData()); err != nil {
		return err
	}
	var once sync.Once
	go func() { // ends with the process or when the stream breaks
		buf := make([]byte, 64<<10)
		for {
			n, err := a.in.Read(buf)
			if n > 0 && s.Send(&bmcv1.TunnelRequest{Data: buf[:n]}) != nil {
				return
			}
			if err != nil {
				once.Do(func() { _ = s.Send(&bmcv1.TunnelRequest{CloseWrite: true}) }) //nolint:errcheck // the receiver sees a broken stream
				return
			}
		}
	}()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := a.out.Write(m.GetData()); err != nil {
			return err
		}
		if m.GetCloseWrite() {
			return nil
		}
	}
}
