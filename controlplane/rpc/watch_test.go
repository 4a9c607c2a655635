package rpc

import (
	"context"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

func TestWatchSnapshotDeltasAndResume(t *testing.T) {
	b, a := rentable(t, 2)
	c := b.user(1)
	w, err := c.ev.Watch(b.admin(), &bmcv1.WatchRequest{Kinds: []string{"server", "event"}})
	if err != nil {
		t.Fatal(err)
	}
	snap := recv(t, w, func(*bmcv1.WatchResponse) bool { return true })
	if snap.GetServer().GetName() != "r1-u01" {
		t.Fatalf("%v", snap)
	}
	mark := recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	d := recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetServer() != nil })
	if d.GetServer().GetState() != "deploying" || d.GetRevision() <= mark.GetRevision() {
		t.Fatalf("%v", d)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetEvent() != nil })
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })

	// Resume at another node from the bookmark: no snapshot, the same delta.
	w2, err := b.user(0).ev.Watch(b.admin(), &bmcv1.WatchRequest{Kinds: []string{"server"}, AfterRevision: mark.GetRevision()})
	if err != nil {
		t.Fatal(err)
	}
	again := recv(t, w2, func(*bmcv1.WatchResponse) bool { return true })
	if again.GetServer().GetState() != "deploying" || again.GetResync() {
		t.Fatalf("%v", again)
	}
	// From now on, without a snapshot.
	w3, err := c.ev.Watch(b.admin(), &bmcv1.WatchRequest{Kinds: []string{"server"}, NoSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	if m := recv(t, w3, func(*bmcv1.WatchResponse) bool { return true }); !m.GetBookmark() {
		t.Fatalf("%v", m)
	}
	a.run("web-1")
	recv(t, w3, func(m *bmcv1.WatchResponse) bool { return m.GetServer().GetState() == "active" })
	_, err = recvOne(t, c.ev, b, &bmcv1.WatchRequest{Kinds: []string{"weather"}})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
}

func recvOne(t *testing.T, c bmcv1.EventsClient, b *bed, req *bmcv1.WatchRequest) (*bmcv1.WatchResponse, error) {
	t.Helper()
	w, err := c.Watch(b.admin(), req)
	if err != nil {
		return nil, err
	}
	return w.Recv()
}

// What falls off the ring, or is ahead of a state that was replaced, starts over.
func TestWatchResync(t *testing.T) {
	b := newBed(t, 1)
	b.inventory("r1", 1, 1)
	old := b.fsm.View().Revision()
	turn(b, old)
	for _, after := range []uint64{old, b.fsm.View().Revision() + 1000} {
		w, err := b.user(0).ev.Watch(b.admin(), &bmcv1.WatchRequest{AfterRevision: after, Kinds: []string{"server"}})
		if err != nil {
			t.Fatal(err)
		}
		if m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true }); !m.GetResync() {
			t.Fatalf("%v", m)
		}
		if m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true }); m.GetServer().GetName() != "r1-u01" {
			t.Fatalf("%v", m)
		}
		recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })
	}
}

// A tenant's watch shows the rental, and "removed" once it has ended.
func TestWatchOfATenant(t *testing.T) {
	b, a := rentable(t, 1)
	mona, stan := b.token("mona", metal.RoleMember, testProject), b.token("stan", metal.RoleMember, otherProj)
	w, err := b.user(0).ev.Watch(mona, &bmcv1.WatchRequest{Kinds: []string{"server", "event"}})
	if err != nil {
		t.Fatal(err)
	}
	if m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true }); !m.GetBookmark() {
		t.Fatalf("a tenant without rentals sees %v", m)
	}
	if _, err := b.user(0).CreateServer(mona, &bmcv1.CreateServerRequest{Name: "web-1"}); err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetServer().GetStatus() == "provisioning" })
	a.run("web-1")
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetServer().GetStatus() == "running" })
	rented := b.fsm.View().Revision()
	if _, err := b.user(0).DestroyServer(mona, &bmcv1.DestroyServerRequest{Ref: "web-1"}); err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetServer().GetStatus() == "releasing" })
	a.run("r1-u01")
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetRemoved().GetKind() == "server" })

	// A watch that was cut off in between is told, too.
	resumed, err := b.user(0).ev.Watch(mona, &bmcv1.WatchRequest{Kinds: []string{"server"}, AfterRevision: rented})
	if err != nil {
		t.Fatal(err)
	}
	if m := recv(t, resumed, func(*bmcv1.WatchResponse) bool { return true }); m.GetRemoved().GetKind() != "server" {
		t.Fatalf("%v", m)
	}

	b.must(&logpb.Command{Command: &logpb.Command_RevokeToken{RevokeToken: &logpb.RevokeToken{TokenId: anyToken(b)}}})
	b.must(&logpb.Command{Command: &logpb.Command_DeleteImage{DeleteImage: &logpb.DeleteImage{Project: testProject, ImageId: anyImage(b)}}})
	for _, after := range []uint64{0, rented} {
		watchNothing(t, b, stan, after)
	}
}

func anyToken(b *bed) string {
	for tok := range b.fsm.View().Tokens() {
		if tok.Kind != "user" {
			return tok.ID
		}
	}
	b.t.Fatal("there is no token")
	return ""
}

func anyImage(b *bed) string {
	for img := range b.fsm.View().Images("") {
		return img.ID
	}
	b.t.Fatal("there is no image")
	return ""
}

// watchNothing reads a watch up to its bookmark: racks, and nothing that is
// another project's or nobody's to watch.
func watchNothing(t *testing.T, b *bed, who context.Context, after uint64) {
	t.Helper()
	w, err := b.user(0).ev.Watch(who, &bmcv1.WatchRequest{AfterRevision: after})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m := recv(t, w, func(*bmcv1.WatchResponse) bool { return true })
		if m.GetServer() != nil || m.GetImage() != nil || m.GetOperation() != nil || m.GetEvent() != nil || m.GetRemoved() != nil {
			t.Fatalf("%v", m)
		}
		if m.GetBookmark() {
			return
		}
	}
}

// A watch ends with its token, and with its node.
func TestWatchEnds(t *testing.T) {
	b := newBed(t, 2)
	b.must(&logpb.Command{Command: &logpb.Command_CreateToken{CreateToken: &logpb.CreateToken{Token: &logpb.Token{
		Id: "tok-shortlivedtoken", Hash: hashSecret("s"), Kind: "user", Name: "brief", Role: "viewer", Project: testProject,
		Expires: b.now().Add(300 * time.Millisecond).UnixNano()}}}})
	w, err := b.user(0).ev.Watch(bearer(t.Context(), userTokenPrefix+"tok-shortlivedtoken_s"), &bmcv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Recv()
	}
	refused(t, err, codes.Unauthenticated, metal.CodeTokenExpired, "bmc token create brief")

	w, err = b.user(1).ev.Watch(b.admin(), &bmcv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, w, func(m *bmcv1.WatchResponse) bool { return m.GetBookmark() })
	b.nodes[1].api.Close()
	for err == nil {
		_, err = w.Recv()
	}
	refused(t, err, codes.Unavailable, metal.CodeNoLeader, "")
}
