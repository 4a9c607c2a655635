package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/process"
	"bmc/bench/table"
	"bmc/lab/machine"
	"bmc/lab/virtualbmc"
)

const (
	perCall = 400               // servers of one ApplyInventory
	settle  = 25 * time.Second  // two sweeps and more
	readAll = 120 * time.Second // until every server's power is known
)

// enter starts this program again in a network of its own, where an agent can answer
// DHCP and nobody hears it.
func enter(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.Run()
}

// off is a machine that is off, and stays so.
type off struct{}

func (off) State() machine.State                            { return machine.State{} }
func (off) PowerOn(context.Context) error                   { return nil }
func (off) PowerOff(context.Context) error                  { return nil }
func (off) SoftOff(context.Context) error                   { return nil }
func (off) Reset(context.Context) error                     { return nil }
func (off) SetBoot(context.Context, machine.Override) error { return nil }

// memory measures a real agent with that many servers, each with a controller (the
// lab's, in this process) whose power it reads. The servers' enrolments are cancelled:
// no operation is under way.
func memory(ctx context.Context, s settings) (err error) {
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link: %s, %w", out, err)
	}
	dir, err := os.MkdirTemp("", "bench-agent-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "cluster"), Program: filepath.Join(s.bin, "bmc-controlplane"), Nodes: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	load := process.Load()
	_, err = c.Client.Inventory.ApplyInventory(ctx, &bmcv1.ApplyInventoryRequest{
		Sizes: []*bmcv1.SizeInput{{Name: "small", MinCpuThreads: 1}},
		Racks: []*bmcv1.RackInput{{Name: "r1", Subnet: "127.16.0.0/16", Gateway: "127.16.0.1", Dns: []string{"127.16.0.1"}, Domain: "example", RangeFrom: "127.16.1.0", RangeTo: "127.16.100.0"}},
	})
	if err != nil {
		return fmt.Errorf("make a rack: %w", err)
	}
	config, err := agentConfig(ctx, c, dir)
	if err != nil {
		return err
	}
	program := filepath.Join(s.bin, "bmc-agent")
	empty, _, err := resident(ctx, c, dir, program, config, 0)
	if err != nil {
		return err
	}
	controllers, ports, err := serve(s.servers)
	defer func() {
		for _, b := range controllers {
			err = errors.Join(err, b.Close())
		}
	}()
	if err != nil {
		return err
	}
	if err := fill(ctx, c, ports); err != nil {
		return err
	}
	full, cpu, err := resident(ctx, c, dir, program, config, s.servers)
	if err != nil {
		return err
	}
	fmt.Printf("agent without servers: %.1f MiB resident; with %d: %.1f MiB, and %.1f ms of processor a second\n",
		float64(empty)/(1<<20), s.servers, float64(full)/(1<<20), cpu*1000)
	rows := []table.Row{
		{What: fmt.Sprintf("memory: agent with %d servers, for each", s.servers), Unit: "KiB", Ours: table.Of([]float64{float64(full-empty) / 1024 / float64(s.servers)}),
			Note: fmt.Sprintf("%.0f MiB in all, %.0f without servers", float64(full)/(1<<20), float64(empty)/(1<<20)), Load: load},
		{What: fmt.Sprintf("processor: agent that watches %d servers", s.servers), Unit: "% of a core", Ours: table.Of([]float64{cpu * 100}), Load: load},
	}
	return errors.Join(table.Print(os.Stdout, rows), table.Append(s.rows, rows...))
}

func agentConfig(ctx context.Context, c *cluster.Cluster, dir string) (string, error) {
	r, err := c.Client.Cluster.CreateJoinToken(ctx, &bmcv1.CreateJoinTokenRequest{Role: "agent", Racks: []string{"r1"}})
	if err != nil {
		return "", fmt.Errorf("make a join token: %w", err)
	}
	path := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf(`name: a1
data_dir: %[1]s/agent
token_file: %[1]s/token
nodes: [%[2]q]
racks: [{name: r1, interface: lo, address: 127.16.0.2/16}]
ramdisk: {kernel: %[1]s/token, initrd: %[1]s/token}
image_store: {endpoint: "https://127.0.0.1:1", bucket: none, access_key: none, secret_key_file: %[1]s/token}
`, dir, c.Nodes[0].Address)
	return path, errors.Join(os.WriteFile(path, []byte(text), 0o600), os.WriteFile(filepath.Join(dir, "token"), []byte(r.GetToken()+"\n"), 0o600))
}

// serve starts controllers on loopback.
func serve(n int) (all []*virtualbmc.BMC, ports []int, err error) {
	for i := range n {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return all, ports, err
		}
		ports = append(ports, conn.LocalAddr().(*net.UDPAddr).Port)
		b, err := virtualbmc.Serve(conn, virtualbmc.Config{Name: "m" + strconv.Itoa(i), User: user, Password: password, Machine: off{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return all, ports, err
		}
		all = append(all, b)
	}
	return all, ports, nil
}

// fill makes the servers, and cancels the enrolments that begin with it.
func fill(ctx context.Context, c *cluster.Cluster, ports []int) error {
	for from := 0; from < len(ports); from += perCall {
		req := &bmcv1.ApplyInventoryRequest{}
		for i := from; i < min(from+perCall, len(ports)); i++ {
			req.Servers = append(req.Servers, &bmcv1.ServerInput{
				Name: fmt.Sprintf("r1-u%d", i+1), Rack: "r1", Macs: []string{fmt.Sprintf("52:54:00:%02x:%02x:01", i>>8, i&255)}, Serial: fmt.Sprintf("SN%08d", i),
				Oob: &bmcv1.OOBInput{Protocol: "ipmi", Address: "127.0.0.1:" + strconv.Itoa(ports[i]), Username: user, Password: password, CipherSuite: 17},
			})
		}
		if _, err := c.Client.Inventory.ApplyInventory(ctx, req); err != nil {
			return fmt.Errorf("make servers: %w", err)
		}
	}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range ports {
		g.Go(func() error {
			_, err := c.Client.Operations.CancelOperation(ctx, &bmcv1.CancelOperationRequest{Ref: fmt.Sprintf("r1-u%d", i+1)})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("cancel an enrolment: %w", err)
	}
	return nil
}

// resident runs an agent until it knows the power of all servers and for some time
// more: its memory in bytes, and the share of a core that it used in that time.
func resident(ctx context.Context, c *cluster.Cluster, dir, program, config string, servers int) (bytes int64, share float64, err error) {
	agent, err := process.Start(filepath.Join(dir, "agent.log"), program, "run", "--config", config)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, agent.End()) }()
	ctx, cancel := context.WithTimeout(ctx, readAll)
	defer cancel()
	began := time.Now()
	for {
		n, err := known(ctx, c)
		if err != nil {
			return 0, 0, err
		}
		if n == servers {
			break
		}
		if err := wait(ctx, agent, 500*time.Millisecond); err != nil {
			return 0, 0, fmt.Errorf("the power of %d servers of %d is known: %w", n, servers, err)
		}
	}
	if servers > 0 {
		fmt.Printf("power of %d servers known %.1f s after the agent's start\n", servers, time.Since(began).Seconds())
	}
	before := process.Processor(agent.PID())
	if err := wait(ctx, agent, settle); err != nil {
		return 0, 0, err
	}
	used := process.Processor(agent.PID()) - before
	now, _ := process.RSS(agent.PID())
	return now, used.Seconds() / settle.Seconds(), nil
}

func wait(ctx context.Context, agent *process.Child, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-agent.Done():
		return errors.New("the agent has ended: see its log")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// known counts the servers whose power is known.
func known(ctx context.Context, c *cluster.Cluster) (n int, err error) {
	r, err := c.Client.Servers.ListServers(ctx, &bmcv1.ListServersRequest{PageSize: 5000})
	for _, s := range r.GetServers() {
		if s.GetPower().GetObserved() == "off" {
			n++
		}
	}
	return n, err
}
