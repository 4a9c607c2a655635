package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/metal"
)

// expiresSoon is how long before its end doctor speaks of a token.
const expiresSoon = 7 * 24 * time.Hour

// credential says who calls, and until when.
func credential(w *bmcv1.WhoAmIResponse) finding {
	f := finding{what: "credential", result: fmt.Sprintf("%s, %s of project %s", w.GetPrincipal(), w.GetRole(), firstOf(w.GetProject(), "-"))}
	if t := w.GetExpires(); t != nil && time.Until(t.AsTime()) < expiresSoon {
		f.result += ", until " + when(t)
		f.hint = fmt.Sprintf("bmc token create %s --role %s", w.GetPrincipal(), w.GetRole())
	}
	return f
}

// checkRacks looks at what the control plane drives, as far as the caller may see it,
// by what any node knows: without a leader, too.
func checkRacks(ctx context.Context, c *client.Client, w *bmcv1.WhoAmIResponse) []finding {
	var out []finding
	racks, err := c.Inventory.ListRacks(ctx, &bmcv1.ListRacksRequest{AllowStale: true})
	if err != nil {
		return append(out, finding{"racks", describe(err).Message, otherThanDoctor(describe(err).Hint), true, metal.CodeOf(err)})
	}
	for _, r := range racks.GetRacks() {
		switch {
		case r.GetFrozen():
			out = append(out, finding{what: "rack " + r.GetName(), result: "frozen since a backup was restored: nothing starts there", hint: "bmc rack thaw " + r.GetName(), bad: true})
		case r.GetFrozenBy() != "": // somebody wants it so
			out = append(out, finding{what: "rack " + r.GetName(), result: "frozen " + whyFrozen(r) + ": nothing new starts there", hint: "bmc cluster thaw " + r.GetName()})
		case r.GetServers() > 0 && r.GetLease().GetHolder() == "":
			out = append(out, finding{what: "rack " + r.GetName(), result: "no agent acts for it", hint: "bmc agent list", bad: true})
		}
	}
	list, err := servers(ctx, c)
	if err != nil {
		return append(out, finding{"servers", describe(err).Message, otherThanDoctor(describe(err).Hint), true, metal.CodeOf(err)})
	}
	out = append(out, checkServers(list)...)
	if w.GetRole() == string(metal.RoleViewer) {
		return out // it may not ask the store
	}
	return append(out, checkStore(ctx, c))
}

func servers(ctx context.Context, c *client.Client) (out []*bmcv1.Server, _ error) {
	req := &bmcv1.ListServersRequest{PageSize: 50_000, AllowStale: true}
	for {
		page, err := c.Servers.ListServers(ctx, req)
		if err != nil {
			return nil, err
		}
		out = append(out, page.GetServers()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return out, nil
		}
	}
}

// troubles are what a person must look at, by state or condition.
var troubles = map[string]string{
	string(metal.StateFailed):               "failed",
	string(metal.StateQuarantined):          "quarantined",
	string(metal.ConditionOOBUnreachable):   "with a management controller that does not answer",
	string(metal.ConditionLate):             "that take longer than they should",
	string(metal.ConditionAgentLost):        "whose rack's agent is lost",
	string(metal.ConditionHardwareDegraded): "with failing hardware",
}

// checkServers counts servers by what is wrong with them, and names the first.
func checkServers(list []*bmcv1.Server) []finding {
	found := map[string][]string{}
	for _, s := range list {
		if troubles[s.GetState()] != "" {
			found[s.GetState()] = append(found[s.GetState()], target0(s))
		}
		for _, c := range s.GetConditions() {
			if troubles[c.GetName()] != "" {
				found[c.GetName()] = append(found[c.GetName()], target0(s))
			}
		}
	}
	var out []finding
	for _, what := range slices.Sorted(maps.Keys(found)) {
		names := found[what]
		text := fmt.Sprintf("%d %s: %s", len(names), troubles[what], strings.Join(names[:min(3, len(names))], ", "))
		if len(names) > 3 {
			text += ", …"
		}
		out = append(out, finding{what: "servers", result: text, hint: "bmc explain " + names[0], bad: true})
	}
	return out
}

// checkStore asks a node for a chunk that nobody has: the store has to answer for that.
func checkStore(ctx context.Context, c *client.Client) finding {
	digest := make([]byte, 32)
	rand.Read(digest) //nolint:errcheck // it never fails
	if _, err := c.Images.MissingChunks(ctx, &bmcv1.MissingChunksRequest{Digests: [][]byte{digest}}); err != nil {
		return finding{"image store", describe(err).Message, "look at image_store in the nodes' configuration, and at their logs", true, metal.CodeOf(err)}
	}
	return finding{what: "image store", result: "answers"}
}
