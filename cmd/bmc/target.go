package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bmc/internal/config"
	"bmc/metal"
)

// contexts is ~/.config/bmc/config.yaml.
type contexts struct {
	Current  string                 `yaml:"current,omitempty"`
	Contexts map[string]contextFile `yaml:"contexts,omitempty"`
}

type contextFile struct {
	Addresses []string `yaml:"addresses"`
	CACert    string   `yaml:"cacert,omitempty"`     // file
	TokenFile string   `yaml:"token_file,omitempty"` // file
}

// target is where a command goes: flag > environment > context > default.
type target struct {
	Addresses []string
	Token     string
	CA        []byte
	caFile    string
	source    string // for doctor
}

func (a *app) contextsPath() (string, error) {
	if p := a.env("BMC_CONFIG"); p != "" {
		return p, nil
	}
	dir := a.env("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.env("HOME")
		if home == "" {
			return "", metal.Errorf(metal.CodeInvalid, "neither HOME nor XDG_CONFIG_HOME is set")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "bmc", "config.yaml"), nil
}

func (a *app) loadContexts() (contexts, error) {
	c := contexts{Contexts: map[string]contextFile{}}
	path, err := a.contextsPath()
	if err != nil {
		return c, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	return c, config.Load(path, &c)
}

func (a *app) saveContexts(c contexts) error {
	path, err := a.contextsPath()
	if err != nil {
		return err
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// target resolves once where this run goes.
func (a *app) target() (*target, error) {
	if a.resolved != nil {
		return a.resolved, nil
	}
	all, err := a.loadContexts()
	if err != nil {
		return nil, err
	}
	t := &target{source: "flags and environment"}
	name := firstOf(a.context, a.env("BMC_CONTEXT"), all.Current)
	var file contextFile
	if name != "" {
		var ok bool
		if file, ok = all.Contexts[name]; !ok {
			return nil, metal.Errorf(metal.CodeNotFound, "there is no context %q", name).WithHint("bmc context list")
		}
		t.source = "context " + name
	}
	t.Addresses = a.addrs
	if len(t.Addresses) == 0 {
		t.Addresses = split(a.env("BMC_ADDR"))
	}
	if len(t.Addresses) == 0 {
		t.Addresses = file.Addresses
	}
	if t.caFile = firstOf(a.caFile, a.env("BMC_CACERT"), file.CACert); t.caFile != "" {
		if t.CA, err = os.ReadFile(t.caFile); err != nil {
			return nil, metal.Errorf(metal.CodeInvalid, "cannot read the CA certificate: %v", err)
		}
	}
	if t.Token = a.env("BMC_TOKEN"); t.Token == "" && file.TokenFile != "" {
		b, err := os.ReadFile(file.TokenFile)
		if err != nil {
			return nil, metal.Errorf(metal.CodeInvalid, "cannot read the token: %v", err)
		}
		t.Token = strings.TrimSpace(string(b))
	}
	t.Token = strings.TrimSpace(t.Token)
	if strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, metal.Errorf(metal.CodeUnauthenticated, "the token has characters that no token has: is it the whole output of bmc token create, or a file's name?").
			WithHint("bmc context set NAME --token-file FILE")
	}
	a.resolved = t
	return t, nil
}

func (a *app) contextCommand() *cobra.Command {
	var set contextFile
	setCmd := &cobra.Command{
		Use: "set NAME", Short: "Create or change a context; the first one becomes current", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := metal.ValidateName("context", args[0]); err != nil {
				return err
			}
			c, err := a.loadContexts()
			if err != nil {
				return err
			}
			ctx := c.Contexts[args[0]]
			if len(a.addrs) > 0 {
				ctx.Addresses = a.addrs
			}
			ctx.CACert = firstOf(absolute(a.caFile), ctx.CACert)
			ctx.TokenFile = firstOf(absolute(set.TokenFile), ctx.TokenFile)
			if len(ctx.Addresses) == 0 {
				return usage(cmd, "a context needs --addr HOST:PORT")
			}
			c.Contexts[args[0]] = ctx
			if c.Current == "" {
				c.Current = args[0]
			}
			return a.saveContexts(c)
		},
	}
	setCmd.Flags().StringVar(&set.TokenFile, "token-file", "", "file that holds the token")
	use := &cobra.Command{Use: "use NAME", Short: "Make a context the current one", Args: exactly("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeContext(args[0], func(c *contexts) { c.Current = args[0] })
		}}
	rm := &cobra.Command{Use: "rm NAME", Short: "Remove a context", Args: exactly("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeContext(args[0], func(c *contexts) {
				delete(c.Contexts, args[0])
				if c.Current == args[0] {
					c.Current = ""
				}
			})
		}}
	list := &cobra.Command{Use: "list", Short: "List the contexts", Args: exactly(), RunE: func(*cobra.Command, []string) error { return a.listContexts() }}
	return group("context", "Clusters that this command knows", list, use, setCmd, rm)
}

func (a *app) changeContext(name string, change func(*contexts)) error {
	c, err := a.loadContexts()
	if err != nil {
		return err
	}
	if _, ok := c.Contexts[name]; !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no context %q", name).WithHint("bmc context list")
	}
	change(&c)
	return a.saveContexts(c)
}

func (a *app) listContexts() error {
	c, err := a.loadContexts()
	if err != nil {
		return err
	}
	names := make([]string, 0, len(c.Contexts))
	for n := range c.Contexts {
		names = append(names, n)
	}
	slices.Sort(names)
	rows := [][]string{{"CURRENT", "NAME", "ADDRESSES"}}
	for _, n := range names {
		mark := ""
		if n == c.Current {
			mark = "*"
		}
		rows = append(rows, []string{mark, n, strings.Join(c.Contexts[n].Addresses, ",")})
	}
	return a.grid(rows)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func absolute(path string) string {
	if path == "" {
		return ""
	}
	if p, err := filepath.Abs(path); err == nil {
		return p
	}
	return path
}
