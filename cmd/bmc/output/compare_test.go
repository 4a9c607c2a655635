package output

import (
	"slices"
	"testing"
)

func TestCompare(t *testing.T) {
	for _, want := range [][]string{
		{"", "web-1", "web-2", "web-10", "web-10a", "web-x"},
		{"900 B", "536.9 MB", "1.1 GB", "1 TB"},
		{"r1-u07", "r1-u10", "r2-u1"},
		{"10.77.1.9", "10.77.1.10", "10.77.2.1"},
		{"2026-11-26T08:59:19Z", "2026-11-26T10:00:00Z"},
	} {
		got := slices.Clone(want)
		slices.Reverse(got)
		slices.SortStableFunc(got, compare)
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if compare("web-1", "web-1") != 0 || compare("web-01", "web-1") != 0 {
		t.Error("equal is not equal")
	}
}
