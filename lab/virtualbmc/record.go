package virtualbmc

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Command is one command that a controller was given in a session.
type Command struct {
	Server  string        `json:"server"`
	Time    time.Time     `json:"time"`              // when it arrived, UTC
	From    string        `json:"from,omitempty"`    // source IP:port
	Session uint32        `json:"session,omitempty"` // the controller's ID of it
	User    string        `json:"user,omitempty"`
	Name    string        `json:"name"`
	NetFn   uint8         `json:"netfn"`
	Cmd     uint8         `json:"cmd"`
	Data    string        `json:"data,omitempty"`   // hex; of chassis commands only
	Answer  string        `json:"answer,omitempty"` // hex; of Get Chassis Status only: bit 0 is the power
	On      bool          `json:"on"`               // the machine's power when it arrived
	Took    time.Duration `json:"took_ns"`
	OK      bool          `json:"ok"`              // accepted
	Result  uint8         `json:"result"`          // IPMI's completion code
	Fault   bool          `json:"fault,omitempty"` // answered by an injected fault: nothing was done
	Sim     bool          `json:"sim,omitempty"`   // told by ipmi_sim, which does not say who asked
}

// Record keeps what the controllers of a lab were told, one JSON object a line, so
// that a check can compare it with what was intended. A nil Record keeps nothing.
type Record struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// NewRecord writes to w, one Write a command.
func NewRecord(w io.Writer) *Record { return &Record{w: w} }

// Err is the first failure to write.
func (r *Record) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Add writes one command.
func (r *Record) Add(c Command) {
	if r == nil {
		return
	}
	raw, err := json.Marshal(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		_, err = r.w.Write(append(raw, '\n'))
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("record of commands: %w", err)
	}
}
