//go:build mutants

package mutant

import (
	"os"
	"time"
)

// On says whether a mutant is at work.
func On(name string) bool { return os.Getenv("BMC_MUTANT") == name }

// Clock is another time than a command's, for the mutant clock-in-apply; 0: take
// the command's.
func Clock() int64 {
	if !On("clock-in-apply") {
		return 0
	}
	return time.Now().UnixNano()
}
