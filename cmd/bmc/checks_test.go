package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/metal"
)

// sickRacks are racks and servers with each trouble that doctor looks for.
type sickRacks struct {
	bmcv1.UnimplementedInventoryServer
	bmcv1.UnimplementedServersServer
	bmcv1.UnimplementedImagesServer
	store error
}

func (sickRacks) ListRacks(context.Context, *bmcv1.ListRacksRequest) (*bmcv1.ListRacksResponse, error) {
	held := &bmcv1.Lease{Holder: "agt-1"}
	return &bmcv1.ListRacksResponse{Racks: []*bmcv1.Rack{{Name: "well", Servers: 3, Lease: held}, {Name: "empty"},
		{Name: "cold", Servers: 3, Frozen: true, Lease: held}, {Name: "alone", Servers: 3}}}, nil
}

func (sickRacks) ListServers(context.Context, *bmcv1.ListServersRequest) (*bmcv1.ListServersResponse, error) {
	with := func(name, state, condition string) *bmcv1.Server {
		s := &bmcv1.Server{Name: name, State: state}
		if condition != "" {
			s.Conditions = []*bmcv1.Condition{{Name: condition}}
		}
		return s
	}
	return &bmcv1.ListServersResponse{Servers: []*bmcv1.Server{with("a", "available", ""), with("b", "available", "warm"), with("c", "failed", ""),
		with("d", "quarantined", ""), with("e", "active", "oob_unreachable"), with("f", "active", "oob_unreachable"), with("g", "deploying", "late")}}, nil
}

func (s sickRacks) MissingChunks(context.Context, *bmcv1.MissingChunksRequest) (*bmcv1.MissingChunksResponse, error) {
	return &bmcv1.MissingChunksResponse{}, s.store
}

// Doctor finds what keeps the racks from working, and nothing where all is well.
func TestDoctorLooksAtTheRacks(t *testing.T) {
	api := sickRacks{store: refuse(metal.Errorf(metal.CodeImageUnavailable, "the image store does not answer"))}
	dial := serveWith(t, func(s *grpc.Server) {
		bmcv1.RegisterInventoryServer(s, api)
		bmcv1.RegisterServersServer(s, api)
		bmcv1.RegisterImagesServer(s, api)
	})
	c, err := client.New(client.Config{Addresses: []string{"bufnet:1"}, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var out bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &bytes.Buffer{})
	if err := a.findings(checkRacks(t.Context(), c, &bmcv1.WhoAmIResponse{Role: "admin"})); err == nil {
		t.Error("all is well")
	}
	want := []string{"FAIL  rack cold                frozen", "hint: bmc rack thaw cold", "FAIL  rack alone               no agent",
		"1 failed: c", "1 quarantined: d", "2 with a management controller that does not answer: e, f", "hint: bmc explain e",
		"1 that take longer than they should: g", "FAIL  image store              the image store does not answer"}
	for _, w := range want {
		if !strings.Contains(out.String(), w) {
			t.Errorf("%q is not in\n%s", w, out.String())
		}
	}
	if n := strings.Count(out.String(), "FAIL"); n != 7 {
		t.Errorf("%d findings:\n%s", n, out.String())
	}
	for _, f := range checkRacks(t.Context(), c, &bmcv1.WhoAmIResponse{Role: "viewer"}) {
		if f.what == "image store" {
			t.Error("a viewer asks the store, which it may not")
		}
	}
}

func TestCredentialThatEndsSoon(t *testing.T) {
	for left, hint := range map[time.Duration]bool{time.Hour: true, 30 * 24 * time.Hour: false} {
		f := credential(&bmcv1.WhoAmIResponse{Principal: "ann", Role: "member", Expires: timestamppb.New(time.Now().Add(left))})
		if (f.hint != "") != hint || f.bad {
			t.Errorf("%s: %+v", left, f)
		}
	}
}

// A token that was pasted with more than itself is refused before it is sent.
func TestTokenWithMoreThanItself(t *testing.T) {
	for token, bad := range map[string]bool{"bmct_a_b": false, " bmct_a_b\n": false, "it works until\nbmct_a_b": true, "bmct_ä_b": true} {
		a := newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
		a.env = func(name string) string {
			return map[string]string{"HOME": t.TempDir(), "BMC_TOKEN": token, "BMC_ADDR": "127.0.0.1:1"}[name]
		}
		got, err := a.target()
		if (err != nil) != bad || err == nil && got.Token != "bmct_a_b" {
			t.Errorf("%q: %v, %v", token, got, err)
		}
	}
}

// vault takes images from members, who may add no signing key.
type vault struct {
	bmcv1.UnimplementedImagesServer
	created *bool
	trusted *string
}

func (v vault) AddSigningKey(_ context.Context, r *bmcv1.AddSigningKeyRequest) (*bmcv1.AddSigningKeyResponse, error) {
	if v.trusted == nil {
		return nil, refuse(metal.Errorf(metal.CodeDenied, "this needs the role operator"))
	}
	*v.trusted = r.GetPublicKey()
	return &bmcv1.AddSigningKeyResponse{}, nil
}

func (vault) MissingChunks(context.Context, *bmcv1.MissingChunksRequest) (*bmcv1.MissingChunksResponse, error) {
	return &bmcv1.MissingChunksResponse{}, nil
}

func (v vault) CreateImage(context.Context, *bmcv1.CreateImageRequest) (*bmcv1.Image, error) {
	*v.created = true
	return &bmcv1.Image{Name: "small"}, nil
}

// A member pushes with a key that an operator has put on the list.
func TestMemberPushes(t *testing.T) {
	home := t.TempDir()
	for name, text := range map[string]string{"small.img": strings.Repeat("x", 4096), "small.yaml": "name: small\nos: test\narch: x86_64\nuser: root\nsector_size: 512\nfirmware: [bios]\n"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var created bool
	var trusted string
	run := func(v vault, args ...string) (string, int) {
		dial := serveWith(t, func(s *grpc.Server) { bmcv1.RegisterImagesServer(s, v) })
		var errs bytes.Buffer
		a := newApp(strings.NewReader(""), &bytes.Buffer{}, &errs)
		a.env = func(name string) string { return map[string]string{"HOME": home}[name] }
		var err error
		if a.client, err = client.New(client.Config{Addresses: []string{"bufnet:1"}, Dial: dial}); err != nil {
			t.Fatal(err)
		}
		return errs.String(), a.run(t.Context(), args)
	}
	if errs, code := run(vault{created: &created}, "image", "push", filepath.Join(home, "small.img")); code != exitOK || !created {
		t.Fatalf("exit %d, created %t: %s", code, created, errs)
	}
	key := filepath.Join(home, ".config", "bmc", "signing.key")
	if _, code := run(vault{trusted: &trusted}, "image", "trust", key); code != exitUsage || trusted != "" {
		t.Errorf("the private half: exit %d, sent %q", code, trusted)
	}
	if _, code := run(vault{trusted: &trusted}, "image", "trust", key+".pub"); code != exitOK || !strings.Contains(trusted, "minisign public key") {
		t.Errorf("exit %d, sent %q", code, trusted)
	}
}
