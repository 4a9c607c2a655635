// Package output prints answers as people and as programs want them. Data goes
// to one writer; progress, prompts and hints never do.
package output

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bmc/metal"
)

// Format is one of table, wide, json, jsonl, yaml, name and template.
type Format struct {
	kind     string
	template *template.Template
	Columns  []string // by name; empty: the format's own
	SortBy   string   // a column's name; a leading "-" turns it round
}

// Parse reads the value of -o. The error says what there is.
func Parse(s string, columns []string, sortBy string) (Format, error) {
	f := Format{kind: s, Columns: columns, SortBy: sortBy}
	switch {
	case s == "":
		f.kind = "table"
	case strings.HasPrefix(s, "template="):
		t, err := template.New("output").Option("missingkey=zero").Parse(strings.TrimPrefix(s, "template="))
		if err != nil {
			return f, metal.Invalid("output", "%v", err)
		}
		f.kind, f.template = "template", t
	case !slices.Contains([]string{"table", "wide", "json", "jsonl", "yaml", "name"}, s):
		return f, metal.Invalid("output", "%q is not a format: table, wide, json, jsonl, yaml, name, template=…", s)
	}
	return f, nil
}

// Machine says whether the output is for a program.
func (f Format) Machine() bool { return f.kind != "table" && f.kind != "wide" }

// JSON says whether errors should be JSON too.
func (f Format) JSON() bool { return f.kind == "json" || f.kind == "jsonl" }

// Column is one column of a table of T.
type Column[T any] struct {
	Name  string
	Wide  bool // only with -o wide or --columns
	Value func(T) string
}

// List prints items; name gives what -o name prints of one.
func List[T proto.Message](w io.Writer, f Format, items []T, columns []Column[T], name func(T) string) error {
	items, err := sorted(f, items, columns)
	if err != nil {
		return err
	}
	switch f.kind {
	case "table", "wide":
		return table(w, f, items, columns)
	case "name":
		for _, it := range items {
			if _, err := fmt.Fprintln(w, name(it)); err != nil {
				return err
			}
		}
		return nil
	case "jsonl", "template":
		for _, it := range items {
			if err := One(w, f, it, columns, name); err != nil {
				return err
			}
		}
		return nil
	}
	parts := make([]string, len(items))
	for i, it := range items {
		b, err := marshal(it)
		if err != nil {
			return err
		}
		parts[i] = string(b)
	}
	return document(w, f, []byte("["+strings.Join(parts, ",")+"]"))
}

// One prints a single item; as a table it is the list of that one.
func One[T proto.Message](w io.Writer, f Format, item T, columns []Column[T], name func(T) string) error {
	switch f.kind {
	case "table", "wide", "name":
		return List(w, f, []T{item}, columns, name)
	}
	b, err := marshal(item)
	if err != nil {
		return err
	}
	switch f.kind {
	case "jsonl":
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	case "template":
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("read back the answer: %w", err)
		}
		if err := f.template.Execute(w, v); err != nil {
			return metal.Invalid("output", "%v", err)
		}
		_, err = fmt.Fprintln(w)
		return err
	}
	return document(w, f, b)
}

// marshal returns compact protojson without protojson's random white space.
func marshal(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return out.Bytes(), nil
}

// document writes a whole JSON value as JSON or as YAML, keys in their order.
func document(w io.Writer, f Format, b []byte) error {
	if f.kind == "json" {
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		_, err := fmt.Fprintf(w, "%s\n", out.Bytes())
		return err
	}
	var n yaml.Node // JSON is YAML; a Node keeps the order
	if err := yaml.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	block(&n)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return enc.Close()
}

// yamlWords are booleans to readers of YAML 1.1.
var yamlWords = []string{"on", "off", "yes", "no", "y", "n"}

func block(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && slices.Contains(yamlWords, strings.ToLower(n.Value)) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		block(c)
	}
}

func choose[T any](f Format, columns []Column[T]) ([]Column[T], error) {
	if len(f.Columns) == 0 {
		var out []Column[T]
		for _, c := range columns {
			if !c.Wide || f.kind == "wide" {
				out = append(out, c)
			}
		}
		return out, nil
	}
	var out []Column[T]
	for _, name := range f.Columns {
		c, err := find(columns, name)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func find[T any](columns []Column[T], name string) (Column[T], error) {
	var names []string
	for _, c := range columns {
		if strings.EqualFold(c.Name, name) {
			return c, nil
		}
		names = append(names, strings.ToLower(c.Name))
	}
	return Column[T]{}, metal.Invalid("columns", "there is no column %q: %s", name, strings.Join(names, ", "))
}

func sorted[T any](f Format, items []T, columns []Column[T]) ([]T, error) {
	if f.SortBy == "" {
		return items, nil
	}
	c, err := find(columns, strings.TrimPrefix(f.SortBy, "-"))
	if err != nil {
		return nil, err
	}
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b T) int {
		n := compare(c.Value(a), c.Value(b))
		if strings.HasPrefix(f.SortBy, "-") {
			n = -n
		}
		return n
	})
	return items, nil
}

// compare orders what columns show: sizes by their amount, names with their numbers as
// numbers (web-2 before web-10), the rest as text.
func compare(a, b string) int {
	if x, ok := amount(a); ok {
		if y, ok := amount(b); ok {
			return cmp.Compare(x, y)
		}
	}
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x == "" || y == "" {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		m, n := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(m), len(n)), cmp.Compare(m, n)); c != 0 {
			return c
		}
		a, b = a[len(x):], b[len(y):]
	}
	return cmp.Compare(len(a), len(b))
}

// digits are those that a text begins with.
func digits(s string) string { return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))] }

// amount reads a number with a unit behind it, as sizes and watts are shown.
func amount(s string) (float64, bool) {
	number, unit, ok := strings.Cut(s, " ")
	factor, known := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "W": 1}[unit]
	n, err := strconv.ParseFloat(number, 64)
	return n * factor, ok && known && err == nil
}

func table[T any](w io.Writer, f Format, items []T, columns []Column[T]) error {
	columns, err := choose(f, columns)
	if err != nil {
		return err
	}
	rows := make([][]string, 1, len(items)+1)
	for _, c := range columns {
		rows[0] = append(rows[0], c.Name)
	}
	for _, it := range items {
		row := make([]string, len(columns))
		for i, c := range columns {
			if row[i] = clean(c.Value(it)); row[i] == "" {
				row[i] = "-"
			}
		}
		rows = append(rows, row)
	}
	return Grid(w, rows)
}

// Grid writes rows with their columns lined up.
func Grid(w io.Writer, rows [][]string) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += cell
			if i < len(row)-1 {
				line += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// clean keeps what a server said from moving the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}
