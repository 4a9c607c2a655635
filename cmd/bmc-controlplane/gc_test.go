package main

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestTuneGC(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	for _, tc := range []struct {
		name    string
		env     map[string]string
		percent int
		limited bool
	}{
		{"nothing is set", nil, gcPercent, true},
		{"the operator has set both", map[string]string{"GOGC": "50", "GOMEMLIMIT": "1GiB"}, 100, false},
	} {
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
		tuneGC(func(k string) string { return tc.env[k] })
		if got := debug.SetGCPercent(100); got != tc.percent {
			t.Errorf("%s: %d percent", tc.name, got)
		}
		if got := debug.SetMemoryLimit(-1); (got < math.MaxInt64) != tc.limited || got < 1<<20 {
			t.Errorf("%s: a limit of %d bytes", tc.name, got)
		}
	}
}
