// Package config reads the daemons' YAML files strictly: an unknown key, a key
// given twice or a value of the wrong type is refused with its file and line,
// and a misspelt key is answered with the nearest one that exists.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"bmc/metal"
)

// MaxSize is the largest file that Load reads, in bytes.
const MaxSize = 1 << 20

// maxDepth bounds nesting: no configuration of ours comes near it.
const maxDepth = 32

// Load reads the YAML file at path into dst, a pointer to a struct whose fields
// carry yaml tags. Fields that the file does not mention keep the values that
// they have, so dst may hold defaults. Errors are *metal.Error with
// CodeInvalid, their message beginning with file:line.
func Load(path string, dst any) error {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		e := &metal.Error{Code: metal.CodeInvalid, Field: "config", Message: "cannot read " + path, Err: err}
		if errors.Is(err, os.ErrNotExist) {
			e.Message = "there is no configuration file " + path
			e.Err = nil
		}
		return e
	}
	defer f.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return &metal.Error{Code: metal.CodeInvalid, Field: "config", Message: "cannot read " + path, Err: err}
	}
	return Parse(filepath.Clean(path), data, dst)
}

// Parse is Load for bytes at hand; name stands for the file in errors.
func Parse(name string, data []byte, dst any) error {
	if len(data) > MaxSize {
		return refuse(name, 1, "is larger than %d bytes", MaxSize)
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // an empty file says nothing
		}
		return fromYAML(name, err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return fromYAML(name, err)
		}
		return refuse(name, more.Line, "has a second document: one file, one document")
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	if err := check(name, doc.Content[0], reflect.TypeOf(dst), 0); err != nil {
		return err
	}
	strict := yaml.NewDecoder(bytes.NewReader(data))
	strict.KnownFields(true)
	if err := strict.Decode(dst); err != nil {
		return fromYAML(name, err)
	}
	return nil
}

func refuse(name string, line int, format string, args ...any) *metal.Error {
	return &metal.Error{
		Code: metal.CodeInvalid, Field: "config",
		Message: fmt.Sprintf("%s:%d: %s", name, max(line, 1), fmt.Sprintf(format, args...)),
	}
}

var (
	yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlType = regexp.MustCompile(`^cannot unmarshal !!(\w+)(?: .(.*).)? into (\S+)$`)
)

// fromYAML turns the library's errors into ours: the first of several, with its
// line, and Go's type names replaced by words.
func fromYAML(name string, err error) *metal.Error {
	text := err.Error()
	var te *yaml.TypeError
	if errors.As(err, &te) && len(te.Errors) > 0 {
		text = te.Errors[0]
	}
	line := 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line = n
		}
		text = m[2]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	if m := yamlType.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("wants %s, not %s", word(m[3]), given(m[1], m[2]))
	}
	return refuse(name, line, "%s", text)
}

func given(tag, value string) string {
	switch tag {
	case "seq":
		return "a list"
	case "map":
		return "a group of keys"
	}
	return strconv.Quote(value)
}

func word(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case goType == "string":
		return "text"
	case goType == "bool":
		return "true or false"
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case strings.HasPrefix(goType, "float"):
		return "a number"
	}
	return "a group of keys"
}
