package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bmc/internal/newc"
	"bmc/netboot"
)

// What runs as a child in a machine's network namespace says things on standard
// output, one a line: a word and a time in nanoseconds since 1970.
func inside(role string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch {
	case role == "in-namespace-probe" && len(args) == 1:
		return probe(ctx, net.JoinHostPort(args[0], "22"))
	case role == "in-namespace-serve" && len(args) == 5:
		return serve(ctx, args)
	}
	return fmt.Errorf("%s %v: not for people", role, args)
}

func say(word string) { fmt.Println(word, time.Now().UnixNano()) }

// probe asks for an SSH server's banner until there is one. A try ends soon: a
// packet that nobody heard is sent again after a second only.
func probe(ctx context.Context, address string) error {
	const tryFor, between, answerFor = 300 * time.Millisecond, 50 * time.Millisecond, 5 * time.Second
	for ctx.Err() == nil {
		c, err := (&net.Dialer{Timeout: tryFor}).DialContext(ctx, "tcp4", address)
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(answerFor))
			line := ""
			if err == nil {
				line, err = bufio.NewReader(c).ReadString('\n')
			}
			c.Close()
			if err == nil && strings.HasPrefix(line, "SSH-2.0-") {
				say("ssh")
				return nil
			}
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

type probeResult struct {
	at  time.Time
	err error
}

// startProbe runs a probe as a child, by start or as usual, and tells when it had
// its answer.
func startProbe(ctx context.Context, command []string, start func(*exec.Cmd) error, answer chan<- probeResult) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // ourselves
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return err
	}
	go func() {
		at, err := heard(bufio.NewReader(out), "ssh")
		answer <- probeResult{at, errors.Join(err, cmd.Wait())}
	}()
	return nil
}

// heard reads lines until the word comes, and returns its time.
func heard(r *bufio.Reader, word string) (time.Time, error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return time.Time{}, fmt.Errorf("waited for %q: %w", word, err)
		}
		said, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseInt(at, 10, 64); said == word && err == nil {
			return time.Unix(0, n), nil
		}
	}
}

const (
	imagePort  = 8090
	serverAddr = "10.77.9.1"
	guestAddr  = "10.77.9.100"
	prefix     = "/24"
)

// one is the directory of one machine that boots the guest from the network; once
// it boots from its disk, it does not ask.
type one struct{ mac string }

func (d one) Lookup(mac string) (netboot.Machine, bool) {
	return netboot.Machine{ServerID: "peer", MAC: d.mac, Hostname: "peer", Addr: netip.MustParsePrefix(guestAddr + prefix), LeaseTime: time.Hour,
		Authoritative: true, Boot: netboot.BootSpec{Ramdisk: true}}, mac == d.mac
}

func (d one) LookupAddr(a netip.Addr) (netboot.Machine, bool) {
	m, _ := d.Lookup(d.mac)
	return m, a == m.Addr.Addr()
}

// Seed is empty: the guest knows all it needs.
func (d one) Seed(context.Context, string) ([]byte, error) {
	var b strings.Builder
	if err := newc.NewWriter(&b).Close(); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// serve boots the guest and hands it the image.
func serve(ctx context.Context, args []string) error {
	iface, kernel, initrd, mac, image := args[0], args[1], args[2], args[3], args[4]
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d := one{mac}
	s, err := netboot.New(netboot.Config{Interface: iface, Addr: netip.MustParseAddr(serverAddr), Kernel: kernel, Initrd: initrd, Directory: d, Seeder: d, Log: log})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", serverAddr, imagePort)) //nolint:noctx // closed by the server
	if err != nil {
		return err
	}
	h := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			say("get")
		}
		http.ServeFile(w, r, image)
	})}
	defer h.Close() //nolint:errcheck // at the end of the process
	served := make(chan error, 2)
	go func() { served <- h.Serve(l) }()
	go func() { served <- s.Run(ctx) }()
	say("ready")
	go func() { // the parent's end is ours
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = h.Close()
	}()
	return <-served
}

func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}
