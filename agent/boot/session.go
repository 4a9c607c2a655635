package boot

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "bmc/api/agent/v1"
	"bmc/metal"
)

// Binding is what a session belongs to, and who its machine must prove to be.
type Binding struct {
	Operation  string
	Attempt    uint32
	Server     string // ID
	Name       string // for messages
	MAC        string // of the boot NIC
	Serial     string // expected; "" when not known
	UUID       string // likewise
	ConsoleTTY string
	// Unproven says that the operation has yet to prove which machine the
	// server's controller powers. Its machine is given the ramdisk only while
	// Admit says so.
	Unproven bool
	// BootID is the boot of the ramdisk that the operation's log says this
	// attempt works with, in the hands of another agent; "" when there is none.
	BootID string
}

// EventKind names a change of a session.
type EventKind string

// The kinds.
const (
	Armed    EventKind = "armed"    // a boot intent is open; what an earlier boot did is forgotten
	Disarmed EventKind = "disarmed" // it is closed without a hello
	Minted   EventKind = "minted"   // a token was handed out; Token
	Greeted  EventKind = "greeted"  // the machine said hello; Token, Key, Public, BootID, Firmware, Ramdisk
	Adopted  EventKind = "adopted"  // a machine that had said hello to another agent called; Public, BootID
	Granted  EventKind = "granted"  // it was given a task; Task
	Finished EventKind = "finished" // it completed the task; Result
	Refuted  EventKind = "refuted"  // the session failed for good; Reason, Message
)

// Event is a change of a session, small enough to journal. Secrets are hashed.
type Event struct {
	Kind     EventKind  `json:"kind"`
	Token    []byte     `json:"token,omitempty"`  // SHA-256
	Key      []byte     `json:"key,omitempty"`    // SHA-256 of the CSR
	Public   []byte     `json:"public,omitempty"` // SHA-256 of its certificate's public key, in DER; none where an older agent wrote this
	BootID   string     `json:"boot_id,omitempty"`
	Firmware string     `json:"firmware,omitempty"`
	Ramdisk  string     `json:"ramdisk,omitempty"` // version
	Task     string     `json:"task,omitempty"`    // ID; its content may hold user data and is not kept
	Result   []byte     `json:"result,omitempty"`  // CompleteTaskRequest; of Refuted the Hardware that was another than expected
	Reason   metal.Code `json:"reason,omitempty"`
	Message  string     `json:"message,omitempty"`
}

// errDetached asks a machine to come back: this agent is stopping, or the
// operation is on its way to another.
var errDetached = metal.Errorf(metal.CodeNoLeader, "the agent is not at this operation at the moment")

// Session is one attempt's dealings with a server's ramdisk. Its state is the
// sum of its events, whether they happen or are replayed.
type Session struct {
	Binding
	service *Service
	record  func(Event) error

	front front

	mu       sync.Mutex // held while the journal is written: what machines' answers need is in front
	open     bool       // a boot intent
	expects  string     // boot ID of another agent's ramdisk, until it calls or a boot intent is opened
	polls    int        // that were cut short
	token    []byte     // newest, unspent
	spent    map[string]bool
	greeted  *Event // of the boot that counts
	called   bool   // with the certificate, in that boot and in this agent's life
	granted  string // task ID
	task     *agentv1.Task
	results  map[string]*agentv1.CompleteTaskRequest
	failure  *metal.Error
	found    *agentv1.Hardware // with a failure of identity: what the machine said it is
	detached bool
	lastSeen time.Time
	last     Progress
	moved    time.Time // when last changed
}

// Progress is how far a task is, in the ramdisk's words.
type Progress struct {
	Task    string
	Done    uint64
	Total   uint64
	Message string
}

// front is what network boot reads of a session. Its lock is never held over a
// write to the disk or a call: a machine's answer would wait for that, and behind the
// rack's lock those of all others. It may be taken under the session's, not the other
// way round.
type front struct {
	mu      sync.Mutex
	changed chan struct{} // closed at every change of the session
	view
}

// view is what there is to see at one moment.
type view struct {
	open     bool // a boot intent is, and the journal's record of that is on disk
	met      bool // the boot that counts has said hello
	admitted bool // see Binding.Unproven; not kept over a restart
	aside    bool // see Attend
	ended    bool
}

func (f *front) look() view {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view
}

// edit changes the view and wakes who waits for a change of the session.
func (f *front) edit(change func(*view)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if change != nil {
		change(&f.view)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// commit journals an event, then lets it be so, and be seen. The lock is held.
func (s *Session) commit(e Event) error {
	if s.detached {
		return errDetached
	}
	if err := s.record(e); err != nil {
		return &metal.Error{Code: metal.CodeInternal, Message: "the agent cannot write its journal", Err: err}
	}
	s.apply(e)
	s.show()
	return nil
}

// show publishes what events have changed; the lock is held.
func (s *Session) show() {
	s.front.edit(func(v *view) { v.open, v.met = s.open, s.greeted != nil })
}

// signal wakes who waits for a change.
func (s *Session) signal() { s.front.edit(nil) }

func (s *Session) apply(e Event) {
	switch e.Kind {
	case Armed:
		s.open, s.token, s.greeted, s.granted, s.task, s.results = true, nil, nil, "", nil, nil
		s.called = false
		s.expects = ""
	case Disarmed:
		s.open, s.token = false, nil
	case Minted:
		s.token = e.Token
	case Greeted:
		s.open, s.token, s.greeted, s.expects = false, nil, &e, ""
		s.spent[string(e.Token)] = true
	case Adopted:
		s.greeted, s.expects = &e, ""
	case Granted:
		s.granted = e.Task
	case Finished:
		result := &agentv1.CompleteTaskRequest{}
		if proto.Unmarshal(e.Result, result) != nil {
			return // as if it had not arrived: the ramdisk tells it again
		}
		if s.results == nil {
			s.results = make(map[string]*agentv1.CompleteTaskRequest)
		}
		s.results[e.Task] = result
		s.granted, s.task = "", nil
	case Refuted:
		s.open, s.token = false, nil
		s.failure = &metal.Error{Code: e.Reason, Message: e.Message}
		if found := (&agentv1.Hardware{}); len(e.Result) > 0 && proto.Unmarshal(e.Result, found) == nil {
			s.found = found
		}
	}
}

func (s *Session) armed() (yes, attended bool) {
	v := s.front.look()
	yes = v.open && !v.ended && (v.admitted || !s.Unproven)
	return yes, yes && !v.aside
}

// expected says whether a boot of the machine may be the operation's doing.
func (s *Session) expected() bool {
	v := s.front.look()
	return !s.Unproven || v.open && v.admitted || v.met
}

// Admit says whether a boot of an unproven machine may be the operation's doing:
// from right before its power-on until another operation may power it on. When it
// returns, no token that was asked for before is on its way to the journal.
func (s *Session) Admit(yes bool) {
	s.front.edit(func(v *view) { v.admitted = yes })
	s.mu.Lock()
	defer s.mu.Unlock()
}

// Poll has the ramdisk's wait for a task end now: one that lives calls again.
func (s *Session) Poll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls++
	s.signal()
}

// Attend says whether this agent holds the rack's lease for the operation. While
// it does not, calls are told to look for the agent that does; what they bring
// is noted all the same, in case there is none.
func (s *Session) Attend(yes bool) {
	changed := s.front.look().aside == yes
	if changed {
		s.front.edit(func(v *view) { v.aside = !yes })
	}
	if changed && yes { // a ramdisk that waits for just this shall call
		s.service.wake(s.Server)
	}
}

// Adoptable says whether a ramdisk that another agent has met may still call.
func (s *Session) Adoptable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expects != ""
}

// BootID is the boot that counts; "" before its hello.
func (s *Session) BootID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.greeted == nil {
		return ""
	}
	return s.greeted.BootID
}

// Arm opens a boot intent: the machine is about to get power, and only a hello
// of the boot that follows counts. What an earlier boot said is forgotten.
func (s *Session) Arm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit(Event{Kind: Armed})
}

// Disarm closes the intent: the machine is given up.
func (s *Session) Disarm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return nil
	}
	return s.commit(Event{Kind: Disarmed})
}

func (s *Session) mint(tokenHash []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.front.look(); !s.open || v.ended || s.Unproven && !v.admitted {
		return metal.Errorf(metal.CodeDenied, "no boot intent is open for %s", s.MAC)
	}
	return s.commit(Event{Kind: Minted, Token: tokenHash})
}

// hello spends a token. It refuses a wrong one without further effect; a token
// that is used twice, or the right token from another machine, fails the
// operation.
func (s *Session) hello(req *agentv1.HelloRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.front.look().ended {
		return metal.Errorf(metal.CodeDenied, "the operation has ended")
	}
	token := hash(req.GetToken())
	key := sha256.Sum256(req.GetCsr())
	if g := s.greeted; g != nil && subtle.ConstantTimeCompare(g.Token, token) == 1 && slices.Equal(g.Key, key[:]) && g.BootID == req.GetBootId() && s.failure == nil {
		return nil // the answer was lost
	}
	if s.spent[string(token)] {
		return s.refute(metal.CodeTokenReplayed, "the boot token of "+s.Name+" was used a second time: another machine may have read it on the provisioning network")
	}
	if s.failure != nil {
		return s.failure
	}
	if !s.open || s.token == nil || subtle.ConstantTimeCompare(s.token, token) != 1 {
		return metal.Errorf(metal.CodeDenied, "the boot token is not valid, or no longer")
	}
	if code, why := s.differs(req.GetIdentity()); code != "" {
		return s.refuteAs(code, why, req.GetIdentity())
	}
	s.lastSeen = s.service.cfg.Now()
	return s.commit(Event{Kind: Greeted, Token: token, Key: key[:], Public: publicOf(req.GetCsr()), BootID: req.GetBootId(), Firmware: req.GetIdentity().GetFirmware(), Ramdisk: clip(req.GetVersion())})
}

// publicOf hashes the key that a request is for; nil when there is none, for which
// there will be no certificate either.
func publicOf(csr []byte) []byte {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil
	}
	h := sha256.Sum256(req.RawSubjectPublicKeyInfo)
	return h[:]
}

func (s *Session) refute(code metal.Code, message string) error {
	if err := s.commit(Event{Kind: Refuted, Reason: code, Message: message}); err != nil {
		return err
	}
	return s.failure
}

// Firmware is what the machine that said hello booted by: "bios" or "uefi"; ""
// before.
func (s *Session) Firmware() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.greeted == nil {
		return ""
	}
	return s.greeted.Firmware
}

// Version is what the ramdisk that said hello calls itself; "" before, and of one
// that had said hello to another agent.
func (s *Session) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.greeted == nil {
		return ""
	}
	return s.greeted.Ramdisk
}

// Alive says whether the machine has said hello in the boot that counts.
func (s *Session) Alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.greeted != nil && s.failure == nil
}

// Called says whether the machine that said hello has called since, with the
// certificate that it got for that. One that has not may never have heard the
// answer, and then only this agent can repeat it.
func (s *Session) Called() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.called && s.failure == nil
}

// Changed is closed at the next change; take it before looking at the state.
func (s *Session) Changed() <-chan struct{} {
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	return s.front.changed
}

// Failure is why the session failed for good, or nil.
func (s *Session) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		return nil
	}
	return s.failure
}

// Close ends the session: the ramdisk is told to stop what it can.
func (s *Session) Close() {
	s.end()
	s.service.forget(s)
}

// Detach leaves the machine alone: what it does runs to its end, and its calls
// are told to come back until another session knows it.
func (s *Session) Detach() {
	s.service.forget(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached = true
	s.signal()
}

// end is seen at once; when it returns, nothing is on its way to the journal.
func (s *Session) end() {
	s.front.edit(func(v *view) { v.ended = true })
	s.mu.Lock()
	defer s.mu.Unlock()
}

func tooLarge(m proto.Message) bool { return proto.Size(m) > maxIdentity }

// wait blocks until done says so, under the lock, or ctx ends.
func (s *Session) wait(ctx context.Context, done func() bool) error {
	for {
		changed := s.Changed()
		s.mu.Lock()
		ok := done()
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
