package lab

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// launch is how a daemon was started, to start it again.
type launch struct {
	program string
	args    []string
}

// errClosing is returned to who starts a daemon of a lab that is going down.
var errClosing = errors.New("the lab is going down")

// daemon starts a child in the namespace of its own name and keeps it for Close.
func (l *Lab) daemon(name, program string, args ...string) error {
	env := l.env[name]
	if l.cfg.Failpoints && name != storeName {
		dir := l.cfg.path("failpoints", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		env = append(env[:len(env):len(env)], "BMC_FAILPOINTS="+dir)
	}
	p, err := spawn(l.net.spaces[name], name, l.logFile(name), env, program, args...)
	if err != nil {
		return err
	}
	p.launch = launch{program, args}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, old := range l.daemons {
		if old.name == name {
			p.restarts = old.restarts + 1
			l.daemons[i] = p
			return nil
		}
	}
	l.daemons = append(l.daemons, p)
	return nil
}

// find returns a daemon's newest process, or nil.
func (l *Lab) find(name string) *process {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.daemons {
		if p.name == name {
			return p
		}
	}
	return nil
}

// signal sends a signal to a daemon that runs. After SIGKILL it returns when the
// process is gone.
func (l *Lab) signal(name string, sig syscall.Signal) error {
	p := l.find(name)
	if p == nil {
		return l.noDaemon(name)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("%s does not run: bmc-lab start %s", name, name)
		}
		return fmt.Errorf("signal %s: %w", name, err)
	}
	if sig == syscall.SIGKILL {
		<-p.done
	}
	return nil
}

// StartDaemon starts a daemon again that has ended; one that runs is left alone.
func (l *Lab) StartDaemon(name string) error {
	l.starting.Lock()
	defer l.starting.Unlock()
	if l.closing {
		return errClosing
	}
	p := l.find(name)
	if p == nil {
		return l.noDaemon(name)
	}
	select {
	case <-p.done:
	default:
		return nil
	}
	return l.daemon(name, p.launch.program, p.launch.args...)
}

// RestartDaemon ends a daemon in order, if it runs, and starts it again.
func (l *Lab) RestartDaemon(name string) error {
	p := l.find(name)
	if p == nil {
		return l.noDaemon(name)
	}
	// One that was killed for being slow has ended all the same.
	if err := p.stop(); err != nil {
		l.log.Warn("daemon was slow to stop", "daemon", name, "err", err)
	}
	return l.StartDaemon(name)
}
