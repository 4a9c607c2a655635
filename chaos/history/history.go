// Package history records what clients asked a cluster and what they were told,
// so that a check can compare it with what a correct one could have said.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"bmc/metal"
)

// Kinds of calls.
const (
	Create    = "create"
	Destroy   = "destroy"
	Power     = "power"
	Restart   = "restart"
	Cancel    = "cancel"
	Get       = "get"
	List      = "list"
	Inventory = "inventory"
	Retry     = "retry"
	AddKey    = "add-key"
	RemoveKey = "remove-key"
	ListKeys  = "list-keys"
)

// Outcome is what the client knows of a call's effect.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // it had no effect, and never will
	Unknown Outcome = "unknown" // it may have had its effect, or may yet
)

// Call is one call of one client. Times are nanoseconds since the recorder's
// start, on a monotonic clock. End is 0 for a call that has not returned.
type Call struct {
	ID        int     `json:"id"`
	Client    int     `json:"client"`
	Kind      string  `json:"kind"`
	RequestID string  `json:"request_id,omitempty"`
	Name      string  `json:"name,omitempty"` // of the rental or the key asked about
	Begin     int64   `json:"begin"`
	End       int64   `json:"end,omitempty"`
	Outcome   Outcome `json:"outcome,omitempty"`
	Code      string  `json:"code,omitempty"` // metal.Code of what is not OK

	Revision  uint64 `json:"revision,omitempty"` // that the answer names
	Operation string `json:"operation,omitempty"`
	Op        string `json:"op,omitempty"`     // kind of the operation that the answer is
	Wanted    string `json:"wanted,omitempty"` // of a power call

	// Servers are the answer: of a mutation and a get one, of a list all.
	Servers []Server `json:"servers,omitempty"`
	// Keys are the answer of calls about keys: IDs by name, of an add one, of a list all.
	Keys map[string]string `json:"keys,omitempty"`
}

// Server is what an answer says of a server.
type Server struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Rack    string `json:"rack,omitempty"`
	Address string `json:"address,omitempty"`
	State   string `json:"state,omitempty"`
	Rental  string `json:"rental,omitempty"` // name; "" when nobody rents it, or its destroy was accepted
}

// Start is the first line of a history.
type Start struct {
	Start time.Time `json:"start"`
	Seed  uint64    `json:"seed"`
}

// Recorder writes a history as JSON lines: one when a call begins, one when it
// ends. It is safe for concurrent use.
type Recorder struct {
	start time.Time

	mu    sync.Mutex
	w     io.Writer
	calls []Call
	err   error
}

// NewRecorder begins a history.
func NewRecorder(w io.Writer, seed uint64) *Recorder {
	r := &Recorder{start: time.Now(), w: w}
	r.write(Start{r.start.UTC(), seed})
	return r
}

// Start is when the history began; calls' times count from it.
func (r *Recorder) Start() time.Time { return r.start }

func (r *Recorder) write(v any) {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = r.w.Write(append(line, '\n'))
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("history: %w", err)
	}
}

// Begin records that a call is made and returns its ID.
func (r *Recorder) Begin(c Call) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.ID, c.Begin, c.End = len(r.calls)+1, int64(time.Since(r.start)), 0
	r.calls = append(r.calls, c)
	r.write(c)
	return c.ID
}

// End records a call's answer: answer changes the call as Begin had it.
func (r *Recorder) End(id int, answer func(*Call)) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls[id-1]
	answer(&c)
	c.ID, c.Begin, c.End = id, r.calls[id-1].Begin, int64(time.Since(r.start))
	r.calls[id-1] = c
	r.write(c)
	return c
}

// Do makes a call and records it, with what do puts into the answer. What is no
// acknowledgement leaves the effect open. A nil Recorder records nothing.
func (r *Recorder) Do(begin Call, do func(*Call) error) error {
	if r == nil {
		return do(&begin)
	}
	id, answer := r.Begin(begin), begin
	err := do(&answer)
	r.End(id, func(c *Call) {
		*c = answer
		if c.Outcome = OK; err != nil {
			c.Outcome, c.Code = Unknown, string(metal.CodeOf(err))
		}
	})
	return err
}

// Calls is the history so far, by ID.
func (r *Recorder) Calls() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// Err is the first failure to write.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Read reads a history back. A last line that was cut off is left out.
func Read(rd io.Reader) (Start, []Call, error) {
	var start Start
	var calls []Call
	s := bufio.NewScanner(rd)
	s.Buffer(nil, 64<<20)
	for n := 0; s.Scan(); n++ {
		if n == 0 {
			if err := json.Unmarshal(s.Bytes(), &start); err != nil || start.Start.IsZero() {
				return start, nil, errors.New("this is no history")
			}
			continue
		}
		var c Call
		if err := json.Unmarshal(s.Bytes(), &c); err != nil {
			break
		}
		switch {
		case c.ID == len(calls)+1:
			calls = append(calls, c)
		case c.ID >= 1 && c.ID <= len(calls):
			calls[c.ID-1] = c
		default:
			return start, nil, fmt.Errorf("line %d: call %d after %d calls", n+1, c.ID, len(calls))
		}
	}
	return start, calls, s.Err()
}
