package measure

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for p, want := range map[float64]time.Duration{50: 50, 90: 90, 99: 99, 100: 100, 0: 1} {
		if got := Percentile(hundred, p); got != want {
			t.Errorf("p%v is %d, want %d", p, got, want)
		}
	}
	if Percentile(nil, 50) != 0 || Percentile(hundred[:1], 99) != 1 {
		t.Error("of none and one")
	}
}
