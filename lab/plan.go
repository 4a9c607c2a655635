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
	oob     netip.Prefix
	agents  []agentPlan
	servers []serverPlan
	probe   net.HardwareAddr
	// stranger is plugged in beside light machines; no inventory has it.
	stranger net.HardwareAddr
}

type agentPlan struct {
	name string
	mgmt netip.Addr
	rack netip.Addr
	oob  netip.Addr
	mac  net.HardwareAddr // of rack0
}

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
		for a := 1; a <= c.Agents; a++ {
			rack.agents = append(rack.agents, agentPlan{
				name: fmt.Sprintf("%s-a%d", rack.name, a),
				mgmt: mgmtAddr(100 + (r-1)*maxAgents + a),
				rack: host(rack.subnet, a),
				oob:  host(rack.oob, a),
				mac:  net.HardwareAddr{0x02, 0x4c, 0x41, byte(r), 0xaa, byte(a)},
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
