package boot

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"maps"
	"slices"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/rpcerr"
	"bmc/metal"
)

// stillHere is how often a ramdisk's wait is held against the rack's lease: who
// has lost that sends it on.
const stillHere = time.Second

// waiting is a server whose ramdisk waits for a tenant, and has called for that.
type waiting struct {
	bootID string
	seen   time.Time     // its last call
	woken  chan struct{} // closed when an operation wants it
}

// Heard is when the ramdisk in which a server waits last called here; zero when
// it has not in this agent's life.
func (s *Service) Heard(serverID, bootID string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiting[serverID]; w != nil && w.bootID == bootID {
		return w.seen
	}
	return time.Time{}
}

// Prune forgets servers that are not known any more.
func (s *Service) Prune(known func(serverID string) bool) {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.waiting))
	s.mu.Unlock()
	ids = slices.DeleteFunc(ids, known) // not under the lock: it has locks of its own
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.waiting, id)
	}
}

// wake ends a ramdisk's wait: one that lives calls again, and meets the session
// of the operation that wants it.
func (s *Service) wake(serverID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiting[serverID]; w != nil {
		close(w.woken)
		w.woken = make(chan struct{})
	}
}

// call notes that a waiting ramdisk lives. One that waits in no boot that the
// control plane knows is told to come back; one that shall wait elsewhere, too.
func (s *Service) call(serverID, bootID string) (woken <-chan struct{}, err error) {
	boot, here := s.cfg.Waits(serverID)
	switch {
	case boot == "" || boot != bootID:
		return nil, s.nothing(serverID)
	case !here:
		return nil, errDetached
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[serverID]
	if w == nil || w.bootID != bootID {
		w = &waiting{bootID: bootID, woken: make(chan struct{})}
		s.waiting[serverID] = w
	}
	w.seen = s.cfg.Now()
	return w.woken, nil
}

// wait holds the call of a server without an operation until one wants it. There
// is no task in the answer even then: who asked may be dead by now, and only
// another call proves that it is not.
func (s *Service) wait(ctx context.Context, serverID, bootID string) (*agentv1.NextTaskResponse, error) {
	woken, err := s.call(serverID, bootID)
	if err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	tick := time.NewTicker(stillHere)
	defer tick.Stop()
	for s.session(serverID) == nil {
		select {
		case <-woken:
			return &agentv1.NextTaskResponse{Agents: s.agents(serverID)}, nil
		case <-ctx.Done():
			return &agentv1.NextTaskResponse{Agents: s.agents(serverID)}, nil //nolint:nilerr // ask again
		case <-tick.C:
		}
		if boot, here := s.cfg.Waits(serverID); boot == bootID && !here {
			return nil, rpcerr.Encode(errDetached, "")
		}
	}
	// Its operation has come, and will be attended to in a moment.
	select {
	case <-woken:
	case <-tick.C:
	case <-ctx.Done():
	}
	return &agentv1.NextTaskResponse{Agents: s.agents(serverID)}, nil
}

// Renew implements the Ramdisk service: the certificate of a ramdisk that waits
// for days is prolonged, for the key that it has. Whether the server waits in that
// boot is the control plane's to say; that the caller is that ramdisk, its
// present certificate says. Bounded: a quarter of a certificate's life must have
// gone before the next is had for it.
func (s *Service) Renew(ctx context.Context, req *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	id, info, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.GetBootId()) > maxBootID || len(req.GetCsr()) > maxIdentity {
		return nil, rpcerr.Encode(metal.Invalid("renew", "too large"), "")
	}
	if _, err := s.call(id, req.GetBootId()); err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	if len(info.State.PeerCertificates) == 0 {
		return nil, rpcerr.Encode(metal.Errorf(metal.CodeUnauthenticated, "no client certificate"), "")
	}
	if err := mayRenew(info.State.PeerCertificates[0], req.GetCsr(), s.cfg.Now()); err != nil {
		return nil, rpcerr.Encode(err, "")
	}
	ctx, cancel := context.WithTimeout(ctx, issueLimit)
	defer cancel()
	cert, err := s.cfg.Renew(ctx, id, req.GetBootId(), req.GetCsr())
	if err != nil {
		s.cfg.Log.Warn("a waiting ramdisk's certificate was not renewed", "server", id, "err", err)
		return nil, rpcerr.Encode(&metal.Error{Code: metal.CodeNoLeader, Message: "no certificate to be had at the moment", Err: err}, "")
	}
	s.cfg.Log.Info("a waiting ramdisk's certificate was renewed", "server", id, "boot", req.GetBootId())
	return &agentv1.RenewResponse{Certificate: cert}, nil
}

// mayRenew refuses another key than the certificate's, and a renewal too early.
func mayRenew(leaf *x509.Certificate, der []byte, now time.Time) error {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return metal.Invalid("csr", "is no signed PKCS #10 request in DER")
	}
	has, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !has.Equal(csr.PublicKey) {
		return metal.Errorf(metal.CodeDenied, "a certificate is renewed for its own key alone")
	}
	if from := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 4); now.Before(from) {
		return metal.Errorf(metal.CodeWrongState, "the certificate may be renewed from %s on", from.UTC().Format(time.RFC3339))
	}
	return nil
}
