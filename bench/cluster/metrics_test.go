package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# HELP x_seconds y\nx_seconds_bucket{le=\"1e-05\"} 50\nx_seconds_bucket{le=\"0.001\"} 99\nx_seconds_bucket{le=\"+Inf\"} 100\nx_seconds_sum 1\nx_seconds_count 100\n")
	}))
	defer s.Close()
	h, err := histogramOf(t.Context(), s.Client(), s.URL, "x_seconds")
	if err != nil || h.N() != 100 || h.At(50) != 10*time.Microsecond || h.At(99) != time.Millisecond || h.At(100) != time.Millisecond {
		t.Fatalf("%+v %v: %s", h, err, h)
	}
	if d := h.Since(Histogram{h.Bounds, []float64{50, 50, 50}}); d.N() != 50 || d.At(50) != time.Millisecond {
		t.Errorf("since: %+v", d)
	}
	if _, err := histogramOf(t.Context(), s.Client(), s.URL, "z_seconds"); err == nil {
		t.Error("found what is not there")
	}
}
