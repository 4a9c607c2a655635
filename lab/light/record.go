package light

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// NoAnswer ends the detail of a network boot that nobody answered.
const NoAnswer = "no answer"

// Kinds of events.
const (
	PowerOn    = "power-on"
	PowerOff   = "power-off"  // Detail: controller, soft, guest
	Reset      = "reset"      // by the controller
	Boot       = "boot"       // Detail: what is tried first
	DHCP       = "dhcp"       // an address was taken; Detail: from whom, for whom
	Asked      = "asked"      // a stranger asked for an address; Detail: how
	Answered   = "answered"   // a DHCP answer came, taken or not; Detail: its kind
	Loader     = "loader"     // fetched; Detail: its name
	Script     = "script"     // fetched and run; Detail: how it ended
	Hello      = "hello"      // answered with a certificate; Detail: by which agent
	HelloLost  = "hello-lost" // refused, or no answer
	Told       = "told"       // nobody knew the machine, and it said what it is; Detail: what the agent made of that
	TaskStart  = "task-start"
	TaskEnd    = "task-end"   // Detail: the reason of a failure
	TaskAgain  = "task-again" // given once more in one boot: its result was sent again
	ResultLost = "result-lost"
	WipeDisk   = "wipe"      // began: from now on the disk's content is lost
	WriteDisk  = "write"     // an image's first byte is about to be written; Detail: the image
	Installed  = "installed" // Detail: the host name
	Kexec      = "kexec"     // the ramdisk starts what is on the disk, without the firmware
	DiskBoot   = "disk-boot" // an operating system starts; Detail: its host name
	NoBoot     = "no-boot"   // Detail: why; it ends with NoAnswer where nobody answered
	Up         = "up"        // the operating system serves; Detail: its address
	Failed     = "failed"    // something that is not the protocol's: Detail says what
)

// Event is one line of a lab's machines.jsonl.
type Event struct {
	Time   time.Time `json:"time"` // UTC
	Server string    `json:"server"`
	Event  string    `json:"event"`
	Start  int       `json:"start"`             // power-ons so far
	Boot   string    `json:"boot_id,omitempty"` // of the ramdisk, as it tells the agent
	Task   string    `json:"task,omitempty"`
	Detail string    `json:"detail,omitempty"`
	// Of DHCP as it was on the wire.
	MAC     string `json:"mac,omitempty"`     // that asked or was answered
	Address string `json:"address,omitempty"` // that was offered or acknowledged
	From    string `json:"from,omitempty"`    // the answering server, by its own word
}

// Record keeps what the machines of a lab did, one JSON object a line, in the
// order in which it happened.
type Record struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// NewRecord writes to w, one Write an event.
func NewRecord(w io.Writer) *Record { return &Record{w: w} }

// Err is the first failure to write.
func (r *Record) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Add writes an event and stamps it with the time.
func (r *Record) Add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Time = time.Now().UTC()
	raw, err := json.Marshal(e)
	if err == nil {
		_, err = r.w.Write(append(raw, '\n'))
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("record of machines: %w", err)
	}
}

// answered adds a DHCP answer as it came from the wire.
func (r *Record) answered(server string, start int, m *message) {
	e := Event{Server: server, Event: Answered, Start: start, MAC: macText(m.chaddr), Detail: kindName(m.kind())}
	if m.yiaddr != anyAddr {
		e.Address = m.yiaddr.String()
	}
	if s := m.server(); s.IsValid() {
		e.From = s.String()
	}
	r.Add(e)
}
