package lab

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"bmc/lab/machine"
)

// Status is what a lab says of itself.
type Status struct {
	PID       int               `json:"pid"` // the supervisor
	Dir       string            `json:"dir"`
	Ready     bool              `json:"ready"`
	BMC       string            `json:"bmc"`
	User      bool              `json:"user_namespace"` // inside one
	Addresses []string          `json:"addresses"`      // of the nodes, on the host
	TokenFile string            `json:"token_file"`
	CAFile    string            `json:"ca_file"`
	Inventory string            `json:"inventory"`
	Daemons   []DaemonStatus    `json:"daemons"`
	Servers   []ServerStatus    `json:"servers"`
	Netns     map[string]string `json:"netns"` // a path that setns takes, by name
	Racks     map[string]string `json:"racks"` // the namespace of the first agent that serves the rack, by rack
}

// DaemonStatus is a child: a node, an agent, the object store.
type DaemonStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Ended   string `json:"ended,omitempty"`   // why; empty while it runs
	Stopped bool   `json:"stopped,omitempty"` // by SIGSTOP
	Log     string `json:"log"`

	Restarts  int    `json:"restarts"`
	Netns     string `json:"netns"`             // as in Status.Netns
	Address   string `json:"address,omitempty"` // on the management network
	RackAddr  string `json:"rack_address,omitempty"`
	OOBSource string `json:"oob_source,omitempty"` // the address that controllers see

	OOBRelayed []string `json:"oob_relayed,omitempty"` // those that the controllers of racks behind relays see
}

// ServerStatus is a machine with its controller.
type ServerStatus struct {
	Name     string           `json:"name"`
	Rack     string           `json:"rack"`
	Firmware string           `json:"firmware"`
	On       bool             `json:"on"`
	Since    time.Time        `json:"since"`
	PID      int              `json:"pid,omitempty"`
	Starts   int              `json:"starts"`
	Resets   int              `json:"resets"`
	Boot     machine.Override `json:"boot"`
	MAC      string           `json:"mac"`
	OOB      string           `json:"oob"`
	Disk     string           `json:"disk"`
	Console  string           `json:"console,omitempty"` // the recorded serial output
	Light    bool             `json:"light,omitempty"`   // no process, no console: see lab/light
}

// Status may be called at any time, also while the lab comes up.
func (l *Lab) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		PID: os.Getpid(), Dir: l.cfg.Dir, Ready: l.ready, BMC: l.cfg.BMC, User: inUserNamespace(),
		Inventory: l.inventoryPath(), Netns: map[string]string{}, Racks: map[string]string{},
	}
	if l.ready {
		s.Addresses, s.TokenFile, s.CAFile = l.addresses, l.tokenFile(), l.caFile()
	}
	for _, p := range l.daemons {
		d := DaemonStatus{Name: p.name, PID: p.cmd.Process.Pid, Log: p.log, Restarts: p.restarts}
		l.place(&d)
		select {
		case <-p.done:
			d.Ended = fmt.Sprint("exit: ", p.cmd.ProcessState)
		default:
			d.Stopped = stopped(d.PID)
		}
		s.Daemons = append(s.Daemons, d)
	}
	if l.net == nil {
		return s
	}
	for _, v := range l.servers {
		m := v.machine.State()
		s.Servers = append(s.Servers, ServerStatus{
			Name: v.name, Rack: v.rack, Firmware: v.firmware, On: m.On, Since: m.Since, PID: m.PID,
			Starts: m.Starts, Resets: m.Resets, Boot: m.Boot, MAC: v.mac.String(), OOB: v.oob.String(),
			Disk: v.disk, Console: v.console, Light: v.light,
		})
	}
	for name, ns := range l.net.spaces {
		s.Netns[name] = fmt.Sprintf("/proc/%d/fd/%d", s.PID, ns.File().Fd())
	}
	for _, r := range l.plan.racks {
		s.Racks[r.name] = s.Netns[l.plan.agentsOf(r)[0].name]
	}
	return s
}

// place says where a daemon is on the networks.
func (l *Lab) place(d *DaemonStatus) {
	if ns := l.net.spaces[d.Name]; ns != nil {
		d.Netns = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.File().Fd())
	}
	for _, n := range l.plan.nodes {
		if n.name == d.Name {
			d.Address = n.addr.String()
		}
	}
	for _, r := range l.plan.racks {
		for _, a := range r.agents {
			if a.name == d.Name {
				d.Address, d.RackAddr, d.OOBSource = a.mgmt.String(), a.rack.String(), a.oob.String()
				for _, s := range l.plan.servedBy(r)[1:] {
					d.OOBRelayed = append(d.OOBRelayed, a.oobIn(s).String())
				}
			}
		}
	}
}

// stopped says whether a process is in state T (proc(5)).
func stopped(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	return strings.HasPrefix(after, "T")
}

// inUserNamespace: the initial one maps all IDs.
func inUserNamespace() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.Contains(string(raw), "4294967295")
}

// Environ is what commands against the lab need, as NAME=value, sorted.
func (s *Status) Environ() ([]string, error) {
	token, err := os.ReadFile(s.TokenFile)
	if err != nil {
		return nil, err
	}
	env := []string{
		"BMC_ADDR=" + strings.Join(s.Addresses, ","),
		"BMC_TOKEN=" + strings.TrimSpace(string(token)),
		"BMC_CACERT=" + s.CAFile,
		"BMC_INVENTORY=" + s.Inventory,
		dirVariable + "=" + s.Dir,
		fmt.Sprintf("BMC_LAB_PID=%d", s.PID),
	}
	if s.User {
		env = append(env, fmt.Sprintf("BMC_LAB_USERNS=/proc/%d/ns/user", s.PID))
	}
	for rack, path := range s.Racks {
		env = append(env, "BMC_RACK_"+variable(rack)+"_NETNS="+path, "BMC_RACK_"+variable(rack)+"_PROBE_NETNS="+s.Netns[probeName(rack)])
	}
	sort.Strings(env)
	return env, nil
}

// Enter are nsenter's arguments for one of the namespaces in Netns.
func (s *Status) Enter(path string) []string {
	a := []string{"--net=" + path}
	if s.User {
		a = append(a, fmt.Sprintf("--user=/proc/%d/ns/user", s.PID), "--preserve-credentials")
	}
	return a
}

func variable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
