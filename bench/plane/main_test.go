package main

import (
	"slices"
	"strings"
	"testing"
)

// What is asked for is measured or refused, never passed over.
func TestParse(t *testing.T) {
	for _, tc := range []struct{ args, err string }{
		{"", ""},
		{"-only list,growth -servers 100 -growth 10,100 -log-store wal", ""},
		{"-only lists", `no "lists"`},
		{"-only list,", `no ""`},
		{"-only commit -servers 100", "-servers does nothing"},
		{"-only list -growth 10", "-growth does nothing"},
		{"-only commit -log-store wal", "-log-store does nothing"},
		{"-only growth -growth 100,10", "ascending"},
	} {
		_, err := parse(strings.Fields(tc.args))
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", tc.args, err, tc.err)
		}
	}
}

func TestOrdered(t *testing.T) {
	all := []int{1, 2, 3}
	if got := slices.Concat(ordered(all, 0), ordered(all, 1), ordered(all, 2)); !slices.Equal(got, []int{1, 2, 3, 3, 2, 1, 1, 2, 3}) {
		t.Error(got)
	}
}
