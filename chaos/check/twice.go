package check

import (
	"regexp"
	"strings"

	"bmc/lab/virtualbmc"
)

// twice: what must not be done a second time. An on to a machine that is on, or
// an off to one that is off, was sent without a look, or by two; a second request
// to shut down, before the machine went off, was sent by somebody who had
// forgotten the first.
func twice(e *Evidence, l *look) []Violation {
	var out []Violation
	soft := map[string]*virtualbmc.Command{}
	for i := range e.Commands {
		c := &e.Commands[i]
		if !c.OK || c.Fault {
			continue
		}
		if does(c) >= 0 {
			l.saw("power commands", 1)
		}
		switch does(c) {
		case doOn:
			if c.On {
				out = append(out, violation("twice", "a machine that was on was turned on", commandLine(c)))
			}
			soft[c.Server] = nil
		case doOff:
			if !c.On {
				out = append(out, violation("twice", "a machine that was off was turned off", commandLine(c)))
			}
			soft[c.Server] = nil
		case doSoft:
			if was := soft[c.Server]; was != nil && c.On {
				out = append(out, violation("twice", "a machine was asked twice to shut down", commandLine(was), commandLine(c)))
			}
			soft[c.Server] = c
		case doCycle, doReset:
			out = append(out, violation("twice", "a controller was told to cycle or reset", commandLine(c)))
		}
	}
	for server, console := range e.Consoles {
		out = append(out, tasksTwice(server, console, l)...)
	}
	return append(out, grantedTwice(e, l)...)
}

// The ramdisk's own log, on the console: the network comes first in each boot.
var (
	ramdiskBoots = "starting the network"
	taskStarted  = regexp.MustCompile(`task started\b.*\btask=(\S+)`)
)

func tasksTwice(server, console string, l *look) []Violation {
	var out []Violation
	started := map[string]string{}
	for line := range strings.Lines(console) {
		if strings.Contains(line, ramdiskBoots) {
			clear(started)
		}
		m := taskStarted.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		l.saw("tasks", 1)
		if was, again := started[m[1]]; again {
			out = append(out, violation("twice", "the ramdisk of "+server+" started a task twice in one boot", strings.TrimSpace(was), strings.TrimSpace(line)))
		}
		started[m[1]] = line
	}
	return out
}
