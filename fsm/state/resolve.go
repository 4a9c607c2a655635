package state

import (
	"fmt"
	"slices"
	"strings"

	"bmc/metal"
)

// minPrefix is how much of an ID must be given for it to count as a prefix:
// the kind and three characters, "srv-abc".
const minPrefix = 3

// ResolveServer finds a server by the name of a rental in project, else, with
// all, of one in any project; by inventory name; by ID or unique ID prefix.
// Without all only what project rents is seen. A released rental still answers
// to its name while nothing else does. Errors: NOT_FOUND, with what may have
// been meant, and AMBIGUOUS_REFERENCE, with the matches.
func (t *tables) ResolveServer(project string, all bool, ref string) (*metal.Server, error) {
	visible := func(s *metal.Server) bool {
		return s != nil && (all || s.Rental != nil && project != "" && s.Rental.Project == project)
	}
	if s := t.serverByRental(project, ref); s != nil {
		return s, nil
	}
	if s := t.serverByName(ref); visible(s) {
		return s, nil
	}
	if s := t.server(ref); visible(s) {
		return s, nil
	}
	var found []*metal.Server
	for s := range t.byIDPrefix(ref) {
		if visible(s) {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		found = t.byAnyRental(ref, project, all)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, notFound("server", ref, t.serverNames(project, all), "bmc list")
	}
	return nil, ambiguous("server", ref, collectNames(found, func(s *metal.Server) string { return s.ID + " (" + display(s) + ")" }))
}

func (t *tables) byIDPrefix(ref string) func(func(*metal.Server) bool) {
	if len(ref) < len("srv-")+minPrefix || !strings.HasPrefix(ref, "srv-") {
		return func(func(*metal.Server) bool) {}
	}
	return t.servers.prefixed(ref)
}

// byAnyRental looks at released rentals and, for operators, at all projects.
func (t *tables) byAnyRental(ref, project string, all bool) (found []*metal.Server) {
	for p := range t.Projects() {
		if p.ID != project && !all {
			continue
		}
		if s := t.serverByRental(p.ID, ref); s != nil {
			found = append(found, s)
		}
	}
	if len(found) > 0 {
		return found
	}
	for p := range t.Projects() {
		if p.ID != project && !all {
			continue
		}
		for e := range t.rentalName.prefixed(join(p.ID, ref)) {
			if e.key == join(p.ID, ref) {
				found = append(found, t.server(e.id))
			}
		}
	}
	return found
}

func display(s *metal.Server) string {
	if s.Rental != nil {
		return s.Rental.Name
	}
	return s.Name
}

func (t *tables) serverNames(project string, all bool) (names []string) {
	f := ServerFilter{}
	if !all {
		f.Project = project
		if project == "" {
			return nil
		}
	}
	for s := range t.Servers(f) {
		names = append(names, display(s))
		if s.Rental != nil && all {
			names = append(names, s.Name)
		}
	}
	return names
}

// ResolveOperation finds an operation by ID or unique ID prefix, among those that
// visible admits (nil: all).
func (t *tables) ResolveOperation(ref string, visible func(*metal.Operation) bool) (*metal.Operation, error) {
	none := notFound("operation", ref, nil, "bmc operation list") // nobody mistypes an ID into another's
	if o := t.operations.get(ref); o != nil {
		if visible != nil && !visible(o) {
			return nil, none
		}
		return o, nil
	}
	if !strings.HasPrefix(ref, "op-") || len(ref) < len("op-")+minPrefix {
		return nil, none
	}
	var found []*metal.Operation
	for o := range t.operations.prefixed(ref) {
		if visible == nil || visible(o) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return nil, none
	case 1:
		return found[0], nil
	}
	return nil, ambiguous("operation", ref, collectNames(found, func(o *metal.Operation) string { return o.ID }))
}

// ResolveRack finds a rack by name, ID or unique ID prefix.
func (t *tables) ResolveRack(ref string) (*metal.Rack, error) {
	return resolve("rack", ref, "rack-", &t.racks, t.rackByName(ref), func(r *metal.Rack) string { return r.Name }, "bmc rack list")
}

// ResolveProject finds a project by name, ID or unique ID prefix.
func (t *tables) ResolveProject(ref string) (*metal.Project, error) {
	return resolve("project", ref, "prj-", &t.projects, t.projectByName(ref), func(p *metal.Project) string { return p.Name }, "bmc whoami")
}

// ResolveAgent finds an agent by name, ID or unique ID prefix.
func (t *tables) ResolveAgent(ref string) (*metal.Agent, error) {
	return resolve("agent", ref, "agt-", &t.agents, t.agentByName(ref), func(a *metal.Agent) string { return a.Name }, "bmc rack list")
}

// ResolveNode finds a control-plane node by name, ID or unique ID prefix.
func (t *tables) ResolveNode(ref string) (*metal.Node, error) {
	return resolve("node", ref, "node-", &t.nodes, t.nodeByName(ref), func(n *metal.Node) string { return n.Name }, "bmc cluster peers")
}

// ResolveKey finds a project's SSH key by name, ID or unique ID prefix.
func (t *tables) ResolveKey(project, ref string) (*metal.SSHKey, error) {
	k, err := resolve("ssh key", ref, "key-", &t.keys, t.keyByName(project, ref), func(k *metal.SSHKey) string { return k.Name }, "bmc key list")
	if err == nil && k.Project == project {
		return k, nil
	}
	// Only the words depend on the project: commands in the log are decided as ever.
	var own, matches []string
	for k := range t.Keys(project) {
		if own = append(own, k.Name); strings.HasPrefix(k.ID, ref) {
			matches = append(matches, k.Name)
		}
	}
	if metal.CodeOf(err) == metal.CodeAmbiguous {
		return nil, ambiguous("ssh key", ref, matches)
	}
	return nil, notFound("ssh key", ref, own, "bmc key list")
}

// ResolveImage finds a project's image by name, ID or unique ID prefix; for ""
// it is the project's only one (by name).
func (t *tables) ResolveImage(project, ref string) (*metal.Image, error) {
	names := t.imageNames(project)
	if ref == "" {
		if len(names) != 1 {
			return nil, pickImage(names)
		}
		ref = names[0]
	}
	if i := t.imageByName(project, ref); i != nil {
		return i, nil
	}
	var found []*metal.Image
	if len(ref) >= 6 {
		found = collect(t.images.prefixed(join(project, ref)))
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, notFound("image", ref, names, "bmc image list")
	}
	return nil, ambiguous("image", ref, collectNames(found, func(i *metal.Image) string { return i.ID[:min(12, len(i.ID))] + " (" + i.Name + ")" }))
}

func pickImage(names []string) *metal.Error {
	if len(names) == 0 {
		return metal.Errorf(metal.CodeNotFound, "the project has no image").WithHint("bmc image push FILE")
	}
	return metal.Invalid("image", "is empty and the project has several: %s", strings.Join(clipList(names), ", ")).
		WithHint("bmc create --image %s", names[0])
}

func (t *tables) imageNames(project string) []string {
	var names []string
	for i := range t.Images(project) {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// resolve is what all nouns with IDs share.
func resolve[T any](noun, ref, idPrefix string, rows *table[T], byName *T, name func(*T) string, list string) (*T, error) {
	if byName != nil {
		return byName, nil
	}
	if v := rows.get(ref); v != nil {
		return v, nil
	}
	var found, all []*T
	if strings.HasPrefix(ref, idPrefix) && len(ref) >= len(idPrefix)+minPrefix {
		found = collect(rows.prefixed(ref))
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		all = collect(rows.from(""))
		return nil, notFound(noun, ref, collectNames(all, name), list)
	}
	return nil, ambiguous(noun, ref, collectNames(found, name))
}

func collectNames[T any](vs []*T, name func(*T) string) []string {
	out := make([]string, len(vs))
	for i, v := range vs {
		out[i] = name(v)
	}
	return out
}

func ambiguous(noun, ref string, matches []string) *metal.Error {
	slices.Sort(matches)
	return metal.Errorf(metal.CodeAmbiguous, "%q names %d %ss: %s", clip(ref), len(matches), noun, strings.Join(clipList(matches), ", "))
}

func notFound(noun, ref string, names []string, list string) *metal.Error {
	e := metal.Errorf(metal.CodeNotFound, "there is no %s %q", noun, clip(ref))
	if s := suggest(ref, names); s != "" {
		e.Message += fmt.Sprintf("; did you mean %q?", s)
	}
	return e.WithHint("%s", list)
}

// suggest returns the name closest to ref, if it is close: at most one edit
// for every three characters.
func suggest(ref string, names []string) string {
	best, limit := "", (len(ref)+2)/3+1
	for _, n := range names {
		if d := len(n) - len(ref); d >= limit || -d >= limit {
			continue
		}
		if d := distance(ref, n); d < limit || d == limit-1 && n < best {
			best, limit = n, d
		}
		if limit == 0 {
			break
		}
	}
	return best
}

// distance is Levenshtein's, with neighbours swapped counting as one edit.
func distance(a, b string) int {
	if len(a) > metal.MaxName || len(b) > metal.MaxName {
		return metal.MaxName
	}
	var prev2 []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(b)]
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func clipList(names []string) []string {
	if len(names) > 8 {
		return append(slices.Clone(names[:8]), fmt.Sprintf("and %d more", len(names)-8))
	}
	return names
}
