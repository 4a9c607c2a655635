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
		if c.RequestID == "" && c.Kind != history.Get && c.Kind != history.List && c.Kind != history.ListKeys {
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

// on1 is a call about server 1's rental whose answer is an operation of a kind.
func on1(kind, name, op string) history.Call {
	return history.Call{Kind: kind, Name: name, Outcome: history.OK, Op: op, Servers: on("1", "")}
}

func key(kind, name, id string) history.Call {
	c := history.Call{Kind: kind, Name: name, Outcome: history.OK}
	if id != "" {
		c.Keys = map[string]string{name: id}
	}
	return c
}

func keys(name, id string) history.Call {
	c := key(history.ListKeys, name, id)
	c.Name = ""
	return c
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
		{"a key's life", build(key(history.AddKey, "k", "1"), keys("k", "1"), key(history.RemoveKey, "k", ""), keys("", ""), key(history.AddKey, "k", "2"), keys("k", "2")), nil},
		{"a lost key", build(key(history.AddKey, "k", "1"), keys("", "")), []string{"key/k"}},
		{"a key that was removed", build(key(history.AddKey, "k", "1"), key(history.RemoveKey, "k", ""), keys("k", "1")), []string{"key/k"}},
		{"a key's former self", build(key(history.AddKey, "k", "1"), key(history.RemoveKey, "k", ""), key(history.AddKey, "k", "2"), keys("k", "1")), []string{"key/k"}},
		{"an unknown key", build(unknown(history.AddKey, "k"), keys("", ""), keys("k", "1"), unknown(history.RemoveKey, "k"), keys("", "")), nil},
		{"a deployment's cancel ends the rental", build(create("a", "1"), on1(history.Cancel, "a", "clean"), get("a", ""), create("b", "1")), nil},
		{"a cancelled deployment's rental goes on", build(create("a", "1"), on1(history.Cancel, "a", "clean"), get("a", "1")), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"a restart's cancel does not end the rental", build(create("a", "1"), on1(history.Cancel, "a", "restart"), get("a", ""), create("b", "1")), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"a restart of what was given back", build(create("a", "1"), destroy("a", "1"), on1(history.Restart, "a", "restart")), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"power and a retry of what is rented", build(create("a", "1"), on1(history.Retry, "a", "deploy"), on1(history.Power, "a", "power"), on1(history.Restart, "a", "restart"), destroy("a", "1")), nil},
		{"a retry of another's server", build(create("a", "1"), destroy("a", "1"), create("b", "1"), on1(history.Retry, "a", "deploy")), []string{"address/10.0.0.1", "name/a", "server/1"}},
		{"a retry whose operation is not kept", build(create("a", "1"), history.Call{Kind: history.Retry, Name: "a", Outcome: history.Refused, Code: "NOT_FOUND"}, get("a", "1")), nil},
		{"a restart of what is not there", build(create("a", "1"), history.Call{Kind: history.Restart, Name: "a", Outcome: history.Refused, Code: "NOT_FOUND"}), []string{"name/a"}},
		{"an unknown cancel", build(create("a", "1"), unknown(history.Cancel, "a"), get("a", "1"), get("a", ""), create("a", "1")), nil},
		{"an unknown restart ends nothing", build(create("a", "1"), unknown(history.Restart, "a"), get("a", "")), []string{"name/a"}},
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
