package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bmc/lab"
)

// status asks the running lab.
func (o *options) status(ctx context.Context) (lab.Status, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return lab.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return lab.NewClient(dir).Status(ctx)
}

func envCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print shell exports for commands against the lab",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.status(cmd.Context())
			if err != nil {
				return err
			}
			if !s.Ready {
				return errors.New("the lab is not up yet")
			}
			env, err := s.Environ()
			if err != nil {
				return err
			}
			for _, e := range env {
				name, value, _ := strings.Cut(e, "=")
				fmt.Fprintf(cmd.OutOrStdout(), "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
			}
			return nil
		},
	}
}

func statusCommand(o *options) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the lab's processes and machines",
		Args:  exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func printStatus(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "coming up"
	if s.Ready {
		state = "up"
	}
	fmt.Fprintf(w, "lab\t%s\tprocess %d\t%s\n", state, s.PID, s.Dir)
	for _, d := range s.Daemons {
		state := "running"
		switch {
		case d.Ended != "":
			state = d.Ended
		case d.Stopped:
			state = "stopped"
		}
		fmt.Fprintf(w, "%s\t%s\tprocess %d\t%s\n", d.Name, state, d.PID, d.Log)
	}
	for _, v := range s.Servers {
		power := "off"
		if v.On {
			power = "on"
			if v.PID != 0 {
				power = fmt.Sprintf("on, process %d", v.PID)
			}
		}
		boot := "network first"
		if v.Boot.Device != "" {
			boot = string(v.Boot.Device)
			if !v.Boot.Persistent {
				boot += " once"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s, boots %s, %d power-ons, %d resets, controller %s\n", v.Name, power, v.Firmware, v.MAC, boot, v.Starts, v.Resets, v.OOB)
	}
	return w.Flush()
}

func consoleCommand(o *options) *cobra.Command {
	var lines int
	c := &cobra.Command{
		Use:   "console SERVER",
		Short: "Follow a server's serial console; --tail N prints its end",
		Args:  exactly(1, "a server"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Works on a dead lab, too: the record is a file.
			path := filepath.Join(o.dir, "machines", filepath.Base(args[0]), "serial.log")
			f, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("no console of %q in %s: it was never powered on, or is no server of this lab", args[0], o.dir)
			}
			if err != nil {
				return err
			}
			defer f.Close()
			if cmd.Flags().Changed("tail") {
				return printTail(cmd.OutOrStdout(), f, lines)
			}
			return follow(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	c.Flags().IntVar(&lines, "tail", 0, "print the last lines and return")
	return c
}

// tailBytes is how far back printTail looks.
const tailBytes = 256 << 10

func printTail(out io.Writer, f *os.File, lines int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.Seek(max(0, st.Size()-tailBytes), io.SeekStart); err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return err
	}
	all := bytes.Split(bytes.TrimRight(raw, "\r\n"), []byte("\n"))
	for _, l := range all[max(0, len(all)-lines):] {
		if _, err := fmt.Fprintf(out, "%s\n", bytes.TrimRight(l, "\r")); err != nil {
			return err
		}
	}
	return nil
}

// follow copies what is there and what comes, until it is interrupted.
func follow(ctx context.Context, out io.Writer, f io.Reader) error {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func oobLogCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "oob-log [SERVER]",
		Short: "Print what controllers were told and what they answered, one JSON object a line",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := os.ReadFile(filepath.Join(o.dir, "oob.jsonl"))
			if err != nil {
				return err
			}
			for line := range bytes.Lines(raw) {
				var c struct {
					Server string `json:"server"`
				}
				if err := json.Unmarshal(line, &c); err != nil {
					return err
				}
				if len(args) == 1 && c.Server != args[0] {
					continue
				}
				if _, err := cmd.OutOrStdout().Write(line); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
