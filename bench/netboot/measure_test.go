package main

import "testing"

func TestCompare(t *testing.T) {
	rows := func(v ...float64) [][]float64 {
		var out [][]float64
		for _, x := range v {
			if x < 0 { // a run that failed
				out = append(out, nil)
				continue
			}
			out = append(out, []float64{x})
		}
		return out
	}
	for _, tt := range []struct {
		ours, theirs [][]float64
		want         string
	}{
		{rows(10, 20, 30), rows(10, 10, 10), "2.00 x"},
		{rows(10, 20, 30), rows(10, -1, 10), "2.00 x"},
		{rows(10, 30), rows(1, 1), "20.0 x"},
		{rows(10, 20), rows(-1, -1), ""},
		{rows(10, 20), rows(5, 0), ""}, // no resends, say
	} {
		if got := compare(tt.ours, tt.theirs, 0); got != tt.want {
			t.Errorf("%v to %v is %q, want %q", tt.ours, tt.theirs, got, tt.want)
		}
	}
	if got := spread(column(rows(3, -1, 1, 200), 0)); got != "3.00 (1.00-200)" {
		t.Errorf("spread %q", got)
	}
}
