package revokdgrpc_test

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdgrpc"
	"github.com/revokd/revokd/revocation"
)

// The interceptors of a server. In a service Allow is that of a client.Client, and the function that verifies is Claims of a revokdjwt.Verifier.
func ExampleNew() {
	verify := func(_ context.Context, token string) (*revocation.Claims, error) {
		c := new(revocation.Claims)
		return c, c.Set("jti", revocation.String(token))
	}
	i, err := revokdgrpc.New(revokdgrpc.Config{
		Claims: revokdgrpc.Bearer(verify),
		Allow:  func(*revocation.Claims) error { return client.ErrRevoked },
	})
	if err != nil {
		panic(err)
	}
	grpc.NewServer(grpc.ChainUnaryInterceptor(i.Unary), grpc.ChainStreamInterceptor(i.Stream)).Stop()

	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer t"))
	_, err = i.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/shop.Orders/List"}, nil)
	fmt.Println(status.Code(err))
	// Output: Unauthenticated
}
