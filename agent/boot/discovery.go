package boot

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/bootseed"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// Bounds of what machines that nobody knows can make an agent do.
const (
	maxStrangers  = 1024                  // remembered: lent an address, or refused one
	maxAsking     = 64                    // that wait to be asked for
	askers        = 4                     // calls at once
	askEvery      = 20 * time.Millisecond // between two calls of one asker
	refusedFor    = time.Minute           // until a MAC that was refused is asked for again
	failedFor     = 3 * time.Second       // likewise when nobody had an answer
	lendLimit     = 8 * time.Second
	discoverLimit = 15 * time.Second
	renewWithin   = 4 * time.Minute // of the end: five are left by the control plane's rule
	outcomeKnown  = "known"
)

// DiscoveryConfig of a Discovery. All fields are required.
type DiscoveryConfig struct {
	CAPEM string // the CA that the ramdisk shall pin
	// Endpoint is the host:port of the Ramdisk service on a rack's network.
	Endpoint func(rack string) string
	// Lend has the control plane lend a MAC an address, under the rack's lease.
	Lend func(ctx context.Context, rack, mac string) (netip.Addr, time.Duration, error)
	// Report brings the control plane what a machine said it is.
	Report func(ctx context.Context, rack, mac string, h *agentv1.Hardware) (*agentv1.ReportDiscoveredResponse, error)
	Now    func() time.Time
	Log    *slog.Logger
}

// Discovery lets machines that nobody knows boot the ramdisk once, to say what
// they are. They get no certificate and no task. It remembers nothing over a
// restart: a machine in the middle of it starts again. It is safe for concurrent use.
type Discovery struct {
	cfg   DiscoveryConfig
	asked chan want

	mu    sync.Mutex
	known map[string]*stranger // by MAC
}

type want struct{ rack, mac string }

// stranger is one MAC.
type stranger struct {
	rack    string
	addr    netip.Addr // invalid: none was lent, and until then none is asked for
	until   time.Time
	asking  bool
	token   []byte // SHA-256; newest
	boot    string // that spent it
	telling bool   // its report is under way
	spent   []byte
	outcome *agentv1.DiscoverResponse // it has said what it is
}

// NewDiscovery returns a Discovery that knows nobody. Run must run.
func NewDiscovery(cfg DiscoveryConfig) *Discovery {
	return &Discovery{cfg: cfg, asked: make(chan want, maxAsking), known: make(map[string]*stranger)}
}

// Run asks the control plane for addresses until ctx ends.
func (d *Discovery) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() { d.ask(ctx) })
	}
	wg.Wait()
}

func (d *Discovery) ask(ctx context.Context) {
	tick := time.NewTicker(askEvery) // a flood of MACs costs no more than this
	defer tick.Stop()
	for {
		select {
		case w := <-d.asked:
			d.lend(ctx, w)
		case <-ctx.Done():
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (d *Discovery) lend(ctx context.Context, w want) {
	began := d.cfg.Now()
	callCtx, cancel := context.WithTimeout(ctx, lendLimit)
	addr, ttl, err := d.cfg.Lend(callCtx, w.rack, w.mac)
	cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.known[w.mac]
	if s == nil {
		return
	}
	s.asking = false
	switch {
	case err == nil:
		if !s.addr.IsValid() {
			d.cfg.Log.Info("unknown machine is lent an address", "rack", w.rack, "mac", w.mac, "addr", addr)
		}
		if s.outcome != nil { // forgotten, and here again
			s.token, s.outcome, s.boot, s.spent = nil, nil, "", nil
		}
		s.addr, s.until = addr, began.Add(ttl)
	case s.addr.IsValid() && began.Before(s.until): // what it has, it keeps
	default:
		wait := failedFor
		if metal.CodeOf(err) != metal.CodeInternal && metal.CodeOf(err) != metal.CodeNoLeader {
			wait = refusedFor
		}
		s.addr, s.until = netip.Addr{}, began.Add(wait)
		d.cfg.Log.Debug("unknown machine gets no address", "rack", w.rack, "mac", w.mac, "err", err)
	}
}

// Note hears that a MAC which no server has, or one that was lent an address,
// boots from the network of a rack with discovery on. It does not block.
func (d *Discovery) Note(rack, mac string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.cfg.Now()
	s := d.known[mac]
	switch {
	case s == nil:
		if len(d.known) >= maxStrangers && !d.prune(now) {
			return
		}
		s = &stranger{rack: rack}
		d.known[mac] = s
	case s.asking:
		return
	case s.rack != rack: // it was carried elsewhere
		*s = stranger{rack: rack}
	case s.outcome != nil: // it has said what it is, and boots again: it may have been forgotten
		if now.Before(s.until) {
			return
		}
	case now.Before(s.until) && (!s.addr.IsValid() || s.until.Sub(now) > renewWithin):
		return
	}
	select {
	case d.asked <- want{rack, mac}:
		s.asking = true
	default: // it asks again
	}
}

// prune forgets what is past its time; the lock is held.
func (d *Discovery) prune(now time.Time) bool {
	for mac, s := range d.known {
		if !s.asking && !now.Before(s.until) {
			delete(d.known, mac)
		}
	}
	return len(d.known) < maxStrangers
}

// Lent is the address that is lent to a MAC in a rack, and how much longer. One
// that has said what it is has none any more.
func (d *Discovery) Lent(rack, mac string) (netip.Addr, time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lent(rack, d.known[mac])
}

func (d *Discovery) lent(rack string, s *stranger) (netip.Addr, time.Duration, bool) {
	if s == nil || s.rack != rack || !s.addr.IsValid() || s.outcome != nil {
		return netip.Addr{}, 0, false
	}
	left := s.until.Sub(d.cfg.Now())
	return s.addr, left, left > 0
}

// ByAddr is the MAC that an address of a rack is lent to.
func (d *Discovery) ByAddr(rack string, addr netip.Addr) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for mac, s := range d.known {
		if a, _, ok := d.lent(rack, s); ok && a == addr {
			return mac, true
		}
	}
	return "", false
}

// Seed is the second initrd of a machine that nobody knows: a fresh token, and
// the word that it may do nothing but say what it is.
func (d *Discovery) Seed(mac string) ([]byte, error) {
	secret := make([]byte, tokenBytes)
	_, _ = rand.Read(secret) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret)
	d.mu.Lock()
	s := d.known[mac]
	var ok bool
	if s != nil {
		_, _, ok = d.lent(s.rack, s)
	}
	if !ok {
		d.mu.Unlock()
		return nil, metal.Errorf(metal.CodeDenied, "no boot intent is open for %s", mac)
	}
	s.token = hash(token)
	rack := s.rack
	d.mu.Unlock()
	return bootseed.Seed{Discover: true, Token: token, Agent: d.cfg.Endpoint(rack), CAPEM: d.cfg.CAPEM, Now: d.cfg.Now().UTC(), MAC: mac}.CPIO()
}

// discover spends a token. The same boot may tell again; another that has the
// token may not.
func (d *Discovery) discover(ctx context.Context, req *agentv1.DiscoverRequest) (*agentv1.DiscoverResponse, error) {
	token := hash(req.GetToken())
	d.mu.Lock()
	s := d.known[req.GetMac()]
	switch {
	case s == nil || s.token == nil || subtle.ConstantTimeCompare(s.token, token) != 1:
		d.mu.Unlock()
		return nil, metal.Errorf(metal.CodeDenied, "the boot token is not valid, or no longer")
	case s.spent != nil && subtle.ConstantTimeCompare(s.spent, token) == 1 && s.boot != req.GetBootId():
		d.mu.Unlock()
		d.cfg.Log.Warn("the boot token of an unknown machine was used a second time", "rack", s.rack, "mac", req.GetMac())
		return nil, metal.Errorf(metal.CodeTokenReplayed, "the boot token was used by another boot")
	case s.outcome != nil:
		defer d.mu.Unlock()
		return s.outcome, nil
	case s.telling:
		d.mu.Unlock()
		return nil, metal.Errorf(metal.CodeNoLeader, "this machine's report is under way")
	}
	s.spent, s.boot, s.telling = token, req.GetBootId(), true
	rack := s.rack
	d.mu.Unlock()
	resp, err := d.cfg.Report(ctx, rack, req.GetMac(), req.GetHardware())
	if err != nil {
		d.refused(s, err)
		return nil, err
	}
	out := &agentv1.DiscoverResponse{Outcome: resp.GetOutcome(), Name: resp.GetName(),
		Reboot: resp.GetOutcome() == outcomeKnown}
	d.cfg.Log.Info("unknown machine said what it is", "rack", rack, "mac", req.GetMac(), "outcome", out.GetOutcome(), "server", resp.GetServerId())
	d.mu.Lock()
	defer d.mu.Unlock()
	s.telling = false
	if s.outcome == nil { // Note asks again after a while
		s.outcome, s.until = out, d.cfg.Now().Add(refusedFor)
	}
	return s.outcome, nil
}

// refused ends a stranger's boot when the control plane does not want its report:
// each would cost a call there. Where nobody had an answer, it may tell again.
func (d *Discovery) refused(s *stranger, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.telling = false
	switch metal.CodeOf(err) {
	case metal.CodeInternal, metal.CodeNoLeader, metal.CodeDeadline, metal.CodeUnknownOutcome:
		return
	}
	s.token, s.addr, s.until = nil, netip.Addr{}, d.cfg.Now().Add(refusedFor)
}

// Discover implements the Ramdisk service.
func (s *Service) Discover(ctx context.Context, req *agentv1.DiscoverRequest) (*agentv1.DiscoverResponse, error) {
	if len(req.GetBootId()) > maxBootID || len(req.GetToken()) > maxBootID || req.GetBootId() == "" || tooLarge(req.GetHardware()) {
		return nil, rpcerr.Encode(metal.Invalid("discover", "too large"), "")
	}
	if s.cfg.Discovery == nil {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeDenied, "this agent discovers nothing"), "")
	}
	ctx, cancel := context.WithTimeout(ctx, discoverLimit)
	defer cancel()
	resp, err := s.cfg.Discovery.discover(ctx, req)
	if err != nil {
		if metal.CodeOf(err) == metal.CodeInternal { // nobody answered: it may try again
			err = &metal.Error{Code: metal.CodeNoLeader, Message: "no control-plane node takes the report at the moment", Err: err}
		}
		return nil, rpcerr.Encode(err, "")
	}
	return resp, nil
}
