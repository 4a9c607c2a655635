// Package model decides by porcupine whether a history could have come from a
// cluster that does one thing after the other: a name leads to one server or key, a
// server has one tenant, an address is held by one rental.
package model

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"bmc/chaos/history"
	"bmc/metal"
)

// Result is what the check of one key found. Keys are name/NAME, server/ID,
// address/IP, and key/NAME of what is called a key elsewhere.
type Result struct {
	Key    string
	OK     bool
	Reason string // not linearizable, or no answer in time
	Calls  int
	Chart  string // an HTML file that shows the calls; "" where none was asked for
}

// Check checks every key of a history, each within limit. Charts of those that
// fail are written into the folder charts, if it is given.
func Check(calls []history.Call, limit time.Duration, charts string) ([]Result, error) {
	parts := split(merge(calls))
	var keys []string
	for k := range parts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	m := holder.ToModel()
	var out []Result
	for _, k := range keys {
		r := Result{Key: k, Calls: len(parts[k])}
		answer, info := porcupine.CheckOperationsVerbose(m, parts[k], limit)
		switch answer {
		case porcupine.Ok:
			r.OK = true
		case porcupine.Unknown:
			r.Reason = "no answer within " + limit.String()
		case porcupine.Illegal:
			r.Reason = "no order of these calls explains their answers"
		}
		if !r.OK && charts != "" {
			r.Chart = filepath.Join(charts, strings.NewReplacer("/", "-", ":", "-").Replace(k)+".html")
			if err := porcupine.VisualizePath(m, info, r.Chart); err != nil {
				return nil, fmt.Errorf("chart of %s: %w", k, err)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// What a call does to a key.
type verb string

const (
	take         verb = "take" // it was free, and is value's now
	maybeTake    verb = "take?"
	release      verb = "release" // it was value's, and is free now
	maybeRelease verb = "release?"
	isFree       verb = "free"
	isHeld       verb = "held" // by anybody
	isValue      verb = "is"
)

// step is porcupine's input: the answer is part of it.
type step struct {
	verb  verb
	value string
	call  string // for people
}

// States of a key: free, somebody whose name nobody was told, or a value.
const (
	free     = ""
	somebody = "?"
)

var holder = porcupine.NondeterministicModel{
	Init: func() []any { return []any{free} },
	Step: func(state, input, _ any) []any {
		return next(state.(string), input.(step))
	},
	DescribeOperation: func(input, _ any) string {
		s := input.(step)
		return fmt.Sprintf("%s %s (%s)", s.verb, s.value, s.call)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%q", state) },
}

func next(now string, s step) []any {
	is := now == s.value || now == somebody || s.value == somebody
	switch s.verb {
	case take:
		if now == free {
			return []any{s.value}
		}
	case maybeTake:
		if now == free {
			return []any{free, s.value}
		}
		return []any{now}
	case release:
		if now != free && is {
			return []any{free}
		}
	case maybeRelease:
		if now != free && is {
			return []any{now, free}
		}
		return []any{now}
	case isFree:
		if now == free {
			return []any{free}
		}
	case isHeld:
		if now != free {
			return []any{now}
		}
	case isValue:
		if now != free && is {
			return []any{s.value}
		}
	}
	return nil
}

// merge makes one call of all those with one request ID: they have one effect,
// before the first of them was told so.
func merge(calls []history.Call) []history.Call {
	first := map[string]int{}
	var out []history.Call
	for _, c := range calls {
		if c.End == 0 || c.Outcome == history.Unknown || c.Outcome == "" {
			c.Outcome, c.End = history.Unknown, math.MaxInt64
		}
		i, again := first[c.RequestID]
		if c.RequestID == "" || !again {
			if c.RequestID != "" {
				first[c.RequestID] = len(out)
			}
			out = append(out, c)
			continue
		}
		begin := min(out[i].Begin, c.Begin)
		if better(c, out[i]) {
			out[i] = c
		}
		out[i].Begin = begin
	}
	return out
}

// better prefers the first OK, then not knowing: a refusal beside it proves nothing.
func better(c, old history.Call) bool {
	rank := map[history.Outcome]int{history.OK: 2, history.Unknown: 1}
	if rank[c.Outcome] != rank[old.Outcome] {
		return rank[c.Outcome] > rank[old.Outcome]
	}
	return c.End < old.End
}

// splitter sorts calls by the keys that they are about.
type splitter struct {
	parts map[string][]porcupine.Operation
	names map[string]int64                     // begin of the first create under each name
	keys  map[string]int64                     // of the first add of each key
	seen  map[string]map[string]history.Server // by rental's name: servers that were shown with it
}

func split(calls []history.Call) map[string][]porcupine.Operation {
	p := &splitter{map[string][]porcupine.Operation{}, map[string]int64{}, map[string]int64{}, map[string]map[string]history.Server{}}
	for _, c := range calls {
		if c.Kind == history.AddKey {
			if t, ok := p.keys[c.Name]; !ok || c.Begin < t {
				p.keys[c.Name] = c.Begin
			}
		}
		if c.Kind == history.Create {
			if t, ok := p.names[c.Name]; !ok || c.Begin < t {
				p.names[c.Name] = c.Begin
			}
		}
		for _, s := range c.Servers {
			name := s.Rental
			if c.Kind == history.Create {
				name = c.Name // the answer to a retry may be from after its end
			}
			if name != "" {
				if p.seen[name] == nil {
					p.seen[name] = map[string]history.Server{}
				}
				p.seen[name][s.ID] = s
			}
		}
	}
	for _, c := range calls {
		p.add(c)
	}
	return p.parts
}

func (p *splitter) put(c *history.Call, key string, v verb, value string) {
	text := fmt.Sprintf("call %d: %s %s %s %s", c.ID, c.Kind, c.Name, c.Outcome, c.Code)
	p.parts[key] = append(p.parts[key], porcupine.Operation{ClientId: c.Client, Input: step{v, value, text}, Call: c.Begin, Return: c.End})
}

// onServer is about a server and its address.
func (p *splitter) onServer(c *history.Call, s history.Server, v verb, tenant string) {
	p.put(c, "server/"+s.ID, v, tenant)
	if s.Address != "" {
		if tenant != "" {
			tenant += "@" + s.ID
		}
		p.put(c, "address/"+s.Address, v, tenant)
	}
}

func (p *splitter) add(c history.Call) {
	name := "name/" + c.Name
	switch {
	case c.Kind == history.AddKey, c.Kind == history.RemoveKey, c.Kind == history.ListKeys:
		p.key(&c)
	case c.Outcome == history.Unknown:
		p.unknown(&c, name)
	case c.Kind == history.List:
		p.list(&c)
	case c.Outcome == history.Refused:
		switch {
		case c.Kind == history.Create && c.Code == "NAME_TAKEN":
			p.put(&c, name, isHeld, "")
		case c.Kind == history.Retry: // NOT_FOUND may be about the operation that failed
		case c.Kind != history.Create && c.Name != "" && c.Code == "NOT_FOUND":
			p.put(&c, name, isFree, "")
		}
	case len(c.Servers) != 1:
	case c.Kind == history.Create:
		p.put(&c, name, take, c.Servers[0].ID)
		p.onServer(&c, c.Servers[0], take, c.Name)
	case c.Kind == history.Destroy, c.Kind == history.Cancel && c.Op == string(metal.KindClean):
		// A deployment's cancel ends the rental, and its answer is the wipe that follows.
		p.put(&c, name, release, c.Servers[0].ID)
		p.onServer(&c, c.Servers[0], release, c.Name)
	case c.Kind != history.Get, c.Servers[0].Rental == c.Name:
		// Power, restart, retry, and the cancel of those: whatever the answer shows of
		// the server, which may be from later, the name led to it when they took effect.
		p.put(&c, name, isValue, c.Servers[0].ID)
		p.onServer(&c, c.Servers[0], isValue, c.Name)
	case c.Kind == history.Get && c.Servers[0].Rental == "":
		p.put(&c, name, isFree, "")
	}
}

// unknown: who was never told which server it was may have any that was seen
// under that name.
func (p *splitter) unknown(c *history.Call, name string) {
	switch c.Kind {
	case history.Create:
		p.put(c, name, maybeTake, somebody)
		for _, s := range p.seen[c.Name] {
			p.onServer(c, s, maybeTake, c.Name)
		}
	case history.Destroy, history.Cancel:
		p.put(c, name, maybeRelease, somebody)
		for _, s := range p.seen[c.Name] {
			p.onServer(c, s, maybeRelease, c.Name)
		}
	}
}

// list is a read of every name, every server and every address.
func (p *splitter) list(c *history.Call) {
	holds := map[string]string{}
	for _, s := range c.Servers {
		if s.Rental == "" {
			p.onServer(c, s, isFree, "")
			continue
		}
		p.onServer(c, s, isValue, s.Rental)
		if other, twice := holds[s.Rental]; twice { // one answer, two servers
			p.put(c, "name/"+s.Rental, isValue, other+" and "+s.ID)
		}
		holds[s.Rental] = s.ID
	}
	for n, since := range p.names {
		if id, ok := holds[n]; ok {
			p.put(c, "name/"+n, isValue, id)
		} else if c.End >= since { // earlier ones say nothing that is in doubt
			p.put(c, "name/"+n, isFree, "")
		}
	}
}

// key is about SSH keys: a name is free or leads to one.
func (p *splitter) key(c *history.Call) {
	name, id := "key/"+c.Name, c.Keys[c.Name]
	if id == "" {
		id = somebody
	}
	switch {
	case c.Kind == history.ListKeys && c.Outcome != history.OK, c.Outcome == history.Refused:
	case c.Kind == history.ListKeys:
		for n, since := range p.keys {
			if id, ok := c.Keys[n]; ok {
				p.put(c, "key/"+n, isValue, id)
			} else if c.End >= since {
				p.put(c, "key/"+n, isFree, "")
			}
		}
	case c.Kind == history.AddKey && c.Outcome == history.OK:
		p.put(c, name, take, id)
	case c.Kind == history.AddKey:
		p.put(c, name, maybeTake, somebody)
	case c.Outcome == history.OK:
		p.put(c, name, release, somebody)
	default:
		p.put(c, name, maybeRelease, somebody)
	}
}
