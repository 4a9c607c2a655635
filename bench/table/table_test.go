package table

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestFigures(t *testing.T) {
	for _, tc := range []struct {
		runs []float64
		want string
	}{
		{nil, ""},
		{[]float64{12345.6}, "12,346"},
		{[]float64{3, 1, 2}, "2 (1-3)"},
		{[]float64{4, 1, 2, 3}, "2.5 (1-4)"},
		{[]float64{-1234567, -1234567}, "-1,234,567"},
		{[]float64{0.01234, 0.5}, "0.256 (0.0123-0.5)"},
	} {
		if got := Of(tc.runs).String(); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.runs, got, tc.want)
		}
	}
	if got := InTurns([]float64{2, 9, 8}, []float64{1, 3, 0}); got.Median != 2.5 || got.Runs != 2 {
		t.Errorf("in turns: %+v", got)
	}
}

func TestRowsComeBackAndArePrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows")
	rows := []Row{
		{What: "writes", Unit: "writes/s", Ours: Of([]float64{2000}), Peer: "etcd", Them: Of([]float64{1000}), Ratio: Of([]float64{2}), Aim: "at least 1.4 x", Load: 3},
		{What: "memory", Unit: "KB a server", Ours: Of([]float64{7}), Peer: "etcd", Note: "not installed: skipped"},
	}
	for _, r := range rows {
		if err := Append(file, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(file)
	if err != nil || !reflect.DeepEqual(got, rows) {
		t.Fatalf("read %+v, %v", got, err)
	}
	var b strings.Builder
	if err := Print(&b, got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2,000 writes/s", "etcd 1,000", "2 x", "(load 3.0)", "not installed: skipped"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if none, err := Read(filepath.Join(t.TempDir(), "none")); err != nil || none != nil {
		t.Errorf("a missing file: %v, %v", none, err)
	}
}
