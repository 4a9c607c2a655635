package fsm

import "bmc/fsm/state"

// Replicas compare their state hashes at the first command at or above each
// multiple of markEvery. Revisions have gaps, the same ones everywhere.
const (
	markEvery = 1000
	keptMarks = 16
)

// HashMark is the hash that the state had right after a command.
type HashMark struct {
	Revision uint64
	Hash     state.Hash
}

// StateHashAt answers the hash right after the command of a revision, if that
// is the newest one or a mark that is remembered. Revision 0 is the newest mark.
func (f *FSM) StateHashAt(revision uint64) (HashMark, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision == 0 {
		if len(f.marks) == 0 {
			return HashMark{}, false
		}
		return f.marks[len(f.marks)-1], true
	}
	if revision == f.view.Revision() {
		return HashMark{revision, f.view.Hash()}, true
	}
	for _, m := range f.marks {
		if m.Revision == revision {
			return m, true
		}
	}
	return HashMark{}, false
}
