package rpc

import (
	"context"
	"slices"
	"sync"

	"bmc/fsm/state"
	"bmc/metal"
)

// openStreams are the streams of callers that can be revoked. A call is
// answered and gone; a stream must not outlive its caller's standing.
type openStreams struct {
	mu   sync.Mutex
	open map[*openStream]struct{}
}

type openStream struct {
	id  *identity
	end context.CancelCauseFunc
}

// add has a stream ended when its caller loses its standing, until remove.
func (o *openStreams) add(id *identity, end context.CancelCauseFunc) (remove func()) {
	s := &openStream{id, end}
	o.mu.Lock()
	o.open[s] = struct{}{}
	o.mu.Unlock()
	return func() {
		o.mu.Lock()
		delete(o.open, s)
		o.mu.Unlock()
	}
}

// check ends the streams of those that a state no longer knows.
func (o *openStreams) check(v *state.View) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.open {
		if err := s.id.standing(v); err != nil {
			s.end(err)
		}
	}
}

// standing says why a caller that was let in once may not stay.
func (id *identity) standing(v *state.View) *metal.Error {
	if id.agent != "" {
		if _, ok := v.Agent(id.agent); !ok {
			return errNoAgent(v, id.agent)
		}
	}
	if id.node != "" {
		if _, ok := v.Node(id.node); !ok {
			return errNoNode(id.node)
		}
	}
	if id.token != "" {
		if _, ok := v.Token(id.token); !ok {
			return metal.Errorf(metal.CodeUnauthenticated, "the token of %s was revoked", id.principal).WithHint(hintToken)
		}
	}
	return nil
}

// revoke follows this replica and ends what has lost its standing, until Close.
func (a *API) revoke() {
	last := a.Proposer.StaleView().Revision()
	for {
		v, err := a.Proposer.WaitView(a.ctx, last)
		if err != nil {
			return
		}
		changes, ok := v.Changes(last)
		if !ok || slices.ContainsFunc(changes, concernsMembers) {
			a.streams.check(v)
		}
		last = v.Revision()
	}
}

func concernsMembers(c state.Change) bool {
	return c.Removed && (c.Kind == state.KindAgent || c.Kind == state.KindNode || c.Kind == state.KindToken)
}
