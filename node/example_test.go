package node_test

import (
	"context"
	"fmt"
	"time"

	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// A service that is a node of its own: it revokes and checks without a network.
func Example() {
	n, err := node.New(node.Config{Name: "web-1", Durability: node.DurabilityMemory, Key: revocation.Key{1, 2, 3}})
	if err != nil {
		panic(err)
	}
	defer n.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for len(n.Ready()) > 0 {
		<-time.After(time.Millisecond)
	}

	session, _ := revocation.ParseMatch("iss=https://id.example,sid=s1")
	results, receipt, err := n.Write(ctx, []revocation.Request{{Match: session, Reason: revocation.ReasonLogout}}, node.WriteOptions{})
	if err != nil || results[0].Err != nil {
		panic(fmt.Sprint(err, results))
	}
	fmt.Println(results[0].Outcome, "in", receipt.Durability)

	now := time.Now().Unix()
	claims, _ := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"https://id.example","sid":"s1","iat":%d,"exp":%d}`, now, now+60))
	v := n.Check(claims)
	fmt.Println(v.Status, v.Rule.Class, v.Rule.Reason)

	cancel()
	if err := <-done; err != nil {
		panic(err)
	}
	// Output:
	// revoked in memory
	// revoked deny logout
}
