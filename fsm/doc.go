// Package fsm is the replicated state machine: it decodes the log's commands,
// applies them to the state, and writes and reads snapshots. It never reads a
// clock, a file, the network or a map in random order; see DESIGN.md.
package fsm
