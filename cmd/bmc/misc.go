package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/cmd/bmc/output"
	"bmc/internal/version"
	"bmc/metal"
)

// show prints a list; where a person reads it, an empty one is a sentence.
func show[T proto.Message](a *app, items []T, columns []output.Column[T], name func(T) string, empty string) error {
	if len(items) == 0 && !a.format.Machine() {
		a.note("%s", empty)
		return nil
	}
	return output.List(a.out, a.format, items, columns, name)
}

func (a *app) grid(rows [][]string) error { return output.Grid(a.out, rows) }

// printToken prints the bare token for people and pipes, else the whole answer.
func (a *app) printToken(m proto.Message, token string) error {
	if a.format.Machine() {
		return output.One(a.out, a.format, m, nil, func(proto.Message) string { return token })
	}
	_, err := fmt.Fprintln(a.out, token)
	return err
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Say as whom this command calls", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			w, err := c.Cluster.WhoAmI(cmd.Context(), &bmcv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			if a.format.Machine() {
				return output.One(a.out, a.format, w, nil, (*bmcv1.WhoAmIResponse).GetPrincipal)
			}
			return a.grid([][]string{{"principal", w.GetPrincipal()}, {"role", w.GetRole()}, {"project", w.GetProject()}, {"expires", firstOf(when(w.GetExpires()), "never")}})
		}}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print this command's version, and the node's if one answers", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := fmt.Fprintln(a.out, "bmc", version.String()); err != nil {
				return err
			}
			t, err := a.target()
			if err != nil || len(t.Addresses) == 0 {
				return err
			}
			c, err := client.New(client.Config{Addresses: t.Addresses, Token: t.Token, CACert: t.CA, Patience: time.Second})
			if err != nil {
				return err
			}
			defer c.Close() //nolint:errcheck // nothing was written
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
			defer cancel()
			v, err := c.Cluster.Version(ctx, &bmcv1.VersionRequest{})
			if err != nil {
				a.note("no node answered: %v", describe(err).Message)
				return nil
			}
			_, err = fmt.Fprintf(a.out, "node %s (%s)\n", v.GetVersion(), v.GetCommit())
			return err
		}}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{Use: "completion bash|zsh|fish", Short: "Print a completion script for a shell", Args: exactly("bash|zsh|fish"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.out)
			case "fish":
				return cmd.Root().GenFishCompletion(a.out, true)
			}
			return usage(cmd, "%q is not bash, zsh or fish", args[0])
		}}
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Find out why things do not work", Args: exactly(),
		Long: "Checks this command's configuration, each control-plane node, the credential, the agents and ssh, one line each.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) }}
}

// finding is one line of doctor.
type finding struct {
	what, result, hint string
	bad                bool
	code               metal.Code // of what is bad, where that decides the exit code
}

func (a *app) doctor(ctx context.Context) error {
	var out []finding
	t, err := a.target()
	if err != nil {
		return err
	}
	if len(t.Addresses) == 0 {
		out = append(out, finding{what: "configuration", result: "no address is known", hint: "bmc context set NAME --addr HOST:PORT --cacert FILE", bad: true, code: metal.CodeInvalid})
	} else {
		out = append(out, finding{"configuration", "from " + t.source, "", false, ""})
	}
	for _, addr := range t.Addresses {
		out = append(out, a.checkNode(ctx, t, addr)...)
	}
	if t.Token == "" {
		out = append(out, finding{what: "credential", result: "no token is set", hint: "export BMC_TOKEN=…", bad: true, code: metal.CodeUnauthenticated})
	}
	if len(t.Addresses) > 0 && t.Token != "" {
		out = append(out, a.checkCluster(ctx, t)...)
	}
	if path, err := exec.LookPath("ssh"); err == nil {
		out = append(out, finding{"ssh", path, "", false, ""})
	} else {
		out = append(out, finding{"ssh", "not installed; bmc login needs it", "apt-get install openssh-client", true, ""})
	}
	keys, err := filepath.Glob(filepath.Join(a.env("HOME"), ".ssh", "*.pub"))
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		out = append(out, finding{"ssh keys", "no ~/.ssh/*.pub; new servers get the project's keys alone", "ssh-keygen -t ed25519", false, ""})
	}
	return a.findings(out)
}

func (a *app) findings(out []finding) error {
	bad, code := 0, metal.Code("")
	for _, f := range out {
		mark := "ok  "
		if f.bad {
			mark, bad = "FAIL", bad+1
			code = metal.Code(firstOf(string(code), string(f.code)))
		}
		if _, err := fmt.Fprintf(a.out, "%s  %-24s %s\n", mark, f.what, f.result); err != nil {
			return err
		}
		if f.hint != "" {
			if _, err := fmt.Fprintf(a.out, "      %-24s hint: %s\n", "", f.hint); err != nil {
				return err
			}
		}
	}
	if bad > 0 {
		return metal.Errorf(code, "%d of %d checks failed", bad, len(out))
	}
	return nil
}

// checkNode dials one node: TCP, then TLS with the CA, then the API.
func (a *app) checkNode(ctx context.Context, t *target, addr string) []finding {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	what := "node " + addr
	conf := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	if len(t.CA) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(t.CA) {
			return []finding{{what, "the CA file holds no certificate", "bmc context set NAME --cacert FILE", true, ""}}
		}
	}
	started := time.Now()
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}).DialContext(ctx, "tcp", addr)
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		why, _ := client.Reason(err, len(t.CA) == 0)
		return []finding{{what, why, "set BMC_CACERT to the cluster's ca.pem, which is in each node's data_dir", true, ""}}
	case err != nil:
		why, forGood := client.Reason(err, len(t.CA) == 0)
		if forGood { // the words say what to change
			return []finding{{what, why, "", true, ""}}
		}
		return []finding{{what, "does not answer: " + why, "is bmc-controlplane running there?", true, ""}}
	}
	if err := conn.Close(); err != nil {
		return []finding{{what, err.Error(), "", true, ""}}
	}
	out := []finding{{what, fmt.Sprintf("answers in %d ms", time.Since(started).Milliseconds()), "", false, ""}}
	if off, known := clockOff(ctx, addr, conf); known && off.Abs() > maxClockOff {
		out = append(out, finding{what: "clock", result: fmt.Sprintf("that of node %s is %s from this machine's", addr, off.Round(time.Second)), hint: "timedatectl", bad: true})
	}
	return out
}

// maxClockOff is more than the Date of an answer and the way here can be wrong.
const maxClockOff = 5 * time.Second

// clockOff is how far a node's clock is ahead of ours, by the Date of an answer: to a second.
func clockOff(ctx context.Context, addr string, conf *tls.Config) (time.Duration, bool) {
	conf = conf.Clone()
	conf.NextProtos = []string{"http/1.1"}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+addr+"/healthz", nil)
	if err != nil {
		return 0, false
	}
	resp, err := h.Do(req)
	if err != nil {
		return 0, false // which is said elsewhere
	}
	defer resp.Body.Close() //nolint:errcheck // it has none
	at, err := http.ParseTime(resp.Header.Get("Date"))
	return time.Until(at), err == nil
}

func (a *app) checkCluster(ctx context.Context, t *target) []finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.New(client.Config{Addresses: t.Addresses, Token: t.Token, CACert: t.CA, Patience: time.Second})
	if err != nil {
		return []finding{{"client", describe(err).Message, describe(err).Hint, true, metal.CodeOf(err)}}
	}
	defer c.Close() //nolint:errcheck // nothing was written
	var out []finding
	w, err := c.Cluster.WhoAmI(ctx, &bmcv1.WhoAmIRequest{})
	if err != nil {
		return append(out, finding{"credential", describe(err).Message, otherThanDoctor(describe(err).Hint), true, metal.CodeOf(err)})
	}
	out = append(out, credential(w))
	s, err := c.Cluster.Status(ctx, &bmcv1.StatusRequest{})
	if err != nil {
		return append(out, finding{"leader", describe(err).Message, describe(err).Hint, true, metal.CodeOf(err)})
	}
	leader := finding{what: "leader", result: firstOf(s.GetLeaderAddress(), "none"), bad: s.GetLeaderId() == "", code: metal.CodeNoLeader}
	if leader.bad {
		leader.hint = "bmc cluster peers"
	}
	out = append(out, leader)
	for _, p := range s.GetPeers() {
		if p.GetAlive() && !well(p) {
			out = append(out, finding{what: "peer " + p.GetName(), result: p.GetError(), hint: "bmc cluster peers", bad: true})
		}
		if !p.GetAlive() {
			out = append(out, finding{"peer " + p.GetName(), silence(p), "bmc cluster peers", true, ""})
		}
	}
	if s.GetAgentsAlive() < s.GetAgents() {
		out = append(out, finding{"agents", fmt.Sprintf("%d of %d alive", s.GetAgentsAlive(), s.GetAgents()), "bmc agent list", true, ""})
	} else {
		out = append(out, finding{"agents", fmt.Sprintf("all %d alive", s.GetAgents()), "", false, ""})
	}
	return append(out, checkRacks(ctx, c, w)...)
}

// otherThanDoctor leaves a hint out that leads back here.
func otherThanDoctor(hint string) string {
	if hint == "bmc doctor" {
		return ""
	}
	return hint
}
