package rpc

import (
	"context"
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
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
)

// everyMethod lists the methods of a server as a node runs it.
func everyMethod(t *testing.T) map[string]grpc.MethodInfo {
	t.Helper()
	b := newBed(t, 1)
	s := grpc.NewServer()
	b.nodes[0].api.Register(s)
	healthpb.RegisterHealthServer(s, health.NewServer())
	reflection.Register(s)
	out := map[string]grpc.MethodInfo{}
	for name, svc := range s.GetServiceInfo() {
		for _, m := range svc.Methods {
			out["/"+name+"/"+m.Name] = m
		}
	}
	return out
}

func TestEveryMethodHasARule(t *testing.T) {
	methods := everyMethod(t)
	for m := range methods {
		r, ok := rules[m]
		if !ok {
			t.Errorf("%s has no rule", m)
			continue
		}
		admits := 0
		for _, yes := range []bool{r.role != "", r.agent, r.public} {
			if yes {
				admits++
			}
		}
		if admits > 1 || (admits == 0 && !r.node) {
			t.Errorf("%s: the rule %+v admits in none or several ways", m, r)
		}
		if r.role != "" && rank(r.role) == 0 {
			t.Errorf("%s: no role %q", m, r.role)
		}
	}
	for m := range rules {
		if _, ok := methods[m]; !ok {
			t.Errorf("the rule for %s is for no method", m)
		}
	}
	if _, ok := rules["/x/Y"]; ok || authorize("/x/Y", rules["/x/Y"], false, &identity{role: metal.RoleAdmin, principal: "root"}) == nil {
		t.Error("a method without a rule is open")
	}
}

// call sends an empty request to any method, unary or not.
func call(ctx context.Context, c *grpc.ClientConn, method string, info grpc.MethodInfo) error {
	in, out, err := methodTypes(method)
	if err != nil {
		return err
	}
	if !info.IsClientStream && !info.IsServerStream {
		return c.Invoke(ctx, method, in.New().Interface(), out.New().Interface())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = s.SendMsg(in.New().Interface())
	_ = s.CloseSend()
	return s.RecvMsg(out.New().Interface())
}

// TestAuthorizationWalk calls every method as nobody, as each role, as an agent
// and as a node, and compares with the table.
func TestAuthorizationWalk(t *testing.T) {
	methods := everyMethod(t)
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	agent := b.join("a1", "r1", 0)
	_, nodeCert := b.ca.issue(t, "server", "srv-aaaaaaaaaaaaaaaa")
	plain, withAgent, withServer := b.conn(0, nil), b.conn(0, &agent.cert), b.conn(0, &nodeCert)
	as := []struct {
		name string
		conn *grpc.ClientConn
		ctx  func(context.Context) context.Context
		may  func(rule) bool
	}{
		{"nobody", plain, func(c context.Context) context.Context { return c }, func(r rule) bool { return r.public }},
		{"viewer", plain, func(context.Context) context.Context { return b.token("vera", metal.RoleViewer, testProject) }, func(r rule) bool { return r.public || r.role == metal.RoleViewer }},
		{"member", plain, func(context.Context) context.Context { return b.token("mona", metal.RoleMember, testProject) }, func(r rule) bool { return r.public || r.role == metal.RoleViewer || r.role == metal.RoleMember }},
		{"operator", plain, func(context.Context) context.Context { return b.token("olaf", metal.RoleOperator, testProject) }, func(r rule) bool { return r.public || r.role != "" && r.role != metal.RoleAdmin }},
		{"admin", plain, func(context.Context) context.Context { return b.admin() }, func(r rule) bool { return r.public || r.role != "" }},
		{"agent", withAgent, func(c context.Context) context.Context { return c }, func(r rule) bool { return r.public || r.agent }},
		{"server", withServer, func(c context.Context) context.Context { return c }, func(r rule) bool { return r.public }},
	}
	for method, info := range methods {
		if strings.HasPrefix(method, "/grpc.") {
			continue // not served by the bed
		}
		for _, who := range as {
			ctx, cancel := context.WithTimeout(who.ctx(t.Context()), 3*time.Second)
			if !who.may(rules[method]) { // those admitted may succeed or fail as they like
				err := call(ctx, who.conn, method, info)
				e, ok := rpcerr.Decode(err)
				if !ok || e.Code != metal.CodeDenied && e.Code != metal.CodeUnauthenticated {
					t.Errorf("%s as %s: %v", method, who.name, err)
				}
			} else if !info.IsServerStream && !info.IsClientStream {
				if e, ok := rpcerr.Decode(call(ctx, who.conn, method, info)); ok && e.Code == metal.CodeUnauthenticated && !rules[method].public {
					t.Errorf("%s as %s: %v", method, who.name, e)
				}
			}
			cancel()
		}
	}
}

func TestTokens(t *testing.T) {
	b := newBed(t, 2)
	c := b.user(0)
	ctx := b.token("mona", metal.RoleMember, testProject)
	who, err := c.clu.WhoAmI(ctx, &bmcv1.WhoAmIRequest{})
	if err != nil || who.GetPrincipal() != "mona" || who.GetRole() != "member" || who.GetProject() != "default" {
		t.Fatalf("%v %v", who, err)
	}
	for name, token := range map[string]string{
		"wrong secret": userTokenPrefix + "tok-xxxxxxxxxxxxmona_wrong",
		"wrong id":     userTokenPrefix + "tok-nosuchtokennosuc_s3cret_with-odd_characters",
		"no secret":    userTokenPrefix + "tok-xxxxxxxxxxxxmona",
		"malformed":    "hello",
		"empty secret": userTokenPrefix + "tok-xxxxxxxxxxxxmona_",
	} {
		t.Run(name, func(t *testing.T) {
			for node := range 2 {
				_, err := b.user(node).clu.WhoAmI(bearer(t.Context(), token), &bmcv1.WhoAmIRequest{})
				refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "bmc context set")
			}
		})
	}
	t.Run("join token is no user token", func(t *testing.T) {
		tok := bearer(t.Context(), userTokenPrefix+"tok-node000000000000_join-node-0000000000000000")
		_, err := c.clu.WhoAmI(tok, &bmcv1.WhoAmIRequest{})
		refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "")
	})
	t.Run("expired", func(t *testing.T) {
		b.advance(25 * time.Hour)
		_, err := c.clu.WhoAmI(ctx, &bmcv1.WhoAmIRequest{})
		refused(t, err, codes.Unauthenticated, metal.CodeTokenExpired, "bmc token create mona --role member")
	})
}

func TestCreateTokenIsIdempotent(t *testing.T) {
	b := newBed(t, 1)
	c := b.user(0)
	req := &bmcv1.CreateTokenRequest{RequestId: uuidV7(b.now(), [10]byte{1}), Name: "alice", Role: "member"}
	one, err := c.clu.CreateToken(b.admin(), req)
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.clu.CreateToken(b.admin(), req)
	if err != nil || one.GetToken() != two.GetToken() {
		t.Fatalf("%v %v %v", one, two, err)
	}
	who, err := c.clu.WhoAmI(bearer(t.Context(), two.GetToken()), &bmcv1.WhoAmIRequest{})
	if err != nil || who.GetPrincipal() != "alice" {
		t.Fatalf("%v %v", who, err)
	}
}

func TestForgedForwarding(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	agent := b.join("a1", "r1", 0)
	// A user cannot speak for an agent.
	ctx := metadata.AppendToOutgoingContext(b.admin(), mdForwardedBy, "node-x", mdForAgent, agent.id)
	_, err := agentv1.NewControlClient(b.conn(0, nil)).RenewLease(ctx, &agentv1.RenewLeaseRequest{Rack: "r1"})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
	// Nor can an agent speak for another.
	ctx = metadata.AppendToOutgoingContext(t.Context(), mdForwardedBy, "node-x", mdForAgent, "agt-other")
	_, err = agent.ctl.RenewLease(ctx, &agentv1.RenewLeaseRequest{Rack: "r1"})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "")
	// The agent named without forwarding is ignored: no certificate, no identity.
	ctx = metadata.AppendToOutgoingContext(t.Context(), mdForAgent, agent.id)
	_, err = agentv1.NewControlClient(b.conn(0, nil)).RenewLease(ctx, &agentv1.RenewLeaseRequest{Rack: "r1"})
	refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "")
	// A node that was removed, or whose key is another, is nobody.
	_, cert := b.ca.issue(t, "node", b.nodes[0].id)
	_, err = agentv1.NewNodesClient(b.conn(0, &cert)).ReadIndex(t.Context(), &agentv1.ReadIndexRequest{})
	refused(t, err, codes.Unauthenticated, metal.CodeUnauthenticated, "")
}

func TestRemovedAgentIsRefused(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	agent := b.join("a1", "r1", 0)
	b.must(&logpb.Command{Command: &logpb.Command_RemoveAgent{RemoveAgent: &logpb.RemoveAgent{AgentId: agent.id}}})
	_, err := agent.ctl.RenewLease(agent.ctx, &agentv1.RenewLeaseRequest{Rack: "r1"})
	refused(t, err, codes.Unauthenticated, metal.CodeNotMember, "join-token")
	b.must(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{AtLeast: 7}}})
	_, err = agent.ctl.RenewLease(agent.ctx, &agentv1.RenewLeaseRequest{Rack: "r1"})
	if e, _ := rpcerr.Decode(err); e == nil || e.Generation == nil || *e.Generation != 7 {
		t.Errorf("the refusal does not say the generation: %+v", e)
	}
}

func TestExpiredAgentMayOnlyRenew(t *testing.T) {
	id := &identity{agent: "agt-x", principal: "agent:agt-x", expired: true}
	for m, r := range rules {
		err := authorize(m, r, true, id)
		if ok := err == nil; ok != (r.public || m == agentv1.Control_RenewCertificate_FullMethodName) {
			t.Errorf("%s: %v", m, err)
		}
	}
}
