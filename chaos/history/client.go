package history

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/metal"
)

// sure is how fast a refusal must come to be the last word: the client tries a
// slow call again elsewhere, and the first try may still arrive.
const sure = time.Second

// Client makes calls, one at a time, and records them.
type Client struct {
	api     *client.Client
	rec     *Recorder
	id      int
	retried atomic.Bool // during the call under way
}

// NewClient connects as cfg says. IDs tell clients apart in the history, from 0.
func NewClient(cfg client.Config, id int, rec *Recorder) (*Client, error) {
	c := &Client{rec: rec, id: id}
	cfg.OnResend = func() { c.retried.Store(true) }
	var err error
	c.api, err = client.New(cfg)
	return c, err
}

// API makes calls that nobody records.
func (c *Client) API() *client.Client { return c.api }

// Close ends its connections.
func (c *Client) Close() error { return c.api.Close() }

// NewRequestID is a fresh one.
func NewRequestID() string { return uuid.Must(uuid.NewV7()).String() }

// call records one call around do.
func (c *Client) call(begin Call, do func(*Call) error) (Call, error) {
	begin.Client = c.id
	c.retried.Store(false)
	id := c.rec.Begin(begin)
	answer := begin
	began := time.Now()
	err := do(&answer)
	quick := time.Since(began) < sure && !c.retried.Load()
	return c.rec.End(id, func(call *Call) {
		*call = answer
		call.Outcome, call.Code = outcome(err, quick)
		if call.RequestID == "" {
			read(call, err)
		}
	}), err
}

// outcome: an answer that is no refusal, or that came late, leaves the effect open.
func outcome(err error, quick bool) (Outcome, string) {
	if err == nil {
		return OK, ""
	}
	var e *metal.Error
	if !errors.As(err, &e) {
		return Unknown, ""
	}
	switch e.Code {
	case metal.CodeNoLeader, metal.CodeDeadline, metal.CodeInternal, metal.CodeCancelled, metal.CodeUnknownOutcome:
		return Unknown, string(e.Code)
	}
	if !quick {
		return Unknown, string(e.Code)
	}
	return Refused, string(e.Code)
}

// read is outcome for calls without effect: a refusal is an answer, however late.
func read(call *Call, err error) {
	if metal.CodeOf(err) == metal.CodeNotFound || metal.CodeOf(err) == metal.CodeAmbiguous {
		call.Outcome = Refused
	}
}

// Create rents a server under a name.
func (c *Client) Create(ctx context.Context, req *bmcv1.CreateServerRequest) (Call, error) {
	return c.mutate(Create, req.GetName(), &req.RequestId, func() (*bmcv1.Operation, error) { return c.api.Servers.CreateServer(ctx, req) })
}

// Destroy ends a rental.
func (c *Client) Destroy(ctx context.Context, req *bmcv1.DestroyServerRequest) (Call, error) {
	return c.mutate(Destroy, req.GetRef(), &req.RequestId, func() (*bmcv1.Operation, error) { return c.api.Servers.DestroyServer(ctx, req) })
}

// Restart restarts a rented server.
func (c *Client) Restart(ctx context.Context, req *bmcv1.RestartServerRequest) (Call, error) {
	return c.mutate(Restart, req.GetRef(), &req.RequestId, func() (*bmcv1.Operation, error) { return c.api.Servers.RestartServer(ctx, req) })
}

// Power turns a rented server on or off.
func (c *Client) Power(ctx context.Context, req *bmcv1.SetPowerRequest) (Call, error) {
	if req.GetRequestId() == "" {
		req.RequestId = NewRequestID()
	}
	begin := Call{Kind: Power, Name: req.GetRef(), RequestID: req.GetRequestId(), Wanted: req.GetWanted()}
	return c.call(begin, func(a *Call) error {
		op, err := c.api.Servers.SetPower(ctx, req)
		a.took(op)
		return err
	})
}

// Retry tries what failed on a rented server again.
func (c *Client) Retry(ctx context.Context, req *bmcv1.RetryServerRequest) (Call, error) {
	return c.mutate(Retry, req.GetRef(), &req.RequestId, func() (*bmcv1.Operation, error) { return c.api.Servers.RetryServer(ctx, req) })
}

// Cancel ends what runs on a server.
func (c *Client) Cancel(ctx context.Context, req *bmcv1.CancelOperationRequest) (Call, error) {
	return c.mutate(Cancel, req.GetRef(), &req.RequestId, func() (*bmcv1.Operation, error) { return c.api.Operations.CancelOperation(ctx, req) })
}

// Apply applies an inventory.
func (c *Client) Apply(ctx context.Context, req *bmcv1.ApplyInventoryRequest) (Call, error) {
	if req.GetRequestId() == "" {
		req.RequestId = NewRequestID()
	}
	return c.call(Call{Kind: Inventory, RequestID: req.GetRequestId()}, func(a *Call) error {
		resp, err := c.api.Inventory.ApplyInventory(ctx, req)
		a.Revision = resp.GetRevision()
		return err
	})
}

func (c *Client) mutate(kind, name string, requestID *string, do func() (*bmcv1.Operation, error)) (Call, error) {
	if *requestID == "" {
		*requestID = NewRequestID()
	}
	return c.call(Call{Kind: kind, Name: name, RequestID: *requestID}, func(a *Call) error {
		op, err := do()
		a.took(op)
		return err
	})
}

// took notes a mutation's answer. The operation may be older than the answer
// where the request was a retry: its revision then says nothing of the call.
func (a *Call) took(op *bmcv1.Operation) {
	if op == nil {
		return
	}
	a.Operation, a.Op, a.Revision = op.GetId(), op.GetKind(), op.GetResourceVersion()
	if s := op.GetServer(); s != nil {
		a.Servers = []Server{server(s)}
	} else {
		a.Servers = []Server{{ID: op.GetServerId(), Name: op.GetServerName()}}
	}
}

// Get reads one server by the name of its rental.
func (c *Client) Get(ctx context.Context, name string) (Call, error) {
	return c.call(Call{Kind: Get, Name: name}, func(a *Call) error {
		s, err := c.api.Servers.GetServer(ctx, &bmcv1.GetServerRequest{Ref: name})
		if err == nil {
			a.Servers, a.Revision = []Server{server(s)}, s.GetResourceVersion()
		}
		return err
	})
}

// List reads all servers, in one page.
func (c *Client) List(ctx context.Context) (Call, error) {
	return c.call(Call{Kind: List}, func(a *Call) error {
		r, err := c.api.Servers.ListServers(ctx, &bmcv1.ListServersRequest{PageSize: 5000})
		a.Revision = r.GetRevision()
		for _, s := range r.GetServers() {
			a.Servers = append(a.Servers, server(s))
		}
		return err
	})
}

// releasing is a tenant's word for a rental whose end was accepted: its name is
// free, though the machine is not.
const releasing = "releasing"

func server(s *bmcv1.Server) Server {
	out := Server{ID: s.GetId(), Name: s.GetName(), Rack: s.GetRack(), Address: s.GetAddress(), State: s.GetState()}
	if s.GetStatus() != releasing {
		out.Rental = s.GetRental().GetName()
	}
	return out
}
