package client

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	bmcv1 "bmc/api/bmc/v1"
)

// EachNode calls each node by itself, all at once, for what nodes say of themselves;
// it returns when all calls have. ctx bounds them.
func (c *Client) EachNode(ctx context.Context, call func(ctx context.Context, node bmcv1.ClusterClient)) {
	var wg sync.WaitGroup
	for _, conn := range c.conn.conns {
		wg.Go(func() { call(ctx, bmcv1.NewClusterClient(&single{conn, c.conn})) })
	}
	wg.Wait()
}

// single is one node's connection, with the caller's credential.
type single struct {
	*grpc.ClientConn
	f *failover
}

func (s *single) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return decode(s.ClientConn.Invoke(s.f.authorized(ctx), method, args, reply, opts...))
}
