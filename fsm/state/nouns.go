package state

import (
	"iter"
	"net/netip"
	"strings"

	"bmc/metal"
)

// Rack returns the rack with this ID.
func (t *tables) Rack(id string) (*metal.Rack, bool) {
	v := t.rack(id)
	return v, v != nil
}

func (t *tables) rack(id string) *metal.Rack { return t.racks.get(id) }

// RackByName returns the rack of this name.
func (t *tables) RackByName(name string) (*metal.Rack, bool) {
	v := t.rackByName(name)
	return v, v != nil
}

func (t *tables) rackByName(name string) *metal.Rack { return t.rack(t.rackName.one(name)) }

// Racks yields the racks by name.
func (t *tables) Racks() iter.Seq[*metal.Rack] { return named(&t.rackName, &t.racks) }

// Size returns the size of this name.
func (t *tables) Size(name string) (*metal.Size, bool) {
	v := t.size(name)
	return v, v != nil
}

func (t *tables) size(name string) *metal.Size { return t.sizes.get(name) }

// Sizes yields the sizes by name.
func (t *tables) Sizes() iter.Seq[*metal.Size] { return t.sizes.from("") }

// Model returns what is known of a kind of machine.
func (t *tables) Model(vendor, product string) (*metal.Model, bool) {
	v := t.model(vendor, product)
	return v, v != nil
}

func (t *tables) model(vendor, product string) *metal.Model {
	return t.models.get(modelKey(vendor, product))
}

func modelKey(vendor, product string) string { return join(vendor, product) }

// Models yields what is known of kinds of machines, by vendor and product.
func (t *tables) Models() iter.Seq[*metal.Model] { return t.models.from("") }

// Address returns who holds an address of a rack.
func (t *tables) Address(rack string, a netip.Addr) (*metal.AddressAssignment, bool) {
	v := t.address(rack, a)
	return v, v != nil
}

func (t *tables) address(rack string, a netip.Addr) *metal.AddressAssignment {
	return t.addresses.get(addressKey(rack, a))
}

// Addresses yields a rack's assignments in order of address.
func (t *tables) Addresses(rack string) iter.Seq[*metal.AddressAssignment] {
	return t.addresses.prefixed(join(rack, ""))
}

// Loan returns the address that is lent to a MAC in a rack.
func (t *tables) Loan(rack, mac string) (*metal.AddressAssignment, bool) {
	v := t.addresses.get(t.loans.one(join(rack, mac)))
	return v, v != nil
}

// Loans yields what a rack has lent, by MAC.
func (t *tables) Loans(rack string) iter.Seq[*metal.AddressAssignment] {
	return func(yield func(*metal.AddressAssignment) bool) {
		for e := range t.loans.prefixed(join(rack, "")) {
			if a := t.addresses.get(e.id); a != nil && !yield(a) {
				return
			}
		}
	}
}

// Image returns a project's image by the digest of its manifest.
func (t *tables) Image(project, id string) (*metal.Image, bool) {
	v := t.image(project, id)
	return v, v != nil
}

func (t *tables) image(project, id string) *metal.Image { return t.images.get(join(project, id)) }

// ImageByName returns a project's newest image of a name.
func (t *tables) ImageByName(project, name string) (*metal.Image, bool) {
	v := t.imageByName(project, name)
	return v, v != nil
}

func (t *tables) imageByName(project, name string) *metal.Image {
	for e := range t.imageName.backwards(join(project, name, "")) {
		return t.image(project, e.id)
	}
	return nil
}

// Images yields a project's images by ID; everybody's for "".
func (t *tables) Images(project string) iter.Seq[*metal.Image] {
	if project == "" {
		return t.images.from("")
	}
	return t.images.prefixed(join(project, ""))
}

// Project returns the project with this ID.
func (t *tables) Project(id string) (*metal.Project, bool) {
	v := t.project(id)
	return v, v != nil
}

func (t *tables) project(id string) *metal.Project { return t.projects.get(id) }

// ProjectByName returns the project of this name.
func (t *tables) ProjectByName(name string) (*metal.Project, bool) {
	v := t.projectByName(name)
	return v, v != nil
}

func (t *tables) projectByName(name string) *metal.Project {
	return t.project(t.projectName.one(name))
}

// Projects yields the projects by name.
func (t *tables) Projects() iter.Seq[*metal.Project] { return named(&t.projectName, &t.projects) }

// Key returns the SSH key with this ID.
func (t *tables) Key(id string) (*metal.SSHKey, bool) {
	v := t.key(id)
	return v, v != nil
}

func (t *tables) key(id string) *metal.SSHKey { return t.keys.get(id) }

// KeyByName returns a project's SSH key of this name.
func (t *tables) KeyByName(project, name string) (*metal.SSHKey, bool) {
	v := t.keyByName(project, name)
	return v, v != nil
}

func (t *tables) keyByName(project, name string) *metal.SSHKey {
	return t.key(t.keyName.one(join(project, name)))
}

// KeyByFingerprint returns a project's SSH key with this fingerprint.
func (t *tables) KeyByFingerprint(project, fingerprint string) (*metal.SSHKey, bool) {
	v := t.key(t.keyPrint.one(join(project, fingerprint)))
	return v, v != nil
}

// CountKeys counts a project's SSH keys.
func (t *tables) CountKeys(project string) int { return t.count(join("keys", project)) }

// Keys yields a project's SSH keys by name; everybody's for "".
func (t *tables) Keys(project string) iter.Seq[*metal.SSHKey] {
	prefix := ""
	if project != "" {
		prefix = join(project, "")
	}
	return func(yield func(*metal.SSHKey) bool) {
		for e := range t.keyName.prefixed(prefix) {
			if k := t.key(e.id); k != nil && !yield(k) {
				return
			}
		}
	}
}

// Token returns the token with this ID.
func (t *tables) Token(id string) (*metal.Token, bool) {
	v := t.token(id)
	return v, v != nil
}

func (t *tables) token(id string) *metal.Token { return t.tokens.get(id) }

// Tokens yields the tokens by ID.
func (t *tables) Tokens() iter.Seq[*metal.Token] { return t.tokens.from("") }

// Agent returns the agent with this ID.
func (t *tables) Agent(id string) (*metal.Agent, bool) {
	v := t.agent(id)
	return v, v != nil
}

func (t *tables) agent(id string) *metal.Agent { return t.agents.get(id) }

// AgentByName returns the agent of this name.
func (t *tables) AgentByName(name string) (*metal.Agent, bool) {
	v := t.agentByName(name)
	return v, v != nil
}

func (t *tables) agentByName(name string) *metal.Agent { return t.agent(t.agentName.one(name)) }

// Agents yields the agents by name.
func (t *tables) Agents() iter.Seq[*metal.Agent] { return named(&t.agentName, &t.agents) }

// Node returns the control-plane node with this ID.
func (t *tables) Node(id string) (*metal.Node, bool) {
	v := t.node(id)
	return v, v != nil
}

func (t *tables) node(id string) *metal.Node { return t.nodes.get(id) }

// NodeByName returns the control-plane node of this name.
func (t *tables) NodeByName(name string) (*metal.Node, bool) {
	v := t.nodeByName(name)
	return v, v != nil
}

func (t *tables) nodeByName(name string) *metal.Node { return t.node(t.nodeName.one(name)) }

// Nodes yields the control-plane nodes by name.
func (t *tables) Nodes() iter.Seq[*metal.Node] { return named(&t.nodeName, &t.nodes) }

func named[T any](ix *index, rows *table[T]) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for e := range ix.prefixed("") {
			if v := rows.get(e.id); v != nil && !yield(v) {
				return
			}
		}
	}
}

// Capacity counts the servers of one size in one rack.
type Capacity struct {
	RackID    string
	Rack      string // name
	Size      string // "" for servers that fit no size
	Servers   int
	Available int // in state available, whatever their holds and conditions
}

// Capacity counts by rack and size, in order of their names.
func (t *tables) Capacity() []Capacity {
	var out []Capacity
	for r := range t.Racks() {
		by := map[string]*Capacity{}
		var sizes []string
		prefix := join("capacity", r.ID, "")
		t.counts.tree.AscendGreaterOrEqual(counter{key: prefix}, func(c counter) bool {
			rest, ok := strings.CutPrefix(c.key, prefix)
			if !ok {
				return false
			}
			size, st, _ := strings.Cut(rest, "\x00")
			if by[size] == nil {
				by[size] = &Capacity{RackID: r.ID, Rack: r.Name, Size: size}
				sizes = append(sizes, size)
			}
			by[size].Servers += c.n
			if metal.State(st) == metal.StateAvailable {
				by[size].Available += c.n
			}
			return true
		})
		for _, s := range sizes {
			out = append(out, *by[s])
		}
	}
	return out
}

// Available yields a rack's available servers of a size (any for "") in order
// of size, then name. Holds and conditions are not looked at.
func (t *tables) Available(rackID, size string) iter.Seq[*metal.Server] {
	return t.InState(rackID, metal.StateAvailable, size)
}

// InState yields a rack's servers of a size (any for "") that are in a state, in
// order of size, then name.
func (t *tables) InState(rackID string, st metal.State, size string) iter.Seq[*metal.Server] {
	prefix := join(rackID, string(st), "")
	if size != "" {
		prefix = join(rackID, string(st), size, "")
	}
	return func(yield func(*metal.Server) bool) {
		for e := range t.capacity.prefixed(prefix) {
			if s := t.server(e.id); s != nil && !yield(s) {
				return
			}
		}
	}
}

// Waiting yields a rack's available servers of a size (any for "") that wait in
// the ramdisk, in order of size, then name.
func (t *tables) Waiting(rackID, size string) iter.Seq[*metal.Server] {
	prefix := join(rackID, "")
	if size != "" {
		prefix = join(rackID, size, "")
	}
	return func(yield func(*metal.Server) bool) {
		for e := range t.warm.prefixed(prefix) {
			if s := t.server(e.id); s != nil && !yield(s) {
				return
			}
		}
	}
}

// CountServers counts the servers in a state, or all for "".
func (t *tables) CountServers(s metal.State) int {
	if s == "" {
		return t.servers.len()
	}
	return t.count(join("state", string(s)))
}

// CountDiscovered counts a rack's machines that wait to be enrolled.
func (t *tables) CountDiscovered(rack string) int {
	return t.count(join("capacity", rack, "", string(metal.StateDiscovered)))
}

// CountRentals counts what counts against a project's quota.
func (t *tables) CountRentals(project string) int { return t.count(join("rentals", project)) }

// CountWarmth counts a rack's servers that wait in the ramdisk, or of which is
// remembered that they did or failed to.
func (t *tables) CountWarmth(rackID string) int { return t.count(join("warmth", rackID)) }

// CountOpenOperations counts the operations that have not ended.
func (t *tables) CountOpenOperations() int { return t.openOps.tree.Len() }
