package metal

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// SizeRule is what a machine must have, beside a size's minima, to be of the
// size. The zero rule asks for nothing.
type SizeRule struct {
	Priority int    // the higher is asked first; of equals the larger size
	Model    string // pattern of "vendor product", with *; "": any
	Disks    []DiskRule
	Labels   map[string]string // that the server has
}

// DiskRule asks for fixed disks of a kind.
type DiskRule struct {
	Kind     string // "nvme", "ssd", "hdd", "virtual"; "": any
	MinBytes uint64
	Count    int // at least; 0 is 1
}

// Limits of a rule.
const (
	maxDiskRules = 8
	maxPriority  = 1000
)

// Validate checks a rule on its own.
func (r *SizeRule) Validate(field string) error {
	if r.Priority < -maxPriority || r.Priority > maxPriority {
		return Invalid(field+".priority", "%d is not between -%d and %d", r.Priority, maxPriority, maxPriority)
	}
	if err := validateText(field+".model", r.Model, 128); err != nil {
		return err
	}
	if len(r.Disks) > maxDiskRules {
		return Invalid(field+".disks", "has %d lines, at most %d", len(r.Disks), maxDiskRules)
	}
	for i, d := range r.Disks {
		switch d.Kind {
		case "", "nvme", "ssd", "hdd", "virtual":
		default:
			return Invalid(fmt.Sprintf("%s.disks[%d].kind", field, i), "%q is not nvme, ssd, hdd or virtual", clip(d.Kind))
		}
		if d.Count < 0 || d.Count > 1000 {
			return Invalid(fmt.Sprintf("%s.disks[%d].count", field, i), "%d is not between 0 and 1000", d.Count)
		}
	}
	if len(r.Labels) > MaxLabels {
		return Invalid(field+".labels", "has %d, at most %d", len(r.Labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
		if err := ValidateLabel(k, r.Labels[k]); err != nil {
			return err
		}
	}
	return nil
}

// Equal compares two sizes but for their revision.
func (s *Size) Equal(o *Size) bool {
	return s.Name == o.Name && s.MinCPUThreads == o.MinCPUThreads && s.MinMemoryBytes == o.MinMemoryBytes &&
		s.MinDiskBytes == o.MinDiskBytes && s.RootDiskHint == o.RootDiskHint &&
		s.Rule.Priority == o.Rule.Priority && s.Rule.Model == o.Rule.Model &&
		slices.Equal(s.Rule.Disks, o.Rule.Disks) && maps.Equal(s.Rule.Labels, o.Rule.Labels)
}

// Before orders sizes as an inspection asks them: by priority, then the larger.
func (s *Size) Before(o *Size) bool {
	if s.Rule.Priority != o.Rule.Priority {
		return s.Rule.Priority > o.Rule.Priority
	}
	return s.Larger(o)
}

// Misses says why a server with this hardware is not of the size, as a sentence
// for people, or "" when it is.
func (s *Size) Misses(h *Hardware, labels map[string]string) string {
	if lack := s.Lacks(h); lack != "" {
		return lack
	}
	r := &s.Rule
	if model := strings.TrimSpace(h.Vendor + " " + h.Product); r.Model != "" && !like(r.Model, model) {
		return fmt.Sprintf("it is a %q, size %s is for %q", model, s.Name, r.Model)
	}
	for _, d := range r.Disks {
		if n := h.count(d); n < max(d.Count, 1) {
			return fmt.Sprintf("it has %d of the %d %s disks of at least %s that size %s has", n, max(d.Count, 1), d.Kind, Bytes(d.MinBytes), s.Name)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
		if labels[k] != r.Labels[k] {
			return fmt.Sprintf("its label %s is %q, size %s is for %q", k, labels[k], s.Name, r.Labels[k])
		}
	}
	return ""
}

func (h *Hardware) count(r DiskRule) int {
	n := 0
	for _, d := range h.Disks {
		if !d.Removable && d.SizeBytes >= r.MinBytes && (r.Kind == "" || d.Kind == r.Kind) {
			n++
		}
	}
	return n
}

// like matches text against a pattern in which * is anything, without regard to case.
func like(pattern, text string) bool {
	parts := strings.Split(strings.ToLower(pattern), "*")
	text = strings.ToLower(text)
	if len(parts) == 1 {
		return text == parts[0]
	}
	rest, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, p)
		if i < 0 {
			return false
		}
		rest = rest[i+len(p):]
	}
	return strings.HasSuffix(rest, last)
}

// Failing says which disks say that they are failing, as a sentence for people;
// "" for none.
func (h *Hardware) Failing() string {
	var out []string
	for _, d := range h.Disks {
		if d.Health != nil && d.Health.State == DiskFailing {
			name := d.Name
			if d.Serial != "" {
				name += " (" + d.Serial + ")"
			}
			out = append(out, fmt.Sprintf("disk %s is failing: %s", name, d.Health.Reason))
		}
	}
	return strings.Join(out, "; ")
}
