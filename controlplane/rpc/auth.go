package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"strings"
	"time"

	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Metadata of calls. The last two count only from a node's certificate.
const (
	mdAuthorization = "authorization"
	mdForwardedBy   = "bmc-forwarded-by" // the node that forwards
	mdForAgent      = "bmc-for-agent"    // the agent on whose behalf it does
)

// identity is who makes a call.
type identity struct {
	principal string // for the audit: "alice", "agent:agt-…", "node:node-…"
	role      metal.Role
	project   string // ID; of a user's token
	expires   time.Time
	token     string // ID; of a user
	agent     string // ID
	node      string // ID
	expired   bool   // an agent whose certificate has run out
	forwarded bool   // a node passed the call on: it must not travel further
}

type identityKey struct{}

func caller(ctx context.Context) *identity {
	if id, ok := ctx.Value(identityKey{}).(*identity); ok {
		return id
	}
	return &identity{}
}

// operates says whether the caller sees every project.
func (id *identity) operates() bool { return rank(id.role) >= rank(metal.RoleOperator) }

// authenticate finds out who calls. A call that shows nothing gets an empty
// identity; one that shows something wrong is refused.
func (a *API) authenticate(ctx context.Context) (*identity, error) {
	id := &identity{}
	cert, hasCert := a.peerCertificate(ctx)
	if hasCert {
		if err := a.checkCertificate(ctx, cert); err != nil {
			return nil, err
		}
	}
	if by := first(ctx, mdForwardedBy); by != "" {
		if !hasCert || cert.Role != "node" {
			return nil, metal.Errorf(metal.CodeDenied, "only nodes forward calls")
		}
		id.forwarded = true
	}
	switch {
	case hasCert && cert.Role == "agent":
		return &identity{principal: "agent:" + cert.ID, agent: cert.ID, expired: cert.Expired}, nil
	case id.forwarded && first(ctx, mdForAgent) != "":
		id.agent = first(ctx, mdForAgent)
		id.principal = "agent:" + id.agent
		return id, a.knownAgent(ctx, id.agent)
	case first(ctx, mdAuthorization) != "":
		return id, a.authenticateToken(ctx, id, first(ctx, mdAuthorization))
	case hasCert && cert.Role == "node":
		id.node = cert.ID
		id.principal = "node:" + cert.ID
	}
	return id, nil
}

// authorize applies the table of rules.
func authorize(method string, r rule, known bool, id *identity) error {
	switch {
	case !known:
		return metal.Errorf(metal.CodeDenied, "%s is not open to anyone", method)
	case r.public:
		return nil
	case r.agent && id.agent != "":
		if id.expired && !strings.HasSuffix(method, "/RenewCertificate") {
			return metal.Errorf(metal.CodeUnauthenticated, "the agent's certificate has expired: it may only renew it")
		}
		return nil
	case r.node && id.node != "":
		return nil
	case r.role != "" && rank(id.role) >= rank(r.role):
		return nil
	case id.principal == "" && r.role != "":
		return metal.Errorf(metal.CodeUnauthenticated, "no token was given").WithHint(hintToken)
	case id.principal == "":
		return metal.Errorf(metal.CodeUnauthenticated, "this call needs a client certificate")
	case r.role != "" && id.role != "":
		return metal.Errorf(metal.CodeDenied, "this needs the role %s; %s has %s", r.role, id.principal, id.role).
			WithHint("bmc token create %s --role %s", id.principal, r.role)
	}
	return metal.Errorf(metal.CodeDenied, "%s may not call %s", id.principal, method)
}

func (a *API) peerCertificate(ctx context.Context) (PeerIdentity, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return PeerIdentity{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return PeerIdentity{}, false
	}
	return a.Authority.Identify(info.State)
}

// checkCertificate refuses members that are no longer, or not with this key, in
// the inventory. A replica that does not know them yet asks the leader first.
func (a *API) checkCertificate(ctx context.Context, cert PeerIdentity) error {
	switch cert.Role {
	case "agent":
		return a.knownAgent(ctx, cert.ID)
	case "node":
		known := func(v *state.View) bool {
			n, ok := v.Node(cert.ID)
			return ok && subtle.ConstantTimeCompare(n.KeyHash, cert.KeyHash) == 1
		}
		if ok, err := a.eventually(ctx, known); ok || err != nil {
			return err
		}
		return errNoNode(cert.ID)
	}
	return metal.Errorf(metal.CodeDenied, "a %s's certificate opens nothing here", cert.Role)
}

func (a *API) knownAgent(ctx context.Context, id string) error {
	var asked *state.View
	known := func(v *state.View) bool {
		asked = v
		_, ok := v.Agent(id)
		return ok
	}
	if ok, err := a.eventually(ctx, known); ok || err != nil {
		return err
	}
	return errNoAgent(asked, id)
}

// errNoAgent says which generation does not know the agent: that of a restored
// backup, which the agent may be younger than, is higher than what the agent knows.
func errNoAgent(v *state.View, id string) *metal.Error {
	err := metal.Errorf(metal.CodeNotMember, "agent %s is not a member of this cluster", id).
		WithHint("bmc cluster join-token --role agent --rack RACK")
	generation := v.Meta().Generation
	err.Generation = &generation
	return err
}

func errNoNode(id string) *metal.Error {
	return metal.Errorf(metal.CodeUnauthenticated, "node %s is not a member of this cluster", id).
		WithHint("bmc cluster join-token --role node")
}

// eventually asks this replica, and when it says no, once more after catching
// up with the leader: what was just made elsewhere must work here. A node that
// cannot catch up does not know: NO_LEADER, or a restart would turn everybody
// away.
func (a *API) eventually(ctx context.Context, known func(*state.View) bool) (bool, error) {
	if known(a.Proposer.StaleView()) {
		return true, nil
	}
	if a.Proposer.IsLeader() {
		return known(a.Proposer.StaleView()), nil // it may have become the leader in between
	}
	v, err := a.linearizable(ctx)
	if err != nil {
		return false, &metal.Error{Code: metal.CodeNoLeader, Message: "this node cannot tell who you are before it has heard from the leader", Hint: "bmc cluster peers", Err: err}
	}
	return known(v), nil
}

// authenticateToken fills id from "Bearer bmct_<id>_<secret>".
func (a *API) authenticateToken(ctx context.Context, id *identity, header string) error {
	wrong := metal.Errorf(metal.CodeUnauthenticated, "the token is not valid").WithHint(hintToken)
	scheme, text, _ := strings.Cut(header, " ")
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), userTokenPrefix)
	tokenID, secret, ok2 := strings.Cut(rest, "_")
	if !strings.EqualFold(scheme, "bearer") || !ok || !ok2 {
		return wrong
	}
	sum := sha256.Sum256([]byte(secret))
	var tok *metal.Token
	if _, err := a.eventually(ctx, func(v *state.View) bool {
		t, ok := v.Token(tokenID)
		if ok && t.Kind == "user" {
			tok = t
		}
		return ok
	}); err != nil {
		return err
	}
	if tok == nil || subtle.ConstantTimeCompare(sum[:], tok.Hash) != 1 {
		return wrong
	}
	if !tok.Expires.IsZero() && !a.Now().Before(tok.Expires) {
		return errExpired(tok.Name, tok.Role, tok.Expires)
	}
	id.principal, id.role, id.project, id.expires, id.token = tok.Name, tok.Role, tok.Project, tok.Expires, tok.ID
	return nil
}

func errExpired(name string, role metal.Role, at time.Time) error {
	return metal.Errorf(metal.CodeTokenExpired, "the token of %s expired at %s; ask an administrator for another", name, at.UTC().Format(time.RFC3339)).
		WithHint("bmc token create %s --role %s", name, role)
}

// hintToken is how a person gives bmc another token.
const hintToken = "bmc context set NAME --token-file FILE"

// userTokenPrefix starts a user's token: bmct_<tokenID>_<secret>.
const userTokenPrefix = "bmct_"

// first returns the first value of an incoming metadata key.
func first(ctx context.Context, key string) string {
	if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}
