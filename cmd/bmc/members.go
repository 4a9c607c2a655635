package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/cmd/bmc/output"
	"bmc/metal"
)

// memberCommands change who belongs to the control plane.
func (a *app) memberCommands() []*cobra.Command {
	var force bool
	removeNode := &cobra.Command{Use: "remove-node NODE", Short: "Take a control-plane node out for good", Args: exactly("NODE"),
		Long: "Its certificate opens nothing from then on. To replace a node whose disk is gone: remove it, then let a\n" +
			"new one join under the same name; it gets an ID of its own.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			if err := a.known(cmd.Context(), "control-plane node", args[0], "bmc cluster peers", nodeNames(c)); err != nil {
				return err
			}
			if err := a.confirm("Removes control-plane node "+args[0]+" for good.", args[0], "bmc cluster remove-node "+args[0]+" --yes"); err != nil {
				return err
			}
			if _, err := c.Cluster.RemoveNode(cmd.Context(), &bmcv1.RemoveNodeRequest{Ref: args[0], Force: force}); err != nil {
				return err
			}
			a.note("%s is no longer a node", args[0])
			return nil
		}}
	removeNode.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	removeNode.Flags().BoolVar(&force, "force", false, "even if fewer than a quorum of the others answer")
	transfer := &cobra.Command{Use: "transfer-leader [NODE]", Short: "Hand leadership to another node", Args: atMost("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			req := &bmcv1.TransferLeaderRequest{}
			if len(args) > 0 {
				req.Ref = args[0]
			}
			res, err := c.Cluster.TransferLeader(cmd.Context(), req)
			if err != nil {
				return err
			}
			a.note("%s leads", firstOf(res.GetLeaderName(), res.GetLeaderId()))
			return nil
		}}
	var level uint32
	raise := &cobra.Command{Use: "raise-feature-level", Short: "Allow what every node's software knows; there is no way back", Args: exactly(),
		Long: "After an upgrade of every node. A node of older software can then neither run nor join.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Cluster.RaiseFeatureLevel(cmd.Context(), &bmcv1.RaiseFeatureLevelRequest{Level: level})
			if err != nil {
				return err
			}
			a.note("the feature level is %d", res.GetLevel())
			return nil
		}}
	raise.Flags().Uint32Var(&level, "level", 0, "this one (the highest that every node knows)")
	return []*cobra.Command{removeNode, transfer, raise}
}

func (a *app) removeAgentCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "remove AGENT", Short: "Revoke an agent: its certificate opens nothing any more", Args: exactly("AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			if err := a.known(cmd.Context(), "agent", args[0], "bmc agent list", agentNames(c)); err != nil {
				return err
			}
			if err := a.confirm("Revokes agent "+args[0]+".", args[0], "bmc agent remove "+args[0]+" --yes"); err != nil {
				return err
			}
			if _, err := c.Cluster.RemoveAgent(cmd.Context(), &bmcv1.RemoveAgentRequest{Ref: args[0]}); err != nil {
				return err
			}
			a.note("agent %s is revoked", args[0])
			return nil
		}}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask")
	return cmd
}

// known refuses a wrong name before somebody is asked to confirm it.
func (a *app) known(ctx context.Context, what, ref, hint string, names func(context.Context) ([]string, error)) error {
	if a.yes {
		return nil // the answer says so
	}
	all, err := names(ctx)
	if err == nil && !slices.Contains(all, ref) {
		err = metal.Errorf(metal.CodeNotFound, "there is no %s %q", what, ref).WithHint("%s", hint)
	}
	return err
}

func nodeNames(c *client.Client) func(context.Context) ([]string, error) {
	return func(ctx context.Context) (out []string, _ error) {
		res, err := c.Cluster.Peers(ctx, &bmcv1.PeersRequest{})
		for _, p := range res.GetPeers() {
			out = append(out, p.GetName(), p.GetId())
		}
		return out, err
	}
}

func agentNames(c *client.Client) func(context.Context) ([]string, error) {
	return func(ctx context.Context) (out []string, _ error) {
		res, err := c.Inventory.ListAgents(ctx, &bmcv1.ListAgentsRequest{})
		for _, x := range res.GetAgents() {
			out = append(out, x.GetName(), x.GetId())
		}
		return out, err
	}
}

var tokenColumns = []output.Column[*bmcv1.Token]{
	{Name: "ID", Value: (*bmcv1.Token).GetId},
	{Name: "NAME", Value: (*bmcv1.Token).GetName},
	{Name: "KIND", Value: (*bmcv1.Token).GetKind},
	{Name: "ROLE", Value: (*bmcv1.Token).GetRole},
	{Name: "PROJECT", Value: (*bmcv1.Token).GetProject},
	{Name: "EXPIRES", Value: func(t *bmcv1.Token) string { return firstOf(when(t.GetExpires()), "never") }},
	{Name: "USED", Wide: true, Value: func(t *bmcv1.Token) string { return fmt.Sprint(t.GetUsed()) }},
	{Name: "CREATED", Wide: true, Value: func(t *bmcv1.Token) string { return when(t.GetCreated()) }},
}

func (a *app) tokenListCommands() []*cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the tokens; never their secrets", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			res, err := c.Cluster.ListTokens(cmd.Context(), &bmcv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return output.List(a.out, a.format, res.GetTokens(), tokenColumns, (*bmcv1.Token).GetId)
		}}
	revoke := &cobra.Command{Use: "revoke TOKEN", Short: "End a token at once", Args: exactly("TOKEN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			if _, err := c.Cluster.RevokeToken(cmd.Context(), &bmcv1.RevokeTokenRequest{Id: args[0]}); err != nil {
				return err
			}
			a.note("token %s is revoked", args[0])
			return nil
		}}
	return []*cobra.Command{list, revoke}
}
