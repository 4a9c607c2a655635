package main

import (
	"runtime/debug"
	"syscall"
)

// gcPercent is how much a node allocates between collections, in percent of what
// lives: with Go's 100 they took a sixth of the processor under writes
// (docs/performance.md).
const gcPercent = 200

// tuneGC collects less often while memory is plentiful: above half of the
// machine's, collections come as often as they must. GOGC and GOMEMLIMIT, where
// they are set, hold instead.
func tuneGC(env func(string) string) {
	if env("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	var i syscall.Sysinfo_t
	if env("GOMEMLIMIT") == "" && syscall.Sysinfo(&i) == nil {
		debug.SetMemoryLimit(int64(i.Totalram) * int64(i.Unit) / 2) //nolint:gosec // no machine has 2^63 bytes
	}
}
