package model

import (
	"os"
	"strings"
	"testing"
	"time"

	"bmc/chaos/history"
)

// build makes a history of calls that follow each other, 10 ns each, but for
// those that say when they were.
func build(calls ...history.Call) []history.Call {
	for i := range calls {
		c := &calls[i]
		c.ID = i + 1
		if c.Begin == 0 {
			c.Begin = int64(100 * (i + 1))
		}
		if c.End == 0 && c.Outcome != history.Unknown {
			c.End = c.Begin + 10
		}
		if c.RequestID == "" && c.Kind != history.Get && c.Kind != history.List {
			c.RequestID = string(rune('a' + i))
		}
	}
	return calls
}

func on(id, rental string) []history.Server {
	return []history.Server{{ID: id, Rental: rental, Address: "10.0.0." + id}}
}

func create(name, id string) history.Call {
	return history.Call{Kind: history.Create, Name: name, Outcome: history.OK, Servers: on(id, name)}
}

func destroy(name, id string) history.Call {
	return history.Call{Kind: history.Destroy, Name: name, Outcome: history.OK, Servers: on(id, "")}
}

func get(name, id string) history.Call {
	if id == "" {
		return history.Call{Kind: history.Get, Name: name, Outcome: history.Refused, Code: "NOT_FOUND"}
	}
	return history.Call{Kind: history.Get, Name: name, Outcome: history.OK, Servers: on(id, name)}
}

func list(servers ...history.Server) history.Call {
	return history.Call{Kind: history.List, Outcome: history.OK, Servers: servers}
}

func unknown(kind, name string) history.Call {
	return history.Call{Kind: kind, Name: name, Outcome: history.Unknown}
}

func TestModel(t *testing.T) {
	late := get("a", "")
	late.Begin, late.End = 95, 500 // concurrent with the create
	retry := create("a", "1")
	retry.RequestID = "same"
	first := unknown(history.Create, "a")
	first.RequestID = "same"
	for _, tt := range []struct {
		name  string
		calls []history.Call
		bad   []string // keys
	}{
		{"a life", build(get("a", ""), create("a", "1"), get("a", "1"), list(on("1", "a")[0]), destroy("a", "1"), get("a", ""), create("b", "1")), nil},
		{"a read beside a create may say either", build(create("a", "1"), late), nil},
		{"a lost write", build(create("a", "1"), get("a", "")), []string{"name/a"}},
		{"a lost write, by a list", build(create("a", "1"), list(on("1", "")[0])), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"a stale read", build(create("a", "1"), destroy("a", "1"), get("a", "1")), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"two tenants", build(create("a", "1"), create("b", "1")), []string{"address/10.0.0.1", "server/1"}},
		{"one name twice", build(create("a", "1"), create("a", "2")), []string{"name/a"}},
		{"one name, two servers in one list", build(create("a", "1"), list(on("1", "a")[0], on("2", "a")[0])), []string{"address/10.0.0.2", "name/a", "server/2"}},
		{"one address, two servers", build(create("a", "1"), history.Call{Kind: history.Create, Name: "b", Outcome: history.OK,
			Servers: []history.Server{{ID: "2", Rental: "b", Address: "10.0.0.1"}}}), []string{"address/10.0.0.1"}},
		{"taken though free", build(history.Call{Kind: history.Create, Name: "a", Outcome: history.Refused, Code: "NAME_TAKEN"}), []string{"name/a"}},
		{"an unknown create that was done", build(unknown(history.Create, "a"), get("a", "1"), get("a", "1")), nil},
		{"an unknown create that was not", build(unknown(history.Create, "a"), get("a", ""), create("b", "1")), nil},
		{"an unknown create that was done late", build(unknown(history.Create, "a"), get("a", ""), get("a", "1")), nil},
		{"an unknown create changes its mind", build(unknown(history.Create, "a"), get("a", "1"), get("a", "")), []string{"name/a"}},
		{"an unknown create on a rented server", build(create("b", "1"), unknown(history.Create, "a"), list(on("1", "a")[0]), destroy("b", "1")),
			[]string{"address/10.0.0.1", "name/b", "server/1"}},
		{"an unknown destroy", build(create("a", "1"), unknown(history.Destroy, "a"), get("a", "1"), get("a", ""), create("a", "1")), nil},
		{"a retry is one call", build(first, retry, get("a", "1")), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			results, err := Check(tt.calls, 10*time.Second, dir)
			if err != nil {
				t.Fatal(err)
			}
			var bad []string
			for _, r := range results {
				if r.OK {
					continue
				}
				bad = append(bad, r.Key)
				if page, err := os.ReadFile(r.Chart); err != nil || !strings.Contains(string(page), "<html") {
					t.Errorf("chart of %s: %v", r.Key, err)
				}
			}
			if strings.Join(bad, " ") != strings.Join(tt.bad, " ") {
				t.Errorf("found %v, want %v", bad, tt.bad)
			}
		})
	}
}
