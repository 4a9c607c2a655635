package fsm

import (
	"strings"
	"testing"
	"time"

	"bmc/fsm/logpb"
	"bmc/metal"
)

// Each row prepares a world and says what must come of one command: "" for
// accepted, else the reason, with words that message and hint must hold.
func TestCommands(t *testing.T) {
	body := func(c *logpb.Command) func(*world) *logpb.Command { return func(*world) *logpb.Command { return c } }
	inventory := func(change func(*logpb.ServerInput)) func(*world) *logpb.Command {
		return func(*world) *logpb.Command {
			in := serverInput(50)
			change(in)
			return cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}})
		}
	}
	create := func(change func(*logpb.CreateServer)) *logpb.Command {
		c := cCreate("op-c", "web-9")
		change(c.GetCreateServer())
		return c
	}
	hold := func(h string, on bool) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_SetHold{SetHold: &logpb.SetHold{Server: ref("srv-00000"), Hold: h, On: on}}}
	}
	empty := func(t testing.TB) *world { return newWorld(t) }
	avail := func(t testing.TB) *world { return available(t, 1) }
	key := func(id, name, line string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{Id: id, Name: name, Project: prj, PublicKey: line}}}}
	}
	node := func(token, id, name string) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_JoinNode{JoinNode: &logpb.JoinNode{TokenId: token, TokenHash: digest(token),
			Node: &logpb.Node{Id: id, Name: name, Address: "10.0.0.9:7443"}}}}
	}
	observe := func(m *logpb.Observe) *logpb.Command {
		return &logpb.Command{Command: &logpb.Command_Observe{Observe: m}}
	}
	for _, tt := range []struct {
		name  string
		world func(testing.TB) *world
		make  func(*world) *logpb.Command
		code  metal.Code
		words string // of message and hint, separated by |
	}{
		{"init twice", deployed, body(cInit()), metal.CodeWrongState, ""},
		{"before init", empty, body(cToken("tok-1", "join-node")), metal.CodeWrongState, "init"},
		{"init without a project", empty, body(&logpb.Command{Command: &logpb.Command_InitCluster{InitCluster: &logpb.InitCluster{ClusterId: "c"}}}), metal.CodeInvalid, ""},

		{"new server", avail, inventory(func(*logpb.ServerInput) {}), "", ""},
		{"server with a bad name", avail, inventory(func(in *logpb.ServerInput) { in.Name = "R1" }), metal.CodeInvalid, "servers[0].name"},
		{"server in no rack", avail, inventory(func(in *logpb.ServerInput) { in.Rack = "r9" }), metal.CodeNotFound, "servers[0].rack|r9"},
		{"server of no size", avail, inventory(func(in *logpb.ServerInput) { in.Size = "huge" }), metal.CodeNotFound, "servers[0].size|bmc size list"},
		{"server with a taken MAC", avail, inventory(func(in *logpb.ServerInput) { in.Macs = []string{mac(0)} }), metal.CodeInUse, "r1-u00000"},
		{"server with a taken controller", avail, inventory(func(in *logpb.ServerInput) { in.Oob.Address = "10.9.0.1" }), metal.CodeInUse, "management controller 10.9.0.1|r1-u00000"},
		{"server with a taken address", avail, inventory(func(in *logpb.ServerInput) { in.Address = "10.10.0.10" }), metal.CodeInUse, "10.10.0.10"},
		{"server outside the range", avail, inventory(func(in *logpb.ServerInput) { in.Address = "10.10.0.2" }), metal.CodeInvalid, "range"},
		{"server with the gateway's address", avail, inventory(func(in *logpb.ServerInput) { in.Address = "10.10.0.1" }), metal.CodeInvalid, "address"},
		{"server with a taken ID", avail, inventory(func(in *logpb.ServerInput) { in.Id = "srv-00000" }), metal.CodeConflict, ""},
		{"server with a taken operation ID", avail, inventory(func(in *logpb.ServerInput) { in.OperationId = "op-enroll00000" }), metal.CodeConflict, ""},
		{"server whose name got another ID", avail, inventory(func(in *logpb.ServerInput) { in.Name = "r1-u00000" }), metal.CodeConflict, "again"},
		{"all or nothing", avail, func(*world) *logpb.Command {
			bad := serverInput(52)
			bad.Rack = "r9"
			return cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput("rack-9", "r8", 12)}, Servers: []*logpb.ServerInput{serverInput(51), bad}})
		}, metal.CodeNotFound, "servers[1]"},
		{"the same server twice", avail, func(*world) *logpb.Command {
			return cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{serverInput(51), serverInput(51)}})
		}, metal.CodeInvalid, "twice"},
		{"rack that would lose addresses", avail, func(*world) *logpb.Command {
			return cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput("rack-1", "r1", 12)}})
		}, metal.CodeInUse, "10.10.0.10"},
		{"rack without a range", avail, func(*world) *logpb.Command {
			r := rackInput("rack-1", "r1", 10)
			r.RangeFrom = ""
			return cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{r}})
		}, metal.CodeInvalid, "racks[0].range_from"},
		{"change of a busy server", func(t testing.TB) *world { return furnished(t, 1) }, func(*world) *logpb.Command {
			in := serverInput(0)
			in.Oob.Username = "other"
			return cInventory(&logpb.ApplyInventory{Servers: []*logpb.ServerInput{in}})
		}, metal.CodeBusy, "bmc operation watch op-enroll00000"},

		{"create", avail, body(create(func(*logpb.CreateServer) {})), "", ""},
		{"create by key name and line", avail, body(create(func(m *logpb.CreateServer) { m.SshKeys = []string{"ann", sshKey} })), "", ""},
		{"create without a name", avail, body(create(func(m *logpb.CreateServer) { m.Name = "" })), metal.CodeInvalid, "name"},
		{"create in no project", avail, body(create(func(m *logpb.CreateServer) { m.Project = "prj-9" })), metal.CodeNotFound, ""},
		{"create with a taken name", deployed, body(create(func(m *logpb.CreateServer) { m.Name = "web-1" })), metal.CodeNameTaken, "bmc get web-1"},
		{"create with no such image", avail, body(create(func(m *logpb.CreateServer) { m.Image = "debain12" })), metal.CodeNotFound, `did you mean "debian12"?|bmc image list`},
		{"create with no such size", avail, body(create(func(m *logpb.CreateServer) { m.Size = "huge" })), metal.CodeNotFound, "bmc size list"},
		{"create in no such rack", avail, body(create(func(m *logpb.CreateServer) { m.Rack = "r2" })), metal.CodeNotFound, `did you mean "r1"?`},
		{"create with no such key", avail, body(create(func(m *logpb.CreateServer) { m.SshKeys = []string{"bob"} })), metal.CodeNotFound, "bmc key list"},
		{"create where nothing is free", deployed, body(create(func(*logpb.CreateServer) {})), metal.CodeNoCapacity, "none"},
		{"create where another size is free", avail, body(create(func(m *logpb.CreateServer) { m.Size = "large" })), metal.CodeNoCapacity,
			"no server of size large|1 small in r1|bmc create --name web-9 --image debian12 --rack r1 --size small"},
		{"create beyond the quota", func(t testing.TB) *world {
			w := available(t, 2)
			w.ok(&logpb.Command{Command: &logpb.Command_CreateProject{CreateProject: &logpb.CreateProject{Project: &logpb.Project{Id: "prj-2", Name: "two", MaxServers: 1}}}})
			w.ok(&logpb.Command{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{Project: "prj-2", PublicKey: "k"}}})
			w.ok(&logpb.Command{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{Id: img1, Name: "i", Project: "prj-2"}}}})
			w.ok(create(func(m *logpb.CreateServer) {
				m.OperationId, m.Project, m.SshKeys = "op-first", "prj-2", []string{sshKey}
			}))
			return w
		}, body(create(func(m *logpb.CreateServer) { m.Project, m.Name, m.SshKeys = "prj-2", "web-10", []string{sshKey} })), metal.CodeNoCapacity, "quota is 1"},
		{"create without a key", avail, func(w *world) *logpb.Command {
			w.ok(&logpb.Command{Command: &logpb.Command_RemoveKey{RemoveKey: &logpb.RemoveKey{Project: prj, KeyId: "key-1"}}})
			return create(func(*logpb.CreateServer) {})
		}, metal.CodeInvalid, "bmc key add"},
		{"create with an image too large", avail, func(w *world) *logpb.Command {
			c := cImage("b"+img1[1:], "big")
			c.GetCreateImage().Image.SizeBytes = 30 * gib
			w.ok(c)
			return create(func(m *logpb.CreateServer) { m.Image = "big" })
		}, metal.CodeImageTooLarge, "30 GiB|20 GiB"},
		{"create with an image for other firmware", avail, func(w *world) *logpb.Command {
			c := cImage("b"+img1[1:], "old")
			c.GetCreateImage().Image.Firmware = []string{"bios"}
			w.ok(c)
			return create(func(m *logpb.CreateServer) { m.Image = "old" })
		}, metal.CodeFirmwareUnfit, "uefi"},
		{"create with several images and none named", avail, func(w *world) *logpb.Command {
			w.ok(cImage("b"+img1[1:], "other"))
			return create(func(*logpb.CreateServer) {})
		}, metal.CodeInvalid, "debian12, other"},
		{"create where all is cordoned", avail, func(w *world) *logpb.Command {
			w.ok(hold("cordoned", true))
			return create(func(*logpb.CreateServer) {})
		}, metal.CodeNoCapacity, ""},
		{"create where the controller is away", avail, func(w *world) *logpb.Command {
			w.ok(observe(&logpb.Observe{RackId: rack1, Observations: []*logpb.Observation{{ServerId: "srv-00000", Raised: []string{"oob_unreachable"}}}}))
			return create(func(*logpb.CreateServer) {})
		}, metal.CodeNoCapacity, ""},

		{"destroy what is available", avail, body(cDestroy("op-d", "srv-00000")), metal.CodeWrongState, "available|create, inspect, clean, retire|bmc explain"},
		{"destroy what is busy", func(t testing.TB) *world { w := available(t, 1); w.ok(cCreate("op-c", "web-1")); return w },
			body(cDestroy("op-d", "srv-00000")), metal.CodeWrongState, "deploying|cancel"},
		{"destroy what is protected", deployed, func(w *world) *logpb.Command {
			w.ok(hold("protected", true))
			return cDestroy("op-d", "srv-00000")
		}, metal.CodeProtected, "bmc unprotect web-1"},
		{"destroy an older version", deployed, func(*world) *logpb.Command {
			c := cDestroy("op-d", "srv-00000")
			c.GetDestroyServer().Server.ResourceVersion = 1
			return c
		}, metal.CodeConflict, "bmc get web-1"},
		{"destroy what another project rents by now", deployed, func(*world) *logpb.Command {
			c := cDestroy("op-d", "srv-00000")
			c.GetDestroyServer().Server.Project, c.GetDestroyServer().Server.Rental = "prj-2", "web-1"
			return c
		}, metal.CodeNotFound, ""},
		{"destroy nothing", deployed, body(cDestroy("op-d", "srv-9")), metal.CodeNotFound, "bmc list"},
		{"power while busy", deployed, func(w *world) *logpb.Command {
			w.ok(&logpb.Command{Command: &logpb.Command_RestartServer{RestartServer: &logpb.RestartServer{Server: ref("srv-00000"), OperationId: "op-r"}}})
			return &logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: ref("srv-00000"), OperationId: "op-p", Wanted: "off"}}}
		}, metal.CodeBusy, "op-r"},
		{"power sideways", deployed, body(&logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: ref("srv-00000"), OperationId: "op-p", Wanted: "cycle"}}}), metal.CodeInvalid, "cycle"},
		{"power on what is available", avail, body(&logpb.Command{Command: &logpb.Command_SetPower{SetPower: &logpb.SetPower{Server: ref("srv-00000"), OperationId: "op-p", Wanted: "on"}}}), metal.CodeWrongState, "available"},
		{"retry what has not failed", deployed, body(cRetry("op-x", "srv-00000")), metal.CodeWrongState, "active"},
		{"retry with a taken operation ID", deployed, func(w *world) *logpb.Command {
			w.ok(cDestroy("op-d", "srv-00000"))
			w.failAt("op-d", metal.StepWipe, metal.CodeWipeFailed)
			return cRetry("op-d", "srv-00000")
		}, metal.CodeConflict, ""},
		{"inspect what is active", deployed, body(&logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref("srv-00000"), OperationId: "op-i"}}}), metal.CodeWrongState, "active"},
		{"clean", avail, body(&logpb.Command{Command: &logpb.Command_CleanServer{CleanServer: &logpb.CleanServer{Server: ref("srv-00000"), OperationId: "op-i"}}}), "", ""},
		{"forget what is available", avail, body(cForget("srv-00000")), "", ""},
		{"forget what is rented", deployed, body(cForget("srv-00000")), metal.CodeWrongState, "active|bmc destroy web-1"},
		{"forget what is busy", func(t testing.TB) *world { w := available(t, 1); w.ok(cCreate("op-c", "web-1")); return w },
			body(cForget("srv-00000")), metal.CodeWrongState, "deploying|bmc operation watch op-c"},
		{"forget what failed while rented", func(t testing.TB) *world {
			w := available(t, 1)
			w.ok(cCreate("op-c", "web-1"))
			w.failAt("op-c", metal.StepReady, metal.CodeDeadline)
			return w
		}, body(cForget("srv-00000")), metal.CodeWrongState, "failed|bmc destroy web-1"},
		{"forget what was available and failed", func(t testing.TB) *world {
			w := available(t, 1)
			w.ok(&logpb.Command{Command: &logpb.Command_InspectServer{InspectServer: &logpb.InspectServer{Server: ref("srv-00000"), OperationId: "op-i"}}})
			w.failAt("op-i", metal.StepInspect, metal.CodeDeadline)
			return w
		}, body(cForget("srv-00000")), metal.CodeWrongState, "failed|bmc retry r1-u00000"},
		{"forget what is quarantined", func(t testing.TB) *world {
			w := deployed(t)
			w.ok(cDestroy("op-d", "srv-00000"))
			w.failAt("op-d", metal.StepWipe, metal.CodeWipeFailed)
			return w
		}, body(cForget("srv-00000")), "", ""},
		{"forget what is retired", avail, func(w *world) *logpb.Command {
			w.ok(&logpb.Command{Command: &logpb.Command_RetireServer{RetireServer: &logpb.RetireServer{Server: ref("srv-00000")}}})
			return cForget("srv-00000")
		}, "", ""},
		{"forget what failed to enrol", func(t testing.TB) *world {
			w := furnished(t, 1)
			w.failAt("op-enroll00000", metal.StepVerifyOOB, metal.CodeOOBAuth)
			return w
		}, body(cForget("srv-00000")), "", ""},
		{"hold of no kind", avail, body(hold("dear", true)), metal.CodeInvalid, "dear"},

		{"key again", avail, body(key("key-2", "ann2", sshKey)), metal.CodeNameTaken, "ann"},
		{"key of the same name", avail, body(key("key-2", "ann", sshKey)), metal.CodeNameTaken, "ann"},
		{"key that is none", avail, body(key("key-2", "bob", "hello")), metal.CodeInvalid, "public_key"},
		{"remove another project's key", avail, body(&logpb.Command{Command: &logpb.Command_RemoveKey{RemoveKey: &logpb.RemoveKey{Project: "prj-2", KeyId: "key-1"}}}), metal.CodeNotFound, ""},
		{"image again", avail, body(cImage(img1, "debian12")), "", ""},
		{"image in no project", avail, func(*world) *logpb.Command {
			c := cImage(img1, "x")
			c.GetCreateImage().Image.Project = "prj-9"
			return c
		}, metal.CodeNotFound, ""},
		{"image in a project without signing keys", func(t testing.TB) *world { w := newWorld(t); w.ok(cInit()); return w }, body(cImage(img1, "x")), metal.CodeSignature, ""},
		{"delete an image that is needed", func(t testing.TB) *world { w := available(t, 1); w.ok(cCreate("op-c", "web-1")); return w },
			body(&logpb.Command{Command: &logpb.Command_DeleteImage{DeleteImage: &logpb.DeleteImage{Project: prj, ImageId: img1}}}), metal.CodeInUse, "web-1"},
		{"delete an image that runs", deployed, body(&logpb.Command{Command: &logpb.Command_DeleteImage{DeleteImage: &logpb.DeleteImage{Project: prj, ImageId: img1}}}), "", ""},

		{"token of no kind", avail, body(cToken("tok-1", "magic")), metal.CodeInvalid, "magic"},
		{"agent token without racks", avail, body(cToken("tok-1", "join-agent")), metal.CodeInvalid, "racks"},
		{"agent token for no rack", avail, body(cToken("tok-1", "join-agent", "rack-9")), metal.CodeNotFound, "rack-9"},
		{"join with a spent token", avail, body(cJoin("tok-a", "agt-9", "a9")), metal.CodeUnauthenticated, "once|bmc cluster join-token"},
		{"join in place of an agent", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-agent", rack1))
			return cJoin("tok-1", "agt-9", "a1")
		}, "", ""},
		{"join in place of another rack's agent", avail, func(w *world) *logpb.Command {
			w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput("rack-2", "r2", 11)}}))
			w.ok(cToken("tok-1", "join-agent", "rack-2"))
			return cJoin("tok-1", "agt-9", "a1")
		}, metal.CodeNameTaken, "bmc agent list"},
		{"join with a wrong secret", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-agent", rack1))
			c := cJoin("tok-1", "agt-9", "a9")
			c.GetJoinAgent().TokenHash = digest("guess")
			return c
		}, metal.CodeUnauthenticated, ""},
		{"join as a node with an agent's token", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-agent", rack1))
			return node("tok-1", "node-2", "cp2")
		}, metal.CodeUnauthenticated, ""},
		{"join with an expired token", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-node"))
			w.now = w.now.Add(2000 * time.Hour)
			return node("tok-1", "node-2", "cp2")
		}, metal.CodeTokenExpired, ""},
		{"join with a taken node name", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-node"))
			return node("tok-1", "node-2", "cp1")
		}, metal.CodeNameTaken, "bmc cluster peers"},
		{"join as a node", avail, func(w *world) *logpb.Command {
			w.ok(cToken("tok-1", "join-node"))
			return node("tok-1", "node-2", "cp2")
		}, "", ""},

		{"lease at an old epoch", avail, body(cGrant(rack1, agt1, 0)), metal.CodeStaleEpoch, ""},
		{"lease to a stranger", avail, body(cGrant(rack1, "agt-9", 1)), metal.CodeNotFound, ""},
		{"lease to an agent of another rack", avail, func(w *world) *logpb.Command {
			w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput("rack-2", "r2", 11)}}))
			return cGrant("rack-2", agt1, 0)
		}, metal.CodeDenied, "r2"},
		{"observe under an old lease", avail, body(observe(&logpb.Observe{RackId: rack1, AgentId: agt1, Epoch: 9})), metal.CodeStaleEpoch, ""},
		{"observe nonsense", avail, body(observe(&logpb.Observe{RackId: rack1, AgentId: agt1, Epoch: 1, Observations: []*logpb.Observation{{ServerId: "srv-00000", Raised: []string{"tired"}}}})), metal.CodeInvalid, "tired"},
		{"observe a server that is gone", avail, body(observe(&logpb.Observe{RackId: rack1, AgentId: agt1, Epoch: 1, Observations: []*logpb.Observation{{ServerId: "srv-9", Power: "on"}}})), "", ""},

		{"feature level down", avail, body(&logpb.Command{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: 1}}}), metal.CodeConflict, ""},
		{"feature level above a node's", avail, body(&logpb.Command{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: FeatureLevel + 1}}}), metal.CodeWrongState, "cp1"},
		{"feature level", avail, func(w *world) *logpb.Command {
			w.ok(&logpb.Command{Command: &logpb.Command_RegisterFeatureLevel{RegisterFeatureLevel: &logpb.RegisterFeatureLevel{NodeId: "node-1", Level: FeatureLevel + 1}}})
			return &logpb.Command{Command: &logpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &logpb.RaiseFeatureLevel{Level: FeatureLevel + 1}}}
		}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world(t)
			c := tt.make(w)
			c.Header = &logpb.Header{Time: w.now.Add(time.Second).UnixNano()}
			planned := Plan(w.f.View(), c)
			if tt.code == "" {
				r := w.ok(c)
				if planned.Err != nil || planned.ID != r.ID {
					t.Fatalf("planned %+v, got %+v", planned, r)
				}
			} else {
				e := w.refused(c, tt.code)
				for _, word := range strings.Split(tt.words, "|") {
					if !strings.Contains(e.Message+" "+e.Hint, word) {
						t.Errorf("%q, hint %q, lack %q", e.Message, e.Hint, word)
					}
				}
				if planned.Err == nil || planned.Err.Message != e.Message {
					t.Errorf("planned %v, got %v", planned.Err, e)
				}
			}
			if err := sound(w.f.View()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestInventoryAgainIsUnchanged(t *testing.T) {
	w := available(t, 3)
	inv := &logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput(rack1, "r1", 10)}, Sizes: []*logpb.Size{{Name: "small", MinCpuThreads: 1, MinMemoryBytes: gib}}}
	for i := range 3 {
		inv.Servers = append(inv.Servers, serverInput(i))
	}
	before := w.f.View()
	for _, o := range w.ok(cInventory(inv)).Value.([]Applied) {
		if o.Change != Unchanged || o.ID == "" || o.OperationID != "" {
			t.Errorf("%+v", o)
		}
	}
	if after := w.f.View(); after.CountRows() != before.CountRows()+1 {
		t.Errorf("%d rows, then %d", before.CountRows(), after.CountRows())
	}
	inv.Servers[1].Labels = []*logpb.Label{{Key: "tier", Value: "web"}}
	inv.Servers = append(inv.Servers, serverInput(7))
	var got []string
	for _, o := range w.ok(cInventory(inv)).Value.([]Applied) {
		got = append(got, o.Kind+" "+o.Change)
	}
	if s := strings.Join(got, ", "); s != "rack unchanged, size unchanged, server unchanged, server updated, server unchanged, server created" {
		t.Error(s)
	}
}

func TestPlacementSpreads(t *testing.T) {
	w := furnished(t, 0)
	w.ok(cInventory(&logpb.ApplyInventory{Racks: []*logpb.RackInput{rackInput("rack-2", "r2", 11)}}))
	w.ok(cToken("tok-2", "join-agent", "rack-2"))
	w.ok(cJoin("tok-2", "agt-2", "a2"))
	w.ok(cGrant("rack-2", "agt-2", 0))
	inv := &logpb.ApplyInventory{}
	for i := range 5 {
		in := serverInput(i)
		if i >= 2 {
			in.Rack = "r2"
		}
		inv.Servers = append(inv.Servers, in)
	}
	w.ok(cInventory(inv))
	for _, in := range inv.Servers {
		w.finish(in.OperationId)
	}
	// Two are free in r1, three in r2: the fuller rack first, ties by name.
	for i, want := range []string{"srv-00002", "srv-00000", "srv-00003", "srv-00001", "srv-00004"} {
		name := "web-" + string(rune('a'+i))
		if r := w.ok(cCreate(w.id("op"), name)); r.ID != want {
			t.Errorf("%s got %s, want %s", name, r.ID, want)
		}
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	w := deployed(t)
	at := w.f.View().Meta().Time
	c := cToken("tok-1", "join-node")
	c.Header = &logpb.Header{Time: at.Add(-time.Hour).UnixNano()}
	w.ok(c)
	if tok, _ := w.f.View().Token("tok-1"); !tok.Created.Equal(at) || !w.f.View().Meta().Time.Equal(at) {
		t.Fatalf("%v, %v", tok.Created, at)
	}
}

func TestRaiseGeneration(t *testing.T) {
	w := available(t, 1)
	w.ok(cCreate("op-c", "web-1"))
	w.until("op-c", metal.StepWriteImage)
	before := w.f.View().Revision()
	stale := w.report("op-c", phaseDone)
	w.ok(&logpb.Command{Command: &logpb.Command_RaiseGeneration{RaiseGeneration: &logpb.RaiseGeneration{AtLeast: 3,
		Nodes: []*logpb.Node{{Id: "node-7", Name: "cp7", Address: "10.0.0.7:7443"}}}}})
	v := w.f.View()
	rack, _ := v.Rack(rack1)
	if rack.Lease.Agent != "" || rack.Lease.Generation != 3 || rack.Lease.Epoch != 3<<32+1 {
		t.Fatalf("%+v", rack.Lease)
	}
	if _, ok := v.Changes(before); ok {
		t.Fatal("watchers were not told to start over")
	}
	if _, ok := v.Node("node-1"); ok {
		t.Fatal("a node of the backup is still there")
	}
	w.refused(cReport(stale), metal.CodeStaleEpoch)
	if o, _ := v.Operation("op-c"); o.State != metal.OperationPending || o.Attempt != 1 {
		t.Fatalf("%+v", o)
	}
	w.ok(cGrant(rack1, agt1, rack.Lease.Epoch))
	w.ok(&logpb.Command{Command: &logpb.Command_ThawRack{ThawRack: &logpb.ThawRack{RackId: rack1}}})
	w.finish("op-c")
	w.state("srv-00000", metal.StateActive)
}

func TestAuditChain(t *testing.T) {
	w := deployed(t)
	w.refused(cCreate("op-n", "web-1"), metal.CodeNameTaken)
	head := []byte(nil)
	i := 0
	for e := range w.f.View().Audit(0) {
		head = digest(string(head) + string(w.log[i]))
		if string(e.Hash) != string(head) || e.Revision != uint64(i+1) {
			t.Fatalf("entry %d: %+v", i, e)
		}
		i++
	}
	m := w.f.View().Meta()
	if i != len(w.log) || string(m.AuditHead) != string(head) || m.AuditCount != uint64(i) {
		t.Fatalf("%d entries of %d", i, len(w.log))
	}
	for e := range w.f.View().Audit(w.idx - 1) {
		if e.Command != "create_server" || e.Target != "web-1" || e.Outcome != metal.CodeNameTaken || e.Principal != "ann" {
			t.Fatalf("%+v", e)
		}
	}
}
