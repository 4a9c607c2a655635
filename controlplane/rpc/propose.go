package rpc

import (
	"context"
	"crypto/hmac"
	"fmt"
	"strconv"
	"time"

	"bmc/fsm"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// mutation is a request that carries a request ID.
type mutation interface {
	proto.Message
	GetRequestId() string
}

// propose stamps a command with the caller, the time and the request's ID and
// MAC, and returns what the state machine answered; a refusal is an error.
// A repeated request ID with the same request answers the first result again.
func (a *API) propose(ctx context.Context, req mutation, cmd *logpb.Command) (*fsm.Result, error) {
	return a.proposeIn(ctx, 0, req, cmd)
}

// proposeIn is propose in one term; 0: in any. No command needs no proposal.
func (a *API) proposeIn(ctx context.Context, term uint64, req mutation, cmd *logpb.Command) (*fsm.Result, error) {
	if cmd == nil {
		return nil, nil
	}
	mac, err := a.requestMAC(req)
	if err != nil {
		return nil, err
	}
	return a.proposeWithin(ctx, 3*a.LeaderWait, term, caller(ctx).principal, req.GetRequestId(), mac, cmd)
}

// proposeAs is propose for callers whose identity is in the request.
func (a *API) proposeAs(ctx context.Context, principal, requestID string, mac []byte, cmd *logpb.Command) (*fsm.Result, error) {
	// A disk that hangs keeps raft from answering; the leader's heartbeats go on.
	return a.proposeWithin(ctx, 3*a.LeaderWait, 0, principal, requestID, mac, cmd)
}

// proposeWithin waits for the outcome as long as it is told.
func (a *API) proposeWithin(ctx context.Context, wait time.Duration, term uint64, principal, requestID string, mac []byte, cmd *logpb.Command) (*fsm.Result, error) {
	id := caller(ctx)
	cmd.Header = &logpb.Header{Time: a.Now().UnixNano(), Principal: principal, Role: string(id.role),
		RequestId: requestID, RequestMac: mac}
	if !id.operates() {
		cmd.Header.Project = id.project
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	res, err := a.Proposer.ProposeIn(ctx, term, cmd)
	if err != nil {
		return nil, err
	}
	if res.Err != nil {
		return nil, res.Err
	}
	return res, nil
}

// requestMAC is over the request as the user sent it: sealing draws a new nonce
// and IDs are minted at every attempt, but a retry must be known as one.
func (a *API) requestMAC(req proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request for its MAC: %w", err)
	}
	name := string(req.ProtoReflect().Descriptor().FullName())
	return a.Sealer.MAC(append([]byte(name+"\x00"), b...)), nil
}

// change builds a command by the state that the caller's words are read in, and
// proposes it; nil without an error when build answered no command. At the leader
// that is its own state: it holds all that this leader has acknowledged, and
// that no other has acknowledged anything since, the command's own commit in the
// same term proves. What is proved by no commit (a refusal, a known request) is
// decided by a linearizable view.
func (a *API) change(ctx context.Context, req mutation, build func(v *state.View) (*logpb.Command, error)) (*fsm.Result, error) {
	term := a.Proposer.LeaderTerm() // before the state is looked at
	if term != 0 {
		v := a.Proposer.StaleView()
		if _, known := v.Request(caller(ctx).principal, req.GetRequestId()); !known {
			if cmd, err := build(v); err == nil {
				return a.proposeIn(ctx, term, req, cmd)
			}
		}
	}
	v, err := a.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	cmd, err := build(v)
	if err != nil {
		return nil, err
	}
	return a.proposeIn(ctx, term, req, cmd)
}

// replayed returns what is remembered of a request that was done before, nil
// for a new one.
func (a *API) replayed(ctx context.Context, v *state.View, req mutation) (*state.Request, error) {
	r, ok := v.Request(caller(ctx).principal, req.GetRequestId())
	if !ok {
		return nil, nil
	}
	mac, err := a.requestMAC(req)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(mac, r.MAC) {
		return nil, metal.Errorf(metal.CodeRequestReused, "request ID %s was used for another request", r.ID)
	}
	return r, nil
}

// readRequest is a request that says how new its answer must be.
type readRequest interface {
	GetAllowStale() bool
	GetMinRevision() uint64
}

// allowsStale says whether any node may answer a request from its replica.
func allowsStale(req any) bool {
	r, ok := req.(readRequest)
	return ok && r.GetAllowStale()
}

// read is the state for a read: linearizable unless the caller says that stale
// will do. He is told how old that may be.
func (a *API) read(ctx context.Context, req readRequest) (*state.View, error) {
	if !req.GetAllowStale() {
		return a.linearizable(ctx)
	}
	v, err := a.reached(ctx, req.GetMinRevision())
	if err == nil {
		a.sayAge(ctx, v)
	}
	return v, err
}

// reached waits for this replica to have a revision, at most LeaderWait.
func (a *API) reached(ctx context.Context, minRevision uint64) (*state.View, error) {
	v := a.Proposer.StaleView()
	ctx, cancel := context.WithTimeout(ctx, a.LeaderWait)
	defer cancel()
	for v.Revision() < minRevision {
		var err error
		if v, err = a.Proposer.WaitView(ctx, v.Revision()); err != nil {
			return nil, metal.Errorf(metal.CodeDeadline, "this node has not reached revision %d in time", minRevision)
		}
	}
	return v, nil
}

// linearizable asks again while there is no leader, at most LeaderWait.
func (a *API) linearizable(ctx context.Context) (*state.View, error) {
	if a.Raft.Hung() {
		return nil, a.errHung()
	}
	wait, cancel := context.WithTimeout(ctx, a.LeaderWait)
	defer cancel()
	var tried []string
	for {
		v, err := a.Proposer.LinearizableView(wait)
		if err == nil {
			return v, nil
		}
		// The leader may notice our bound before we do: its status is no reason.
		if wait.Err() == nil && !retryable(err) && status.Code(err) != codes.DeadlineExceeded {
			return nil, err
		}
		if _, addr := a.Proposer.Leader(); addr != "" && len(tried) == 0 {
			tried = append(tried, addr)
		}
		timer := time.NewTimer(leaderPoll)
		select {
		case <-timer.C:
		case <-wait.Done():
			timer.Stop()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, noLeader(tried, errNoLeaderKnown)
		}
	}
}

// resolve finds a server for the caller in a current view.
func (a *API) resolve(ctx context.Context, v *state.View, ref string) (*metal.Server, error) {
	if ref == "" {
		return nil, metal.Invalid("ref", "is empty: give a server's name or ID")
	}
	id := caller(ctx)
	return v.ResolveServer(id.project, id.operates(), ref)
}

// serverRef names a server so that Apply notices when it has changed hands.
func serverRef(s *metal.Server, resourceVersion uint64) *logpb.ServerRef {
	r := &logpb.ServerRef{ServerId: s.ID, ResourceVersion: resourceVersion}
	if s.Rental != nil && !s.Rental.Released {
		r.Project, r.Rental = s.Rental.Project, s.Rental.Name
	}
	return r
}

// projectOf is the project that a mutation works on: the one named, else the
// caller's, else the default one. Members may name their own only.
func (a *API) projectOf(ctx context.Context, v *state.View, ref string) (*metal.Project, error) {
	id := caller(ctx)
	if ref == "" {
		ref = id.project
	}
	if ref == "" {
		ref = "default"
	}
	p, err := v.ResolveProject(ref)
	if err != nil {
		if !id.operates() {
			return nil, errForeignProject(ref)
		}
		return nil, err
	}
	if !id.operates() && p.ID != id.project {
		return nil, errForeignProject(ref)
	}
	return p, nil
}

// errForeignProject is the same whether the project exists or not.
func errForeignProject(ref string) error {
	return metal.Errorf(metal.CodeDenied, "you are no member of project %s", ref).WithHint("bmc whoami")
}

// visible says whether the caller may see a server.
func (id *identity) visible(s *metal.Server) bool {
	return id.operates() || (s.Rental != nil && s.Rental.Project == id.project && id.project != "")
}

// scope is the project whose images and keys the caller sees; "" for all.
func (id *identity) scope() string {
	if id.operates() {
		return ""
	}
	if id.project == "" {
		return "-" // no project has this ID
	}
	return id.project
}

// What the metadata of a stale answer says: how long ago this node heard from a
// leader, a duration as Go writes it, or "never"; and the revision of its state.
const (
	mdStaleAge      = "bmc-stale-age"
	mdStaleRevision = "bmc-stale-revision"
)

// age is how long ago this node heard from the leader; nil when it never has.
func (a *API) age() *durationpb.Duration {
	if d := a.Raft.Status().LeaderContact; d >= 0 {
		return durationpb.New(d)
	}
	return nil
}

// sayAge tells the caller how old a stale answer may be.
func (a *API) sayAge(ctx context.Context, v *state.View) {
	text := "never"
	if d := a.age(); d != nil {
		text = d.AsDuration().Round(time.Millisecond).String()
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(mdStaleAge, text, mdStaleRevision, strconv.FormatUint(v.Revision(), 10))); err != nil {
		a.Log.Debug("no header was set", "err", err) // no stream: a test calls the handler
	}
}

// errHung sends callers to another node at once: this one's disk lets it write
// nothing, and waiting for a leader here is of no use.
func (a *API) errHung() *metal.Error {
	return metal.Errorf(metal.CodeNoLeader, "the log store of %s hangs", a.NodeName).WithHint("bmc cluster peers")
}
