package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Duration is a time.Duration written like "15s" or "1h30m"; never negative.
type Duration time.Duration

// UnmarshalYAML reads the text form; a bare number is refused, since it would
// not say its unit.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < 0 {
		return fmt.Errorf("line %d: wants a duration such as \"15s\" or \"1h30m\", not %q", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Bytes is a number of bytes written like "20GiB", "512MB" or "4096".
type Bytes int64

// UnmarshalYAML reads a whole or decimal number with an optional unit, binary
// (KiB, MiB, GiB, TiB) or decimal (kB, MB, GB, TB).
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error {
	v, err := ParseBytes(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return fmt.Errorf("line %d: wants a size such as \"20GiB\", not %q", n.Line, n.Value)
	}
	*b = v
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (b Bytes) MarshalYAML() (any, error) { return strconv.FormatInt(int64(b), 10), nil }

var units = map[string]float64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// ParseBytes reads a size as configuration files write it.
func ParseBytes(s string) (Bytes, error) {
	s = strings.TrimSpace(s)
	end := strings.LastIndexAny(s, "0123456789.") + 1
	unit, ok := units[strings.ToLower(strings.TrimSpace(s[end:]))]
	number, err := strconv.ParseFloat(s[:end], 64)
	if !ok || err != nil || number < 0 || math.IsNaN(number) || number*unit > 1<<60 {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return Bytes(number * unit), nil
}
