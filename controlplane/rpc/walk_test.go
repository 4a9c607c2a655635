package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/internal/rpcerr"
	"bmc/metal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What a call about another's objects is answered. Empty codes: admitted, and
// nothing of the other's is in the answer.
const (
	denied   = metal.CodeDenied
	nobody   = metal.CodeUnauthenticated
	notFound = metal.CodeNotFound
	admitted = metal.Code("")
)

// walked has a line for every method: what an agent whose certificate has
// expired, an agent of another rack, and a member of another project are
// answered when they ask for what is rack r1's and the first project's. The
// test fails for a method without a line.
var walked = map[string]struct{ expired, foreign, tenant metal.Code }{
	bmcv1.Servers_CreateServer_FullMethodName:  {denied, denied, denied},
	bmcv1.Servers_GetServer_FullMethodName:     {denied, denied, notFound},
	bmcv1.Servers_ListServers_FullMethodName:   {denied, denied, admitted},
	bmcv1.Servers_RestartServer_FullMethodName: {denied, denied, notFound},
	bmcv1.Servers_SetPower_FullMethodName:      {denied, denied, notFound},
	bmcv1.Servers_DestroyServer_FullMethodName: {denied, denied, notFound},
	bmcv1.Servers_RetryServer_FullMethodName:   {denied, denied, notFound},
	bmcv1.Servers_ExplainServer_FullMethodName: {denied, denied, notFound},
	bmcv1.Servers_Tunnel_FullMethodName:        {denied, denied, notFound},

	bmcv1.Inventory_ApplyInventory_FullMethodName:   {denied, denied, denied},
	bmcv1.Inventory_InspectServer_FullMethodName:    {denied, denied, denied},
	bmcv1.Inventory_ForgetServer_FullMethodName:     {denied, denied, denied},
	bmcv1.Inventory_CleanServer_FullMethodName:      {denied, denied, denied},
	bmcv1.Inventory_QuarantineServer_FullMethodName: {denied, denied, denied},
	bmcv1.Inventory_RetireServer_FullMethodName:     {denied, denied, denied},
	bmcv1.Inventory_SetHold_FullMethodName:          {denied, denied, notFound},
	bmcv1.Inventory_ThawRack_FullMethodName:         {denied, denied, denied},
	bmcv1.Inventory_FreezeRacks_FullMethodName:      {denied, denied, denied},
	bmcv1.Inventory_SetRackWarm_FullMethodName:      {denied, denied, denied},
	bmcv1.Inventory_TestSizes_FullMethodName:        {denied, denied, denied},
	bmcv1.Inventory_ListModels_FullMethodName:       {denied, denied, denied},
	bmcv1.Inventory_SetModelKexec_FullMethodName:    {denied, denied, denied},
	bmcv1.Inventory_AcceptIdentity_FullMethodName:   {denied, denied, denied},
	// Racks and sizes are everybody's to choose from: their names are no secret.
	bmcv1.Inventory_ListRacks_FullMethodName:  {denied, denied, admitted},
	bmcv1.Inventory_GetRack_FullMethodName:    {denied, denied, admitted},
	bmcv1.Inventory_ListSizes_FullMethodName:  {denied, denied, admitted},
	bmcv1.Inventory_ListAgents_FullMethodName: {denied, denied, denied},

	bmcv1.Operations_GetOperation_FullMethodName:    {denied, denied, notFound},
	bmcv1.Operations_ListOperations_FullMethodName:  {denied, denied, notFound},
	bmcv1.Operations_WatchOperation_FullMethodName:  {denied, denied, notFound},
	bmcv1.Operations_CancelOperation_FullMethodName: {denied, denied, notFound},

	bmcv1.Events_ListEvents_FullMethodName: {denied, denied, notFound},
	bmcv1.Events_Watch_FullMethodName:      {denied, denied, notFound},

	// Chunks have no owner: what is asked for, and sent, is named by its digest.
	bmcv1.Images_MissingChunks_FullMethodName: {denied, denied, admitted},
	bmcv1.Images_PutChunk_FullMethodName:      {denied, denied, metal.CodeInvalid},
	bmcv1.Images_CreateImage_FullMethodName:   {denied, denied, metal.CodeInvalid}, // by its manifest, which names no project
	bmcv1.Images_GetImage_FullMethodName:      {denied, denied, notFound},
	bmcv1.Images_ListImages_FullMethodName:    {denied, denied, admitted},
	bmcv1.Images_DeleteImage_FullMethodName:   {denied, denied, notFound},
	bmcv1.Images_AddSigningKey_FullMethodName: {denied, denied, denied},

	bmcv1.Keys_AddKey_FullMethodName:    {denied, denied, denied},
	bmcv1.Keys_ListKeys_FullMethodName:  {denied, denied, admitted},
	bmcv1.Keys_RemoveKey_FullMethodName: {denied, denied, notFound},

	bmcv1.Cluster_Status_FullMethodName:            {denied, denied, admitted},
	bmcv1.Cluster_Peers_FullMethodName:             {denied, denied, denied},
	bmcv1.Cluster_CreateJoinToken_FullMethodName:   {denied, denied, denied},
	bmcv1.Cluster_SaveSnapshot_FullMethodName:      {denied, denied, denied},
	bmcv1.Cluster_InspectSnapshot_FullMethodName:   {denied, denied, denied},
	bmcv1.Cluster_RestoreSnapshot_FullMethodName:   {denied, denied, denied},
	bmcv1.Cluster_WhoAmI_FullMethodName:            {denied, denied, admitted},
	bmcv1.Cluster_CreateToken_FullMethodName:       {denied, denied, denied},
	bmcv1.Cluster_RemoveNode_FullMethodName:        {denied, denied, denied},
	bmcv1.Cluster_RemoveAgent_FullMethodName:       {denied, denied, denied},
	bmcv1.Cluster_TransferLeader_FullMethodName:    {denied, denied, denied},
	bmcv1.Cluster_RaiseFeatureLevel_FullMethodName: {denied, denied, denied},
	bmcv1.Cluster_ListTokens_FullMethodName:        {denied, denied, denied},
	bmcv1.Cluster_RevokeToken_FullMethodName:       {denied, denied, denied},
	bmcv1.Cluster_Version_FullMethodName:           {admitted, admitted, admitted},

	// Open to whoever has a join token, which none of them has.
	agentv1.Enrollment_JoinAgent_FullMethodName: {nobody, nobody, nobody},
	agentv1.Enrollment_JoinNode_FullMethodName:  {nobody, nobody, nobody},

	agentv1.Control_WatchRack_FullMethodName:              {nobody, denied, denied},
	agentv1.Control_RenewLease_FullMethodName:             {nobody, denied, denied},
	agentv1.Control_ReportStep_FullMethodName:             {nobody, denied, denied},
	agentv1.Control_ReportProgress_FullMethodName:         {nobody, denied, denied},
	agentv1.Control_ReportObservations_FullMethodName:     {nobody, denied, denied},
	agentv1.Control_ReportWatts_FullMethodName:            {nobody, denied, denied},
	agentv1.Control_Reconcile_FullMethodName:              {nobody, denied, denied},
	agentv1.Control_LendAddress_FullMethodName:            {nobody, denied, denied},
	agentv1.Control_ReportDiscovered_FullMethodName:       {nobody, denied, denied},
	agentv1.Control_IssueServerCertificate_FullMethodName: {nobody, denied, denied},
	// Each may renew its own certificate, and sees its own tunnels alone.
	agentv1.Control_RenewCertificate_FullMethodName: {admitted, admitted, denied},
	agentv1.Control_Tunnels_FullMethodName:          {nobody, admitted, denied},
	agentv1.Control_Tunnel_FullMethodName:           {nobody, notFound, denied},

	agentv1.Nodes_ReadIndex_FullMethodName:    {denied, denied, denied},
	agentv1.Nodes_StateHash_FullMethodName:    {denied, denied, denied},
	agentv1.Nodes_LeaderGone_FullMethodName:   {denied, denied, denied},
	agentv1.Nodes_RegisterNode_FullMethodName: {denied, denied, denied},
}

// walk is a rack r1 with a rented server, on which an operation is under way
// and to which a tunnel is offered, and all who must not get at it.
type walk struct {
	*bed
	server, operation, image, tunnel string
	csr                              []byte
}

func newWalk(t *testing.T) *walk {
	t.Helper()
	b, a := rentable(t, 1)
	w := &walk{bed: b}
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.run("web-1")
	op, err := b.user(0).RestartServer(b.admin(), &bmcv1.RestartServerRequest{Ref: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	w.server, w.operation, w.image = op.GetServerId(), op.GetId(), anyImage(b)
	a.begin("web-1")
	_, w.csr = newCSR(t)
	return w
}

// offered opens a tunnel that waits for r1's agent.
func (w *walk) offered(agent string) {
	w.t.Helper()
	offer := &agentv1.TunnelOffer{TunnelId: "tun-aaaaaaaaaaaaaaaa", ServerId: w.server, Port: 22}
	l := w.nodes[0].api.tunnels.connect(w.t.Context(), agent)
	_, release, err := w.nodes[0].api.tunnels.offer(w.t.Context(), []string{agent}, offer)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { release(); w.nodes[0].api.tunnels.disconnect(l) })
	w.tunnel = offer.GetTunnelId()
}

// fill names r1's and the first project's objects in a request, by its fields'
// names.
func (w *walk) fill(method string, m proto.Message) {
	ref := w.server
	switch {
	case strings.Contains(method, "Image"):
		ref = w.image
	case strings.Contains(method, "Key"):
		ref = "alice"
	case strings.Contains(method, "Rack"):
		ref = "r1"
	}
	known := map[string]string{"ref": ref, "server": w.server, "server_id": w.server, "rack": "r1", "id": w.operation, "operation_id": w.operation,
		"project": testProject, "tunnel_id": w.tunnel, "hold": "protected", "name": "x1", "wanted": "off", "public_key": publicKey, "step": string(metal.StepPowerOff), "phase": "started"}
	msg := m.ProtoReflect()
	fields := msg.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		text, ok := known[string(f.Name())]
		switch {
		case ok && f.Kind() == protoreflect.StringKind && !f.IsList():
			msg.Set(f, protoreflect.ValueOfString(text))
		case f.Name() == "csr":
			msg.Set(f, protoreflect.ValueOfBytes(w.csr))
		case f.Name() == "attempt" && f.Kind() == protoreflect.Uint32Kind:
			msg.Set(f, protoreflect.ValueOfUint32(1))
		case f.Name() == "port" && f.Kind() == protoreflect.Uint32Kind:
			msg.Set(f, protoreflect.ValueOfUint32(22))
		}
	}
	switch r := m.(type) {
	case *agentv1.JoinAgentRequest:
		r.TokenSecret, r.Name = "guessed", "a9"
	case *agentv1.JoinNodeRequest:
		r.TokenSecret, r.Name, r.Address = "guessed", "cp9", "10.0.0.9:7443"
	case *agentv1.ReportObservationsRequest:
		r.Observations = []*agentv1.Observation{{ServerId: w.server, Power: "off"}}
	}
}

// ask calls a method once and returns what came first.
func (w *walk) ask(ctx context.Context, c *grpc.ClientConn, method string, info grpc.MethodInfo) (proto.Message, error) {
	in, out, err := methodTypes(method)
	if err != nil {
		return nil, err
	}
	req, resp := in.New().Interface(), out.New().Interface()
	w.fill(method, req)
	if !info.IsClientStream && !info.IsServerStream {
		return resp, c.Invoke(ctx, method, req, resp)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	return resp, s.RecvMsg(resp)
}

// stays says whether a stream that is admitted has nothing to say.
func stays(method string) bool { return method == agentv1.Control_Tunnels_FullMethodName }

func (w *walk) expect(who string, c *grpc.ClientConn, ctx context.Context, method string, info grpc.MethodInfo, want metal.Code) {
	w.t.Helper()
	wait := 5 * time.Second
	if stays(method) && want == admitted {
		wait = 200 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	resp, err := w.ask(ctx, c, method, info)
	e, ok := rpcerr.Decode(err)
	switch {
	case want == admitted && stays(method) && err != nil && (ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded || e != nil && e.Code == metal.CodeDeadline):
		return // by either side's clock
	case want == admitted && err == nil:
		text, err := protojson.Marshal(resp)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, secret := range []string{w.server, w.operation, "web-1", "pw-1", "tun-"} {
			if strings.Contains(string(text), secret) {
				w.t.Errorf("%s as %s: the answer has %s: %s", method, who, secret, text)
			}
		}
	case err == nil || !ok || e.Code != want:
		w.t.Errorf("%s as %s: %v, want %q", method, who, err, want)
	}
}

// Every method of every service, called with what must not open it: an expired
// and a removed agent's certificate, a removed node's, another rack's agent's,
// a ramdisk's, and another project's member's token.
func TestForeignWalk(t *testing.T) {
	methods := everyMethod(t)
	w := newWalk(t)
	w.inventory("r2", 2, 1)
	foreign, removed := w.join("a2", "r2", 0), w.join("a3", "r1", 0)
	w.must(&logpb.Command{Command: &logpb.Command_RemoveAgent{RemoveAgent: &logpb.RemoveAgent{AgentId: removed.id}}})
	var own string // r1's agent
	for ag := range w.fsm.View().Agents() {
		if ag.Name == "a1" {
			own = ag.ID
		}
	}
	w.offered(own)
	expired := w.ca.issueUntil(t, "agent", own, time.Now().Add(-time.Minute))
	_, gone := w.ca.issue(t, "node", "node-gonegonegonegone")
	_, ramdisk := w.ca.issue(t, "server", w.server)
	ctx := t.Context()
	tenant := w.token("stan", metal.RoleMember, otherProj)
	conn := func(c *tls.Certificate) *grpc.ClientConn { return w.conn(0, c) }
	asExpired, asForeign, asRemoved, asGone, asRamdisk, asTenant := conn(&expired), conn(&foreign.cert), conn(&removed.cert), conn(&gone), conn(&ramdisk), conn(nil)
	names := make([]string, 0, len(methods))
	for m := range methods {
		names = append(names, m)
	}
	slices.Sort(names)
	before := fmt.Sprint(w.fsm.View().Hash())
	for _, m := range names {
		if strings.HasPrefix(m, "/grpc.") {
			continue // health and schema: not served by the bed, open to all
		}
		line, ok := walked[m]
		if !ok {
			t.Errorf("%s has no line: say who gets what", m)
			continue
		}
		w.expect("an expired agent", asExpired, ctx, m, methods[m], line.expired)
		w.expect("another rack's agent", asForeign, ctx, m, methods[m], line.foreign)
		w.expect("another project's member", asTenant, tenant, m, methods[m], line.tenant)
		lost, gone, guest := nobody, metal.CodeNotMember, denied
		if rules[m].public {
			lost, gone, guest = line.expired, line.expired, line.expired
		}
		w.expect("a removed agent", asRemoved, ctx, m, methods[m], gone)
		w.expect("a removed node", asGone, ctx, m, methods[m], lost)
		w.expect("a ramdisk", asRamdisk, ctx, m, methods[m], guest)
	}
	for m := range walked {
		if _, ok := methods[m]; !ok {
			t.Errorf("the line for %s is for no method", m)
		}
	}
	if after := w.fsm.View(); fmt.Sprint(after.Hash()) != before {
		if op, ok := after.Operation(w.operation); !ok || op.Sequence != 0 || op.State.Ended() {
			t.Errorf("the operation was touched: %+v", op)
		}
	}
}
