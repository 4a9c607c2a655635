package light

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// outcome is how a script leaves the loader.
type outcome int

const (
	exits   outcome = iota // back to the firmware, with success
	fails                  // back to the firmware, with an error
	boots                  // the kernel runs
	sanboot                // the disk's boot sector runs
	restart                // the machine starts again
)

// loaderHost is what a script's commands do to the world.
type loaderHost interface {
	// load fetches a file and returns it if keep says so.
	load(ctx context.Context, url string, keep bool) ([]byte, error)
	// dhcp asks again; the new boot file is its answer.
	dhcp(ctx context.Context) (filename string, err error)
	wait(ctx context.Context, seconds int) error
}

// image is what a script has loaded.
type image struct {
	kernel string
	args   []string
	initrd [][]byte // in order; nil for those that were not kept
	names  []string
}

// errCommand is a command that this interpreter does not know, or knows not with
// these words: the agent's script has changed.
var errCommand = errors.New("ipxe: unknown command")

// errStop says that a command has ended the script.
var errStop = errors.New("script ended")

// ipxe interprets the boot scripts of an agent: the few commands that are in
// them, with iPXE's rules for settings, labels, && and ||.
type ipxe struct {
	host     loaderHost
	settings map[string]string
	image    image
	end      outcome
	chain    []byte // the script that replaces this one

	lines []string
	next  int
}

// maxSteps bounds a script that loops: a loader tries for ever, a machine of the
// lab is powered off at some time, and a test ends.
const maxSteps = 10000

// run interprets a script, and those that it chains to.
func (p *ipxe) run(ctx context.Context, script []byte) (outcome, error) {
	for {
		p.chain = nil
		end, err := p.script(ctx, script)
		if err != nil || p.chain == nil {
			return end, err
		}
		script = p.chain
	}
}

func (p *ipxe) script(ctx context.Context, script []byte) (outcome, error) {
	text, ok := strings.CutPrefix(string(script), "#!ipxe\n")
	if !ok {
		return fails, errors.New("ipxe: the script does not begin with #!ipxe")
	}
	p.lines, p.next = strings.Split(text, "\n"), 0
	for steps := 0; p.next < len(p.lines); steps++ {
		if err := ctx.Err(); err != nil {
			return fails, err
		}
		if steps > maxSteps {
			return fails, errors.New("ipxe: the script does not end")
		}
		line := strings.TrimSpace(p.lines[p.next])
		p.next++
		if line == "" || line[0] == '#' || line[0] == ':' {
			continue
		}
		ok, err := p.line(ctx, line)
		if errors.Is(err, errStop) {
			return p.end, nil
		}
		if err != nil {
			return fails, fmt.Errorf("ipxe: line %q: %w", line, err)
		}
		if !ok {
			return fails, nil // a failure that no || took
		}
	}
	return exits, nil
}

var (
	operators = regexp.MustCompile(`(^|\s)(\|\||&&)(\s|$)`)
	expansion = regexp.MustCompile(`\$\{([a-z0-9_-]+)\}`)
)

// line runs the commands of one line. An empty command succeeds, which is why
// agents end lines with ||.
func (p *ipxe) line(ctx context.Context, line string) (ok bool, err error) {
	ok, run := true, true
	for {
		at := operators.FindStringSubmatchIndex(line)
		command, operator := line, ""
		if at != nil {
			command, operator, line = line[:at[0]], line[at[4]:at[5]], line[at[1]:]
		}
		if run {
			if ok, err = p.command(ctx, command); err != nil {
				return ok, err
			}
		}
		if operator == "" {
			return ok, nil
		}
		run = ok == (operator == "&&")
	}
}

func (p *ipxe) command(ctx context.Context, text string) (ok bool, err error) {
	text = expansion.ReplaceAllStringFunc(text, func(s string) string { return p.settings[s[2:len(s)-1]] })
	w := strings.Fields(text)
	if len(w) == 0 {
		return true, nil
	}
	unknown := fmt.Errorf("%w: %q", errCommand, text)
	switch name, args := w[0], w[1:]; name {
	case "set":
		if len(args) != 2 {
			return false, unknown
		}
		setting, _, _ := strings.Cut(args[0], ":") // the type
		p.settings[setting] = args[1]
		return true, nil
	case "inc":
		if len(args) != 1 {
			return false, unknown
		}
		n, err := strconv.Atoi(p.settings[args[0]])
		p.settings[args[0]] = strconv.Itoa(n + 1)
		return err == nil, nil
	case "iseq":
		// A setting that is empty leaves one word, or none, as in iPXE.
		return len(args) == 2 && args[0] == args[1], nil
	case "goto":
		if len(args) != 1 {
			return false, unknown
		}
		return true, p.jump(args[0])
	case "sleep":
		if len(args) != 1 {
			return false, unknown
		}
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return false, unknown
		}
		return true, p.host.wait(ctx, n)
	case "imgfree":
		p.image = image{}
		return true, nil
	case "dhcp":
		file, err := p.host.dhcp(ctx)
		if err == nil {
			p.settings["filename"] = file
		}
		return err == nil, ctx.Err()
	case "kernel", "initrd", "chain":
		return p.fetch(ctx, name, args, unknown)
	}
	return p.leave(w, unknown)
}

// leave has the commands that end a script.
func (p *ipxe) leave(w []string, unknown error) (bool, error) {
	args := w[1:]
	switch w[0] {
	case "boot":
		if p.image.kernel == "" {
			return false, nil
		}
		p.end = boots
	case "sanboot":
		if strings.Join(args, " ") != "--no-describe --drive 0x80" {
			return false, unknown
		}
		p.end = sanboot
	case "reboot":
		p.end = restart
	case "exit":
		switch {
		case len(args) == 0 || args[0] == "0":
			p.end = exits
		case args[0] == "1":
			p.end = fails
		default:
			return false, unknown
		}
	default:
		return false, unknown
	}
	return true, errStop
}

func (p *ipxe) jump(label string) error {
	for i, l := range p.lines {
		if strings.TrimSpace(l) == ":"+label {
			p.next = i + 1
			return nil
		}
	}
	return fmt.Errorf("%w: no label %q", errCommand, label)
}

// fetch has the commands that load something. A failed load is no error: the
// script says what follows.
func (p *ipxe) fetch(ctx context.Context, name string, args []string, unknown error) (bool, error) {
	file := ""
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		switch {
		case args[0] == "--name" && name == "initrd" && len(args) > 1:
			file, args = args[1], args[2:]
		case (args[0] == "--replace" || args[0] == "--autofree") && name == "chain":
			args = args[1:]
		default:
			return false, unknown
		}
	}
	if len(args) == 0 || name != "kernel" && len(args) != 1 {
		return false, unknown
	}
	data, err := p.host.load(ctx, args[0], name == "chain" || file == seedName)
	if err != nil {
		return false, ctx.Err()
	}
	switch name {
	case "kernel":
		p.image.kernel, p.image.args = args[0], args[1:]
	case "initrd":
		p.image.initrd, p.image.names = append(p.image.initrd, data), append(p.image.names, file)
	case "chain":
		p.chain = data
		return true, errStop
	}
	return true, nil
}

// seedName is the second initrd's, under which the kernel line names it.
const seedName = "seed.cpio"

// seed is the initrd with the note, which must come last, and which the kernel
// line must name for firmware that finds initrds by name.
func (i *image) seed() ([]byte, error) {
	n := len(i.initrd)
	if n < 2 || i.names[n-1] != seedName {
		return nil, fmt.Errorf("the loader has %d initrds, the last should be %s", n, seedName)
	}
	for _, name := range i.names {
		found := false
		for _, a := range i.args {
			found = found || a == "initrd="+name
		}
		if !found {
			return nil, fmt.Errorf("the kernel line does not name the initrd %s", name)
		}
	}
	return i.initrd[n-1], nil
}
