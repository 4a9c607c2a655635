// Package version holds the stamp that every binary carries.
package version

// Version and Commit are set by the linker (see the Makefile).
var (
	Version = "dev"
	Commit  = "unknown"
)

// String is what `bmc version` and the daemons print.
func String() string { return Version + " (" + Commit + ")" }
