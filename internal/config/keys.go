package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

var unmarshaler = reflect.TypeFor[yaml.Unmarshaler]()

// check walks the document beside the type that it will fill and refuses what
// the library would take silently or explain badly.
func check(name string, n *yaml.Node, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return refuse(name, n.Line, "is nested too deeply")
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return refuse(name, n.Line, "anchors and aliases are not supported")
	}
	for t != nil && t.Kind() == reflect.Pointer && !t.Implements(unmarshaler) {
		t = t.Elem()
	}
	if t != nil && (t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler)) {
		t = nil // it checks itself; below it only anchors and doubles matter
	}
	switch n.Kind {
	case yaml.MappingNode:
		return checkMapping(name, n, t, depth)
	case yaml.SequenceNode:
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for _, c := range n.Content {
			if err := check(name, c, elem, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkMapping(name string, n *yaml.Node, t reflect.Type, depth int) error {
	var known map[string]reflect.Type
	var elem reflect.Type
	if t != nil && t.Kind() == reflect.Struct {
		known = map[string]reflect.Type{}
		fields(t, known)
	}
	if t != nil && t.Kind() == reflect.Map {
		elem = t.Elem()
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			return refuse(name, key.Line, "a key must be a plain word")
		}
		if line, twice := seen[key.Value]; twice {
			return refuse(name, key.Line, "key %q was already given on line %d", key.Value, line)
		}
		seen[key.Value] = key.Line
		child := elem
		if known != nil {
			ft, ok := known[key.Value]
			if !ok {
				return unknown(name, key, known)
			}
			child = ft
		}
		if err := check(name, value, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func unknown(name string, key *yaml.Node, known map[string]reflect.Type) error {
	if near := nearest(key.Value, known); near != "" {
		return refuse(name, key.Line, "unknown key %q, did you mean %q?", key.Value, near)
	}
	return refuse(name, key.Line, "unknown key %q", key.Value)
}

// fields collects the keys of a struct as the library names them.
func fields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() && !f.Anonymous || tag == "-" {
			continue
		}
		if strings.Contains(options, "inline") {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				fields(inner, into)
			}
			continue
		}
		if tag == "" {
			tag = strings.ToLower(f.Name)
		}
		into[tag] = f.Type
	}
}

// nearest returns the known key that a person most likely meant, or "".
func nearest(key string, known map[string]reflect.Type) string {
	if len(key) > 64 {
		return ""
	}
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	best, bestDistance := "", 1+max(2, len(key)/3)
	for k := range known {
		d := distance(fold(key), fold(k))
		if d < bestDistance || d == bestDistance && best != "" && k < best {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is Levenshtein's, over bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
