package rpc

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/internal/manifest"
	"bmc/metal"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDUbs0Bj3UvcjNWYT8U8QqSXbKzyPXHWJs7EBGKSkrKN alice@example"

// rentable is a bed with one available server and an image to put on it.
func rentable(t *testing.T, nodes int) (*bed, *testAgent) {
	t.Helper()
	b := newBed(t, nodes)
	b.inventory("r1", 1, 1)
	a := b.join("a1", "r1", 0)
	if op := a.run("r1-u01"); op.State != metal.OperationSucceeded {
		t.Fatalf("enrolment: %+v", op)
	}
	b.image("debian")
	if _, err := b.user(0).keys.AddKey(b.admin(), &bmcv1.AddKeyRequest{Name: "alice", PublicKey: publicKey}); err != nil {
		t.Fatal(err)
	}
	return b, a
}

// image registers an image without going through the store.
func (b *bed) image(name string) string {
	if p, _ := b.fsm.View().Project(testProject); len(p.SigningKeys) == 0 {
		key, err := manifest.GenerateKey()
		if err != nil {
			b.t.Fatal(err)
		}
		b.must(&logpb.Command{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{Project: testProject, PublicKey: manifest.PublicKey(key)}}})
	}
	id := fmt.Sprintf("%064x", len(name)*7919+int(name[0]))
	b.must(&logpb.Command{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{Id: id, Name: name, Project: testProject,
		Os: "Debian 12", Arch: "x86_64", SizeBytes: 1 << 30, User: "debian", Firmware: []string{"bios"}, Manifest: []byte("{}"), Signature: []byte("sig")}}}})
	return id
}

func TestCreateAndDestroy(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	op, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "debian", UserData: []byte("#cloud-config")})
	if err != nil {
		t.Fatal(err)
	}
	if op.GetKind() != "deploy" || op.GetServer().GetRental().GetName() != "web-1" || op.GetServer().GetStatus() != "provisioning" {
		t.Fatalf("%v", op)
	}
	if done := a.run("web-1"); done.State != metal.OperationSucceeded {
		t.Fatalf("%+v", done)
	}
	srv, err := c.GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "web-1"})
	if err != nil || srv.GetState() != "active" || srv.GetStatus() != "running" || len(srv.GetRental().GetSshHostKeys()) != 1 {
		t.Fatalf("%v %v", srv, err)
	}
	ex, err := c.ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "web-1"})
	if err != nil || !slices.Contains(ex.GetNext(), "bmc login web-1") || !slices.Contains(ex.GetNext(), "bmc destroy web-1") || ex.GetWaitingFor() == "" || len(ex.GetEvents()) == 0 {
		t.Fatalf("%v %v", ex, err)
	}
	for _, do := range []func() (*bmcv1.Operation, error){
		func() (*bmcv1.Operation, error) {
			return c.RestartServer(b.admin(), &bmcv1.RestartServerRequest{Ref: "web-1"})
		},
		func() (*bmcv1.Operation, error) {
			return c.SetPower(b.admin(), &bmcv1.SetPowerRequest{Ref: "web-1", Wanted: "off"})
		},
		func() (*bmcv1.Operation, error) {
			return c.DestroyServer(b.admin(), &bmcv1.DestroyServerRequest{Ref: "web-1"})
		},
	} {
		op, err := do()
		if err != nil {
			t.Fatal(err)
		}
		if done := a.run(op.GetServerId()); done.State != metal.OperationSucceeded || done.ID != op.GetId() {
			t.Fatalf("%+v", done)
		}
	}
	srv, err = c.GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01"})
	if err != nil || srv.GetState() != "available" || srv.GetRental() != nil {
		t.Fatalf("%v %v", srv, err)
	}
}

func TestBadInput(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	ctx := b.token("mona", metal.RoleMember, testProject)
	create := func(edit func(*bmcv1.CreateServerRequest)) func() error {
		return func() error {
			req := &bmcv1.CreateServerRequest{Name: "web-2", Image: "debian"}
			edit(req)
			_, err := c.CreateServer(ctx, req)
			return err
		}
	}
	if _, err := c.CreateServer(ctx, &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.run("web-1")
	tests := []struct {
		name   string
		do     func() error
		code   codes.Code
		reason metal.Code
		hint   string
		field  string
	}{
		{"unknown image", create(func(r *bmcv1.CreateServerRequest) { r.Image = "debain" }), codes.NotFound, metal.CodeNotFound, "bmc image list", ""},
		{"taken name", create(func(r *bmcv1.CreateServerRequest) { r.Name = "web-1" }), codes.AlreadyExists, metal.CodeNameTaken, "bmc ", ""},
		{"no free server", create(func(*bmcv1.CreateServerRequest) {}), codes.ResourceExhausted, metal.CodeNoCapacity, "bmc ", ""},
		{"unknown size", create(func(r *bmcv1.CreateServerRequest) { r.Size = "huge" }), codes.NotFound, metal.CodeNotFound, "bmc size list", ""},
		{"unknown rack", create(func(r *bmcv1.CreateServerRequest) { r.Rack = "r9" }), codes.NotFound, metal.CodeNotFound, "bmc rack list", ""},
		{"malformed name", create(func(r *bmcv1.CreateServerRequest) { r.Name = "Web_1" }), codes.InvalidArgument, metal.CodeInvalid, "", "name"},
		{"huge user data", create(func(r *bmcv1.CreateServerRequest) { r.UserData = make([]byte, 1<<20) }), codes.InvalidArgument, metal.CodeInvalid, "", "user_data"},
		{"negative life", create(func(r *bmcv1.CreateServerRequest) { r.ExpiresIn = durationpb.New(-time.Hour) }), codes.InvalidArgument, metal.CodeInvalid, "", "expires_in"},
		{"a life that would end", create(func(r *bmcv1.CreateServerRequest) { r.ExpiresIn = durationpb.New(time.Hour) }), codes.InvalidArgument, metal.CodeInvalid, "", "expires_in"},
		{"foreign project", create(func(r *bmcv1.CreateServerRequest) { r.Project = "other" }), codes.PermissionDenied, metal.CodeDenied, "bmc whoami", ""},
		{"request ID", create(func(r *bmcv1.CreateServerRequest) { r.RequestId = "7" }), codes.InvalidArgument, metal.CodeInvalid, "", "request_id"},
		{"no server", func() error {
			_, err := c.GetServer(ctx, &bmcv1.GetServerRequest{Ref: "web-l"})
			return err
		}, codes.NotFound, metal.CodeNotFound, "bmc list", ""},
		{"no ref", func() error {
			_, err := c.GetServer(ctx, &bmcv1.GetServerRequest{})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "ref"},
		{"power word", func() error {
			_, err := c.SetPower(ctx, &bmcv1.SetPowerRequest{Ref: "web-1", Wanted: "cycle"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "wanted"},
		{"wrong state", func() error {
			_, err := c.RetryServer(ctx, &bmcv1.RetryServerRequest{Ref: "web-1"})
			return err
		}, codes.FailedPrecondition, metal.CodeWrongState, "bmc explain", ""},
		{"stale resource version", func() error {
			_, err := c.DestroyServer(ctx, &bmcv1.DestroyServerRequest{Ref: "web-1", ResourceVersion: 1})
			return err
		}, codes.Aborted, metal.CodeConflict, "", ""},
		{"selector", func() error {
			_, err := c.ListServers(ctx, &bmcv1.ListServersRequest{Selector: "a==?"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "bmc list", "selector"},
		{"state", func() error {
			_, err := c.ListServers(ctx, &bmcv1.ListServersRequest{State: "happy"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "bmc list", "state"},
		{"page token", func() error {
			_, err := c.ListServers(ctx, &bmcv1.ListServersRequest{PageToken: "AAAA"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "page_token"},
		{"page size", func() error {
			_, err := c.ListServers(ctx, &bmcv1.ListServersRequest{PageSize: -1})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "page_size"},
		{"role", func() error {
			_, err := c.inv.ForgetServer(ctx, &bmcv1.ForgetServerRequest{Ref: "web-1"})
			return err
		}, codes.PermissionDenied, metal.CodeDenied, "--role operator", ""},
		{"public key", func() error {
			_, err := c.keys.AddKey(ctx, &bmcv1.AddKeyRequest{Name: "k", PublicKey: "-----BEGIN OPENSSH PRIVATE KEY-----"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "ssh-keygen", "public_key"},
		{"manifest", func() error {
			_, err := c.img.CreateImage(ctx, &bmcv1.CreateImageRequest{Manifest: []byte("{")})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "manifest"},
		{"operation", func() error {
			_, err := c.ops.GetOperation(ctx, &bmcv1.GetOperationRequest{Id: "op-nope"})
			return err
		}, codes.NotFound, metal.CodeNotFound, "bmc operation list", ""},
		{"inventory MAC", func() error {
			f := serverFile("r1", 9, 1)
			f.Macs = []string{"xx"}
			_, err := c.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{f}})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "servers[0].macs[0]"},
		{"inventory protocol", func() error {
			f := serverFile("r1", 9, 1)
			f.Oob.Protocol = "telnet"
			_, err := c.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{f}})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "", "servers[0].oob.protocol"},
		{"empty inventory", func() error {
			_, err := c.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "bmc inventory apply", "inventory"},
		{"join token role", func() error {
			_, err := c.clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "boss"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "bmc cluster join-token", "role"},
		{"join token racks", func() error {
			_, err := c.clu.CreateJoinToken(b.admin(), &bmcv1.CreateJoinTokenRequest{Role: "agent"})
			return err
		}, codes.InvalidArgument, metal.CodeInvalid, "bmc cluster join-token", "racks"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := refused(t, tt.do(), tt.code, tt.reason, tt.hint)
			if e.Field != tt.field {
				t.Errorf("field %q, want %q", e.Field, tt.field)
			}
		})
	}
}

func TestForget(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	ex, err := c.ExplainServer(b.admin(), &bmcv1.ExplainServerRequest{Ref: "r1-u01"})
	if err != nil {
		t.Fatal(err)
	}
	// What it says is possible is: a retry of what is available would be refused.
	if want := []string{"bmc create --name NAME --size small", "bmc inventory inspect r1-u01", "bmc inventory forget r1-u01"}; !slices.Equal(ex.GetNext(), want) {
		t.Errorf("next %q, want %q", ex.GetNext(), want)
	}
	op, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.inv.ForgetServer(b.admin(), &bmcv1.ForgetServerRequest{Ref: "r1-u01"})
	refused(t, err, codes.FailedPrecondition, metal.CodeWrongState, "bmc operation watch "+op.GetId())
	a.run("web-1")
	_, err = c.inv.ForgetServer(b.admin(), &bmcv1.ForgetServerRequest{Ref: "r1-u01"})
	refused(t, err, codes.FailedPrecondition, metal.CodeWrongState, "bmc destroy web-1")
	if _, err := c.DestroyServer(b.admin(), &bmcv1.DestroyServerRequest{Ref: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.run("r1-u01")
	req := &bmcv1.ForgetServerRequest{Ref: "r1-u01", RequestId: "0199a000-0000-7000-8000-000000000001"}
	for range 2 { // the answer was lost: the same request again
		if _, err := c.inv.ForgetServer(b.admin(), req); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.GetServer(b.admin(), &bmcv1.GetServerRequest{Ref: "r1-u01"})
	refused(t, err, codes.NotFound, metal.CodeNotFound, "bmc list")
}

// A leader whose consensus hangs does not keep its callers for ever.
func TestProposalIsBounded(t *testing.T) {
	b, _ := rentable(t, 1)
	b.stuck = true
	_, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	refused(t, err, codes.Unavailable, metal.CodeUnknownOutcome, "same request ID")
}

func TestRetryHasOneEffect(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	req := &bmcv1.CreateServerRequest{RequestId: uuidV7(b.now(), [10]byte{2}), Name: "web-1", UserData: []byte("x")}
	one, err := c.CreateServer(b.admin(), req)
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.CreateServer(b.admin(), req)
	if err != nil || one.GetId() != two.GetId() {
		t.Fatalf("%v %v %v", one.GetId(), two.GetId(), err)
	}
	_, err = c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{RequestId: req.GetRequestId(), Name: "web-2"})
	refused(t, err, codes.InvalidArgument, metal.CodeRequestReused, "")
	a.run("web-1")

	// The server is gone by the time that destroy is tried again.
	destroy := &bmcv1.DestroyServerRequest{RequestId: uuidV7(b.now(), [10]byte{3}), Ref: "web-1"}
	first, err := c.DestroyServer(b.admin(), destroy)
	if err != nil {
		t.Fatal(err)
	}
	a.run("r1-u01")
	again, err := c.DestroyServer(b.admin(), destroy)
	if err != nil || again.GetId() != first.GetId() || again.GetState() != "succeeded" {
		t.Fatalf("%v %v", again, err)
	}
}

func TestUnknownOutcomeIsTriedAgainWithTheSameID(t *testing.T) {
	b, _ := rentable(t, 1)
	lost := 0
	b.beforePropose = func(cmd *logpb.Command) (bool, error) {
		if cmd.GetCreateServer() == nil || lost > 0 {
			return false, nil
		}
		lost++
		return true, metal.Errorf(metal.CodeUnknownOutcome, "leadership lost while committing")
	}
	op, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
	if err != nil || lost != 1 {
		t.Fatalf("%v %v lost %d", op, err, lost)
	}
	n := 0
	for range b.fsm.View().Operations("") {
		n++
	}
	if n != 2 { // enrolment and one deployment
		t.Fatalf("%d operations", n)
	}
}

func TestInternalErrorsDoNotLeak(t *testing.T) {
	b, _ := rentable(t, 2)
	b.beforePropose = func(*logpb.Command) (bool, error) { return false, errors.New("open /var/lib/secret: disk on fire") }
	for node := range 2 {
		_, err := b.user(node).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"})
		e := refused(t, err, codes.Internal, metal.CodeInternal, "")
		if e.Message == "" || len(e.Message) > 60 {
			t.Fatalf("%q", e.Message)
		}
	}
}

func TestDryRun(t *testing.T) {
	b, _ := rentable(t, 1)
	c := b.user(0)
	before := b.fsm.View().Revision()
	op, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", DryRun: true})
	if err != nil || op.GetKind() != "deploy" {
		t.Fatalf("%v %v", op, err)
	}
	inv, err := c.inv.ApplyInventory(b.admin(), &bmcv1.ApplyInventoryRequest{Servers: []*bmcv1.ServerInput{serverFile("r1", 2, 1)}, DryRun: true})
	if err != nil || len(inv.GetObjects()) != 1 || inv.GetObjects()[0].GetChange() != "created" {
		t.Fatalf("%v %v", inv, err)
	}
	if after := b.fsm.View().Revision(); after != before {
		t.Fatalf("a dry run wrote: %d -> %d", before, after)
	}
}

func TestPaging(t *testing.T) {
	b := newBed(t, 2)
	b.inventory("r1", 1, 23)
	var names []string
	req := &bmcv1.ListServersRequest{PageSize: 5}
	for page := 0; ; page++ {
		resp, err := b.user(page%2).ListServers(b.admin(), req) // any node goes on
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.GetServers() {
			names = append(names, s.GetName())
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			break
		}
		if page == 1 { // writes between pages change nothing about what follows
			b.inventory("r2", 2, 1)
		}
	}
	if len(names) != 24 || !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != 24 {
		t.Fatalf("%d: %v", len(names), names)
	}
	odd, err := b.user(0).ListServers(b.admin(), &bmcv1.ListServersRequest{Selector: "n=1", Rack: "r1"})
	if err != nil || len(odd.GetServers()) != 12 {
		t.Fatalf("%d %v", len(odd.GetServers()), err)
	}
	var ops []string
	oreq := &bmcv1.ListOperationsRequest{PageSize: 10}
	for {
		resp, err := b.user(0).ops.ListOperations(b.admin(), oreq)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range resp.GetOperations() {
			ops = append(ops, o.GetId())
		}
		if oreq.PageToken = resp.GetNextPageToken(); oreq.PageToken == "" {
			break
		}
	}
	if slices.Sort(ops); len(slices.Compact(ops)) != 24 {
		t.Fatalf("%d operations", len(ops))
	}
	var events int
	ereq := &bmcv1.ListEventsRequest{PageSize: 7}
	all, err := b.user(0).ev.ListEvents(b.admin(), &bmcv1.ListEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := b.user(1).ev.ListEvents(b.admin(), ereq)
		if err != nil {
			t.Fatal(err)
		}
		events += len(resp.GetEvents())
		if ereq.PageToken = resp.GetNextPageToken(); ereq.PageToken == "" {
			break
		}
	}
	if events != len(all.GetEvents()) || events < 24 {
		t.Fatalf("%d of %d events", events, len(all.GetEvents()))
	}
	// A token of one list is none of another's.
	p, err := b.user(0).ListServers(b.admin(), &bmcv1.ListServersRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.user(0).ops.ListOperations(b.admin(), &bmcv1.ListOperationsRequest{PageToken: p.GetNextPageToken()})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
}

func TestProjectsAreApart(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	if _, err := c.CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	op := a.run("web-1")
	stranger := b.token("stan", metal.RoleMember, otherProj)
	for _, ref := range []string{"web-1", "r1-u01", op.ServerID} {
		_, err := c.GetServer(stranger, &bmcv1.GetServerRequest{Ref: ref})
		refused(t, err, codes.NotFound, metal.CodeNotFound, "")
		_, err = c.DestroyServer(stranger, &bmcv1.DestroyServerRequest{Ref: ref})
		refused(t, err, codes.NotFound, metal.CodeNotFound, "")
	}
	_, err := c.ops.GetOperation(stranger, &bmcv1.GetOperationRequest{Id: op.ID})
	refused(t, err, codes.NotFound, metal.CodeNotFound, "")
	list, err := c.ListServers(stranger, &bmcv1.ListServersRequest{})
	if err != nil || len(list.GetServers()) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	ev, err := c.ev.ListEvents(stranger, &bmcv1.ListEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ev.GetEvents() {
		if e.GetServerId() != "" || e.GetOperationId() != "" {
			t.Fatalf("%v", e)
		}
	}
	imgs, err := c.img.ListImages(stranger, &bmcv1.ListImagesRequest{})
	if err != nil || len(imgs.GetImages()) != 0 {
		t.Fatalf("%v %v", imgs, err)
	}
	keys, err := c.keys.ListKeys(stranger, &bmcv1.ListKeysRequest{})
	if err != nil || len(keys.GetKeys()) != 0 {
		t.Fatalf("%v %v", keys, err)
	}
	// The tenant sees the rental, not how the management controller is reached.
	mine, err := c.GetServer(b.token("mona", metal.RoleMember, testProject), &bmcv1.GetServerRequest{Ref: "web-1"})
	if err != nil || mine.GetOobAddress() != "" {
		t.Fatalf("%v %v", mine, err)
	}
}

// A former tenant sees its machine until that is wiped, and cannot stop the wipe.
func TestRentalIsOver(t *testing.T) {
	b, a := rentable(t, 1)
	c := b.user(0)
	mona := b.token("mona", metal.RoleMember, testProject)
	if _, err := c.CreateServer(mona, &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	a.run("web-1")
	if _, err := c.inv.SetHold(mona, &bmcv1.SetHoldRequest{Ref: "web-1", Hold: "protected", On: true}); err != nil {
		t.Fatal("a tenant may protect what it rents:", err)
	}
	if _, err := c.inv.SetHold(mona, &bmcv1.SetHoldRequest{Ref: "web-1", Hold: "protected"}); err != nil {
		t.Fatal(err)
	}
	op, err := c.DestroyServer(mona, &bmcv1.DestroyServerRequest{Ref: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	a.begin("web-1")
	_, err = c.inv.SetHold(mona, &bmcv1.SetHoldRequest{Ref: "web-1", Hold: "protected", On: true})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "bmc list")
	a.step(op.GetId(), metal.StepPowerOff) // from here on it is cleaned
	_, err = c.ops.CancelOperation(mona, &bmcv1.CancelOperationRequest{Id: op.GetId()})
	refused(t, err, codes.PermissionDenied, metal.CodeDenied, "bmc list")
	if _, err := c.ops.CancelOperation(b.token("olaf", metal.RoleOperator, testProject), &bmcv1.CancelOperationRequest{Id: op.GetId()}); err != nil {
		t.Fatal("an operator may:", err)
	}
}

func TestApplyInventoryTwiceChangesNothing(t *testing.T) {
	b := newBed(t, 1)
	first := b.inventory("r1", 1, 2)
	if len(first.GetObjects()) != 4 {
		t.Fatalf("%v", first)
	}
	for _, o := range b.inventory("r1", 1, 2).GetObjects() {
		if o.GetChange() != "unchanged" {
			t.Errorf("%v", o)
		}
	}
	req := &bmcv1.ApplyInventoryRequest{RequestId: uuidV7(b.now(), [10]byte{9}), Servers: []*bmcv1.ServerInput{serverFile("r1", 3, 1)}}
	c := b.user(0)
	one, err := c.inv.ApplyInventory(b.admin(), req)
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.inv.ApplyInventory(b.admin(), req)
	if err != nil || two.GetObjects()[0].GetId() != one.GetObjects()[0].GetId() || two.GetObjects()[0].GetOperationId() != one.GetObjects()[0].GetOperationId() {
		t.Fatalf("%v %v %v", one, two, err)
	}
}
