package metal

import "strings"

// Selector is a parsed label selector: all of its requirements must hold.
type Selector []Requirement

// Requirement is one term of a selector: k=v, k!=v or k (exists).
type Requirement struct {
	Key   string
	Op    string // "=", "!=" or "exists"
	Value string
}

// ParseSelector reads "k=v,k!=v,k". The empty string selects everything.
func ParseSelector(s string) (Selector, error) {
	if s == "" {
		return nil, nil
	}
	var sel Selector
	for _, term := range strings.Split(s, ",") {
		r := Requirement{Key: strings.TrimSpace(term), Op: "exists"}
		if k, v, ok := strings.Cut(r.Key, "!="); ok {
			r = Requirement{Key: k, Op: "!=", Value: v}
		} else if k, v, ok := strings.Cut(r.Key, "="); ok {
			r = Requirement{Key: k, Op: "=", Value: v}
		}
		if err := ValidateLabel(r.Key, r.Value); err != nil {
			return nil, Invalid("selector", "%q is not k=v, k!=v or k", strings.TrimSpace(term)).WithHint("bmc list -l tier=web,env!=test")
		}
		sel = append(sel, r)
	}
	return sel, nil
}

// Matches says whether labels meet every requirement. As everywhere, k!=v also
// holds where k is absent.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s {
		v, ok := labels[r.Key]
		switch r.Op {
		case "=":
			if !ok || v != r.Value {
				return false
			}
		case "!=":
			if ok && v == r.Value {
				return false
			}
		default:
			if !ok {
				return false
			}
		}
	}
	return true
}
