//go:build failpoints

package failpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled says whether this binary has failpoints.
const Enabled = true

const (
	hangPoll  = 20 * time.Millisecond
	stopTakes = 100 * time.Millisecond
)

var (
	mu   sync.Mutex
	hits = map[string]int{} // by point, while its file is there
)

// Hit marks a place where a test may stop this process or return an error.
func Hit(name string) error {
	dir := os.Getenv("BMC_FAILPOINTS")
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
	text, err := os.ReadFile(path)
	mu.Lock()
	if err != nil {
		delete(hits, name)
		mu.Unlock()
		return nil
	}
	hits[name]++
	n := hits[name]
	mu.Unlock()
	r, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("failpoint %s: %w", name, err)
	}
	if !r.due(n) || r.token != "" && r.take() != nil { // it is another's
		return nil
	}
	record(dir, name, r.action, n)
	return act(path, r.action)
}

// take is an error for all processes but one.
func (r rule) take() error {
	if r.next != "" {
		return os.Rename(r.token, r.next)
	}
	return os.Remove(r.token)
}

// due says whether the n-th hit fires, but for the token.
func (r rule) due(n int) bool {
	return n > r.after && (r.times == 0 || n <= r.after+r.times)
}

func record(dir, name string, action []string, n int) {
	line, err := json.Marshal(map[string]any{
		"time": time.Now().UTC(), "point": name, "action": strings.Join(action, " "), "hit": n, "pid": os.Getpid()})
	if err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, "fired.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = f.Write(append(line, '\n'))
}

func act(path string, action []string) error {
	switch action[0] {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "stop":
		err := syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(stopTakes) // another thread may have got the signal: nothing goes on before all stand
		return err
	case "hang":
		for {
			if _, err := os.Stat(path); err != nil {
				return nil
			}
			time.Sleep(hangPoll)
		}
	case "sleep":
		d, err := time.ParseDuration(strings.Join(action[1:], ""))
		if err != nil {
			return fmt.Errorf("failpoint: %w", err)
		}
		time.Sleep(d)
		return nil
	case "error":
		if len(action) == 2 && action[1] == "ENOSPC" {
			return syscall.ENOSPC
		}
		return errors.New("failpoint: " + strings.Join(action[1:], " "))
	}
	return fmt.Errorf("failpoint: unknown action %q", action[0])
}
