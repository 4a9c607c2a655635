package metal

import (
	"strconv"
	"time"
)

// WarmAll is Rack.Warm for every available server.
const WarmAll = -1

// MaxWarm bounds Rack.Warm.
const MaxWarm = 10_000

// MaxWarmTries is how often in a row a server may fail to come warm, or to stay
// so, before it is left cold until somebody looks after it.
const MaxWarmTries = 5

// WarmStable is how long a server must have waited in the ramdisk for the tries
// before not to count any more.
const WarmStable = time.Hour

// Warm is how an available server waits in the ramdisk, or why it does not.
type Warm struct {
	BootID  string    // of the ramdisk that waits; "": none does
	Ramdisk string    // its version
	Since   time.Time // it waits
	Tries   int       // that have failed in a row
	Next    time.Time // not tried again before
	Problem string    // of the last try
}

// Waits says whether the server waits in the ramdisk. It may be called on nil.
func (w *Warm) Waits() bool { return w != nil && w.BootID != "" }

// Due says whether a server may be brought into the ramdisk (again) now.
func (w *Warm) Due(now time.Time) bool {
	return w == nil || w.Tries < MaxWarmTries && !now.Before(w.Next)
}

// DueCold says whether a server may be switched off (again) now: at once when it
// was given up; and not for ever when its controller does not obey.
func (w *Warm) DueCold(now time.Time) bool {
	return w != nil && (w.Tries == MaxWarmTries || w.Tries < 2*MaxWarmTries && !now.Before(w.Next))
}

// warmPauses stand between two tries.
var warmPauses = [MaxWarmTries]time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 2 * time.Hour}

// WarmPause is how long to wait after so many failed tries.
func WarmPause(tries int) time.Duration {
	return warmPauses[max(1, min(tries, MaxWarmTries))-1]
}

// ParseWarm reads none, all or a number.
func ParseWarm(field, s string) (int, error) {
	switch s {
	case "none":
		return 0, nil
	case "all":
		return WarmAll, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > MaxWarm {
		return 0, Invalid(field, "%q is not none, all or a number up to %d", clip(s), MaxWarm)
	}
	return n, nil
}

// WarmText writes what ParseWarm reads.
func WarmText(n int) string {
	switch {
	case n < 0:
		return "all"
	case n == 0:
		return "none"
	}
	return strconv.Itoa(n)
}
