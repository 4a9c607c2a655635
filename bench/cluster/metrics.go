package cluster

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Histogram is what a metric's buckets count, over all nodes.
type Histogram struct {
	Bounds []float64 // upper, seconds; the last is +Inf
	Counts []float64 // up to and with each bound
}

// Histogram sums a histogram of the nodes' /metrics that run.
func (c *Cluster) Histogram(ctx context.Context, name string) (sum Histogram, err error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.ca) {
		return sum, errors.New("the cluster's CA cannot be read")
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}
	for _, n := range c.Nodes {
		one, err := histogramOf(ctx, client, "https://"+n.Address+"/metrics", name)
		if err != nil {
			return sum, fmt.Errorf("metrics of %s: %w", n.Name, err)
		}
		if sum.Bounds == nil {
			sum = one
			continue
		}
		if len(one.Bounds) != len(sum.Bounds) {
			return sum, fmt.Errorf("metrics of %s: other buckets than its peers'", n.Name)
		}
		for i := range one.Counts {
			sum.Counts[i] += one.Counts[i]
		}
	}
	return sum, nil
}

func histogramOf(ctx context.Context, client *http.Client, url, name string) (h Histogram, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return h, err
	}
	r, err := client.Do(req)
	if err != nil {
		return h, err
	}
	defer r.Body.Close()
	for s := bufio.NewScanner(r.Body); s.Scan(); {
		rest, ok := strings.CutPrefix(s.Text(), name+`_bucket{le="`)
		if !ok {
			continue
		}
		var le string
		var n float64
		if le, rest, ok = strings.Cut(rest, `"} `); !ok {
			return h, fmt.Errorf("a line of %s is not as expected: %s", name, s.Text())
		}
		if _, err := fmt.Sscan(rest, &n); err != nil {
			return h, fmt.Errorf("%s: %w", s.Text(), err)
		}
		var bound float64
		if _, err := fmt.Sscan(le, &bound); err != nil {
			return h, fmt.Errorf("%s: %w", s.Text(), err)
		}
		h.Bounds, h.Counts = append(h.Bounds, bound), append(h.Counts, n)
	}
	if len(h.Bounds) == 0 {
		return h, fmt.Errorf("there is no %s", name)
	}
	return h, nil
}

// Since is what was counted after an earlier reading of the same processes.
func (h Histogram) Since(was Histogram) Histogram {
	out := Histogram{Bounds: h.Bounds, Counts: make([]float64, len(h.Counts))}
	for i := range h.Counts {
		out.Counts[i] = h.Counts[i]
		if i < len(was.Counts) {
			out.Counts[i] -= was.Counts[i]
		}
	}
	return out
}

// N is how many there are.
func (h Histogram) N() int {
	if len(h.Counts) == 0 {
		return 0
	}
	return int(h.Counts[len(h.Counts)-1])
}

// At is the upper bound of the bucket in which a percentile lies: no less than the
// percentile.
func (h Histogram) At(percent float64) time.Duration {
	want := float64(h.N()) * percent / 100
	for i, n := range h.Counts {
		if n >= want && n > 0 {
			if i == len(h.Counts)-1 && i > 0 { // beyond the last bound
				i--
			}
			return time.Duration(h.Bounds[i] * float64(time.Second))
		}
	}
	return 0
}

func (h Histogram) String() string {
	return fmt.Sprintf("p50 at most %v, p99 at most %v, of %d", h.At(50).Round(time.Microsecond), h.At(99).Round(time.Microsecond), h.N())
}
