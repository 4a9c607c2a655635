package operation

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Known is an operation's attempt that a journal tells of.
type Known struct {
	Operation string
	Attempt   uint32
	DoneSteps []string
}

// Known lists what the journals tell of, ended or not.
func (m *Manager) Known() []Known {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil
	}
	var out []Known
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".journal")
		operation, attempt, dotted := strings.Cut(name, ".")
		n, err := strconv.ParseUint(attempt, 10, 32)
		if !ok || !dotted || err != nil {
			continue
		}
		k := Known{Operation: operation, Attempt: uint32(n)}
		data, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err != nil {
			continue // pruned meanwhile
		}
		records, _, err := decode(data)
		if err != nil {
			continue // made, never written
		}
		for _, rec := range records {
			if rec.Kind == RecordDone {
				k.DoneSteps = append(k.DoneSteps, string(rec.Step))
			}
		}
		out = append(out, k)
	}
	return out
}
