package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machines is how many MACs and addresses there are; more than any run has in flight.
const machines = 1024

// clients is how many TFTP clients there are at most, each with an address.
const clients = 200

// A server is a process in a namespace of its own at the end of a cable.
type server struct {
	name string
	net  int // the cable's network: 10.<net>.0.0/16, the server is 10.<net>.0.1
	cmd  *exec.Cmd
	log  *os.File
}

func (s *server) addr() string  { return fmt.Sprintf("10.%d.0.1", s.net) }
func (s *server) cable() string { return "to-" + s.name }

// command is how a server is started; empty when it is not installed.
func command(name, dir, self, addr, profile string) ([]string, error) {
	switch name {
	case roleOurs:
		return []string{self, roleOurs, addr, dir, profile}, nil
	case roleEcho:
		return []string{self, roleEcho, addr, dir}, nil
	case rolePin:
		return []string{self, rolePin, addr}, nil
	case "kea":
		return kea(dir, addr)
	case "dnsmasq":
		net := strings.TrimSuffix(addr, ".0.1")
		var hosts strings.Builder // without them it offers one address to many machines at once
		for i := range machines {
			fmt.Fprintf(&hosts, "%s,%s\n", mac(i), assigned(net, i))
		}
		path := filepath.Join(dir, "dnsmasq.hosts")
		if err := os.WriteFile(path, []byte(hosts.String()), 0o600); err != nil {
			return nil, err
		}
		return found("dnsmasq", "--dhcp-hostsfile="+path, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--user=root", "--pid-file=",
			"--dhcp-range="+net+".100.0,static,255.255.0.0,1h", "--no-ping", "--leasefile-ro", // it would sync its file to the disk for each lease
			"--dhcp-lease-max=10000", "--dhcp-boot=ipxe.efi", "--quiet-dhcp", "--quiet-tftp", "--log-facility=-",
			"--enable-tftp", "--tftp-root="+filepath.Join(dir, "loaders"), "--tftp-max=1000")
	case "atftpd":
		return found("atftpd", "--daemon", "--no-fork", "--user", "root", "--group", "root", "--bind-address", addr, "--maxthread", "1000", "--verbose=3",
			"--logfile", filepath.Join(dir, "atftpd.log"), filepath.Join(dir, "loaders"))
	case "nginx":
		conf := fmt.Sprintf("daemon off; user root; worker_processes auto; pid %[1]s/nginx.pid; error_log %[1]s/nginx.err;\n"+
			"events { worker_connections 1024; }\n"+
			"http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; server { listen %[2]s:80; location /images/chunks/ { alias %[1]s/chunks/; } } }\n", dir, addr)
		path := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
			return nil, err
		}
		return found("nginx", "-c", path)
	}
	return nil, fmt.Errorf("no server %s", name)
}

// assigned is a machine's address in the network of a server.
func assigned(net string, i int) string { return fmt.Sprintf("%s.%d.%d", net, 100+i>>8, i&0xff) }

// kea has a reservation for each machine, and its lease file, as Debian configures it.
func kea(dir, addr string) ([]string, error) {
	type object = map[string]any
	net := strings.TrimSuffix(addr, ".0.1")
	var hosts []object
	for i := range machines {
		hosts = append(hosts, object{"hw-address": mac(i).String(), "ip-address": assigned(net, i)})
	}
	conf := object{"Dhcp4": object{
		"interfaces-config": object{"interfaces": []string{"eth0"}},
		"lease-database":    object{"type": "memfile", "lfc-interval": 0, "name": filepath.Join(dir, "kea-leases.csv")},
		"valid-lifetime":    3600,
		"boot-file-name":    "ipxe.efi", "next-server": addr,
		"subnet4": []object{{"id": 1, "subnet": net + ".0.0/16", "reservations": hosts,
			"option-data": []object{{"name": "routers", "data": addr}}}},
		"loggers": []object{{"name": "kea-dhcp4", "severity": "WARN", "output_options": []object{{"output": filepath.Join(dir, "kea.log")}}}},
	}}
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "kea.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	return found("kea-dhcp4", "-c", path)
}

func found(program string, args ...string) ([]string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return append([]string{path}, args...), nil
		}
	}
	return nil, nil
}

// startServer makes the namespace and the cable, and starts a server there; nil if
// it is not installed.
func startServer(s settings, name string, net int) (*server, error) {
	sv := &server{name: name, net: net}
	line, err := command(name, s.dir, "/proc/self/exe", sv.addr(), s.profile)
	if err != nil || line == nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(s.dir, name+".out"))
	if err != nil {
		return nil, err
	}
	sv.log = log
	sv.cmd = exec.Command("/proc/self/exe", append([]string{roleHold}, line...)...)
	sv.cmd.Stdout, sv.cmd.Stderr = log, log
	sv.cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+s.dir, "KEA_LOCKFILE_DIR="+s.dir)
	sv.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stdin, err := sv.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := sv.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	if err := sv.plug(); err != nil {
		sv.stop()
		return nil, err
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		sv.stop()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return sv, nil
}

// plug lays the cable and gives both ends their addresses.
func (sv *server) plug() error {
	pid := strconv.Itoa(sv.cmd.Process.Pid)
	var here strings.Builder
	fmt.Fprintf(&here, "link add %s type veth peer name eth0 netns %s\naddr add 10.%d.0.2/16 dev %s\n", sv.cable(), pid, sv.net, sv.cable())
	for i := range clients {
		fmt.Fprintf(&here, "addr add %s/16 dev %s\n", clientAddr(sv.net, i), sv.cable())
	}
	hw := fmt.Sprintf("52:55:00:00:00:%02x", sv.net)
	fmt.Fprintf(&here, "link set %s address %s up\n", sv.cable(), hw)
	if err := batchIP(here.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	// The clients are permanent neighbours: the kernel's table of the others is one for
	// all namespaces, overflows at 1,024, and then drops packets of everybody.
	var there strings.Builder
	fmt.Fprintf(&there, "link set lo up\naddr add %s/16 dev eth0\nlink set eth0 up\n", sv.addr())
	for i := range clients {
		fmt.Fprintf(&there, "neigh replace %s lladdr %s dev eth0 nud permanent\n", clientAddr(sv.net, i), hw)
	}
	return batchIP(there.String(), "nsenter", "-t", pid, "-n", "ip", "-batch", "-")
}

func clientAddr(network, i int) net.IP { return net.IPv4(10, byte(network), 1, byte(i+1)) }

func batchIP(commands string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// stop ends the server and waits for it: politely, as a profile is written at the end.
func (sv *server) stop() {
	_ = syscall.Kill(-sv.cmd.Process.Pid, syscall.SIGTERM)
	timer := time.AfterFunc(3*time.Second, func() { _ = syscall.Kill(-sv.cmd.Process.Pid, syscall.SIGKILL) })
	_ = sv.cmd.Wait() // killed, as it should be
	timer.Stop()
	_ = sv.log.Close()
}

// cpu is the processor time that the server has used, with its children: nginx has workers.
func (sv *server) cpu() time.Duration {
	total := processCPU(sv.cmd.Process.Pid)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", sv.cmd.Process.Pid))
	for child := range strings.FieldsSeq(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			total += processCPU(pid)
		}
	}
	return total
}

// processCPU adds up the threads that live; proc(5), schedstat is in nanoseconds.
// The process's own clock has ticks of 10 ms but counts the threads that ended.
func processCPU(pid int) time.Duration {
	var exact time.Duration
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // ended meanwhile
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(first, 10, 64)
		exact += time.Duration(n)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return exact
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	var ticks int64
	if f := strings.Fields(rest); len(f) > 12 {
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		ticks = user + system
	}
	return max(exact, time.Duration(ticks)*10*time.Millisecond)
}

// hold waits until its cable is plugged in and becomes the server.
func hold(args []string) error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	return syscall.Exec(args[0], args, os.Environ())
}
