package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// inGo is a string in Go's source that begins as a command, as hints do; inDocs a command in a document: a line of a block, or
// between back-quotes.
var (
	inGo   = regexp.MustCompile("\"(bmc [a-z][^\"]*)\"")
	inDocs = regexp.MustCompile("(?m)(?:^(?:    |\\$ )|`)(?:bin/)?(bmc [a-z][^`\n]*)")
)

// TestCommandsThatAreNamedExist looks at every hint in the source and every command in
// the documents: what a person is told to type must be there, with its flags.
func TestCommandsThatAreNamedExist(t *testing.T) {
	found := 0
	check := func(path string, pattern *regexp.Regexp) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range pattern.FindAllStringSubmatch(string(b), -1) {
			found++
			if why := unknown(m[1]); why != "" {
				t.Errorf("%s: %q: %s", path, m[1], why)
			}
		}
	}
	root := filepath.Join("..", "..")
	for _, dir := range []string{"metal", "fsm", "controlplane", "agent", "client", "internal", "cmd", "imagestore"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".pb.go") {
				check(path, inGo)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(docs, filepath.Join(root, "README.md")) {
		check(path, inDocs)
	}
	if found < 200 {
		t.Errorf("only %d commands were found: do the patterns still fit?", found)
	}
}

// unknown says what of a command line does not exist; "": all is there.
func unknown(line string) string {
	for _, end := range []string{" # ", "  ", " > ", "; ", " && ", " | ", ", then", ", or "} {
		line, _, _ = strings.Cut(line, end)
	}
	cmd := newApp(nil, nil, nil).command()
	cmd.InitDefaultHelpFlag()
	for _, word := range strings.Fields(line)[1:] {
		word = strings.TrimRight(word, ".,:")
		if flag, ok := strings.CutPrefix(word, "--"); ok {
			flag, _, _ = strings.Cut(flag, "=")
			if flag != "" && flag != "help" && cmd.Flags().Lookup(flag) == nil && cmd.InheritedFlags().Lookup(flag) == nil {
				return "there is no flag --" + flag
			}
			continue
		}
		if sub := child(cmd, word); sub != nil {
			cmd = sub
		} else if cmd.HasSubCommands() && word == strings.ToLower(word) && !strings.ContainsAny(word, "%|…") {
			return "there is no command " + word
		}
	}
	return ""
}

func child(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}

func TestUnknown(t *testing.T) {
	for line, bad := range map[string]bool{
		"bmc project list":                   true,
		"bmc create --name NAME":             false,
		"bmc create --nam NAME":              true,
		"bmc operation log %s":               false,
		"bmc operation lok %s":               true,
		"bmc cluster join-token --role node": false,
		"bmc login web-1 -- true":            false,
		"bmc rack list  # which are frozen":  false,
	} {
		if why := unknown(line); (why != "") != bad {
			t.Errorf("%s: %q", line, why)
		}
	}
}
