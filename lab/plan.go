package lab

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"bmc/lab/machine"
)

// plan is who is where: it follows from the Config alone, but for the passwords.
type plan struct {
	nodes []nodePlan
	racks []rackPlan
}

type nodePlan struct {
	name string
	addr netip.Addr // on the management network
}

type rackPlan struct {
	name    string
	subnet  netip.Prefix // provisioning
	gateway netip.Addr   // of the machines
	oob     netip.Prefix
	agents  []agentPlan // none behind a relay
	relay   *relayPlan  // nil where the rack has agents
	servers []serverPlan
	probe   net.HardwareAddr
	// stranger is plugged in beside light machines; no inventory has it.
	stranger net.HardwareAddr
}

// relayPlan is the router between a rack without agents and the first rack, whose
// agents serve it. Its address in the rack is the rack's gateway.
type relayPlan struct {
	number  int              // of the rack
	up      netip.Addr       // in the first rack
	down    net.HardwareAddr // of rack0, in its own rack
	upward  net.HardwareAddr // of up0
	servers []netip.Addr     // the agents that it asks
}

type agentPlan struct {
	name   string
	number int // in its rack, from 1
	mgmt   netip.Addr
	rack   netip.Addr
	oob    netip.Addr
	mac    net.HardwareAddr // of rack0
}

// oobIn is an agent's address on the controllers' network of a rack that it serves.
func (a agentPlan) oobIn(r rackPlan) netip.Addr { return host(r.oob, a.number) }

type serverPlan struct {
	name     string
	rack     string
	firmware string
	light    bool
	httpBoot bool // of a light machine
	mac      net.HardwareAddr
	uuid     string
	serial   string
	oob      netip.Addr
	user     string
	password string
}

// Ports and addresses that do not depend on the Config.
const (
	tlsPort    = 7443
	gossipPort = 7946
	s3Port     = 9000
	oobPort    = 623
	mgmtBits   = 24
	rackBits   = 24
	hostMgmt   = 1 // the management network's own end
	hostS3     = 5
	hostRelay  = 250 // and up: the relays in the first rack
)

func mgmtAddr(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 76, 0, byte(host)}) }

func newPlan(c *Config) plan {
	var p plan
	for i := range c.Nodes {
		p.nodes = append(p.nodes, nodePlan{fmt.Sprintf("cp%d", i+1), mgmtAddr(11 + i)})
	}
	firmware := 0
	for r := 1; r <= c.Racks; r++ {
		rack := rackPlan{
			name:   fmt.Sprintf("r%d", r),
			subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(r), 0}), rackBits),
			oob:    netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, byte(r), 0}), rackBits),
			// Locally administered; the last bytes say who.
			probe:    net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xff, 0x01},
			stranger: net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xfe, 0x01},
		}
		rack.gateway = host(rack.subnet, 1) // a relay, or the first agent: nobody asks it to route
		agents := c.Agents
		if behind := r - (c.Racks - c.Relayed); behind > 0 {
			agents = 0
			rack.relay = &relayPlan{
				number: r,
				up:     host(p.racks[0].subnet, hostRelay+behind),
				down:   net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xbb, 1},
				upward: net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xbb, 2},
			}
			for _, a := range p.racks[0].agents {
				rack.relay.servers = append(rack.relay.servers, a.rack)
			}
		}
		for a := 1; a <= agents; a++ {
			rack.agents = append(rack.agents, agentPlan{
				name:   fmt.Sprintf("%s-a%d", rack.name, a),
				number: a,
				mgmt:   mgmtAddr(100 + (r-1)*maxAgents + a),
				rack:   host(rack.subnet, a),
				oob:    host(rack.oob, a),
				mac:    net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xaa, byte(a)},
			})
		}
		for s := 1; s <= c.Servers; s++ {
			rack.servers = append(rack.servers, serverPlan{
				name:     fmt.Sprintf("%s-u%02d", rack.name, s),
				rack:     rack.name,
				firmware: c.Firmware[firmware%len(c.Firmware)],
				mac:      net.HardwareAddr{0x52, 0x54, 0x00, byte(r), 0x00, byte(s)},
				uuid:     fmt.Sprintf("4c41420a-%04d-4000-8000-%012d", r, s),
				serial:   fmt.Sprintf("LAB-R%d-U%02d", r, s),
				oob:      host(rack.oob, 10+s),
				user:     "admin",
				password: password(),
			})
			firmware++
		}
		for s := 1; s <= c.Light; s++ {
			m := serverPlan{
				name:     fmt.Sprintf("%s-l%03d", rack.name, s),
				rack:     rack.name,
				firmware: c.Firmware[firmware%len(c.Firmware)],
				light:    true,
				mac:      net.HardwareAddr{0x52, 0x54, 0x00, byte(r), 0x01, byte(s)},
				uuid:     fmt.Sprintf("4c41420a-%04d-4001-8000-%012d", r, s),
				serial:   fmt.Sprintf("LAB-R%d-L%03d", r, s),
				oob:      host(rack.oob, 10+c.Servers+s),
				user:     "admin",
				password: password(),
			}
			m.httpBoot = m.firmware == machine.UEFI && s%4 == 0
			rack.servers = append(rack.servers, m)
			firmware++
		}
		p.racks = append(p.racks, rack)
	}
	return p
}

func host(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	b[3] += byte(n)
	return netip.AddrFrom4(b)
}

// addresses are the first and the last that a rack's servers may get.
func (r *rackPlan) addresses() (from, to netip.Addr) {
	if len(r.servers) > 90 {
		return host(r.subnet, 10), host(r.subnet, 250)
	}
	return host(r.subnet, 100), host(r.subnet, 199)
}

// relayed are the racks without agents, which those of the first rack serve.
func (p *plan) relayed() []rackPlan {
	var out []rackPlan
	for _, r := range p.racks {
		if r.relay != nil {
			out = append(out, r)
		}
	}
	return out
}

// servedBy are the racks that the agents of a rack serve, its own first.
func (p *plan) servedBy(r rackPlan) []rackPlan {
	if r.name != p.racks[0].name {
		return []rackPlan{r}
	}
	return append([]rackPlan{r}, p.relayed()...)
}

// agentsOf are the agents that serve a rack.
func (p *plan) agentsOf(r rackPlan) []agentPlan {
	if r.relay != nil {
		return p.racks[0].agents
	}
	return r.agents
}

func (p *plan) servers() []serverPlan {
	var all []serverPlan
	for _, r := range p.racks {
		all = append(all, r.servers...)
	}
	return all
}

// password is what IPMI 1.5 and every configuration file can carry: 16 letters
// and digits.
func password() string { return strings.ToLower(rand.Text()[:16]) }
