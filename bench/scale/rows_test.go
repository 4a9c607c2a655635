package main

import "testing"

func TestRows(t *testing.T) {
	f := &figures{servers: 40000}
	for _, s := range []float64{5, 4} {
		f.note("s", s, "restart, %s", "with all of them")
		f.note("MiB", 100*s, "memory")
	}
	rows := f.rows()
	if len(rows) != 2 || rows[0].What != "40000 servers: restart, with all of them" || rows[0].Ours.Median != 4.5 || rows[0].Ours.Runs != 2 || rows[1].Unit != "MiB" {
		t.Errorf("%+v", rows)
	}
}
