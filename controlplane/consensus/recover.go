package consensus

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/hashicorp/raft"

	"bmc/metal"
)

// Found is what a member's stores hold.
type Found struct {
	Index    uint64   // of the last entry
	Term     uint64   // of the last entry
	Snapshot uint64   // last entry in the newest snapshot; 0: there is none
	Members  []Member // the newest configuration
}

// Survey reads a stopped member's stores and plays them into c.FSM, which must
// be empty. Nothing is written. Entries at the end may be such that were never
// acknowledged: which, no single member knows.
func Survey(c Config) (Found, error) {
	var f Found
	list, err := c.Snapshots.List()
	if err != nil {
		return f, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) > 0 { // the newest alone: the log may begin right after it
		meta, r, err := c.Snapshots.Open(list[0].ID)
		if err != nil {
			return f, fmt.Errorf("open the newest snapshot: %w", err)
		}
		if err := c.FSM.Restore(r); err != nil {
			return f, fmt.Errorf("read the newest snapshot: %w", err)
		}
		f.Snapshot, f.Index, f.Term, f.Members = meta.Index, meta.Index, meta.Term, membersOf(meta.Configuration)
	}
	last, err := c.Logs.LastIndex()
	if err != nil {
		return f, fmt.Errorf("read the log: %w", err)
	}
	for i := f.Index + 1; i <= last; i++ {
		var entry raft.Log
		if err := c.Logs.GetLog(i, &entry); err != nil {
			return f, fmt.Errorf("read log entry %d: %w", i, err)
		}
		switch entry.Type {
		case raft.LogCommand:
			c.FSM.Apply(&entry)
		case raft.LogConfiguration:
			f.Members = membersOf(raft.DecodeConfiguration(entry.Data))
		}
		f.Index, f.Term = entry.Index, entry.Term
	}
	if f.Index == 0 {
		return f, metal.Errorf(metal.CodeNotFound, "this node's log is empty: there is nothing to recover from it")
	}
	return f, nil
}

func membersOf(c raft.Configuration) []Member {
	var out []Member
	for _, s := range c.Servers {
		out = append(out, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// Recover makes a stopped member the only one of its group: what its log holds
// counts as committed, and becomes a snapshot. c.FSM must be empty.
func Recover(c Config) error {
	c.Timing.fill()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	err := raft.RecoverCluster(raftConfig(c), c.FSM, c.Logs, c.Stable, c.Snapshots, c.Transport, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(c.ID), Address: c.Transport.LocalAddr()}}})
	if err != nil {
		return errors.Join(errors.New("the log was not made this node's own"), err)
	}
	return nil
}
