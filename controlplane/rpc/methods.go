package rpc

import (
	agentv1 "bmc/api/agent/v1"
	bmcv1 "bmc/api/bmc/v1"
	"bmc/metal"
)

// rule says who may call a method and where it runs. Exactly one of role,
// agent, node and public admits; node may stand beside role.
type rule struct {
	role   metal.Role // weakest role of a user that may call it
	agent  bool       // agents, by their certificate
	node   bool       // nodes, by their certificate
	public bool       // anyone; the handler checks what the request carries
	leader bool       // runs at the leader; other nodes forward it
}

// rules is the one table of authorization. A method that is missing here is
// refused; a test walks every service to find such methods.
var rules = map[string]rule{
	bmcv1.Servers_CreateServer_FullMethodName:  {role: metal.RoleMember, leader: true},
	bmcv1.Servers_GetServer_FullMethodName:     {role: metal.RoleViewer},
	bmcv1.Servers_ListServers_FullMethodName:   {role: metal.RoleViewer},
	bmcv1.Servers_RestartServer_FullMethodName: {role: metal.RoleMember, leader: true},
	bmcv1.Servers_SetPower_FullMethodName:      {role: metal.RoleMember, leader: true},
	bmcv1.Servers_DestroyServer_FullMethodName: {role: metal.RoleMember, leader: true},
	bmcv1.Servers_RetryServer_FullMethodName:   {role: metal.RoleMember, leader: true},
	// Progress is in the leader's memory alone.
	bmcv1.Servers_ExplainServer_FullMethodName: {role: metal.RoleViewer, leader: true},
	bmcv1.Servers_Tunnel_FullMethodName:        {role: metal.RoleMember},

	bmcv1.Inventory_ApplyInventory_FullMethodName:   {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_InspectServer_FullMethodName:    {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_ForgetServer_FullMethodName:     {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_CleanServer_FullMethodName:      {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_QuarantineServer_FullMethodName: {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_RetireServer_FullMethodName:     {role: metal.RoleOperator, leader: true},
	// Tenants may protect what they rent; the handler looks at the hold.
	bmcv1.Inventory_SetHold_FullMethodName:        {role: metal.RoleMember, leader: true},
	bmcv1.Inventory_ThawRack_FullMethodName:       {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_FreezeRacks_FullMethodName:    {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_SetRackWarm_FullMethodName:    {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_ListRacks_FullMethodName:      {role: metal.RoleViewer},
	bmcv1.Inventory_GetRack_FullMethodName:        {role: metal.RoleViewer},
	bmcv1.Inventory_ListSizes_FullMethodName:      {role: metal.RoleViewer},
	bmcv1.Inventory_ListAgents_FullMethodName:     {role: metal.RoleOperator},
	bmcv1.Inventory_TestSizes_FullMethodName:      {role: metal.RoleOperator},
	bmcv1.Inventory_ListModels_FullMethodName:     {role: metal.RoleOperator},
	bmcv1.Inventory_SetModelKexec_FullMethodName:  {role: metal.RoleOperator, leader: true},
	bmcv1.Inventory_AcceptIdentity_FullMethodName: {role: metal.RoleOperator, leader: true},

	bmcv1.Operations_GetOperation_FullMethodName:    {role: metal.RoleViewer, leader: true},
	bmcv1.Operations_CancelOperation_FullMethodName: {role: metal.RoleMember, leader: true},
	bmcv1.Operations_ListOperations_FullMethodName:  {role: metal.RoleViewer},
	// The handler itself follows the leader, from one to the next.
	bmcv1.Operations_WatchOperation_FullMethodName: {role: metal.RoleViewer},

	bmcv1.Events_ListEvents_FullMethodName: {role: metal.RoleViewer},
	bmcv1.Events_Watch_FullMethodName:      {role: metal.RoleViewer},

	bmcv1.Images_MissingChunks_FullMethodName: {role: metal.RoleMember},
	bmcv1.Images_PutChunk_FullMethodName:      {role: metal.RoleMember},
	bmcv1.Images_CreateImage_FullMethodName:   {role: metal.RoleMember, leader: true},
	bmcv1.Images_GetImage_FullMethodName:      {role: metal.RoleViewer},
	bmcv1.Images_ListImages_FullMethodName:    {role: metal.RoleViewer},
	bmcv1.Images_DeleteImage_FullMethodName:   {role: metal.RoleMember, leader: true},
	// Whoever may add a signing key decides what boots: not for members.
	bmcv1.Images_AddSigningKey_FullMethodName: {role: metal.RoleOperator, leader: true},

	bmcv1.Keys_AddKey_FullMethodName:    {role: metal.RoleMember, leader: true},
	bmcv1.Keys_ListKeys_FullMethodName:  {role: metal.RoleViewer},
	bmcv1.Keys_RemoveKey_FullMethodName: {role: metal.RoleMember, leader: true},

	bmcv1.Cluster_Status_FullMethodName:            {role: metal.RoleViewer},
	bmcv1.Cluster_Peers_FullMethodName:             {role: metal.RoleOperator, node: true},
	bmcv1.Cluster_CreateJoinToken_FullMethodName:   {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_SaveSnapshot_FullMethodName:      {role: metal.RoleAdmin},
	bmcv1.Cluster_InspectSnapshot_FullMethodName:   {role: metal.RoleAdmin},
	bmcv1.Cluster_RestoreSnapshot_FullMethodName:   {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_WhoAmI_FullMethodName:            {role: metal.RoleViewer},
	bmcv1.Cluster_CreateToken_FullMethodName:       {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_RemoveNode_FullMethodName:        {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_RemoveAgent_FullMethodName:       {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_TransferLeader_FullMethodName:    {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_RaiseFeatureLevel_FullMethodName: {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_ListTokens_FullMethodName:        {role: metal.RoleAdmin},
	bmcv1.Cluster_RevokeToken_FullMethodName:       {role: metal.RoleAdmin, leader: true},
	bmcv1.Cluster_Version_FullMethodName:           {public: true},

	agentv1.Enrollment_JoinAgent_FullMethodName: {public: true, leader: true},
	agentv1.Enrollment_JoinNode_FullMethodName:  {public: true, leader: true},

	agentv1.Control_WatchRack_FullMethodName:              {agent: true},
	agentv1.Control_RenewLease_FullMethodName:             {agent: true, leader: true},
	agentv1.Control_ReportStep_FullMethodName:             {agent: true, leader: true},
	agentv1.Control_ReportProgress_FullMethodName:         {agent: true, leader: true},
	agentv1.Control_ReportObservations_FullMethodName:     {agent: true, leader: true},
	agentv1.Control_ReportWatts_FullMethodName:            {agent: true}, // told to every node
	agentv1.Control_Reconcile_FullMethodName:              {agent: true, leader: true},
	agentv1.Control_LendAddress_FullMethodName:            {agent: true, leader: true},
	agentv1.Control_ReportDiscovered_FullMethodName:       {agent: true, leader: true},
	agentv1.Control_IssueServerCertificate_FullMethodName: {agent: true},
	agentv1.Control_RenewCertificate_FullMethodName:       {agent: true},
	agentv1.Control_Tunnels_FullMethodName:                {agent: true},
	agentv1.Control_Tunnel_FullMethodName:                 {agent: true},

	agentv1.Nodes_ReadIndex_FullMethodName:    {node: true},
	agentv1.Nodes_StateHash_FullMethodName:    {node: true},
	agentv1.Nodes_LeaderGone_FullMethodName:   {node: true},
	agentv1.Nodes_RegisterNode_FullMethodName: {node: true}, // never forwarded: who calls is whom it is about

	"/grpc.health.v1.Health/Check": {public: true},
	"/grpc.health.v1.Health/Watch": {public: true},
	"/grpc.health.v1.Health/List":  {public: true},
	// The schema is no secret: it is in the repository.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {public: true},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {public: true},
}

// rank orders the roles; 0 is none of them.
func rank(r metal.Role) int {
	switch r {
	case metal.RoleViewer:
		return 1
	case metal.RoleMember:
		return 2
	case metal.RoleOperator:
		return 3
	case metal.RoleAdmin:
		return 4
	}
	return 0
}
